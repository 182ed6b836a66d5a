"""Rows that are the same question, or nearly: between what is learned from and what is scored, and within either.

*The same*: context, stem and choices agree but for case, spaces, punctuation and the order of the choices.
*Nearly the same*: stem and right answer agree in at least 90 % of their characters (rapidfuzz), in every number, and
in every word that is more than a slip of the pen; contexts agree likewise, or one of the two rows has none.

Comparing every row with every other is out of the question, so near rows are looked for among those that share one of
their rarest words. That is exact, not a guess: rows of which 7 words in 10 are common must share one of the rarest
3 in 10 of either (the prefix filter of set similarity joins).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rapidfuzz import fuzz

from abmll.question import Question
from abmll.tables.identity import same_question
from abmll.tables.normal import gist

SIMILAR = 90.0  # percent of characters
COMMON = 7, 10  # of two rows' words, in ten
SLIP = 65.0  # percent of characters that a word and its misspelling, or another form of it, share
# words that may come, go or change
LITTLE = frozenset(
    {"a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "had", "has", "have", "in", "into", "is", "it"}
    | {"its", "of", "on", "or", "s", "t", "that", "the", "their", "this", "to", "was", "were", "which", "with"}
)
OWN_CONTEXT = 8  # words by which a question is known without its passage
_NUMBERS = re.compile(r"\d+")

Kind = Literal["same", "near"]


@dataclass(frozen=True, eq=False)
class ComparedRow:
    """A question and the task it is in; a row is equal to itself alone."""

    task: str
    question: Question

    @property
    def location(self) -> str:
        """file:line, or the task and the id of a question that was made, not read."""
        return self.question.location or f"{self.task}/{self.question.id}"

    @cached_property
    def identity(self) -> tuple[str, str, tuple[str, ...]]:
        """What the same question has in common, see `same_question`."""
        return same_question(self.question)

    @property
    def context(self) -> str:
        """The passage, normalised."""
        return self.identity[0]

    @property
    def stem(self) -> str:
        """The question, normalised."""
        return self.identity[1]

    @cached_property
    def answer(self) -> str:
        """The right choice, normalised; "" where it is not known."""
        number = self.question.answer
        return "" if number is None else gist(self.question.choices[number])

    @cached_property
    def body(self) -> str:
        """What two near rows have in common: stem and right answer, whatever the other choices."""
        return f"{self.stem} {self.answer}"

    @cached_property
    def words(self) -> frozenset[str]:
        """The different words of the body."""
        return frozenset(self.body.split())


@dataclass(frozen=True)
class Overlap:
    """Two rows that ask the same, or nearly the same."""

    kind: Kind
    first: ComparedRow
    second: ComparedRow

    def turned(self) -> "Overlap":
        """The same pair the other way round."""
        return Overlap(self.kind, self.second, self.first)


def rows_of(task: str, questions: Iterable[Question]) -> tuple[ComparedRow, ...]:
    """The questions of a task as rows that can be compared."""
    return tuple(ComparedRow(task, question) for question in questions)


def overlaps(first: Sequence[ComparedRow], second: Sequence[ComparedRow], *, near: bool = True) -> tuple[Overlap, ...]:
    """Every pair of a row of `first` and one of `second` that is the same question, or with `near` nearly so.

    >>> ask = lambda id, text: Question(id, text, ("yes", "no"), 0)
    >>> a, b = rows_of("a", [ask("1", "Is iron a metal?")]), rows_of("b", [ask("2", "is IRON a metal")])
    >>> [(pair.kind, pair.first.location, pair.second.location) for pair in overlaps(a, b)]
    [('same', 'a/1', 'b/2')]
    """
    same = defaultdict(list)
    for row in first:
        same[row.identity].append(row)
    found = [Overlap("same", one, row) for row in second for one in same.get(row.identity, ()) if one is not row]
    if near:
        found += [Overlap("near", *pair) for pair in _candidates(first, second) if _nearly_same(*pair)]
    return tuple(found)


def repeats(rows: Sequence[ComparedRow]) -> tuple[Overlap, ...]:
    """Rows that are the same question as an earlier one."""
    seen: dict[object, ComparedRow] = {}
    pairs = ((seen.setdefault(row.identity, row), row) for row in rows)
    return tuple(Overlap("same", one, row) for one, row in pairs if one is not row)


def _candidates(
    first: Sequence[ComparedRow], second: Sequence[ComparedRow]
) -> Iterator[tuple[ComparedRow, ComparedRow]]:
    """Pairs that have 7 words in 10 in common."""
    often = Counter(word for rows in (first, second) for row in rows for word in row.words)
    having = defaultdict(list)
    for row in first:
        for word in _rarest(row, often):
            having[word].append(row)
    for row in second:
        others = {id(one): one for word in _rarest(row, often) for one in having.get(word, ())}
        yield from ((one, row) for one in others.values() if one is not row and _much_in_common(one.words, row.words))


def _rarest(row: ComparedRow, often: Counter[str]) -> list[str]:
    part, whole = COMMON
    enough = len(row.words) - -(-part * len(row.words) // whole) + 1
    return sorted(row.words, key=lambda word: (often[word], word))[:enough]


def _much_in_common(first: frozenset[str], second: frozenset[str]) -> bool:
    part, whole = COMMON
    small, large = sorted((len(first), len(second)))
    if whole * small < part * large:
        return False
    common = len(first & second)
    return whole * common >= part * (small + large - common)


def _nearly_same(first: ComparedRow, second: ComparedRow) -> bool:
    return (
        first.identity != second.identity
        and sorted(_NUMBERS.findall(first.body)) == sorted(_NUMBERS.findall(second.body))
        and fuzz.ratio(first.body, second.body, score_cutoff=SIMILAR) > 0
        and fuzz.ratio(first.answer, second.answer, score_cutoff=SIMILAR) > 0
        and _slips_only(first.words - second.words, second.words - first.words, len(first.words))
        and _same_context(first, second)
    )


def _slips_only(first: frozenset[str], second: frozenset[str], total: int) -> bool:
    """Whether no word was put in another's place: Slovakia in that of Slovenia makes another question.

    One word in fifteen may differ: in a long text it is wording, in a short one it is what is asked.
    """
    ours, theirs = first - LITTLE, second - LITTLE
    alone = [word for word in ours if not any(fuzz.ratio(word, other) >= SLIP for other in theirs)]
    others = [word for word in theirs if not any(fuzz.ratio(word, other) >= SLIP for other in ours)]
    return min(len(alone), len(others)) <= total // 15


def _same_context(first: ComparedRow, second: ComparedRow) -> bool:
    if first.context and second.context:
        return fuzz.ratio(first.context, second.context, score_cutoff=SIMILAR) > 0
    return first.context == second.context or min(len(first.words), len(second.words)) >= OWN_CONTEXT
