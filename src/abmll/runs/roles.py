"""The tasks of a run by their roles (to train on, choose by, report), and that no row plays two of them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from abmll.config import LeakCheck
from abmll.errors import AbmllError
from abmll.question import Question, Task
from abmll.tasks.leaks import ComparedRow, Overlap, overlaps, repeats, rows_of

log = logging.getLogger(__name__)

SHOWN = 20
TRAINED, SCALED, CHOSEN = "trained on", "learned from by adaptation.meta_rows", "chosen by"
WORDS = {"same": "the same question as", "near": "nearly the same question as"}


@dataclass(frozen=True)
class RunTasks:
    """A run's tasks: meta-trained on, chosen by, reported.

    Attributes:
        train, validation, unseen: the tasks.
        scale_from_test: whether test rows of training tasks are learned from as well, for the prior of the temperature
            (`adaptation.meta_rows`).
    """

    train: tuple[Task, ...]
    validation: tuple[Task, ...]
    unseen: tuple[Task, ...]
    scale_from_test: bool = False

    @property
    def every(self) -> tuple[Task, ...]:
        """All of them."""
        return self.train + self.validation + self.unseen


@dataclass(frozen=True)
class Leak:
    """A row that is learned from, or chosen by, and is asked again where it must not have been seen.

    Attributes:
        overlap: the two rows.
        first, second: what each of them is for.
    """

    overlap: Overlap
    first: str
    second: str

    def turned(self) -> "Leak":
        """The same with the second row first."""
        return Leak(self.overlap.turned(), self.second, self.first)

    def __str__(self) -> str:
        pair = self.overlap
        return f"{pair.first.location} ({self.first}): {WORDS[pair.kind]} {pair.second.location} ({self.second})"


def check_roles(tasks: RunTasks, examples: int | None) -> None:
    """Refuse tasks with two roles, and ones that are not trained on but too small to adapt to or score.

    Args:
        tasks: by their roles.
        examples: that adapting to a task takes; None: all that it has, and at least one.

    Raises:
        AbmllError: names every such task.
    """
    new, trained = tasks.unseen + tasks.validation, {task.name for task in tasks.train}
    faults = [f"{task.name} is both trained on and held out" for task in new if task.name in trained]
    names = [task.name for task in new]
    faults += [
        f"{name} is both a validation and an unseen task" for name in sorted(set(names)) if names.count(name) > 1
    ]
    least = 1 if examples is None else examples
    small = [task for task in new if len(task.train) < least]
    faults += [f"{task.name} has {len(task.train)} train rows, adaptation wants {least}" for task in small]
    faults += [f"{task.name} has no test rows to score" for task in new if not task.test]
    if faults:
        raise AbmllError("tasks: " + "; ".join(faults))


def without_leaks(tasks: RunTasks, leak_check: LeakCheck) -> RunTasks:
    """The tasks, with `tasks.leak_check` done: leaks are refused, warned of, or their rows are left out.

    Raises:
        AbmllError: `leak_check` is "error" and there are leaks; names the rows as file:line.
    """
    return _without(tasks, () if leak_check == "off" else find_leaks(tasks), leak_check)


def without_leaks_of_trained(tasks: RunTasks, leak_check: LeakCheck, *, others: bool) -> RunTasks:
    """As `without_leaks`, for a run that is trained: a row that is there twice among those of an episode is past.

    Args:
        tasks: by their roles; the unseen ones are to be scored.
        leak_check: what happens to rows that leak.
        others: the unseen tasks are not those that the run was trained against: of a row that was learned from, it is
            the one to be scored that `drop` leaves out.

    Raises:
        AbmllError: as `without_leaks`.
    """
    leaks = () if leak_check == "off" else find_leaks(tasks, repeated=False)
    if others:
        leaks = tuple(leak.turned() if leak.first in (TRAINED, SCALED, CHOSEN) else leak for leak in leaks)
    return _without(tasks, leaks, leak_check)


def _without(tasks: RunTasks, leaks: Sequence[Leak], leak_check: LeakCheck) -> RunTasks:
    if not leaks:
        return tasks
    if leak_check == "error":
        raise AbmllError(
            f"{_describe(leaks)}\nRemove one row of each pair. Or set tasks.leak_check=drop to leave out the row named "
            "first, or tasks.leak_check=warn to go on with both"
        )
    log.warning("%s%s", _describe(leaks), "\nThe rows named first are left out" if leak_check == "drop" else "")
    return _dropped(tasks, leaks) if leak_check == "drop" else tasks


def find_leaks(tasks: RunTasks, repeated: bool = True) -> tuple[Leak, ...]:
    """All leaks of a run's tasks; `repeated`: also rows of a task to train on that are there twice.

    What is trained on must not be adapted on, chosen by or reported; what is chosen by must not be reported; both down
    to rows that are nearly the same. And within one task, no question may stand among the rows of an episode twice
    (support and query), nor among those adapted on and those scored: here the very same ones alone count, as the
    questions of one task may well be made after one pattern.
    """
    again = _repeats(tasks.train) if repeated else ()
    leaks = [Leak(pair.turned(), "a row of an episode", "another row of it") for pair in again]
    purpose = {
        row: f"{what}, in a task {role}"
        for role, tasks_of_role in ((CHOSEN, tasks.validation), ("reported", tasks.unseen))
        for what, split in (("adapted on", "train"), ("scored", "test"))
        for row in _rows(tasks_of_role, split)
    }
    learned = dict.fromkeys(_rows(tasks.train, "train"), TRAINED)
    learned |= {row: SCALED for row in _rows(tasks.train, "test") if tasks.scale_from_test}
    pairs = overlaps(tuple(learned), tuple(purpose))
    leaks += [Leak(pair, learned[pair.first], purpose[pair.second]) for pair in pairs]
    for task in tasks.validation + tasks.unseen:
        within = overlaps(rows_of(task.name, task.train), rows_of(task.name, task.test), near=False)
        leaks += [Leak(pair, "adapted on", "scored") for pair in within]
    chosen, reported = (_rows(role, "train") + _rows(role, "test") for role in (tasks.validation, tasks.unseen))
    return *leaks, *(Leak(pair, CHOSEN, "reported") for pair in overlaps(chosen, reported))


def _repeats(tasks: Iterable[Task]) -> tuple[Overlap, ...]:
    return tuple(pair for task in tasks for pair in repeats(rows_of(task.name, task.train)))


def _rows(tasks: Iterable[Task], split: str) -> tuple[ComparedRow, ...]:
    return tuple(row for task in tasks for row in rows_of(task.name, getattr(task, split)))


def _describe(leaks: Sequence[Leak]) -> str:
    lines = [
        f"tasks: {len(leaks):,} leak{'s' * (len(leaks) != 1)} between rows learned from and rows that must be new:"
    ]
    lines += [f"  {leak}" for leak in leaks[:SHOWN]]
    if len(leaks) > SHOWN:
        lines.append(f"  ... and {len(leaks) - SHOWN:,} more; `abmll tasks check` shows all")
    return "\n".join(lines)


def _dropped(tasks: RunTasks, leaks: Iterable[Leak]) -> RunTasks:
    leaving = {id(leak.overlap.first.question) for leak in leaks}

    def without(rows: tuple[Question, ...]) -> tuple[Question, ...]:
        return tuple(question for question in rows if id(question) not in leaving)

    def clean(of: tuple[Task, ...]) -> tuple[Task, ...]:
        return tuple(replace(task, train=without(task.train), test=without(task.test)) for task in of)

    return replace(tasks, train=clean(tasks.train), validation=clean(tasks.validation), unseen=clean(tasks.unseen))
