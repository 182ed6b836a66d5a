"""Answers to a table of rows, written beside them: every row is checked first, then answered a few at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from abmll.errors import AbmllError
from abmll.everyday.session import Session
from abmll.metrics.abstention import Covered
from abmll.question import Question
from abmll.systems.predict import Answer
from abmll.tables.collect import Rows, collect, good_rows
from abmll.tables.layouts import Layout
from abmll.tables.normal import same_form
from abmll.tables.read import RowFile, extension_of
from abmll.tables.rows import RawRow, printable, report, shown
from abmll.tables.write import check_writable, writing

CHUNK = 256
"""Rows in memory at once."""
PILOT = 1024
"""First rows, whose confidences fix the thresholds that are tested; in memory at once where one abstains."""
MOST_PROBLEMS = 1000  # bad rows after which a survey ends; 50 are printed

Tell = Callable[[int], None]
Choose = Callable[[np.ndarray], Covered]
"""Confidences of rows without labels -> the threshold to answer by."""


@dataclass
class Survey:
    """A table of good rows to answer, and what a first look at it found.

    Attributes:
        table: the rows.
        layout: of their columns.
        out: where the answers go: .csv, .tsv, .jsonl or .parquet.
        prefix: goes before the names of our columns.
        abstains: whether rows may be left without a prediction.
        other: what is written as the prediction of these; None: nothing.
        rows: how many there are.
        columns: their names, in order of first appearance.
        schema: their types, where the output needs them.
    """

    table: RowFile
    layout: Layout
    out: Path
    prefix: str = ""
    abstains: bool = False
    other: str | None = None
    rows: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    schema: pyarrow.Schema | None = None

    @property
    def added(self) -> dict[str, type]:
        """Names and types of our columns, which are written beside a row's own."""
        prefix, labels = self.prefix, self.layout.labels
        names: dict[str, type] = {f"{prefix}prediction": str, f"{prefix}confidence": float}
        if self.abstains:
            names[f"{prefix}answered"] = bool
        if labels is None:
            names[f"{prefix}probabilities"] = list
        else:
            names |= {f"{prefix}p_{label}": float for label in labels}
        return names | {f"{prefix}spread": float, f"{prefix}information": float}


@dataclass(frozen=True)
class Written:
    """What `predict_table` wrote.

    Attributes:
        rows: of the table.
        answered: those not abstained from.
        cut: those whose text or context was too long, and lost its start.
        threshold: of the confidence, where one abstains.
    """

    rows: int
    answered: int
    cut: int
    threshold: Covered | None = None


def survey(table: RowFile, layout: Layout, out: Path, *, prefix: str = "", abstains: bool = False) -> Survey:
    """Check every row of a table, and where the answers go, before any is answered.

    Args:
        table: the rows.
        layout: of their columns.
        out: the file to write.
        prefix: goes before the names of our columns.
        abstains: whether rows may be left without a prediction.

    Raises:
        AbmllError: the file cannot be read or has no rows, a row is bad (as file:line: reason), a column of ours is in
            it already, or `out` cannot be written or cannot hold its columns.
    """
    check_writable(out)
    label = printable(table.path)
    found = Survey(table, layout, out, prefix, abstains, schema=table.schema())
    problems, as_question = Rows(label), partial(layout.question, labelled=False, untyped=table.untyped)
    typed = extension_of(out) == "parquet" and table.extension == "jsonl"
    rows, answerable = table.rows(), 0
    while batch := list(islice(rows, CHUNK)):
        good = [row for row, _ in good_rows(problems, batch, as_question)]
        found.rows += len(batch)
        found.columns.update(dict.fromkeys(name for row in good for name in row))
        answerable += len(good)
        if len(problems.problems) > MOST_PROBLEMS:
            problems.problems.append(f"{label}: and maybe more after line {batch[-1][0]}, which were not looked at")
            break
        if typed:
            found.schema = _unified(found.schema, good, out, f"{label}:{batch[0][0]}")
    if problems.problems:
        raise report(problems.messages(answerable), len(problems.problems))
    if not found.rows:
        raise AbmllError(f"{label}:1: the file has no rows")
    _refuse_taken(found)
    return found


