"""Forgetting, the default and what was searched."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

from tests.claims.numbers import (
    BEFORE,
    COST,
    DEFAULT,
    DEFAULT_FORGETTING,
    DEFAULTS,
    EVERYDAY,
    EVIDENCE,
    FIRST_FORGETTING,
    FIRST_RUN,
    FORGETTING,
    OVERVIEW,
    SEARCH,
    SEARCHED,
    SHIPPED,
    SHOWN,
    TRAINING_TASKS,
    UNSEEN,
    Claim,
    Number,
    against,
    of,
    with_interval,
)


def forgetting() -> list[Claim]:
    """Nats a token on text that is no question."""

    def second(name: str) -> Number:
        return Number(FORGETTING, f"adapters/{name}/more", "+.2f!")

    def default(names: str) -> tuple[Number, ...]:
        return tuple(Number(DEFAULT_FORGETTING, f"adapters/{name}/more", ".2f") for name in names.split())

    def least_and_most(name: str) -> tuple[Number, ...]:
        keys = [f"builtin_60.{name}.seed-{seed}" for seed in range(5)]
        return tuple(
            Number(DEFAULT_FORGETTING, lambda d, pick=pick: pick(d["adapters"][key]["more"] for key in keys), ".2f")
            for pick in (min, max)
        )

    ours = ("abmll_2", "abmll", "abmll_4", "abmll_1", "abmll_3")
    most = Number(FORGETTING, lambda f: max(one["more"] for one in f["adapters"].values()), ".2f")
    apart = tuple(Number(FIRST_FORGETTING, f"adapters/{n}/more", ".1f") for n in ("abmll-0", "abmll_frozen-2"))
    least_and_most_of_ours = tuple(Number(FORGETTING, f"adapters/{n}/more", ".2f") for n in ("abmll_2", "abmll_3"))
    return [
        Claim(COST, "| abmll (2), (0), (4), (1), (3) | {}, {}, {}, {}, {} |", tuple(map(second, ours))),
        Claim(COST, "| fomaml (0) | {} |", (second("fomaml"),)),
        Claim(COST, "| reptile (0) | {} [", (second("reptile"),)),
        Claim(COST, "| lora (0) | {} [", (second("lora"),)),
        Claim(COST, "| structured, `fresh` (0) | {} [", (second("structured"),)),
        Claim(
            COST,
            "| the adapter that comes with abmll (60 iterations on built-in questions) | +0{} [",
            default("shipped"),
        ),
        Claim(COST, "two adapters that fell apart | +{}, +{} |", apart),
        Claim(FIRST_RUN, "the two adapters that fell apart cost {} and {} nats a token.", apart),
        Claim(OVERVIEW, "Meta-training by choices costs up to {} nats a token on text that is no question", (most,)),
        Claim(
            EVIDENCE,
            "by {} to {} nats a token with ABMLL and by up to {} with structured LoRA.",
            (*least_and_most_of_ours, most),
        ),
        Claim(
            DEFAULT,
            "(least to most) | {} ({} to {}) | {} ({} to {}) | | 300 iterations, two seeds | {}, {} | {}, {} |",
            (
                *(_mean_of_five("abmll"), *least_and_most("abmll")),
                *(_mean_of_five("abmll_before"), *least_and_most("abmll_before")),
                *default("builtin_300.abmll.seed-0 builtin_300.abmll.seed-2"),
                *default("builtin_300.abmll_before.seed-1 builtin_300.abmll_before.seed-2"),
            ),
        ),
        Claim(SHIPPED, "costs general text {} nats, not {}", (_mean_of_five("abmll"), _mean_of_five("abmll_before"))),
    ]


def _mean_of_five(name: str) -> Number:
    keys = [f"builtin_60.{name}.seed-{seed}" for seed in range(5)]
    return Number(DEFAULT_FORGETTING, lambda d: fmean(d["adapters"][key]["more"] for key in keys), ".2f")


def defaults() -> list[Claim]:
    """ABMLL's default, tested on the validation tasks; and what the page on everyday use says of it."""
    out = []
    for label, seeds, folder in (
        ("the 25 built-in families | 60", 5, "builtin_60"),
        ("the 25 built-in families | 300", 3, "builtin_300"),
        ("the 34 training tasks | 300", 3, "train_300"),
    ):
        file = DEFAULTS.format(folder)
        numbers = (
            of(file, "abmll", "nll_scaled"),
            of(file, "abmll_before", "nll_scaled"),
            *with_interval(file, "abmll_before"),
        )
        numbers += (of(file, "abmll", "accuracy", "%"), of(file, "abmll_before", "accuracy", "%"))
        out.append(Claim(DEFAULT, f"| {label}, {seeds} | {{}}; {{}}; {SHOWN} | {{}}; {{}} |", numbers))
    families, sixty = DEFAULTS.format("held_out_60"), DEFAULTS.format("builtin_60")
    zero = "before_adaptation/{}"
    scaled = tuple(
        Number(DEFAULTS.format(folder), BEFORE.format("abmll_before", "nll_scaled", "difference"), "+.3f")
        for folder in ("train_300", "builtin_60", "builtin_300")
    )
    out += [
        Claim(
            EVERYDAY,
            "| three held-out built-in families, three seeds | {} %, NLL {} | {} %, {} | {} %, {} | {} %, {} |",
            (
                *(of(families, n, zero.format(m), f) for n in ("abmll_before", "pretrained") for m, f in PAIR),
                *(of(families, n, m, f) for n in ("abmll_before", "pretrained") for m, f in PAIR),
            ),
        ),
        Claim(
            EVERYDAY,
            "| six real task sets, five seeds | {} %, {} | {} %, {} | {} %, scaled {} | {} %, scaled {} |",
            (
                *(of(sixty, n, zero.format(m), f) for n in ("abmll_before", "pretrained") for m, f in PAIR),
                *(
                    of(sixty, n, m, f)
                    for n in ("abmll_before", "pretrained")
                    for m, f in (PAIR[0], ("nll_scaled", ".3f"))
                ),
            ),
        ),
        Claim(
            EVERYDAY,
            "the gain is {} points on the families, [{}, {}] by a bootstrap over seeds and questions, and {} on the "
            "six, [{}, {}];",
            tuple(
                Number(file, BEFORE.format("abmll_before", "accuracy", what), "+%")
                for file in (families, sixty)
                for what in ("difference", "interval/0", "interval/1")
            ),
        ),
        Claim(
            TRAINING_TASKS,
            "| the 34 tasks, 300 | {} | {} | {} | | the built-in questions, 60 | {} | {} | {} | "
            "| the built-in questions, 300 | {} | | {} | | the base model | | {} | {} |",
            (
                *(scaled[0], *(of(DEFAULTS.format("train_300"), "abmll_before", zero.format(m), f) for m, f in PAIR)),
                *(scaled[1], *(of(sixty, "abmll_before", zero.format(m), f) for m, f in PAIR)),
                *(scaled[2], of(DEFAULTS.format("builtin_300"), "abmll_before", zero.format("nll"))),
                *(of(sixty, "pretrained", zero.format(m), f) for m, f in PAIR),
            ),
        ),
        Claim(
            UNSEEN,
            "the two settings differ by {} and {}.",
            tuple(
                against(DEFAULTS.format(folder), "abmll_before", "nll_scaled", "difference", ".3f")
                for folder in ("held_out_60", "held_out_300")
            ),
        ),
    ]
    return out


PAIR = (("accuracy", "%"), ("nll", ".3f"))


def searched() -> list[Claim]:
    """The reasons beside the values of src/abmll/recipes/searched.yaml."""

    def score(system: str, trial: int) -> Callable[[Any], float]:
        def mean(search: Any) -> float:
            rows = [t for t in search["trials"] if (t["system"], t["rung"], t["trial"]) == (system, 1, trial)]
            return fmean(row["score"] for row in rows)

        return mean

    best = {"pretrained": 8, "lora": 3, "reptile": 1, "fomaml": 1, "abmll": 5}
    texts = {
        "pretrained": "inner_lr: 1.62e-3}} # {} on the validation tasks",
        "lora": "inner_lr: 2.87e-4}} # {};",
        "reptile": "outer_lr: 0.219}} # {};",
        "fomaml": "outer_lr: 3.66e-5}} # {}, by hardly moving theta",
        "abmll": "abmll: # {} method",
    }
    return [
        Claim(
            SEARCHED,
            text.replace("}}", "<<").replace("<<", "}}}}"),
            (Number(SEARCH, score(system, best[system]), ".4f"),),
        )
        for system, text in texts.items()
    ]
