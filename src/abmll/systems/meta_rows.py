"""Episodes of training tasks as at test time: rows to adapt to, and other rows to answer.

What is learned over tasks from a system's answers, the prior of the temperature, is learned from these.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from abmll.question import Question, Task
from abmll.systems.plans import AdaptationPlan
from abmll.tables.identity import row_keys
from abmll.tasks.episodes import Episodes

MOST_TASKS = 40
"""Of more training tasks so many are answered, spread evenly: a mean and a standard deviation need no more."""
_DRAW = (1 << 31) - 1  # stands for the draw of examples in the seed, which counts from 0
META_DRAW = 0
"""The draw of examples whose noise an episode has; its examples are its own."""


def spread_tasks(tasks: Sequence[Task], most: int = MOST_TASKS) -> tuple[Task, ...]:
    """All tasks or, of more than `most`, so many of them, spread evenly.

    >>> [task.name for task in spread_tasks([Task(str(n), ()) for n in range(7)], 3)]
    ['0', '3', '6']
    """
    if len(tasks) <= most:
        return tuple(tasks)
    return tuple(tasks[int(i)] for i in np.linspace(0, len(tasks) - 1, most).round())


def rows_trained_on(episodes: Episodes, iterations: int, meta_batch: int) -> frozenset[Question]:
    """Every row that so many meta-iterations drew, in a gradient step or a query batch."""
    drawn = (episodes.draw(iteration, position) for iteration in range(iterations) for position in range(meta_batch))
    return frozenset(row for episode in drawn for batch in episode.batches for row in batch)


def held_back_episode(task: Task, plan: AdaptationPlan, rows: int, trained_on: Collection[Question]) -> Task | None:
    """An episode of a training task: rows to adapt to, as its train rows, and others to answer, as its test rows.

    The rows to answer are of the task's test split, which nothing trains on; where that has too few, of its train rows,
    those that meta-training did not draw first. The rows to adapt to are train rows, again those that were not drawn
    first, and none that asks the same as a row to answer or is of its group. Otherwise both are drawn at random, by the
    adaptation's seed and the task's name alone.

    Args:
        task: with its splits.
        plan: how many rows are adapted to; where it takes all, test rows alone are answered.
        rows: to answer, at most.
        trained_on: rows that meta-training drew.

    Returns:
        The episode; None if the task has too few rows to adapt to, or none besides to answer.

    >>> ask = lambda split, n: tuple(Question(f"{split}{i}", f"{split} {i}?", ("a", "b"), 0) for i in range(n))
    >>> task = Task("t", train=ask("train", 6), test=ask("test", 2))
    >>> episode = held_back_episode(task, AdaptationPlan(examples=4), 3, task.train[:5])
    >>> sorted(row.id for row in episode.test), len(episode.train)
    (['test0', 'test1', 'train5'], 4)
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([plan.seed, _DRAW, *task.name.encode()])))
    train = sorted(_shuffled(task.train, generator), key=trained_on.__contains__)  # stable
    answered = [row for row in _shuffled(task.test, generator) if row.answer is not None][:rows]
    wanted = len(train) if plan.examples is None else plan.examples
    spare = max(0, len(train) - wanted)
    answered += train[: min(spare, rows - len(answered))]
    adapted = [row for row, _ in zip(_apart(train, answered), range(wanted), strict=False)]
    if not answered or len(adapted) < (1 if plan.examples is None else wanted):
        return None
    return Task(task.name, tuple(adapted), tuple(answered), task.source, task.licence)


def _shuffled(rows: Sequence[Question], generator: np.random.Generator) -> list[Question]:
    return [rows[i] for i in generator.permutation(len(rows))]


def _apart(rows: Iterable[Question], others: Sequence[Question]) -> Iterator[Question]:
    """The rows that ask nothing that the others ask, and are of none of their groups."""
    taken = {key for keys in row_keys(others) for key in (keys.question, keys.group) if key is not None}
    for row in rows:
        (keys,) = row_keys([row])
        if not taken & {keys.question, keys.group}:
            yield row
