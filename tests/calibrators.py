"""Answers whose best temperature is known, for the tests of calibrators."""

import numpy as np

from abmll.calibrators import ChoiceRows, TaskRows

CHANCE = np.inf
"""The temperature of answers that carry nothing."""


def simulated_rows(
    seed: int,
    count: int,
    *,
    temperature: float = 1.0,
    spread: float = 3.0,
    choices: int = 4,
    bias: np.ndarray | float = 0.0,
    fixed_choices: bool = True,
) -> ChoiceRows:
    """Scores s ~ spread N(0, 1), answers ~ softmax(s / temperature); the rows hold s + bias."""
    rng = np.random.default_rng(seed)
    scores = spread * rng.normal(size=(count, choices))
    answers = (scores / temperature + rng.gumbel(size=scores.shape)).argmax(axis=1)
    return ChoiceRows.from_scores(scores + bias, answers, fixed_choices=fixed_choices)


def ragged_rows(seed: int, count: int) -> ChoiceRows:
    """Questions of two to five choices."""
    rng = np.random.default_rng(seed)
    scores = 3 * rng.normal(size=(count, 5))
    scores[np.arange(5) >= rng.integers(2, 6, size=(count, 1))] = -np.inf
    answers = (scores / 2 + rng.gumbel(size=scores.shape)).argmax(axis=1)
    return ChoiceRows.from_scores(scores, answers)


def simulated_tasks(count: int, seed: int = 0, **settings) -> list[TaskRows]:
    """Tasks of 20 held-out and 50 test rows; settings are those of `simulated_rows`."""
    seeds = 1000 * seed + 2 * np.arange(count)
    return [
        TaskRows(f"task-{s}", simulated_rows(int(s), 20, **settings), simulated_rows(int(s) + 1, 50, **settings))
        for s in seeds
    ]


def mean_nll(probabilities: np.ndarray, rows: ChoiceRows) -> float:
    """Mean -log p of the answers."""
    return float(-np.log(probabilities[np.arange(len(rows)), rows.answers]).mean())
