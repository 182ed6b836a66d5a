"""Rows of any table -> questions, with what was wrong about the others; then all of it told at once, or skipped."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from abmll.question import Question
from abmll.tables.delimited import Row
from abmll.tables.normal import same_form, same_question
from abmll.tables.rows import BadRow, question_from_row, report, shown

log = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]


@dataclass
class Rows:
    """What was read of one split.

    Attributes:
        label: what stands before a line's number: the file.
        questions: the good rows.
        problems: the bad ones, as file:line: reason.
        rows_lost: there are rows that could not be read.
    """

    label: str
    questions: list[Question] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rows_lost: bool = False
    _by_fault: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def reject(self, line: int, reason: object) -> None:
        """Add a bad row."""
        self.add(f"{self.label}:{line}: {reason}", reason)

    def add(self, problem: str, reason: object) -> None:
        """Add a problem in other words than `reject` has."""
        self.problems.append(problem)
        if isinstance(reason, BadRow):
            self.rows_lost |= reason.rows_lost
            if reason.fault:
                self._by_fault[reason.fault].append(problem)

    def told(self, good: int | None = None) -> list[str]:
        """The problems; what is wrong with every row of a table (a column that none has) is one, and not one for each.

        Args:
            good: good rows, if they are not kept here.

        >>> found = collect("a.jsonl", [(1, {"text": "a"}), (2, {"text": "b"}), (3, {"question": "c"})])
        >>> found.told()[0]
        "a.jsonl:1: question is missing (found: 'text'), in 1 more row too"
        """
        if len(self.questions) if good is None else good:
            return list(self.problems)
        more = {problems[0]: len(problems) - 1 for problems in self._by_fault.values() if len(problems) > 1}
        again = {problem for problems in self._by_fault.values() for problem in problems[1:]}
        return [problem + _and(more.get(problem, 0)) for problem in self.problems if problem not in again]


def _and(count: int) -> str:
    return f", in {count:,} more row{'s' * (count != 1)} too" if count else ""


def collect(
    label: str, rows: Iterable[Row], *, labelled: bool = True, untyped: bool = False, merge_choices: bool = False
) -> Rows:
    """Check every row of one table.

    Args:
        label: the file, for messages.
        rows: line number, and the row or what is wrong with it.
        labelled, untyped, merge_choices: as in `question_from_row`.

    >>> found = collect("a.jsonl", [(1, {"question": "Red?", "choices": ["yes", "no"], "answer": 0}), (2, {})])
    >>> found.questions[0].location, found.problems
    ('a.jsonl:1', ['a.jsonl:2: question is missing (found: nothing)'])
    """
    found = Rows(label)
    ids: dict[str, int] = {}
    for line, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            question = question_from_row(row, str(line), labelled, untyped, merge_choices, f"{label}:{line}")
            if (first := ids.setdefault(question.id, line)) != line:
                raise BadRow(f"id {shown(question.id)} is that of line {first} too")
        except BadRow as reason:
            found.reject(line, reason)
        else:
            found.questions.append(question)
    if not found.questions and not found.problems:
        found.reject(1, "the file has no rows")
    return found


def reject_repeats(train: Rows, test: Rows) -> None:
    """Make bad rows of the test rows that are train rows too; `leaks` looks for those that are written otherwise."""
    seen = {same_question(question, same_form): question.location for question in train.questions}
    kept = []
    for question in test.questions:
        if (first := seen.get(same_question(question, same_form))) is None:
            kept.append(question)
        else:
            test.problems.append(f"{question.location}: the same question is in {Path(first).name}, the train rows")
    test.questions = kept


def settle(found: Sequence[Rows], on_bad_row: OnBadRow) -> int:
    """Refuse bad rows, all in one error, or count and tell those that are skipped.

    Returns:
        How many rows are skipped.

    Raises:
        AbmllError: there are bad rows and `on_bad_row` is "error", or a file has no good row, or rows that cannot be
            read.
    """
    problems = [problem for rows in found for problem in rows.told()]
    if problems and (on_bad_row == "error" or not all(rows.questions and not rows.rows_lost for rows in found)):
        raise report(problems, sum(len(rows.problems) for rows in found))
    for rows in found:
        if rows.problems:
            bad, total = len(rows.problems), len(rows.problems) + len(rows.questions)
            log.warning("skipped %s of %s rows; the first: %s", f"{bad:,}", f"{total:,}", rows.problems[0])
    return sum(len(rows.problems) for rows in found)
