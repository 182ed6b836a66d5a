"""What estimators take, lists, frames and rows with labels beside them or in them, as questions."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from abmll.errors import AbmllError
from abmll.question import Question
from abmll.tables.collect import Rows, good_rows
from abmll.tables.frames import labels_in, rows_in
from abmll.tables.labels import Classes, as_array
from abmll.tables.layouts import Layout
from abmll.tables.normal import lookalikes, same_form
from abmll.tables.rows import BadRow, named, report, shown
from abmll.tables.values import plain


@dataclass(frozen=True)
class Columns:
    """How an estimator's rows are read.

    Attributes:
        text: column of the texts.
        label: column of the labels.
        ask: what the model is asked about each text; None: a question made of the labels.
    """

    text: str
    label: str
    ask: str | None

    def kind(self, rows: Sequence[Any], y: Any) -> tuple[Layout, np.ndarray | None, list[Any]]:
        """The layout of examples, the labels where they are fixed, and the answer of each row, as a column has it."""
        if not rows:
            raise AbmllError("no examples to fit to")
        if isinstance(rows[0], Question) or (isinstance(rows[0], Mapping) and "question" in rows[0]):
            return Layout(), None, answers_of(rows, y)
        labels = self.labels(rows, y)
        classes = classes_of(labels).ordered()
        layout = Layout(classes.texts, self.text, self.label, self.ask)
        for one, other in lookalikes(classes.texts):
            warnings.warn(f"{shown(one)} and {shown(other)} are two labels, and look alike", stacklevel=4)
        return layout, as_array(classes.values), labels

    def rows(self, X: Any) -> list[Any]:
        """Examples in a list; rows by the normal forms of their columns' names."""
        return each_row(rows_in(X, self.text), lambda number, row: named(row) if isinstance(row, Mapping) else row)

    def labels(self, rows: Sequence[Any], y: Any) -> list[Any]:
        """The label of each row, by `y` or else by its column.

        Raises:
            AbmllError: a row has none.
        """
        if y is None:
            name = same_form(self.label)
            labels = [row.get(name) if isinstance(row, Mapping) else None for row in rows]
        else:
            labels = labels_in(y, len(rows))
        if missing := [number for number, label in enumerate(labels) if plain(label) is None]:
            raise AbmllError(f"row {missing[0]} (from 0) has no label: give y, or rows with a column {self.label!r}")
        return labels


def classes_of(labels: Sequence[Any]) -> Classes:
    """The classes of some labels.

    Raises:
        AbmllError: names every row whose label is none; or they are a quantity, different in every row.
    """
    classes = Classes(())
    each_row(labels, lambda number, label: classes.add(label))
    values = [plain(value) for value in classes.values]
    if len(values) == len(labels) > 2 and any(isinstance(v, float) and not v.is_integer() for v in values):
        raise AbmllError(
            f"y holds {len(values)} different numbers for {len(labels)} rows, a quantity and no labels: put them into "
            "classes, or give texts"
        )
    return classes


def each_row(rows: Iterable[Any], take: Callable[[int, Any], Any]) -> list[Any]:
    """What `take` gives for each row, of its number from 0 and itself.

    Raises:
        AbmllError: names every row that is none; what is wrong with all of them once.
    """
    found = Rows("", pattern="row {line}")
    out = [taken for _, taken in good_rows(found, enumerate(rows), lambda row, number: take(number, row))]
    if found.problems:
        raise report(found.messages(good=len(out)), len(found.problems))
    return out


def answers_of(rows: Sequence[Any], y: Any) -> list[Any]:
    """The answer of each question, as its column has it: its index or its text."""
    if y is not None:
        return labels_in(y, len(rows))
    return [row.answer if isinstance(row, Question) else row.get("answer") for row in rows]


def questions_of(rows: Sequence[Any], layout: Layout, answers: Sequence[Any] | None) -> list[Question]:
    """Rows as questions, labelled by `answers` if those are given.

    Raises:
        AbmllError: names every row that is none, by its number from 0.
    """
    given = [None] * len(rows) if answers is None else answers
    return each_row(rows, lambda number, row: _question(row, number, layout, given[number]))


def _question(row: Any, number: int, layout: Layout, answer: Any) -> Question:
    location, labelled = f"row {number}", answer is not None
    if isinstance(row, Question):
        if layout.labels is not None:
            raise BadRow("is a question; texts were fitted to")
        row = {"question": row.question, "context": row.context, "choices": list(row.choices)}
    elif not isinstance(row, Mapping):
        if layout.labels is None:
            raise BadRow(f"is {type(row).__name__}, not a question with choices, which were fitted to")
        row = {layout.text: row}
    if labelled:  # with what the row itself has, so that a message tells of no other column
        layout.question(row, number, labelled=False)
    column = "answer" if layout.labels is None else same_form(layout.label)
    return layout.question({**row, column: answer}, number, labelled=labelled, location=location)
