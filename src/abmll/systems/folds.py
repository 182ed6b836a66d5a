"""Folds of labelled rows: every row is answered by a system that was not fitted to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from abmll.errors import NonFiniteError
from abmll.metrics.predictions import Prediction
from abmll.question import Question, Task
from abmll.systems.plans import AdaptationPlan
from abmll.tables.identity import clusters, row_keys

FOLDS = 5


@dataclass(frozen=True)
class Fold:
    """Indices of the rows that are fitted to, and of those that are answered."""

    fitted: tuple[int, ...]
    answered: tuple[int, ...]


def deal(answers: Sequence[int | None], clusters: Sequence[int], folds: int = FOLDS, seed: int = 0) -> tuple[Fold, ...]:
    """Deal rows to folds: shuffled, each answer evenly, the rows of a cluster together; fewer folds for few rows.

    Args:
        answers: right choice of each row.
        clusters: number of each row's cluster, see `abmll.tables.identity.clusters`.
        folds: at most so many.
        seed: of the shuffling.

    >>> [len(fold.answered) for fold in deal([0, 1] * 5, range(10))]
    [2, 2, 2, 2, 2]
    """
    groups: dict[int, list[int]] = {}
    for row, number in enumerate(clusters):
        groups.setdefault(number, []).append(row)
    folds = min(folds, len(groups))
    order = np.random.default_rng(seed).permutation(len(groups))
    names = list(groups)
    shuffled = sorted((names[i] for i in order), key=lambda name: answers[groups[name][0]] or 0)  # stable
    parts: list[list[int]] = [[] for _ in range(folds)]
    for number, name in enumerate(shuffled):
        parts[number % folds] += groups[name]
    every = set(range(len(answers)))
    return tuple(
        Fold(tuple(sorted(every - set(part))), tuple(sorted(part))) for part in parts if len(part) < len(every)
    )


Answered = tuple[Prediction, ...] | NonFiniteError
"""Predictions by one row of a system; or why there are none."""
Predict = Callable[[tuple[Question, ...], tuple[Question, ...]], list[Answered]]
"""Questions, and the examples that were adapted to -> what every row of a system says."""


def held_out(
    adapt: Callable[[Task, AdaptationPlan], object],
    predict: Predict,
    task: Task,
    examples: tuple[Question, ...],
    plan: AdaptationPlan,
    folds: int,
) -> list[Answered]:
    """Predict each example after adapting, by as many steps, to the examples of the other folds alone.

    Args:
        adapt: adapts to all train rows of a task.
        predict: predicts by phi as it is then.
        task: whose examples they are.
        examples: what the task is adapted on.
        plan: steps and batch size.
        folds: at most so many; fewer where there are fewer examples.

    Returns:
        For each row of the system, predictions in the order of `examples`; or the error of a fold that has none.
    """
    dealt = deal([row.answer for row in examples], clusters(row_keys(examples)), folds, plan.seed)
    by_fold: list[list[Answered]] = []
    for number, fold in enumerate(dealt):
        fitted = tuple(examples[i] for i in fold.fitted)
        adapt(Task(f"{task.name} fold {number}", fitted), replace(plan, examples=len(fitted)))
        by_fold.append(predict(tuple(examples[i] for i in fold.answered), fitted))
    return [_in_order(dealt, row) for row in zip(*by_fold, strict=True)]


def _in_order(folds: Sequence[Fold], answered: Sequence[Answered]) -> Answered:
    """One row's predictions of every fold, in the order of the examples."""
    by_row: dict[int, Prediction] = {}
    for fold, part in zip(folds, answered, strict=True):
        if isinstance(part, NonFiniteError):
            return part
        by_row |= zip(fold.answered, part, strict=True)
    return tuple(by_row[row] for row in sorted(by_row))
