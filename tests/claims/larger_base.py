"""What docs/evidence/larger-base.md, docs/evidence.md and docs/rivals.md say of the base of 1.5 billion weights."""

from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

from tests.claims.numbers import (
    EVIDENCE,
    LARGER,
    LARGER_BASE,
    LARGER_ONCE,
    LARGER_SEARCH,
    LARGER_VALIDATION,
    README,
    RIVALS,
    SEARCHED_LARGER,
    SHOWN,
    Claim,
    Number,
    against,
    of,
    with_interval,
)

PRIMARY = "nll_posterior"
SYSTEMS = (
    ("structured LoRA", "structured", "3"),
    ("Reptile", "reptile", "3"),
    ("ABMLL, mean weights", "abmll_mean", "3"),
    ("ABMLL", "abmll", "3"),
    ("ABMLL, stds frozen", "abmll_frozen", "3"),
    ("Meta-SGD, first order", "meta_sgd", "1"),
    ("ABMLL, the paper's first-order step", "abmll_identity_copy", "1"),
    ("FOMAML", "fomaml", "3"),
    ("the plain model, adapted", "pretrained", "3"),
    ("LoRA, mixed batches", "lora", "3"),
    ("examples in the prompt", "in_context", "none"),
    ("a uniform guess", "uniform", "none"),
)
RUN_ONCE = (
    ("Meta-SGD, first order", "meta_sgd"),
    ("FOMAML", "fomaml"),
    ("ANIL", "anil"),
    ("Reptile", "reptile"),
    ("ensemble of five adaptations of the plain model", "ensemble"),
    ("ABMLL", "abmll"),
    ("structured LoRA", "structured"),
    ("MC dropout on the plain model", "mc_dropout"),
    ("the plain model, adapted", "pretrained"),
    ("SWAG on the plain model", "swag"),
    ("BLoB on the plain model", "blob"),
    ("examples in the prompt", "in_context"),
    ("MetaICL", "metaicl"),
)
FIRST_PAGE = ("structured", "reptile", "abmll", "abmll_frozen", "fomaml", "pretrained", "lora", "in_context", "uniform")
OURS = (
    ("class to class: 43.4 (in context 37.4)", "metaicl"),
    ("{name: meta-sgd}` | 1; 1; 1 | none on LoRA", "meta_sgd"),
    ("{name: anil}` | 1; 1 or less; 1 | none on LoRA", "anil"),
    ("other task sets", "swag"),
    ("ECE 29.8 to 28.5", "ensemble"),
    ("ECE 9.35, NLL .63", "blob"),
    ("exists in every method without stds", "mc_dropout"),
)
"""How a rival's row of docs/rivals.md ends before our numbers, and its name in the protocol."""


def once(system: str, part: str, metric: str, form: str = ".3f") -> Number:
    """What was measured at one seed and one draw."""
    return Number(LARGER_ONCE, f"systems/{system}/{part}/{metric}", form)


def larger_base() -> list[Claim]:
    """The tables of the page, the one of the first page, and the column of the rivals' page."""
    tables = [*map(_row, SYSTEMS), *map(_run_once, RUN_ONCE)]
    first = [_first_page(label, system) for label, system, _ in SYSTEMS if system in FIRST_PAGE]
    return [*tables, *first, *(_ours(before, system) for before, system in OURS), *_sentences(), *_recipe()]


def _row(named: tuple[str, str, str]) -> Claim:
    label, system, seeds = named
    numbers: tuple[Number, ...] = (of(LARGER, system, "accuracy", "%"), of(LARGER, system, PRIMARY))
    shown = "" if system in ("abmll", "abmll_mean") else "one seed" if seeds == "1" else SHOWN
    if shown == SHOWN:
        numbers += with_interval(LARGER, system, PRIMARY)
    numbers += (of(LARGER, system, "nll"), of(LARGER, system, "ece_choices"))
    numbers += (of(LARGER_VALIDATION, system, "accuracy", "%"), of(LARGER_VALIDATION, system, PRIMARY))
    text = f"| {label} | {seeds} | {{}} | {{}} | {shown} | {{}} | {{}} | {{}} | {{}} |".replace("|  |", "| |")
    return Claim(LARGER_BASE, text, numbers)


def _run_once(named: tuple[str, str]) -> Claim:
    label, system = named
    unseen = (("accuracy", "%"), (PRIMARY, ".3f"), ("ece", ".3f"))
    numbers = [once(system, "unseen", metric, form) for metric, form in unseen]
    numbers += [once(system, "validation", metric, form) for metric, form in unseen[:2]]
    return Claim(LARGER_BASE, f"| {label} | {{}} | {{}} | {{}} | {{}} | {{}} |", tuple(numbers))


