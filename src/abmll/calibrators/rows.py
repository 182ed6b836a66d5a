"""What a calibrator reads: the answers to many questions as one array, and one task's answers as two of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from abmll.errors import AbmllError
from abmll.metrics.predictions import Prediction, Predictions, pad_probabilities
from abmll.metrics.scores import PROBABILITY_FLOOR, floored_probabilities

UNKNOWN = -1
"""Stands for an answer that is not known."""
_LOG_FLOOR = float(np.log(PROBABILITY_FLOOR))


@dataclass(frozen=True, eq=False)
class ChoiceRows:
    """Answers of one system to N questions of at most K choices, as log-probabilities.

    Made by `from_predictions` or `from_scores`, which normalise each row and hold every real choice at
    `PROBABILITY_FLOOR` or above, so that a temperature can act on it.

    Attributes:
        log_probabilities: log p of each choice, float64; -inf after a question's last choice and nowhere else.
        answers: index of the right choice, -1 where it is not known.
        fixed_choices: choice k is the same in every row: the labels of a classification, or letters.
        features: further numbers about each question, such as lengths, for calibrators that use features.
    """

    log_probabilities: Float[np.ndarray, "N K"]
    answers: Int[np.ndarray, "N"]
    fixed_choices: bool = False
    features: Float[np.ndarray, "N D"] | None = None

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_predictions(
        cls,
        rows: Sequence[Prediction],
        *,
        fixed_choices: bool = False,
        features: Float[np.ndarray, "N D"] | None = None,
    ) -> "ChoiceRows":
        """The rows of a predictions file.

        Raises:
            AbmllError: a probability is not a number in [0, 1], a feature is not finite, an answer is not one of the
                choices, or the choices are said to be fixed and differ in number; names the row.

        >>> rows = (Prediction("a", 1, (0.75, 0.25)), Prediction("b", 0, (0.5, 0.25, 0.25)))
        >>> ChoiceRows.from_predictions(rows).probabilities().tolist()
        [[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]]
        """
        stated = pad_probabilities([row.probabilities for row in rows])
        bad = ~((stated >= 0) & (stated <= 1 + 1e-4)).all(axis=1)
        if bad.any():
            row = rows[int(np.argmax(bad))]
            raise AbmllError(f"question {row.id!r}: probabilities {row.probabilities} are not all numbers in [0, 1]")
        answers = np.array([row.answer for row in rows], dtype=np.int64)
        with np.errstate(divide="ignore"):
            scores = np.log(floored_probabilities(rows))
        return cls.from_scores(scores, answers, fixed_choices=fixed_choices, features=features)

    @classmethod
    def from_scores(
        cls,
        scores: Float[np.ndarray, "N K"],
        answers: Int[np.ndarray, "N"] | None = None,
        *,
        fixed_choices: bool = False,
        features: Float[np.ndarray, "N D"] | None = None,
    ) -> "ChoiceRows":
        """Rows of any scores (logits): -inf after a question's last choice, made log-probabilities here.

        Raises:
            AbmllError: as `from_predictions`, or a score is NaN or infinite.

        >>> ChoiceRows.from_scores(np.array([[1.0, 1.0, -np.inf]])).probabilities().round(9).tolist()
        [[0.5, 0.5, 0.0]]
        """
        if np.isnan(scores).any() or np.isposinf(scores).any():
            row = int(np.argmax((np.isnan(scores) | np.isposinf(scores)).any(axis=1)))
            raise AbmllError(f"row {row} (from 0): scores {scores[row].tolist()} are not all finite")
        answers = np.full(len(scores), UNKNOWN) if answers is None else answers
        if scores.size == 0:
            return cls(scores.astype(np.float64), answers, fixed_choices, features)
        logs = scores - np.maximum(np.logaddexp.reduce(scores, axis=1, keepdims=True), -np.finfo(np.float64).max)
        return cls(np.where(scores > -np.inf, np.maximum(logs, _LOG_FLOOR), -np.inf), answers, fixed_choices, features)

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def real(self) -> Bool[np.ndarray, "N K"]:
        """Which entries are choices, and not padding."""
        return self.log_probabilities > -np.inf

    @property
    def choices(self) -> Int[np.ndarray, "N"]:
        """Number of choices of each question."""
        return self.real.sum(axis=1)

    def probabilities(self) -> Float[np.ndarray, "N K"]:
        """p of each choice, zero after a question's last choice."""
        return np.exp(self.log_probabilities)

    def labelled(self) -> "ChoiceRows":
        """The rows whose answer is known."""
        known = self.answers != UNKNOWN
        features = None if self.features is None else self.features[known]
        return replace(
            self, log_probabilities=self.log_probabilities[known], answers=self.answers[known], features=features
        )

    def with_scores(self, scores: Float[np.ndarray, "N K"]) -> "ChoiceRows":
        """The same questions with other scores."""
        return type(self).from_scores(scores, self.answers, fixed_choices=self.fixed_choices, features=self.features)


