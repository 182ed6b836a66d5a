"""Tasks whose best temperature is known: what an estimator loses where answers carry nothing, and where they are right.

scores ~ spread * N(0, 1), independent;   answer ~ softmax(scores / T), T = infinity: by chance
"""

from dataclasses import dataclass

import numpy as np

from abmll.calibrators import Calibrator, ChoiceRows, TaskRows, calibrator
from abmll.metrics.scores import negative_log_likelihood

HELD_OUT, TEST, CHOICES = 20, 200, 4
CONTENT_FREE = 3
TASKS, TRAINING = 150, 34
FEW = 3
PRIORS = ((0.0, 1.0), (0.7, 1.0), (1.0, 1.0), (1.0, 1.5), (1.0, 2.0), (1.5, 1.0), (2.0, 1.0))


@dataclass(frozen=True)
class World:
    """A kind of task.

    Attributes:
        temperature: the best one of each task.
        spread: standard deviation of the scores before they are normalised.
    """

    temperature: float
    spread: float


WORLDS = {
    "by chance, spread 1": World(np.inf, 1.0),
    "by chance, spread 6": World(np.inf, 6.0),
    "by chance, spread 20": World(np.inf, 20.0),
    "T = 1, spread 1": World(1.0, 1.0),
    "T = 1, spread 6": World(1.0, 6.0),
    "T = 4, spread 6": World(4.0, 6.0),
}


def simulated_task(world: World, seed: int, test: int = TEST) -> TaskRows:
    """A task of a world, its labels fixed ones."""
    rng = np.random.default_rng(seed)
    parts = []
    for count in (HELD_OUT, test):
        scores = world.spread * rng.normal(size=(count, CHOICES))
        answers = (scores / world.temperature + rng.gumbel(size=scores.shape)).argmax(axis=1)
        parts.append(ChoiceRows.from_scores(scores, answers, fixed_choices=True))
    content_free = ChoiceRows.from_scores(world.spread * rng.normal(size=(CONTENT_FREE, CHOICES)), fixed_choices=True)
    held_out, scored = parts
    return TaskRows(f"task-{seed}", held_out, scored, content_free)


def losses() -> dict[str, dict[str, float]]:
    """Estimator -> world -> mean NLL over that at the best temperature, nats."""
    table: dict[str, dict[str, float]] = {}
    for name, world in WORLDS.items():
        tasks = _tasks(world, 0, TASKS)
        for estimator, chosen in _estimators(world).items():
            table.setdefault(estimator, {})[name] = _excess(chosen, world, tasks)
    return table


def _estimators(world: World) -> dict[str, Calibrator]:
    plain = calibrator("posterior_temperature")
    weak = {f"N({mu:g}, {sd:g})": calibrator("posterior_temperature", {"mu": mu, "sd": sd}) for mu, sd in PRIORS}
    learned = {f"learned on {n} tasks of its world": plain.meta_fit(_tasks(world, TASKS, n)) for n in (FEW, TRAINING)}
    return {"temperature": calibrator("temperature"), **{f"posterior, {k}": v for k, v in (weak | learned).items()}}


def _tasks(world: World, first: int, count: int) -> list[TaskRows]:
    return [simulated_task(world, seed) for seed in range(first, first + count)]


def _excess(chosen: Calibrator, world: World, tasks: list[TaskRows]) -> float:
    gaps = []
    for task in tasks:
        best = task.test.with_scores(task.test.log_probabilities / world.temperature).probabilities()
        answers = [chosen.fit(task.held_out).apply(task.test), best]
        ours, least = (negative_log_likelihood(p, task.test.answers) for p in answers)
        gaps.append(ours - least)
    return float(np.mean(gaps))
