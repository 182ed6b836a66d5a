"""The loop over rows of which some are bad: the good ones are taken, the others reported all at once, or skipped."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from abmll.question import Question
from abmll.tables.identity import same_question
from abmll.tables.normal import same_form
from abmll.tables.rows import BadRow, RawRow, question_from_row, report, shown

log = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]
Taken = TypeVar("Taken")
ReadRow = Callable[..., Question]
"""`question_from_row`, or `Layout.question` of a user's columns: called as `read(row, line, location="file:line")`."""


@dataclass
class Rows:
    """What was read of one split.

    Attributes:
        label: what stands before a line's number: the file.
        questions: the good rows.
        problems: the bad ones, as file:line: reason.
        rows_lost: there are rows that could not be read.
        pattern: how a row is named, from `label` and its number `line`.
    """

    label: str
    questions: list[Question] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rows_lost: bool = False
    pattern: str = "{label}:{line}"
    _by_fault: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def location(self, line: int) -> str:
        """A row's name in messages: file:line."""
        return self.pattern.format(label=self.label, line=line)

    def reject(self, line: int, reason: object) -> None:
        """Add a bad row."""
        self.problems.append(problem := f"{self.location(line)}: {reason}")
        if isinstance(reason, BadRow):
            self.rows_lost |= reason.rows_lost
            if reason.fault:
                self._by_fault[reason.fault].append(problem)

    def add(self, part: "Rows", prefix: str = "") -> None:
        """Take in the rows of another table of the same split; `prefix` goes before their ids."""
        self.questions += [replace(question, id=prefix + question.id) for question in part.questions]
        self.problems += part.problems
        self.rows_lost |= part.rows_lost
        for fault, problems in part._by_fault.items():
            self._by_fault[fault] += problems

    def messages(self, good: int | None = None) -> list[str]:
        """The problems; a fault of every row of a table (a column that none has) is one, and not one for each row.

        Args:
            good: number of good rows, if they are not in `questions`.

        >>> found = collect("a.jsonl", [(1, {"text": "a"}), (2, {"text": "b"}), (3, {"question": "c"})])
        >>> found.messages()[0]
        "a.jsonl:1: question is missing (found: 'text'), in 1 more row too"
        """
        if len(self.questions) if good is None else good:
            return list(self.problems)
        more = {problems[0]: len(problems) - 1 for problems in self._by_fault.values() if len(problems) > 1}
        again = {problem for problems in self._by_fault.values() for problem in problems[1:]}
        return [problem + _and(more.get(problem, 0)) for problem in self.problems if problem not in again]


def _and(count: int) -> str:
    return f", in {count:,} more row{'s' * (count != 1)} too" if count else ""


def good_rows(
    found: Rows, rows: Iterable[tuple[int, Any]], take: Callable[[Any, int], Taken]
) -> Iterator[tuple[Any, Taken]]:
    """The good rows of a table, each with what was made of it; the bad ones are added to the problems of `found`.

    Every loop over rows that may be bad is this one.

    Args:
        found: hears of bad rows.
        rows: number, and the row or a `BadRow`.
        take: makes something of a row and its number; a `BadRow` that it raises makes the row a bad one.

    >>> found = Rows("a.csv")
    >>> list(good_rows(found, [(1, {"text": "x"}), (2, BadRow("torn"))], lambda row, line: row["text"] * line))
    [({'text': 'x'}, 'x')]
    >>> found.problems
    ['a.csv:2: torn']
    """
    for line, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            taken = take(row, line)
        except BadRow as reason:
            found.reject(line, reason)
        else:
            yield row, taken


def collect(label: str, rows: Iterable[RawRow], read: ReadRow = question_from_row) -> Rows:
    """Check every row of one table, and make questions of the good ones.

    Args:
        label: the file, for messages.
        rows: line number, and the row or what is wrong with it.
        read: makes a question of a row, its line and its location.

    >>> found = collect("a.jsonl", [(1, {"question": "Red?", "choices": ["yes", "no"], "answer": 0}), (2, {})])
    >>> found.questions[0].location, found.problems
    ('a.jsonl:1', ['a.jsonl:2: question is missing (found: nothing)'])
    """
    found = Rows(label)
    first: dict[str, int] = {}

    def take(row: Mapping[str, Any], line: int) -> Question:
        question = read(row, line, location=found.location(line))
        if (other := first.setdefault(question.id, line)) != line:
            raise BadRow(f"id {shown(question.id)} is that of line {other} too")
        return question

    found.questions += [question for _, question in good_rows(found, rows, take)]
    if not found.questions and not found.problems:
        found.reject(1, "the file has no rows")
    return found


def reject_repeats(train: Rows, test: Rows) -> None:
    """Make bad rows of the test rows that are train rows too; `leaks` looks for those that are written otherwise."""
    seen = {same_question(question, same_form): question.location for question in train.questions}
    unseen = []
    for question in test.questions:
        if (first := seen.get(same_question(question, same_form))) is None:
            unseen.append(question)
        else:
            test.problems.append(f"{question.location}: the same question is in {Path(first).name}, the train rows")
    test.questions = unseen


def settle(splits: Sequence[Rows], on_bad_row: OnBadRow) -> int:
    """Refuse bad rows, all in one error, or skip them with a warning of how many.

    Returns:
        How many rows are skipped.

    Raises:
        AbmllError: there are bad rows and `on_bad_row` is "error", or a file has no good row, or rows that cannot be
            read.
    """
    problems = [problem for rows in splits for problem in rows.messages()]
    if problems and (on_bad_row == "error" or not all(rows.questions and not rows.rows_lost for rows in splits)):
        raise report(problems, sum(len(rows.problems) for rows in splits))
    for rows in splits:
        if rows.problems:
            bad, total = len(rows.problems), len(rows.problems) + len(rows.questions)
            log.warning("skipped %s of %s rows; the first: %s", f"{bad:,}", f"{total:,}", rows.problems[0])
    return sum(len(rows.problems) for rows in splits)
