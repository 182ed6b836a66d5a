"""Labelled rows of a table with what was answered to them: by the columns of `abmll predict`, or by the task itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError
from abmll.question import Question
from abmll.tables.collect import Rows, good_rows
from abmll.tables.labels import Classes
from abmll.tables.layouts import Layout
from abmll.tables.normal import same_form
from abmll.tables.read import RowFile
from abmll.tables.rows import BadRow, named, printable, report, shown
from abmll.tables.values import plain

PREDICTION, ANSWERED = "prediction", "answered"
_SAYS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class LabelledAnswers:
    """Labelled rows, and what was answered.

    Attributes:
        rows: the labelled rows.
        predictions: index of the choice that was answered to each, None where none was; None as a whole: the table has
            no predictions.
        unlabelled: rows of the table that have no label, and are left out.
    """

    rows: tuple[Question, ...]
    predictions: tuple[int | None, ...] | None
    unlabelled: int


def read_answers(path: Path, layout: Layout, prefix: str = "") -> LabelledAnswers:
    """Read the labelled rows of a table, and beside them the predictions if it has such a column.

    Args:
        path: .csv, .tsv, .xlsx, .jsonl or .parquet; what `abmll predict` wrote, with a column of labels, or rows alone.
        layout: the columns that the task was adapted with.
        prefix: what stands before the names of the columns that `abmll predict` added.

    Raises:
        AbmllError: the file cannot be read, a row is bad (all of them, as file:line: reason), no row has a label, or
            there are predictions but not which of them were answered.
    """
    table, location = RowFile(path), printable(path)
    first = next((named(row) for _, row in table.rows() if not isinstance(row, BadRow)), {})
    names = {same_form(prefix + name): name for name in (PREDICTION, ANSWERED)}
    there = {name for form, name in names.items() if form in first}
    if there == {PREDICTION}:
        raise AbmllError(
            f"{location}: has predictions, but no column {shown(prefix + ANSWERED)}: the promise is about answers of "
            "`abmll predict --abstain-below-risk`. Give what that wrote, or the rows without predictions"
        )
    columns = {name: form for form, name in names.items()} if PREDICTION in there else {}
    found, unlabelled, out = Rows(location), 0, []
    for _, taken in good_rows(
        found, table.rows(), lambda row, line: _taken(row, line, layout, table.untyped, location)
    ):
        if taken is None:
            unlabelled += 1
            continue
        question, row = taken
        try:
            out.append((question, _predicted(row, question, columns) if columns else None))
        except BadRow as reason:
            found.reject(int(question.id), reason)
    if found.problems:
        raise report(found.messages(good=len(out)), len(found.problems))
    if not out:
        column = "answer" if layout.labels is None else layout.label
        raise AbmllError(f"{location}: none of {unlabelled:,} rows has a label (column {shown(column)})")
    predictions = tuple(prediction for _, prediction in out) if columns else None
    return LabelledAnswers(tuple(question for question, _ in out), predictions, unlabelled)


def _taken(
    row: Mapping[Any, Any], line: int, layout: Layout, untyped: bool, location: str
) -> tuple[Question, Mapping[str, Any]] | None:
    columns = named(row)
    label = columns.get("answer" if layout.labels is None else same_form(layout.label))
    if label is None or (isinstance(plain(label), str) and not same_form(plain(label))):
        layout.question(row, line, labelled=False, untyped=untyped)  # what is wrong with it is told all the same
        return None
    made = layout.question(row, line, untyped=untyped, location=f"{location}:{line}")
    return replace(made, id=str(line)), columns


def _predicted(row: Mapping[str, Any], question: Question, columns: Mapping[str, str]) -> int | None:
    """The choice that was answered; None if none was.

    Raises:
        BadRow: what the columns hold is not what `abmll predict` writes.
    """
    said = plain(row.get(columns[ANSWERED]))
    answered = said if isinstance(said, bool) else _SAYS.get(same_form(str(said)).casefold())
    if answered is None:
        raise BadRow(f"{columns[ANSWERED]} is {shown(said)}, neither true nor false")
    if not answered:
        return None
    prediction, classes = plain(row.get(columns[PREDICTION])), Classes(question.choices)
    found = classes.index(prediction)
    if found is None and isinstance(prediction, str):  # what a spreadsheet would take for a formula has an apostrophe
        found = classes.index(prediction.removeprefix("'") or prediction)
    if found is None:
        raise BadRow(f"{columns[PREDICTION]} is {shown(prediction)}, none of {', '.join(map(shown, question.choices))}")
    return found
