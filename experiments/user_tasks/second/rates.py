"""The rate of adapting that each fold and reading takes: what is best on the sets of the other folds."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from benchmarks.own.answers import ADAPTED, Answers, Found, read_answers, with_learned_priors
from benchmarks.own.draws import Cell
from experiments.user_tasks.second.protocol import EVERY, PERMITTED, READINGS, Reading, Second

Rates = dict[str, dict[Reading, float]]
"""Fold -> reading -> rate."""


def folder(form: str, rate: float, seed: int) -> str:
    """The folder of answers.

    >>> folder("all", 1.91e-4, 2)
    'all-0.000191-2'
    """
    return f"{form}-{rate:g}-{seed}"


def read_by_folder(answers: Path) -> dict[str, dict[Cell, Answers]]:
    """All answers after adapting, by their folder."""
    found: dict[str, dict[Cell, Answers]] = {}
    for system, cell, said in read_answers(answers):
        found.setdefault(system.removesuffix(ADAPTED), {})[cell] = said
    return found


def choose_rates(second: Second, found: Mapping[str, Mapping[Cell, Answers]]) -> Rates:
    """The rate of every fold and reading, and of `every`, for which all sets choose.

    Args:
        second: the protocol.
        found: answers by folder; those of the permitted form at the first seed are looked at, and of these only cells
            that all rates have.
    """
    seed = second.seeds[0]
    by_rate = {rate: found.get(folder(PERMITTED, rate, seed), {}) for rate in second.rates}
    shared = set.intersection(*(set(cells) for cells in by_rate.values()))
    out: Rates = {}
    for fold, scored in {**second.folds, EVERY: ()}.items():
        others = [cell for cell in sorted(shared, key=lambda c: c.file) if cell.name not in scored]
        scores = {rate: _scores({cell: cells[cell] for cell in others}) for rate, cells in by_rate.items()}
        out[fold] = {
            reading: min(second.rates, key=lambda rate: _mean(scores[rate], second, reading)) for reading in READINGS
        }
    return out


def _scores(cells: Mapping[Cell, Answers]) -> dict[Cell, float]:
    """NLL at the posterior temperature, whose prior for each set the others of these cells give."""
    found: Found = {(ADAPTED, cell): said for cell, said in cells.items()}
    return {cell: said.scores()["nll_posterior"] for (_, cell), said in with_learned_priors(found).items()}


def _mean(scores: Mapping[Cell, float], second: Second, reading: Reading) -> float:
    """Mean over sets of those cells that are answered by a reading; 0 without any, so that the first rate is taken."""
    mine = [cell for cell in scores if second.reading(cell) == reading]
    names = {cell.name for cell in mine}
    return fmean([fmean(scores[c] for c in mine if c.name == name) for name in sorted(names)] or [0.0])
