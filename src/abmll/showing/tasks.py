"""A saved task as a server has it: rows of requests to questions, answers to what is sent, and what it promises."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from abmll.config import RunConfig
from abmll.errors import AbmllError
from abmll.everyday.adapt import HeldBack, HeldBackRows, layout_of, saved_answers
from abmll.everyday.saved import SavedPosterior, read_posterior
from abmll.everyday.session import Session, settings_of, temperature_of
from abmll.everyday.survey import CHUNK
from abmll.metrics.abstention import LEVEL, Covered, choose_threshold, conformal_threshold, rows_needed
from abmll.question import Question
from abmll.systems.predict import Answer
from abmll.systems.temperature import TaskTemperature
from abmll.tables.collect import collect
from abmll.tables.layouts import Layout
from abmll.tables.rows import report

MOST_RISKS = 64
"""Risks whose thresholds are kept at a time."""


@dataclass(frozen=True)
class Promise:
    """What holds at a risk, by the rows that were held back from adapting.

    Attributes:
        risk: share of the answers that may be wrong.
        covered: the rows held back at or above the threshold of the confidence.
        least: probability from which a label is in the set of a row, see `conformal_threshold`.
    """

    risk: float
    covered: Covered
    least: float

    @property
    def threshold(self) -> float | None:
        """The confidence from which rows are answered; None: every row is."""
        return None if math.isinf(self.covered.threshold) else self.covered.threshold

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        counts = {"held_back_answered": self.covered.answered, "held_back_errors": self.covered.errors}
        return {"risk": self.risk, "confidence_of_promise": LEVEL, "threshold": self.threshold, **counts}


@dataclass
class ServedTask:
    """One saved task.

    Attributes:
        name: by which requests choose it.
        saved: its posterior, as it was when the server started.
        config: the settings that it is answered with.
        layout: its columns.
        temperature: of its answers; None: they are as the model states them.
        held_back: answers to the rows that were held back from adapting; None: there are none.
        pilot: confidences of rows without labels, which fix the thresholds that are tested; none: one that answers all.
    """

    name: str
    saved: SavedPosterior
    config: RunConfig
    layout: Layout
    temperature: TaskTemperature | None
    held_back: HeldBack | None = None
    pilot: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _promises: dict[float, Promise | AbmllError] = field(default_factory=dict)

    def questions(self, rows: Sequence[Mapping[str, Any]]) -> list[Question]:
        """The questions of a request's rows, whose answers are not looked at.

        Raises:
            AbmllError: a row is bad; names all of them by number, from 1.
        """
        found = collect("row", list(enumerate(rows, start=1)), partial(self.layout.question, labelled=False))
        if found.problems:
            raise report(found.messages(), len(found.problems))
        return found.questions

    def texts(self, texts: Sequence[str]) -> list[Question]:
        """As `questions`, of texts alone.

        Raises:
            AbmllError: a text is empty or no text, or rows have choices of their own.
        """
        if self.layout.labels is None:
            raise AbmllError(
                f"task {self.name!r} has questions with choices of their own: send rows with the columns question and "
                "choices, not input"
            )
        return self.questions([{self.layout.text: text} for text in texts])

    def scaled(self, stated: Sequence[Answer]) -> tuple[Answer, ...]:
        """Answers at the temperature of the task, by parts of as many rows as `abmll predict` takes at a time."""
        temperature = self.temperature
        if temperature is None:
            return tuple(stated)
        parts = (stated[i : i + CHUNK] for i in range(0, len(stated), CHUNK))
        return tuple(answer for part in parts for answer in temperature.answers(part))

    def promise(self, risk: float) -> Promise:
        """What can be promised at a risk; found once.

        Raises:
            AbmllError: the risk is no share, too few rows were held back, or no threshold keeps the promise.
        """
        need = rows_needed(risk)
        if risk not in self._promises:
            if len(self._promises) >= MOST_RISKS:
                self._promises.pop(next(iter(self._promises)))
            self._promises[risk] = self._promised(risk, need)
        found = self._promises[risk]
        if isinstance(found, AbmllError):
            raise AbmllError(str(found))
        return found

    def _promised(self, risk: float, need: int) -> Promise | AbmllError:
        held_back = HeldBack(np.zeros(0), np.zeros(0, dtype=bool)) if self.held_back is None else self.held_back
        have = len(held_back.correct)
        if have < need:
            return AbmllError(
                f"task {self.name!r}: a promise of at most {100 * risk:g} % wrong answers needs {need} rows held back "
                f"from adapting, or more; here are {have}. `abmll adapt --hold-back {need}` holds them back"
            )
        covered = choose_threshold((held_back.confidence, held_back.correct), self.pilot, risk)
        if covered is None:
            pilot = "" if len(self.pilot) else f"; --pilot {self.name}=ROWS, rows without labels, lets it choose"
            return AbmllError(
                f"task {self.name!r}: no threshold of the confidence keeps the promise of at most {100 * risk:g} % "
                f"wrong answers by {have} rows held back{pilot}"
            )
        of_truth = HeldBackRows.from_json(self.saved.details["held_back"]).of_truth(self.temperature)
        return Promise(risk, covered, conformal_threshold(of_truth, risk))

    def shown(self, questions: Sequence[Question], answers: Sequence[Answer], promise: Promise | None) -> list[Any]:
        """What is sent of each answer."""
        pairs = zip(questions, answers, strict=True)
        return [{"index": i, **_shown(question, answer, promise)} for i, (question, answer) in enumerate(pairs)]

    def about(self) -> dict[str, Any]:
        """What is told of it: no row, and no path."""
        labels = self.layout.labels
        of_rows = {"text": self.layout.text} if labels else {"question": "question", "choices": "choices"}
        return {
            "id": self.name,
            "object": "model",
            "owned_by": "abmll",
            "labels": None if labels is None else list(labels),
            "columns": of_rows,
            "examples": self.saved.details.get("examples"),
            "held_back": 0 if self.held_back is None else len(self.held_back.correct),
            "temperature": None if self.temperature is None else self.temperature.temperature,
        }


def _shown(question: Question, answer: Answer, promise: Promise | None) -> dict[str, Any]:
    p, choices = answer.probabilities, question.choices
    answered, chosen = None, None
    if promise is not None:
        answered = bool(answer.confidence >= promise.covered.threshold)
        order = sorted(range(len(p)), key=lambda k: -p[k])
        chosen = [choices[k] for k in order[: max(1, sum(x >= promise.least for x in p))]]
    label = choices[answer.choice]
    return {
        "label": label,
        "probs": list(p),
        "num_classes": len(p),
        "prediction": None if answered is False else label,
        "confidence": answer.confidence,
        "answered": answered,
        "set": chosen,
        "spread": answer.spread,
        "information": answer.information,
    }


def read_served(run: Path, name: str, overrides: Mapping[str, Any]) -> ServedTask:
    """A saved task of a run, apart from any model.

    Raises:
        AbmllError: there is none of that name, it is damaged, or a value is wrong.
    """
    saved = read_posterior(run, name)
    config = settings_of(run, overrides, saved)
    return ServedTask(name, saved, config, layout_of(saved), temperature_of(saved, config))


def take_held_back(task: ServedTask, session: Session) -> None:
    """Take the answers to the rows held back, where they were made as answers are now.

    Raises:
        AbmllError: they were not, or are damaged.
    """
    stored = task.saved.details.get("held_back")
    if stored is not None and "probabilities" not in stored:
        raise AbmllError(f"{task.saved.folder}: its rows held back were kept by an earlier version; adapt again")
    task.held_back = saved_answers(session, task.saved)
