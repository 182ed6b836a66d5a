"""What was measured at one training seed."""

from collections.abc import Callable
from typing import Any

from tests.claims.numbers import (
    EVIDENCE,
    IN_DOMAIN,
    QUESTIONS,
    README,
    SEARCHED,
    SHOWN,
    Claim,
    Number,
    against,
    of,
    with_interval,
)


def one_seed() -> list[Claim]:
    """What was measured at one training seed: numbers, and never a p."""
    out = []
    for label, system in (
        ("lora", "lora"),
        ("reptile", "reptile"),
        ("abmll, frozen stds", "abmll_frozen"),
        ("abmll", "abmll"),
        ("structured, `fresh`", "structured"),
        ("fomaml", "fomaml"),
    ):
        numbers = (
            of(IN_DOMAIN, system, "before_adaptation/accuracy", "%"),
            of(IN_DOMAIN, system, "before_adaptation/nll"),
        )
        numbers += (
            of(IN_DOMAIN, system, "accuracy", "%"),
            of(IN_DOMAIN, system, "nll"),
            of(IN_DOMAIN, system, "nll_scaled"),
        )
        numbers += with_interval(IN_DOMAIN, system, reference="pretrained")
        out.append(Claim(EVIDENCE, f"| {label} | {{}}, {{}} | {{}}, {{}}, {{}} | {SHOWN} |", numbers))
    two = (of(IN_DOMAIN, "abmll", "accuracy", "%"), of(IN_DOMAIN, "pretrained", "accuracy", "%"))
    out.append(Claim(README, "it answered {} % against the plain model's {}, at one seed, so untested.", two))
    lowers = tuple(
        against(IN_DOMAIN, n, "nll_scaled", "difference", "size", "pretrained") for n in ("abmll", "lora", "reptile")
    )
    out.append(
        Claim(
            EVIDENCE,
            "ABMLL answers {} % against {} and lowers the scaled NLL by {}, LoRA and Reptile by {} and {}.",
            (*two, *lowers),
        )
    )
    for start, system, values in (
        ("ABMLL {}, {}, {}, {}; Reptile", "abmll", (100, None, 1000, 2000)),
        ("; Reptile {}, {}, {}, {}; FOMAML", "reptile", (100, None, 1000, 2000)),
        ("; FOMAML {}, {}, {}, {}; LoRA", "fomaml", (100, None, 1000, 2000)),
        ("; LoRA {}, {}, {}, {}; structured", "lora", (100, None, 1000, 2000)),
        ("; structured (`fresh`) {}, {}, {}, {} |", "structured", (100, None, 1000, 2000)),
    ):
        out.append(Claim(EVIDENCE, start, tuple(_at("iterations", system, value) for value in values)))
    for text, question, system, values in (
        ("ABMLL {}, {}, {}, {}, {}; Reptile", "examples", "abmll", (5, 10, None, 50, 100)),
        ("; Reptile {}, {}, {}, {}, {}; structured", "examples", "reptile", (5, 10, None, 50, 100)),
        ("; structured (`fresh`) {}, {}, {}, {} and {}.", "examples", "structured", (5, 10, None, 50, 100)),
        ("ABMLL {}, {}, {}, {}, {}; Reptile", "steps", "abmll", (0, 1, 5, None, 30)),
        ("; Reptile {}, {}, {}, {}, {}; structured", "steps", "reptile", (0, 1, 5, None, 30)),
        ("; structured (`fresh`) {}, {}, {}, {}, {} |", "steps", "structured", (0, 1, 5, None, 30)),
        ("ABMLL {}, {}, {}; Reptile", "training_tasks", "abmll", (2, 8, None)),
        ("; Reptile {}, {}, {}; structured", "training_tasks", "reptile", (2, 8, None)),
        ("; structured (`fresh`) {}, {}, {} |", "training_tasks", "structured", (2, 8, None)),
        ("1e-6, 1e-4, 1e-2, 1 | {}, {}, {}, not finite |", "std_lr", "abmll", (1e-6, 1e-4, 1e-2)),
        ("1e-6, 1e-4, 7.5e-3, 1e-2, 1 | {}, {}, {}, {}, not finite.", "std_init", "abmll", (1e-6, 1e-4, None, 1e-2)),
    ):
        out.append(Claim(EVIDENCE, text, tuple(_at(question, system, value) for value in values)))
    fewer = tuple(
        Number(QUESTIONS, _minus_chosen("iterations", n, 1000), "size") for n in ("reptile", "lora", "fomaml")
    )
    out.append(Claim(SEARCHED, "at one seed 1,000 had {} less for Reptile, {} for LoRA, {} for FOMAML;", fewer))
    return out


def _at(question: str, system: str, value: float | None) -> Number:
    """The scaled NLL of a point; None: of the chosen settings at the same seed and draws."""
    return Number(
        QUESTIONS, lambda q: _chosen(q, system) if value is None else _point(q, question, system, value)["nll_scaled"]
    )


def _point(questions: Any, question: str, system: str, value: float) -> Any:
    return next(one for one in questions[question][system] if one["value"] == value)


def _chosen(questions: Any, system: str) -> float:
    one = _point(questions, "iterations", system, 1000)
    return one["nll_scaled"] - one["minus_chosen"]["nll_scaled"]["difference"]


def _minus_chosen(question: str, system: str, value: float) -> Callable[[Any], float]:
    return lambda q: _point(q, question, system, value)["minus_chosen"]["nll_scaled"]["difference"]
