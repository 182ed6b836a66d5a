"""What README.md and benchmarks/own/README.md say of own rows, by benchmarks/own/results.json."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from tests.claims.numbers import OWN, OWN_RESULTS, README, Claim, Number, read

ADAPTED = "qwen2.5-coder-1.5b adapted"
ROWS = {
    "1.5B, adapted, at its temperature": (ADAPTED, "_posterior"),
    "the same rows in its prompt": ("qwen2.5-coder-1.5b prompt", ""),
    "sentence vectors + logistic regression": ("cheap sentence vectors", ""),
    "TF-IDF + logistic regression": ("cheap tf-idf", ""),
}
CHEAP = ("cheap sentence vectors", "cheap tf-idf")


def own() -> list[Claim]:
    """The table of README.md, and the counts of sets of both documents."""
    names = {"adapted": ADAPTED, "small": "qwen2.5-coder-0.5b adapted"}
    counts = {(who, size): _won(system, size) for who, system in names.items() for size in ("few", "more")}

    def count(who: str, size: str) -> Number:
        return Number(OWN_RESULTS, lambda _: counts[who, size], ".0f!")

    summary = {
        name: Number(OWN_RESULTS, f"summary/{name}", form)
        for name, form in (("sets_won_nll_20", ".0f!"), ("mean_accuracy_lead_20", "%"), ("ece_over_floor", ".2f!"))
    }
    return [
        *(_row(label, system, after) for label, (system, after) in ROWS.items()),
        Claim(README, "has the lowest NLL on {}, against", (summary["sets_won_nll_20"],)),
        Claim(README, "it is ahead on {}.", (count("adapted", "more"),)),
        Claim(
            README,
            "ahead of them on {} of 12 with 20 rows, on {} with 60",
            (count("small", "few"), count("small", "more")),
        ),
        Claim(
            OWN,
            "on {} of 12 sets at the smaller size, and is {} points more accurate",
            (summary["sets_won_nll_20"], summary["mean_accuracy_lead_20"]),
        ),
    ]


def _row(label: str, system: str, after: str) -> Claim:
    def mean(key: str, form: str) -> Number:
        return Number(OWN_RESULTS, lambda r: fmean(s["few"][system][key] for s in r["sets"].values()), form)

    numbers = (mean("accuracy", "%"), mean(f"nll{after}", ".3f!"), mean(f"ece{after}", ".3f"))
    seconds = mean("seconds_per_1000", ".2g")
    return Claim(README, f"| {label} | {{}} | {{}} | {{}} | {{}}", (*numbers, seconds))


def _won(system: str, size: str) -> int:
    """Sets on which a system at its temperature has a lower NLL than both regressions, as stated or tempered."""
    sets: Mapping[str, Any] = read(OWN_RESULTS)["sets"]
    best = {name: min(s[size][c][k] for c in CHEAP for k in ("nll", "nll_posterior")) for name, s in sets.items()}
    return sum(s[size][system]["nll_posterior"] < best[name] for name, s in sets.items())
