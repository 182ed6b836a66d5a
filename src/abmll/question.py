"""Question and Task: the two values that every part of the library passes around."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from abmll.deprecation import renamed_keywords, warn_renamed

CONTENT_FREE = ("N/A", "[MASK]", "")
"""The texts of Zhao et al. (2021)."""


@renamed_keywords({"place": "location"})
@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question.

    Attributes:
        id: unique within its task.
        question: the stem; never truncated.
        choices: two or more different texts; never truncated.
        answer: index of the right choice, from 0; None when it is not known (rows to predict).
        context: a passage to read first, maybe empty; the only part that may be truncated.
        location: where it was read, as file:line, for messages; "" where it was made. Two questions that differ in
            nothing else are equal.
        group: what it shares with other questions, so that their answers go right and wrong together: a passage, a
            person, a document; None: it stands alone. Intervals and tests take the questions of a group as one.

    >>> Question("q1", "Which is a metal?", ("iron", "oxygen"), 0).choices[0]
    'iron'
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int | None
    context: str = ""
    location: str = field(default="", repr=False, compare=False)
    group: str | None = field(default=None, repr=False, compare=False)

    @property
    def place(self) -> str:
        """The old name of `location`."""
        warn_renamed("Question.place", "Question.location")
        return self.location


@dataclass(frozen=True, slots=True)
class QuestionWithExamples(Question):
    """A question that is asked with labelled examples before it in its prompt: as many, in their order, as fit.

    Attributes:
        examples: labelled questions.
    """

    examples: tuple[Question, ...] = ()

    @classmethod
    def of(cls, q: Question, examples: Sequence[Question]) -> "QuestionWithExamples":
        """A question, asked with these examples."""
        return cls(q.id, q.question, q.choices, q.answer, q.context, q.location, q.group, tuple(examples))


def without_content(choices: Sequence[str], text: str = "") -> Question:
    """A question of these choices with a text without content in the place of its stem, and without a context.

    It is the same for all questions that share their choices.

    >>> without_content(("yes", "no"), "N/A")
    Question(id="content-free 'N/A'", question='N/A', choices=('yes', 'no'), answer=None, context='')
    """
    return Question(f"content-free {text!r}", text, tuple(choices), None)


def grouped(questions: Sequence[Question]) -> tuple[Question, ...]:
    """The questions, those that share a context in one group, see `context_groups`; a group that one has stays.

    >>> texts = ("a story", "a story", "another", "")
    >>> rows = [Question(str(i), "Why?", ("x", "y"), 0, text) for i, text in enumerate(texts)]
    >>> groups = [row.group for row in grouped(rows)]
    >>> groups[0] == groups[1], groups[1:]
    (True, ['context a9092e8a412d', None, None])
    """
    names = context_groups([question.context for question in questions])
    return tuple(
        question if name is None or question.group is not None else replace(question, group=name)
        for question, name in zip(questions, names, strict=True)
    )


def context_groups(contexts: Sequence[str]) -> list[str | None]:
    """The group of each context: a name that questions share whose contexts are equal but for white space.

    None where there is no context or no other question has it, or all of them have it (an instruction): that tells
    nothing apart.

    >>> context_groups(["a story", "a  story", "another", ""])
    ['context a9092e8a412d', 'context a9092e8a412d', None, None]
    """
    names = [context_group(context) for context in contexts]
    counts = Counter(names)
    return [name if 1 < counts[name] < len(contexts) else None for name in names]


def context_group(context: str) -> str | None:
    """The name of a context, whoever shares it; None where there is none.

    >>> context_group("a  story"), context_group(" ")
    ('context a9092e8a412d', None)
    """
    text = " ".join(context.split())
    return f"context {_digest(text)}" if text else None


def _digest(text: str) -> str:
    """A name that no text comes back from."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True)
class Task:
    """A named set of questions: `train` rows to learn or adapt from, `test` rows to score.

    Attributes:
        name, train, test: as above; test rows that share a context are in one group, see `grouped`.
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
        object.__setattr__(self, "test", grouped(self.test))

    @property
    def fixed_labels(self) -> tuple[str, ...] | None:
        """The choices that every question shares, in the same order (plain classification), or None."""
        return self._labels
