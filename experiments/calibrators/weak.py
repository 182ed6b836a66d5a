"""The weak prior of the posterior temperature: which (mu, sd) of a grid, where no training task was predicted."""

from collections.abc import Mapping

import numpy as np

from abmll.calibrators import TaskRows, calibrator
from abmll.metrics.scores import negative_log_likelihood
from experiments.calibrators.files import Systems

MEANS = (0.0, 0.5, 1.0, 1.5, 2.0)
SDS = (0.5, 1.0, 1.5, 2.0, 3.0)
Pair = tuple[float, float]


def weak_priors(systems: Systems) -> dict[Pair, dict[str, float]]:
    """(mu, sd) -> task -> NLL of its test rows, mean over systems."""
    return {(mu, sd): _by_task(systems, mu, sd) for mu in MEANS for sd in SDS}


def _by_task(systems: Systems, mu: float, sd: float) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for tasks in systems.values():
        for task in tasks:
            values.setdefault(task.name, []).append(_nll(task, mu, sd))
    return {name: float(np.mean(v)) for name, v in sorted(values.items())}


def _nll(task: TaskRows, mu: float, sd: float) -> float:
    fitted = calibrator("posterior_temperature", {"mu": mu, "sd": sd}).fit(task.held_out)
    return negative_log_likelihood(fitted.apply(task.test), task.test.answers)


def left_out(priors: Mapping[Pair, Mapping[str, float]]) -> tuple[float, dict[Pair, int]]:
    """NLL of each task at the pair that is best on the others, mean over tasks; and how often each pair is that."""
    names = sorted(next(iter(priors.values())))
    chosen = [min(priors, key=lambda pair: sum(priors[pair][n] for n in names if n != name)) for name in names]
    nll = float(np.mean([priors[pair][name] for pair, name in zip(chosen, names, strict=True)]))
    return nll, {pair: chosen.count(pair) for pair in sorted(set(chosen))}
