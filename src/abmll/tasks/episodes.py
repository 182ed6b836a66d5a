"""Which batches come next: a pure function of (seed, meta-iteration, position), so its whole state is one integer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from abmll.errors import AbmllError
from abmll.question import Question, Task

T = TypeVar("T")
Shown = tuple[tuple[tuple[Question, ...], ...], ...]
"""For each question of each batch the rows that stand in front of it."""


@dataclass(frozen=True)
class Episode:
    """The batches of one task position of a meta-iteration, in order.

    Attributes:
        task: the task's name, or "mixed".
        batches: one tuple of questions for each step; the last is the query batch where a method uses one.
        shown: the demonstrations of each of these questions, other rows of the episode; empty where there are none.
    """

    task: str
    batches: tuple[tuple[Question, ...], ...]
    shown: Shown = ()


@dataclass(frozen=True)
class Episodes:
    """Draws episodes from the tasks' train rows.

    `by_task` draws a task, then its rows without replacement. `mixed` draws a task for every row, from the same
    distribution over tasks, again without repeating a row. Both consume the same number of examples.

    With demonstrations each question has its own, drawn from the other rows of its episode. So a row that is asked and
    shown is one example consumed, as it is without them.

    Attributes:
        tasks: meta-training tasks.
        kind: `by_task` or `mixed`.
        batches: batches of an episode.
        batch_size: questions of a batch.
        seed: with the meta-iteration and the position it decides everything.
        proportional: draw tasks by their number of rows instead of uniformly.
        demonstrations: at most so many rows are shown with each question; there are one fewer than an episode has.

    Raises:
        AbmllError: no task, one without train rows, or (`by_task`) one with fewer than an episode needs.

    >>> rows = tuple(Question(str(i), "?", ("a", "b"), 0) for i in range(12))
    >>> episodes = Episodes((Task("t", rows),), "by_task", batches=6, batch_size=2, seed=0)
    >>> len({q.id for batch in episodes.draw(3).batches for q in batch})
    12
    """

    tasks: tuple[Task, ...]
    kind: Literal["by_task", "mixed"]
    batches: int
    batch_size: int
    seed: int
    proportional: bool = False
    demonstrations: int = 0

    def __post_init__(self) -> None:
        needed = self.batches * self.batch_size
        for task in self.tasks:
            check_answers(task)
        if not self.tasks:
            raise AbmllError("tasks.train names no task to meta-train on")
        small = [f"{t.name} ({len(t.train)})" for t in self.tasks if len(t.train) < needed]
        if small and self.kind == "by_task":
            raise AbmllError(
                f"an episode of {self.batches} batches of {self.batch_size} needs {needed} train rows; too small: "
                f"{', '.join(small)}. Remove them or lower method.inner_steps or method.batch_size"
            )
        if empty := [t.name for t in self.tasks if not t.train]:
            raise AbmllError(f"no train rows to meta-train on in {', '.join(empty)}. Remove them from tasks.train")
        if sum(len(t.train) for t in self.tasks) < needed:
            raise AbmllError(f"the meta-training tasks have fewer than {needed} rows together")

    @property
    def examples(self) -> int:
        """Examples that one episode consumes."""
        return self.batches * self.batch_size

    def draw(self, iteration: int, position: int = 0) -> Episode:
        """The episode at a position of a meta-iteration's meta-batch."""
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, iteration, position])))
        weights = np.array([len(t.train) for t in self.tasks], dtype=float) if self.proportional else None
        shares = None if weights is None else weights / weights.sum()
        if self.kind == "by_task":
            task = self.tasks[int(generator.choice(len(self.tasks), p=shares))]
            rows = [task.train[i] for i in generator.choice(len(task.train), self.examples, replace=False)]
            return Episode(task.name, self._cut(rows), self._shown(rows, generator))
        seen: set[tuple[int, int]] = set()
        while len(seen) < self.examples:
            task_number = int(generator.choice(len(self.tasks), p=shares))
            seen.add((task_number, int(generator.integers(len(self.tasks[task_number].train)))))
        order = sorted(seen)
        rows = [
            self.tasks[t].train[order_row] for t, order_row in (order[i] for i in generator.permutation(len(order)))
        ]
        return Episode("mixed", self._cut(rows))

    def _shown(self, rows: Sequence[Question], generator: np.random.Generator) -> Shown:
        """The demonstrations of each row, batch by batch; nothing is drawn where there are none."""
        if not self.demonstrations:
            return ()
        orders = (generator.permutation(len(rows)) for _ in rows)
        others = [[i for i in order if i != row] for row, order in enumerate(orders)]
        return self._cut([tuple(rows[i] for i in order[: self.demonstrations]) for order in others])

    def _cut(self, rows: Sequence[T]) -> tuple[tuple[T, ...], ...]:
        size = self.batch_size
        return tuple(tuple(rows[start : start + size]) for start in range(0, len(rows), size))


def check_answers(task: Task, *, test: bool = False) -> None:
    """Refuse train rows that nothing can be learned from and, if `test`, test rows that cannot be scored.

    Raises:
        AbmllError: a row has no answer, one that is not among its choices, or a choice twice; names it.
    """
    for row in task.train + (task.test if test else ()):
        where = row.location or f"task {task.name}, question {row.id!r}"
        if row.answer is None or not 0 <= row.answer < len(row.choices):
            raise AbmllError(
                f"{where}: its answer is {row.answer}, but it is learned from or scored: give the index of one of its "
                f"{len(row.choices)} choices, from 0"
            )
        if len(set(row.choices)) < max(2, len(row.choices)):
            raise AbmllError(f"{where}: its choices {row.choices} are not two or more different texts")


def adaptation_batches(
    task: Task, *, examples: int | None, steps: int, batch_size: int, seed: int, draw: int
) -> tuple[tuple[Question, ...], list[tuple[Question, ...]]]:
    """The examples that a task is adapted on, and the batches of the adaptation steps.

    The same for every system and training seed: they depend on the task's name and the draw alone. Each pass
    over the examples is a new permutation. With `examples` None all train rows are adapted on.

    Raises:
        AbmllError: the task has fewer train rows than `examples`.
    """
    check_answers(task)
    examples = len(task.train) if examples is None else examples
    if len(task.train) < examples:
        raise AbmllError(f"task {task.name!r} has {len(task.train)} train rows, adaptation wants {examples}")
    key = [seed, draw, *task.name.encode()]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    chosen = tuple(task.train[i] for i in generator.choice(len(task.train), examples, replace=False))
    if not examples:
        return (), []
    stream = [chosen[i] for _ in range(-(-steps * batch_size // examples)) for i in generator.permutation(examples)]
    return chosen, [tuple(stream[i * batch_size : (i + 1) * batch_size]) for i in range(steps)]
