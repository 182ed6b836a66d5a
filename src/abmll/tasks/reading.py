"""Rows of any table -> questions, with what was wrong about the others; then all of it told at once, or skipped."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from abmll.tasks.question import Question
from abmll.tasks.rows import BadRow, question_from_row, report, same_question, shown
from abmll.tasks.tables import Row

log = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]


@dataclass
class Rows:
    """What was read of one split.

    Attributes:
        label: what stands before a line's number: the file.
        questions: the good rows.
        problems: the bad ones, as file:line: reason.
    """

    label: str
    questions: list[Question] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def reject(self, line: int, reason: object) -> None:
        """Add a bad row."""
        self.problems.append(f"{self.label}:{line}: {reason}")


def collect(
    label: str, rows: Iterable[Row], *, labelled: bool = True, untyped: bool = False, merge_choices: bool = False
) -> Rows:
    """Check every row of one table.

    Args:
        label: the file, for messages.
        rows: line number, and the row or what is wrong with it.
        labelled, untyped, merge_choices: as in `question_from_row`.

    >>> found = collect("a.jsonl", [(1, {"question": "Red?", "choices": ["yes", "no"], "answer": 0}), (2, {})])
    >>> found.questions[0].place, found.problems
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
    """Make bad rows of the test rows that are train rows too."""
    seen = {same_question(question): question.place for question in train.questions}
    kept = []
    for question in test.questions:
        if (first := seen.get(same_question(question))) is None:
            kept.append(question)
        else:
            test.problems.append(f"{question.place}: the same question is in {Path(first).name}, the train rows")
    test.questions = kept


def settle(found: Sequence[Rows], on_bad_row: OnBadRow) -> int:
    """Refuse bad rows, all in one error, or count and tell those that are skipped.

    Returns:
        How many rows are skipped.

    Raises:
        AbmllError: there are bad rows and `on_bad_row` is "error", or a file has no good row.
    """
    problems = [problem for rows in found for problem in rows.problems]
    if problems and (on_bad_row == "error" or not all(rows.questions for rows in found)):
        raise report(problems)
    for rows in found:
        if rows.problems:
            bad, total = len(rows.problems), len(rows.problems) + len(rows.questions)
            log.warning("skipped %s of %s rows; the first: %s", f"{bad:,}", f"{total:,}", rows.problems[0])
    return len(problems)
