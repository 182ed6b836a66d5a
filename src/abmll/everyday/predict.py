"""Answers to a table of rows, written beside them: a few rows at a time, after a survey found all of them good."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from abmll.errors import AbmllError
from abmll.everyday.session import Session
from abmll.everyday.survey import CHUNK, Survey
from abmll.metrics.abstention import Covered
from abmll.question import Question
from abmll.systems.predict import Answer
from abmll.tables.collect import collect
from abmll.tables.layouts import Layout
from abmll.tables.rows import RawRow, printable
from abmll.tables.write import writing

PILOT = 1024
"""First rows, whose confidences fix the thresholds that are tested; in memory at once where one abstains."""

Tell = Callable[[int], None]
Choose = Callable[[np.ndarray], Covered]
"""Confidences of rows without labels -> the threshold to answer by."""


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
        answers = session.answer(questions)
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
