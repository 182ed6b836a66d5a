"""What was measured at one training seed."""

from collections.abc import Callable
from typing import Any

from tests.claims.numbers import (
    IN_DOMAIN,
    QUESTIONS,
    SEARCHED,
    SETTINGS,
    SHOWN,
    TRAINING_TASKS,
    Claim,
    Number,
    against,
    of,
    with_interval,
)

ITERATIONS: tuple[float | None, ...] = (100, None, 1000, 2000)
EXAMPLES: tuple[float | None, ...] = (5, 10, None, 50, 100)
STEPS: tuple[float | None, ...] = (0, 1, 5, None, 30)
"""Values of a setting; None: the chosen one."""


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
        out.append(Claim(TRAINING_TASKS, f"| {label} | {{}}, {{}} | {{}}, {{}}, {{}} | {SHOWN} |", numbers))
    ahead = [
        against(IN_DOMAIN, "abmll", "accuracy", "difference", "+%", "pretrained"),
        Number(IN_DOMAIN, lambda s: s["systems"]["abmll"]["accuracy"] - s["systems"]["lora"]["accuracy"], "+%"),
    ]
    out.append(Claim(TRAINING_TASKS, "{} points above `pretrained` and {} above LoRA.", tuple(ahead)))
    for text, question, system, values in (
        ("iterations: 100, 300, 1,000, 2,000 | abmll | {}, {}, {}, {} |", "iterations", "abmll", ITERATIONS),
        ("| | reptile | {}, {}, {}, {} | |", "iterations", "reptile", ITERATIONS),
        ("| | fomaml | {}, {}, {}, {} |", "iterations", "fomaml", ITERATIONS),
        ("| | lora | {}, {}, {}, {} |", "iterations", "lora", ITERATIONS),
        ("| | structured, `fresh` | {}, {}, {}, {} |", "iterations", "structured", ITERATIONS),
        ("50 (25), 100 (50) | abmll | {}, {}, {}, {}, {} |", "examples", "abmll", EXAMPLES),
        ("| | reptile | {}, {}, {}, {}, {} |", "examples", "reptile", EXAMPLES),
        ("| | structured, `fresh` | {}, {}, {}, {}, {} |", "examples", "structured", EXAMPLES),
        ("steps of adaptation: 0, 1, 5, 10, 30 | abmll | {}, {}, {}, {}, {} |", "steps", "abmll", STEPS),
        ("| | reptile | {}, {}, {}, {}, {} |", "steps", "reptile", STEPS),
        ("| | structured, `fresh` | {}, {}, {}, {}, {} |", "steps", "structured", STEPS),
        ("tasks trained on: 2, 8, 34 | abmll | {}, {}, {} |", "training_tasks", "abmll", (2, 8, None)),
        ("| | reptile | {}, {}, {} |", "training_tasks", "reptile", (2, 8, None)),
        ("| | structured, `fresh` | {}, {}, {} |", "training_tasks", "structured", (2, 8, None)),
        ("1e-6, 1e-4, 1e-2, 1 | abmll | {}, {}, {}, not finite |", "std_lr", "abmll", (1e-6, 1e-4, 1e-2)),
        ("7.5e-3, 1e-2, 1 | abmll | {}, {}, {}, {}, not finite |", "std_init", "abmll", (1e-6, 1e-4, None, 1e-2)),
    ):
        out.append(Claim(SETTINGS, text, tuple(_at(question, system, value) for value in values)))
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
