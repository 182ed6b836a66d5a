"""Question and Task: the two values that every part of the library passes around."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question.

    Attributes:
        id: unique within its task.
        question: the stem; never truncated.
        choices: two or more different texts; never truncated.
        answer: index of the right choice, from 0; None when it is not known (rows to predict).
        context: a passage to read first, maybe empty; the only part that may be truncated.
        place: where it was read, as file:line, for messages; "" where it was made. No part of what it is.

    >>> Question("q1", "Which is a metal?", ("iron", "oxygen"), 0).choices[0]
    'iron'
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int | None
    context: str = ""
    place: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True)
class Task:
    """A named set of questions: `train` rows to learn or adapt from, `test` rows to score.

    Attributes:
        name, train, test: as above.
        source: where it came from.
        licence: of its rows.
        skipped: bad rows that were left out of it, where that was asked for.

    >>> rows = tuple(Question(str(i), "True?", ("yes", "no"), i % 2) for i in range(4))
    >>> Task("truth", train=rows[:2], test=rows[2:]).fixed_labels
    ('yes', 'no')
    """

    name: str
    train: tuple[Question, ...]
    test: tuple[Question, ...] = ()
    source: str = ""
    licence: str = ""
    skipped: int = 0
    _labels: tuple[str, ...] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        distinct = {q.choices for q in self.train + self.test}
        object.__setattr__(self, "_labels", distinct.pop() if len(distinct) == 1 else None)

    @property
    def fixed_labels(self) -> tuple[str, ...] | None:
        """The choices that every question shares, in the same order (plain classification), or None."""
        return self._labels
