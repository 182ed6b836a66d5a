"""What all answers come to: scores by set and system, and differences between systems over sets, also in README.md."""

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.own.answers import ADAPTED, read_answers, with_learned_priors
from benchmarks.own.draws import Cell
from benchmarks.own.tables import END, START
from experiments.user_tasks.work import NEW

SCORES = ("accuracy", "nll", "nll_posterior", "ece_posterior")
PRIMARY = "nll_posterior"


def report(answers: Path) -> dict[str, Any]:
    """Scores of every set and system, and what is compared.

    Each set's temperature has the prior that the other sets' answers give, as in benchmarks/own. `against_new` and
    `against_questions` are means over sets of differences in NLL and accuracy on the cells that both have, with the
    standard error over sets and the number of sets on which the first has the lower NLL.
    """
    found = with_learned_priors({(system, cell): said for system, cell, said in read_answers(answers)})
    scores = {key: said.scores() for key, said in found.items()}
    by_system: dict[str, dict[Cell, dict[str, float]]] = {}
    for (system, cell), of_cell in scores.items():
        by_system.setdefault(system.removesuffix(ADAPTED), {})[cell] = of_cell
    pairs = {name: (name, NEW) for name in by_system if name != NEW}
    twins = {name: (name, name.replace(".own", ".questions")) for name in by_system if name.endswith(".own")}
    return {
        "sets": {name: means(cells) for name, cells in sorted(by_system.items())},
        "against_new": {name: differences(by_system, *pair) for name, pair in sorted(pairs.items())},
        "against_questions": {name: differences(by_system, *pair) for name, pair in sorted(twins.items())},
        "not_finite": sorted(f"{s} {c.file}" for (s, c), said in found.items() if said.not_finite is not None),
    }


def with_tables(text: str, results: Mapping[str, Any]) -> str:
    """A text with the tables between the two comments.

    >>> nothing = {"sets": {}, "against_new": {}, "against_questions": {}}
    >>> with_tables("a<!-- results -->old<!-- /results -->c", nothing).splitlines()[:2]
    ['a<!-- results -->', '| set |']
    """
    before, _, rest = text.partition(START)
    names = sorted(results["sets"], key=lambda name: (name != NEW, name))
    sets = sorted({name for of_system in results["sets"].values() for name in of_system})
    lines = ["| set |" + "".join(f" {label(name)} |" for name in names), "|---|" + "---|" * len(names)]
    lines += [
        f"| {one} |" + "".join(f" {cell_text(results['sets'][name].get(one))} |" for name in names) for one in sets
    ]
    lines += [
        "",
        "| system | against | NLL | standard error | sets with a lower NLL | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for key, what in (("against_new", "new"), ("against_questions", "questions alone")):
        for name, row in results[key].items():
            wins = f"{row['sets_with_lower_nll']} of {row['sets']}"
            lines.append(f"| {label(name)} | {what} | {numbers_of(row, wins)} |")
    return before + START + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


def numbers_of(row: Mapping[str, Any], wins: str) -> str:
    """The last columns of a table of differences; of one set there is no standard error.

    >>> numbers_of({"nll_posterior": -0.05, "standard_error": None, "accuracy": 0.01}, "1 of 1")
    '-0.050 |  | 1 of 1 | +0.010'
    """
    error = "" if row["standard_error"] is None else f"{row['standard_error']:.3f}"
    return f"{row[PRIMARY]:+.3f} | {error} | {wins} | {row['accuracy']:+.3f}"


def label(name: str) -> str:
    """What a system is called in tables.

    >>> label("reptile.own"), label("new")
    ('reptile, own', 'new')
    """
    return name.replace(".", ", ")


def row_of(name: str, cells: Sequence[Mapping[str, float] | None]) -> str:
    """A set's row of a table.

    >>> row_of("cold", [{"accuracy": 0.5, "nll_posterior": 0.7}, None])
    '| cold | 0.500 / 0.700 |  |'
    """
    texts = ["" if one is None else f"{one['accuracy']:.3f} / {one[PRIMARY]:.3f}" for one in cells]
    return f"| {name} |" + "".join(f" {text} |" for text in texts)


def means(cells: Mapping[Cell, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Scores of every set: means over its draws."""
    out: dict[str, dict[str, float]] = {}
    for name in sorted({cell.name for cell in cells}):
        of_set = [scores for cell, scores in cells.items() if cell.name == name]
        out[name] = {key: fmean(scores[key] for scores in of_set) for key in SCORES} | {"draws": len(of_set)}
    return out


def differences(by_system: Mapping[str, Mapping[Cell, Mapping[str, float]]], first: str, second: str) -> dict[str, Any]:
    """The first system's NLL and accuracy less the second's, on cells that both have: means over sets."""
    one, other = by_system[first], by_system.get(second, {})
    both = [cell for cell in one if cell in other]
    sets = sorted({cell.name for cell in both})

    def of_sets(key: str) -> list[float]:
        return [fmean(one[c][key] - other[c][key] for c in both if c.name == name) for name in sets]

    nll, accuracy = of_sets(PRIMARY), of_sets("accuracy")
    if not sets:
        return {"sets": 0}
    return {
        "sets": len(sets),
        "cells": len(both),
        "sets_with_lower_nll": sum(value < 0 for value in nll),
        PRIMARY: fmean(nll),
        "standard_error": stdev(nll) / sqrt(len(nll)) if len(nll) > 1 else None,
        "accuracy": fmean(accuracy),
    }
