"""Ensembles: a transform of predictions files, not another system to train."""

from collections.abc import Sequence

import numpy as np

from abmll.errors import AbmllError
from abmll.metrics.predictions import SPLITS, Prediction, Predictions


def ensemble(members: Sequence[Predictions], system: str, seed: int = 0) -> Predictions:
    """The mean of the members' probabilities (Lakshminarayanan et al. 2017), question by question.

    Raises:
        AbmllError: there are no members, or they are of other tasks, draws or questions.

    >>> rows = [(Prediction("a", 0, (0.9, 0.1)),), (Prediction("a", 0, (0.5, 0.5)),)]
    >>> made = ensemble([Predictions("reptile", "toy", i, 0, 0, rows[i]) for i in range(2)], "ensemble")
    >>> made.rows[0].probabilities
    (0.7, 0.3)
    """
    if not members:
        raise AbmllError("an ensemble needs members")
    first = members[0]
    for other in members[1:]:
        if (other.task, other.draw) != (first.task, first.draw):
            raise AbmllError(
                f"members of task {first.task!r}, draw {first.draw} and of {other.task!r}, draw {other.draw} "
                "make no ensemble"
            )
    means = {split: _mean([member.splits[split] for member in members], first.task) for split in SPLITS}
    # a mean is less sure than its members, so their priors of the scale are not its own
    return first.with_splits(means, system=system, seed=seed, scale_prior=None)


def _mean(parts: Sequence[tuple[Prediction, ...]], task: str) -> tuple[Prediction, ...]:
    ids = [[row.id for row in part] for part in parts]
    if any(names != ids[0] for names in ids):
        raise AbmllError(f"task {task!r}: the members of an ensemble answered other questions")
    return tuple(_average(rows) for rows in zip(*parts, strict=True))


def _average(rows: tuple[Prediction, ...]) -> Prediction:
    """The mean, and the standard deviation over the members as the spread."""
    table = np.array([row.probabilities for row in rows])
    mean = table.mean(axis=0)
    spread = tuple(table.std(axis=0).tolist())
    return Prediction(rows[0].id, rows[0].answer, tuple(mean.tolist()), None, spread, rows[0].group, rows[0].lengths)
