"""What a task is made of: sizes, balance of answers, lengths, rows that repeat."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abmll.question import Question, Task
from abmll.tables.normal import lookalikes
from abmll.tasks.leaks import overlaps, repeats, rows_of

Measure = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class Lengths:
    """How long rows are, passage, stem and longest choice together, in the unit that they were measured in.

    Attributes:
        median, longest: over the rows.
        most: 19 rows in 20 are no longer.
        cut: rows longer than the limit: they lose the start of their passage.
        too_long: of these, those that are longer even without a passage; stem and choices are never cut.
    """

    median: float
    most: int
    longest: int
    cut: int
    too_long: int


@dataclass(frozen=True)
class TaskReport:
    """What `inspect_task` found.

    Attributes:
        task: its name.
        train, test, skipped: rows, and bad rows that were left out.
        choices: fewest and most of a row.
        answers: share of the rows whose answer is the first, second, ... choice; for fixed labels, each label's share.
        labels: the labels that every row shares, if it is so.
        lengths: None for a task without rows.
        repeated: rows that are the same question as an earlier one of their split.
        same: test rows that are the same question as a train row.
        near: test rows that are nearly the same question as a train row.
        alike: pairs of choices of one row that a reader may take for one, each pair once.
    """

    task: str
    train: int
    test: int
    skipped: int
    choices: tuple[int, int]
    answers: tuple[float, ...]
    labels: tuple[str, ...] | None
    lengths: Lengths | None
    repeated: int
    same: int
    near: int
    alike: tuple[tuple[str, str], ...] = ()


def words(texts: Sequence[str]) -> list[int]:
    """Lengths in words.

    >>> words(["one two", ""])
    [2, 0]
    """
    return [len(text.split()) for text in texts]


def inspect_task(task: Task, measure: Measure = words, limit: int | None = None) -> TaskReport:
    """Look a task over.

    Args:
        task: the task.
        measure: lengths of texts; words, or tokens of a model.
        limit: longest row, in the same unit; None: none is too long.

    >>> rows = tuple(Question(str(n), f"Is {n} even?", ("yes", "no"), n % 2) for n in (1, 2, 4, 2))
    >>> report = inspect_task(Task("even", rows))
    >>> report.answers, report.repeated, report.lengths.longest
    ((0.75, 0.25), 1, 4)
    """
    every = task.train + task.test
    counts = [len(question.choices) for question in every] or [0]
    train, test = rows_of(task.name, task.train), rows_of(task.name, task.test)
    pairs = overlaps(train, test)
    kinds = {kind: len({id(pair.second) for pair in pairs if pair.kind == kind}) for kind in ("same", "near")}
    return TaskReport(
        task=task.name,
        train=len(task.train),
        test=len(task.test),
        skipped=task.skipped,
        choices=(min(counts), max(counts)),
        answers=_shares(every),
        labels=task.fixed_labels,
        lengths=_lengths(every, measure, limit) if every else None,
        repeated=len(repeats(train)) + len(repeats(test)),
        alike=tuple(dict.fromkeys(pair for question in every for pair in lookalikes(question.choices))),
        **kinds,
    )


def _shares(questions: Sequence[Question]) -> tuple[float, ...]:
    counted = Counter(question.answer for question in questions if question.answer is not None)
    total = counted.total()
    return tuple(counted[choice] / total for choice in range(max(counted) + 1)) if total else ()


def _lengths(questions: Sequence[Question], measure: Measure, limit: int | None) -> Lengths:
    passages = measure([question.context for question in questions])
    own = measure([f"{question.question} {max(question.choices, key=len)}" for question in questions])
    whole = sorted(a + b for a, b in zip(passages, own, strict=True))
    most = whole[max(0, -(-19 * len(whole) // 20) - 1)]
    over = [sum(length > limit for length in lengths) if limit is not None else 0 for lengths in (whole, own)]
    return Lengths(float(statistics.median(whole)), most, whole[-1], over[0], over[1])