@dataclass(frozen=True, eq=False)
class TaskRows:
    """One task's answers by one system.

    Attributes:
        name: the task.
        held_out: its labelled examples (about 20), each answered by a system that was not fitted to it.
        test: the questions to be scored, answered by the system fitted to all examples.
        content_free: answers to inputs without content ("N/A", an empty text), for `contextual`.
    """

    name: str
    held_out: ChoiceRows
    test: ChoiceRows
    content_free: ChoiceRows | None = None

    def __post_init__(self) -> None:
        if self.held_out.fixed_choices != self.test.fixed_choices:
            raise AbmllError(f"task {self.name!r}: choices are fixed in its held-out or its test rows, and not in both")

    @classmethod
    def from_predictions(
        cls, predictions: Predictions, fixed_choices: bool | None = None, *, lengths: bool = False
    ) -> "TaskRows":
        """The held-out and test rows of a predictions file, and its content-free ones if it has any.

        Args:
            predictions: of one task.
            fixed_choices: whether choice k is the same in every row; None: where the file counts labels. With the
                likelihood `letter` the letters are fixed, too.
            lengths: make features of the numbers of tokens of each question and of its choices, as logarithms.

        Raises:
            AbmllError: as `ChoiceRows.from_predictions`, or a row has no lengths.
        """
        fixed = predictions.label_counts is not None if fixed_choices is None else fixed_choices
        held_out, test, content_free = (
            ChoiceRows.from_predictions(rows, fixed_choices=fixed, features=_lengths(rows) if lengths else None)
            for rows in (predictions.held_out_rows, predictions.rows, predictions.content_free_rows)
        )
        return cls(predictions.task, held_out, test, content_free if len(content_free) else None)


def _lengths(rows: Sequence[Prediction]) -> Float[np.ndarray, "N 2"]:
    known = [row.lengths for row in rows if row.lengths is not None]
    if len(known) < len(rows):
        bad = next(row.id for row in rows if row.lengths is None)
        raise AbmllError(f"question {bad!r} has no lengths; predict with adaptation.lengths=true")
    return np.log(np.array(known, dtype=np.float64).reshape(len(rows), 2))


def join(first: ChoiceRows, second: ChoiceRows) -> ChoiceRows:
    """The rows of both, one after the other; features only if both have them.

    >>> two = ChoiceRows.from_scores(np.zeros((1, 2))), ChoiceRows.from_scores(np.zeros((1, 3)))
    >>> join(*two).choices.tolist()
    [2, 3]
    """
    width = max(first.log_probabilities.shape[1], second.log_probabilities.shape[1])
    features = None
    if first.features is not None and second.features is not None:
        features = np.concatenate([first.features, second.features])
    return ChoiceRows(
        np.concatenate([widened(rows.log_probabilities, width) for rows in (first, second)]),
        np.concatenate([first.answers, second.answers]),
        first.fixed_choices and second.fixed_choices,
        features,
    )


def widened(logs: Float[np.ndarray, "N K"], width: int) -> Float[np.ndarray, "N W"]:
    """Log-probabilities with more padding."""
    return np.pad(logs, ((0, 0), (0, width - logs.shape[1])), constant_values=-np.inf)


def _check(rows: ChoiceRows) -> None:
    logs, answers = rows.log_probabilities, rows.answers
    count = (logs > -np.inf).sum(axis=1)
    faults = {
        "log-probabilities are not finite": np.isnan(logs).any(axis=1) | (logs > 1e-9).any(axis=1),
        "no choices": count == 0,
        "a choice after the last one": (logs > -np.inf)[:, ::-1].argmax(axis=1) + count != logs.shape[1]
        if logs.size
        else count > 0,
        "the answer is not one of the choices": (answers < UNKNOWN) | (answers >= count),
    }
    if rows.features is not None:
        faults["a feature is not finite"] = ~np.isfinite(rows.features).all(axis=1)
    if rows.fixed_choices:
        faults["another number of choices than in the first row, though they are fixed"] = count != count[:1]
    for fault, where in faults.items():
        if where.any():
            raise AbmllError(f"row {int(np.argmax(where))} (from 0) of {len(rows)}: {fault}")