def _refuse_taken(surveyed: Survey) -> None:
    theirs = set(map(same_form, map(str, surveyed.columns)))
    if taken := [name for name in surveyed.added if same_form(name) in theirs]:
        raise AbmllError(
            f"{printable(surveyed.table.path)}: has a column {shown(taken[0])} already, which would be ours; --prefix "
            "puts something before our names"
        )


def _unified(schema: pyarrow.Schema | None, rows: Sequence[Any], out: Path, where: str) -> pyarrow.Schema | None:
    """The types of rows of JSON, together with those of earlier ones."""
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        here = pyarrow.schema([(name, pyarrow.array([row.get(name) for row in rows]).type) for name in names])
        return pyarrow.unify_schemas([schema, here] if schema else [here], promote_options="permissive")
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise AbmllError(
            f"{where}: here or soon after, a column changes its type, which {printable(out)} cannot hold "
            f"({shown(str(error))}); write .jsonl"
        ) from error


def predict_table(
    session: Session, surveyed: Survey, *, choose: Choose | None = None, tell: Tell = lambda rows: None
) -> Written:
    """Answer every row of a table by phi as it is now; `out` has its rows and columns, in order, and ours after them.

    Memory does not depend on the number of rows. `out` is there whole, or as it was before.

    Args:
        session: a run, with the task in its task slot.
        surveyed: of `survey`: the rows, their columns, and where the answers go.
        choose: where one abstains, gives the threshold of confidence below which nothing is predicted.
        tell: hears how many more rows are done.

    Raises:
        AbmllError: the file changed since it was surveyed; or what `choose` raises.
    """
    written = Written(surveyed.rows, 0, 0)
    chunks = _answered(session, surveyed, tell)
    with writing(surveyed.out, list(surveyed.columns), surveyed.added, schema=surveyed.schema) as writer:
        threshold, first = None, []
        if choose is not None:
            first = list(islice(chunks, -(-PILOT // CHUNK)))
            threshold = choose(np.array([answer.confidence for part in first for answer in part.answers]))
        for part in _chain(first, chunks):
            ours = [_ours(q, a, surveyed, threshold) for q, a in zip(part.questions, part.answers, strict=True)]
            writer.write(part.rows, ours)
            answered = sum(extra.get(f"{surveyed.prefix}answered", True) for extra in ours)
            written = Written(written.rows, written.answered + answered, written.cut + part.cut, threshold)
    return written


@dataclass(frozen=True)
class _Part:
    rows: list[Any]
    questions: list[Question]
    answers: tuple[Answer, ...]
    cut: int


def _chain(first: list[_Part], rest: Iterator[_Part]) -> Iterator[_Part]:
    while first:
        yield first.pop(0)
    yield from rest


def _answered(session: Session, surveyed: Survey, tell: Tell) -> Iterator[_Part]:
    table = surveyed.table
    rows, label, encoder = table.rows(), printable(table.path), session.system.batcher.encoder
    encoder.forget()
    while batch := list(islice(rows, CHUNK)):
        questions = _questions(batch, label, surveyed.layout, table.untyped)
        answers = session.system.answer(questions, session.drawing)
        part = _Part([row for _, row in batch], questions, answers, len(encoder.truncated))
        encoder.forget()
        tell(len(batch))
        yield part


def _questions(batch: Sequence[RawRow], label: str, layout: Layout, untyped: bool) -> list[Question]:
    """The questions of rows that were all good when they were surveyed."""
    found = collect(label, batch, partial(layout.question, labelled=False, untyped=untyped))
    if found.problems:
        raise AbmllError(f"{found.problems[0]}; the file changed while it was read")
    return found.questions


def _ours(question: Question, answer: Answer, surveyed: Survey, threshold: Covered | None) -> dict[str, Any]:
    """Our columns of one row."""
    labels = surveyed.layout.labels
    silent = threshold is not None and not answer.confidence >= threshold.threshold
    values: dict[str, Any] = {"prediction": surveyed.other if silent else question.choices[answer.choice]}
    values["confidence"] = answer.confidence
    if threshold is not None:
        values["answered"] = not silent
    if labels is None:
        values["probabilities"] = list(answer.probabilities)
    else:
        values |= {f"p_{label}": p for label, p in zip(labels, answer.probabilities, strict=True)}
    values |= {"spread": answer.spread, "information": answer.information}
    return {f"{surveyed.prefix}{name}": value for name, value in values.items()}
