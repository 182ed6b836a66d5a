"""What the answers of all cells come to: scores by set, size and system, in results.json, README's tables and a figure.

    python -m benchmarks.own results ANSWERS --base qwen-1.5b -o benchmarks/own

`summary` is about the base model of the folder `--base`, adapted, at the posterior temperature. The other kinds of
systems are TF-IDF and sentence vectors with regression, and the labelled rows in the same base's prompt; each of them
counts as stated or at its own posterior temperature, whichever is better on the set in hindsight.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any

from abmll.files import write_bytes, write_text
from benchmarks.own.advice import Advised, advised
from benchmarks.own.answers import ADAPTED, Answers, learned_prior, read_answers, with_learned_priors
from benchmarks.own.draws import ASK, Cell
from benchmarks.own.figure import draw
from benchmarks.own.tables import with_tables
from experiments.short_json import short_json

Scores = dict[tuple[str, Cell], dict[str, float]]
"""System and cell -> scores."""
Means = dict[str, dict[str, dict[str, dict[str, float | None]]]]
"""set -> "few" or "more" rows -> system -> means over draws."""
NEAR = 0.03
"""Nats within which an advised choice is as good as the best in hindsight."""
SIZES = ("few", "more")


def write_results(answers: Path, base: str, out: Path) -> None:
    """Read all answers; write results.json and results.png, and the tables into README.md."""
    found = with_learned_priors({(system, cell): said for system, cell, said in read_answers(answers)})
    prior = learned_prior(found, ADAPTED)
    results = {**results_of(found, base), "prior_of_new_lora": {"mu": prior.mu, "sd": prior.sd}}
    about = {path.parent.name: json.loads(path.read_text()) for path in sorted(answers.glob("*/about.json"))}
    write_text(out / "results.json", short_json({**results, "about": about}))
    write_bytes(out / "results.png", draw(results, base))
    readme = out / "README.md"
    write_text(readme, with_tables(readme.read_text(encoding="utf-8") if readme.exists() else "", results, base))
    print(json.dumps(results["summary"], indent=1))


def results_of(found: Mapping[tuple[str, Cell], Answers], base: str) -> dict[str, Any]:
    """Everything but where it was measured."""
    scores = {key: said.scores() | {"not_finite": float(said.not_finite is not None)} for key, said in found.items()}
    by_cell: dict[Cell, dict[str, Answers]] = {}
    for (system, cell), said in found.items():
        by_cell.setdefault(cell, {})[system] = said
    of_cells = {cell: advised(cell, answers, base) for cell, answers in by_cell.items()}
    advice = {cell: choice for cell, choice in of_cells.items() if choice is not None}
    return {
        "sets": means_of(scores),
        "advice": {size: advice_scores([a for c, a in advice.items() if size_of(c, scores) == size]) for size in SIZES},
        "summary": summary_of(scores, advice, base),
    }


def size_of(cell: Cell, scores: Collection[tuple[str, Cell]]) -> str:
    """Whether a cell is of the smaller or of the larger number of labelled rows of its set."""
    return SIZES[cell.size != min(other.size for _, other in scores if other.name == cell.name)]


def means_of(scores: Scores) -> Means:
    """Means over draws, with their number and that of the draws that had no answer, as something was not finite."""
    gathered: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for (system, cell), of_cell in scores.items():
        gathered.setdefault((cell.name, size_of(cell, scores), system), []).append(of_cell)
    out: Means = {}
    for (name, size, system), rows in sorted(gathered.items()):
        means: dict[str, float | None] = {
            key: _mean([row[key] for row in rows]) for key in rows[0] if key != "not_finite"
        }
        means |= {"draws": float(len(rows)), "not_finite": sum(row["not_finite"] for row in rows)}
        out.setdefault(name, {}).setdefault(size, {})[system] = means
    return out


def _mean(values: Sequence[float]) -> float | None:
    """Of those that are numbers: seconds of what was not finite are not."""
    numbers = [value for value in values if not isnan(value)]
    return fmean(numbers) if numbers else None


def others(base: str) -> tuple[str, ...]:
    """The other kinds of systems that a base model is compared with, adapted to the labelled rows."""
    return "cheap tf-idf", "cheap sentence vectors", f"{base} prompt"


def summary_of(scores: Scores, advice: Mapping[Cell, Advised], base: str) -> dict[str, Any]:
    """The numbers of the target, at the smaller size; None where the answers for one are not there."""
    few = {key: of_cell for key, of_cell in scores.items() if size_of(key[1], scores) == "few"}
    compared = {name: pair for name in ASK if (pair := against_others(few, name, base)) is not None}
    own = [of_cell for (system, _), of_cell in scores.items() if system == f"{base} adapted"]
    few_advice = advice_scores([a for cell, a in advice.items() if size_of(cell, scores) == "few"])
    return {
        "sets_won_nll_20": sum(pair["nll"] < pair["nll_of_others"] for pair in compared.values()),
        "mean_accuracy_lead_20": _mean([p["accuracy"] - p["accuracy_of_others"] for p in compared.values()]),
        "advice_within_03": few_advice["within"],
        "advice_regret": few_advice["regret"],
        "ece_over_floor": fmean(s["ece_posterior"] for s in own) / fmean(s["ece_floor_posterior"] for s in own)
        if own
        else None,
        "base": base,
        "sets_compared": len(compared),
        "against_others": compared,
    }


def against_others(few: Scores, name: str, base: str) -> dict[str, Any] | None:
    """One set: the base model adapted, and the best of the other kinds on the same draws; None if one is not there."""
    systems = (f"{base} adapted", *(other for other in others(base) if any(system == other for system, _ in few)))
    draws = [{cell for system, cell in few if system == one and cell.name == name} for one in systems]
    cells = set.intersection(*draws)
    if len(systems) < 2 or not cells:
        return None
    mean = {
        (one, key): fmean(few[one, cell][key] for cell in cells)
        for one in systems
        for key in ("accuracy", "nll", "nll_posterior")
    }
    nll = {one: min(mean[one, "nll"], mean[one, "nll_posterior"]) for one in systems[1:]}
    best, most = min(nll, key=lambda one: nll[one]), max(systems[1:], key=lambda one: mean[one, "accuracy"])
    return {
        "draws": len(cells),
        "nll": mean[systems[0], "nll_posterior"],
        "nll_of_others": nll[best],
        "best_in_nll": best,
        "accuracy": mean[systems[0], "accuracy"],
        "accuracy_of_others": mean[most, "accuracy"],
        "best_in_accuracy": most,
    }


def advice_scores(found: Sequence[Advised]) -> dict[str, Any]:
    """How good the advised choices are in hindsight.

    `within`: share of cells in which the advised choice is at most `NEAR` nats above the best; `regret`: how much it is
    on average; `nll`: mean of the advised choices; `fixed`: mean NLL of each row of the table that is there in every
    cell, chosen always.
    """
    if not found:
        return {"cells": 0, "within": None, "regret": None, "nll": None, "fixed": {}, "chosen": {}, "verdicts": {}}
    always = set.intersection(*(set(one.nll) for one in found))
    fixed = {row: fmean(one.nll[row] for one in found) for row in always}
    return {
        "cells": len(found),
        "within": fmean(one.regret <= NEAR for one in found),
        "regret": fmean(one.regret for one in found),
        "nll": fmean(one.nll[one.choice] for one in found),
        "fixed": dict(sorted(fixed.items(), key=lambda pair: pair[1])),
        "chosen": _counts([one.choice for one in found]),
        "verdicts": _counts([one.verdict for one in found]),
    }


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names), key=lambda n: -names.count(n))}