def _first_page(label: str, system: str) -> Claim:
    numbers: tuple[Number, ...] = (of(LARGER, system, PRIMARY),)
    shown = "| |"
    if system != "abmll":
        p = ".3f" if system in ("in_context", "uniform") else "1"
        numbers += (*with_interval(LARGER, system, PRIMARY), against(LARGER, system, PRIMARY, "p", p))
        shown = f"{SHOWN} | {{}} |"
    numbers += (of(LARGER, system, "nll"), of(LARGER, system, "accuracy", "%"))
    return Claim(EVIDENCE, f"| {label} | {{}} | {shown} {{}} | {{}} |", numbers)


def _ours(before: str, system: str) -> Claim:
    numbers = once(system, "unseen", "accuracy", "%"), once(system, "unseen", PRIMARY)
    return Claim(RIVALS, before.replace("{", "{{").replace("}", "}}") + " | {} %, {} |", numbers)


def _sentences() -> list[Claim]:
    seeds = [Number(LARGER, f"systems/lora/by_seed/{seed}/{PRIMARY}") for seed in "102"]
    ensemble = [Number(LARGER_ONCE, partial(_below_plain, part=part), "size") for part in ("unseen", "validation")]
    places = [("pretrained", 0), ("reptile", 0), ("fomaml", 0), ("pretrained", 5), ("reptile", 3), ("fomaml", 2)]
    rates = [Number(LARGER_SEARCH, partial(_first_rung, system=s, trial=n), ".2f") for s, n in places]
    prompt = against(LARGER, "in_context", PRIMARY, "difference", "size")
    found = "found with the base of 135M, are too fast for this one: {}, {} and {} against {}, {} and {} after the"
    readme = [of(LARGER, system, PRIMARY) for system in ("structured", "reptile", "abmll", "pretrained", "in_context")]
    ours = "{} with structured LoRA, {} with Reptile and {} with ABMLL, against {} adapted from nothing and {} by its"
    return [
        Claim(README, ours, tuple(readme)),
        Claim(LARGER_BASE, found, tuple(rates)),
        Claim(LARGER_BASE, "its seeds are {}, {} and {}", tuple(seeds)),
        Claim(LARGER_BASE, "averaged, are below one by {} and {} nats", tuple(ensemble)),
        Claim(LARGER_BASE, "it is {} above ABMLL, beyond chance", (prompt,)),
    ]


def _below_plain(found: Any, part: str) -> float:
    ensemble, plain = (found["systems"][name][part][PRIMARY] for name in ("ensemble", "pretrained"))
    return float(ensemble - plain)


def _first_rung(found: Any, system: str, trial: int) -> float:
    (score,) = [t["score"] for t in found["trials"] if (t["system"], t["rung"], t["trial"]) == (system, 0, trial)]
    return float(score)


def _recipe() -> list[Claim]:
    """The reasons beside the values of the recipe: of the last rung's seeds the mean, or the first rung's one."""

    def mean(system: str, trial: int, rung: int = 1) -> Number:
        return Number(LARGER_SEARCH, partial(_mean_of, system=system, trial=trial, rung=rung))

    return [
        Claim(SEARCHED_LARGER, text.replace("}", "}}").replace("<>", "{}"), numbers)
        for text, numbers in (
            ("inner_lr: 3.88e-4}} # <>; in the first rung <>, the default's 1.6e-3 <>", _both(mean, "pretrained", 5)),
            (
                "inner_lr: 3.06e-4}} # <>, its two seeds .08 apart; the default's 3e-4 <>",
                (mean("lora", 1), mean("lora", 0)),
            ),
            ("inner_lr: 1.91e-4}} # <>; the default's 3e-4 <>", (mean("structured", 1), mean("structured", 0))),
            ("outer_lr: 0.603}} # <>; in the first rung <>, the default <>", _both(mean, "reptile", 3)),
            ("outer_lr: 1.97e-4}} # <>; in the first rung <>, the default <>", _both(mean, "fomaml", 2)),
            ("abmll}} # <>: no other of six trials", (mean("abmll", 0),)),
        )
    ]


def _both(mean: Callable[..., Number], system: str, trial: int) -> tuple[Number, ...]:
    return mean(system, trial), mean(system, trial, rung=0), mean(system, 0, rung=0)


def _mean_of(found: Any, system: str, trial: int, rung: int) -> float:
    return fmean(t["score"] for t in found["trials"] if (t["system"], t["rung"], t["trial"]) == (system, rung, trial))
