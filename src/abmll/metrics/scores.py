"""Scores: every number that a predictions file gives, computed without the model.

`probabilities` is N questions by K choices, float64, rows summing to 1, zeros after the last choice of a
question that has fewer than K. `answers` is the index of the right choice of each, int64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score

from abmll.errors import AbmllError
from abmll.metrics.calibration import (
    ReliabilityBins,
    adaptive_calibration_error,
    apply_temperature,
    calibration_noise_floor,
    check_confidence,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
    share_ties,
)
from abmll.metrics.predictions import Prediction, Predictions, pad_probabilities

__all__ = [
    "PROBABILITY_FLOOR",
    "ReliabilityBins",
    "RiskCoverage",
    "Scores",
    "accuracy",
    "adaptive_calibration_error",
    "auroc_of_confidence",
    "brier",
    "calibration_noise_floor",
    "confidence_and_correct",
    "expected_calibration_error",
    "floor_probabilities",
    "floored_probabilities",
    "mean_nll",
    "mean_nll_scaled",
    "negative_log_likelihood",
    "question_brier",
    "question_nll",
    "reliability_bins",
    "risk_coverage",
    "scaled_probabilities",
    "score",
    "temperature_of",
]

PROBABILITY_FLOOR = float(np.finfo(np.float64).tiny)
"""Smallest probability whose logarithm is taken, 2.2e-308: an impossible answer costs 708.4 nats."""


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Error rate when only the most confident questions are answered.

    Attributes:
        coverage: share of questions answered, 1 / N to 1, float64.
        risk: share of wrong answers among them, float64.
        area: mean of `risk` over the N coverages (AURC); lower is better.
    """

    coverage: Float[np.ndarray, "N"]
    risk: Float[np.ndarray, "N"]
    area: float


@dataclass(frozen=True)
class Scores:
    """Every number of one predictions file. Confidence is of kind `choices` unless the name says otherwise.

    Attributes:
        n: test questions.
        accuracy: share of right answers.
        nll: mean negative log-likelihood of the right choice, nats.
        brier: mean squared distance to the right answer, summed over choices, 0 to 2.
        ece: expected calibration error, 15 equal-width bins.
        ece_adaptive: the same over 15 bins of equal mass.
        ece_vocabulary: `ece` of the raw probability of a predicted letter; None if a row lacks it (`cloze`).
        ece_noise_floor: mean `ece` that a perfectly calibrated system of the same confidences would show.
        auroc: of confidence for correctness; None if all answers, or none, are right.
        aurc: area under the risk-coverage curve.
        nll_over_uniform: gain over guessing: mean log(number of choices) - nll, nats; negative is worse.
        temperature: fitted on the adaptation rows; None, as the next three, without such rows.
        nll_scaled: `nll` of the test questions at that temperature.
        ece_scaled: `ece` at that temperature.
        brier_scaled: `brier` at that temperature.
        temperature_cv: fitted on the held-out rows, which were not learned; None, as the next three, without such rows.
        nll_scaled_cv: `nll` of the test questions at that temperature.
        ece_scaled_cv: `ece` at that temperature.
        brier_scaled_cv: `brier` at that temperature.
        more: the values of registered metrics, by name (`abmll.metrics.registered`).
    """

    n: int
    accuracy: float
    nll: float
    brier: float
    ece: float
    ece_adaptive: float
    ece_vocabulary: float | None
    ece_noise_floor: float
    auroc: float | None
    aurc: float
    nll_over_uniform: float
    temperature: float | None = None
    nll_scaled: float | None = None
    ece_scaled: float | None = None
    brier_scaled: float | None = None
    temperature_cv: float | None = None
    nll_scaled_cv: float | None = None
    ece_scaled_cv: float | None = None
    brier_scaled_cv: float | None = None
    more: Mapping[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, int | float | None]:
        """Names and values, those of registered metrics last; ready for JSON."""
        values = asdict(self)
        more = values.pop("more")
        return {**values, **more}


def score(predictions: Predictions) -> Scores:
    """Compute every score of one file; deterministic.

    Raises:
        AbmllError: there are no test rows, an answer is not one of the choices, or a probability or
            confidence is not in [0, 1].

    >>> from abmll.metrics.predictions import Prediction
    >>> rows = (Prediction("a", 0, (0.75, 0.25)), Prediction("b", 1, (0.75, 0.25)))
    >>> found = score(Predictions("lora", "toy", seed=0, draw=0, examples_consumed=0, rows=rows))
    >>> found.accuracy, found.brier, round(found.ece, 3), found.temperature
    (0.5, 0.625, 0.25, None)
    """
    probabilities, answers = predictions.probabilities(), predictions.answers()
    confidence, correct = confidence_and_correct(probabilities, answers)
    nll = negative_log_likelihood(probabilities, answers)
    return Scores(
        n=len(answers),
        accuracy=float(correct.mean()),
        nll=nll,
        brier=brier(probabilities, answers),
        ece=expected_calibration_error(confidence, correct),
        ece_adaptive=adaptive_calibration_error(confidence, correct),
        ece_vocabulary=_vocabulary_ece(predictions.rows, correct),
        ece_noise_floor=calibration_noise_floor(confidence),
        auroc=auroc_of_confidence(confidence, correct),
        aurc=risk_coverage(confidence, correct).area,
        nll_over_uniform=float(np.mean(np.log([len(row.probabilities) for row in predictions.rows]))) - nll,
        **_scaled(predictions, predictions.adaptation_rows, correct, ""),
        **_scaled(predictions, predictions.held_out_rows, correct, "_cv"),
    )


def confidence_and_correct(
    probabilities: Float[np.ndarray, "N K"], answers: Int[np.ndarray, "N"]
) -> tuple[Float[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
    """Probability of the predicted choice, and whether it is right. Of equal choices the first is predicted.

    Raises:
        AbmllError: there are no questions, an answer is not one of the choices, or a probability is not in
            [0, 1].

    >>> confidence, correct = confidence_and_correct(np.array([[0.5, 0.5], [0.2, 0.8]]), np.array([1, 1]))
    >>> confidence.tolist(), correct.tolist()
    ([0.5, 0.8], [False, True])
    """
    _check(probabilities, answers)
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == answers


def accuracy(probabilities: Float[np.ndarray, "N K"], answers: Int[np.ndarray, "N"]) -> float:
    """Share of questions whose most probable choice is right; of equal choices the first is predicted.

    Raises:
        AbmllError: as `confidence_and_correct`.

    >>> accuracy(np.array([[0.5, 0.5], [0.2, 0.8]]), np.array([1, 1]))
    0.5
    """
    return float(confidence_and_correct(probabilities, answers)[1].mean())


def question_nll(probabilities: Float[np.ndarray, "N K"], answers: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """-log p(answer) of each question, nats; p counts as `PROBABILITY_FLOOR` at least, so at most 708.4.

    Raises:
        AbmllError: as `confidence_and_correct`.

    >>> question_nll(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 1])).round(4).tolist()
    [0.6931, 708.3964]
    """
    _check(probabilities, answers)
    chosen = probabilities[np.arange(len(answers)), answers]
    return -np.log(np.maximum(chosen, PROBABILITY_FLOOR))


def negative_log_likelihood(probabilities: Float[np.ndarray, "N K"], answers: Int[np.ndarray, "N"]) -> float:
    """Mean of `question_nll`, nats.

    Raises:
        AbmllError: as `confidence_and_correct`.

    >>> round(negative_log_likelihood(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 1])), 4)
    0.3466
    """
    return float(question_nll(probabilities, answers).mean())


def mean_nll(rows: Sequence[Prediction]) -> float:
    """`negative_log_likelihood` of predictions: the one number that a checkpoint is chosen by and a table reports.

    Raises:
        AbmllError: there are none, an answer is not one of the choices, or a probability is not in [0, 1].

    >>> round(mean_nll([Prediction("a", 0, (1.0, 0.0)), Prediction("b", 1, (0.5, 0.5))]), 4)  # (0 + log 2) / 2
    0.3466
    """
    return negative_log_likelihood(pad_probabilities([row.probabilities for row in rows]), _answers(rows))


def mean_nll_scaled(rows: Sequence[Prediction]) -> float:
    """`mean_nll` at the temperature that fits these predictions best: what they know, however sure they are.

    Weights that came to nothing make guesses, whose NLL may be below that of good weights that are too sure.

    Raises:
        AbmllError: as `mean_nll`.

    >>> sure = [Prediction(str(i), int(i == 0), (0.999, 0.001)) for i in range(4)]  # right three times in four
    >>> round(mean_nll(sure), 3), round(mean_nll_scaled(sure), 3)
    (1.728, 0.562)
    """
    return negative_log_likelihood(apply_temperature(floored_probabilities(rows), temperature_of(rows)), _answers(rows))


def question_brier(probabilities: Float[np.ndarray, "N K"], answers: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """sum_k (p_k - [k = answer])^2 of each question, 0 to 2 (Brier 1950: summed over choices, not halved).

    Raises:
        AbmllError: as `confidence_and_correct`.

    >>> question_brier(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 1])).tolist()
    [0.5, 2.0]
    """
    _check(probabilities, answers)
    truth = np.arange(probabilities.shape[1]) == answers[:, None]
    return np.square(probabilities - truth).sum(axis=1)


def brier(probabilities: Float[np.ndarray, "N K"], answers: Int[np.ndarray, "N"]) -> float:
    """Mean of `question_brier`.

    Raises:
        AbmllError: as `confidence_and_correct`.

    >>> brier(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 1]))
    1.25
    """
    return float(question_brier(probabilities, answers).mean())


def auroc_of_confidence(confidence: Float[np.ndarray, "N"], correct: Bool[np.ndarray, "N"]) -> float | None:
    """Chance that a right answer is more confident than a wrong one, ties counting half.

    Returns:
        None if all answers, or none, are right.

    Raises:
        AbmllError: there are no questions, or a confidence is not in [0, 1].

    >>> auroc_of_confidence(np.array([0.9, 0.6, 0.6]), np.array([True, True, False]))
    0.75
    """
    check_confidence(confidence)
    return None if correct.all() or not correct.any() else float(roc_auc_score(correct, confidence))


def risk_coverage(confidence: Float[np.ndarray, "N"], correct: Bool[np.ndarray, "N"]) -> RiskCoverage:
    """Error rate of the k most confident answers, for k = 1 .. N, and its mean (Geifman and El-Yaniv 2017).

    Answers of equal confidence share their mean error: the expectation over every order among them.

    Raises:
        AbmllError: there are no questions, or a confidence is not in [0, 1].

    >>> curve = risk_coverage(np.array([0.9, 0.6]), np.array([True, False]))
    >>> curve.coverage.tolist(), curve.risk.tolist(), curve.area
    ([0.5, 1.0], [0.0, 0.5], 0.25)
    """
    check_confidence(confidence)
    errors = 1 - share_ties(confidence, correct)[np.argsort(-confidence)]
    taken = np.arange(1, len(errors) + 1)
    risk = np.cumsum(errors) / taken
    return RiskCoverage(coverage=taken / len(errors), risk=risk, area=float(risk.mean()))


def floored_probabilities(rows: Sequence[Prediction]) -> Float[np.ndarray, "N K"]:
    """Padded probabilities where a real choice is never quite zero, so that a temperature can act on it.

    >>> from abmll.metrics.predictions import Prediction
    >>> rows = (Prediction("a", 0, (1.0, 0.0)), Prediction("b", 0, (0.5, 0.25, 0.25)))
    >>> (floored_probabilities(rows) > 0).tolist()  # the choice that "a" does not have stays at zero
    [[True, True, False], [True, True, True]]
    """
    padded = pad_probabilities([row.probabilities for row in rows])
    return floor_probabilities(padded, np.array([len(row.probabilities) for row in rows], dtype=np.int64))


def floor_probabilities(padded: Float[np.ndarray, "N K"], choices: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N K"]:
    """`floored_probabilities` of a padded table whose questions have so many choices.

    >>> floor_probabilities(np.array([[1.0, 0.0, 0.0]]), np.array([2])) > 0
    array([[ True,  True, False]])
    """
    real = np.arange(padded.shape[1]) < choices[:, None]
    return np.where(real, np.maximum(padded, PROBABILITY_FLOOR), 0.0)


def _vocabulary_ece(rows: tuple[Prediction, ...], correct: Bool[np.ndarray, "N"]) -> float | None:
    stated = [row.vocabulary_confidence for row in rows]
    known = [value for value in stated if value is not None]
    return expected_calibration_error(np.array(known), correct) if len(known) == len(stated) else None


def temperature_of(rows: Sequence[Prediction]) -> float:
    """The temperature that fits these predictions best.

    Raises:
        AbmllError: there are none.
    """
    return fit_temperature(floored_probabilities(rows), _answers(rows))


def scaled_probabilities(predictions: Predictions, fitted: tuple[Prediction, ...]) -> Float[np.ndarray, "N K"]:
    """Probabilities of the test questions at the temperature that fits `fitted` best."""
    return apply_temperature(floored_probabilities(predictions.rows), temperature_of(fitted))


def _scaled(
    predictions: Predictions, fitted: tuple[Prediction, ...], correct: Bool[np.ndarray, "N"], end: str
) -> dict[str, Any]:
    if not fitted:
        return {}
    scaled, answers = scaled_probabilities(predictions, fitted), predictions.answers()
    return {
        f"temperature{end}": temperature_of(fitted),
        f"nll_scaled{end}": negative_log_likelihood(scaled, answers),
        # who is right was settled before scaling: rounding may make two choices equal, never swap them
        f"ece_scaled{end}": expected_calibration_error(scaled.max(axis=1), correct),
        f"brier_scaled{end}": brier(scaled, answers),
    }


def _answers(rows: Sequence[Prediction]) -> Int[np.ndarray, "N"]:
    return np.array([row.answer for row in rows], dtype=np.int64)


def _check(probabilities: Float[np.ndarray, "N K"], answers: Int[np.ndarray, "N"]) -> None:
    if len(answers) == 0:
        raise AbmllError("no questions to score: the predictions hold no test rows")
    if not ((answers >= 0) & (answers < probabilities.shape[1])).all():
        ends = f"{answers.min()} to {answers.max()}"
        raise AbmllError(f"answers {ends} are not all among the {probabilities.shape[1]} choices")
    # rows may sum to 1 within 1e-4 only, see abmll.metrics.predictions
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-4)).all():
        raise AbmllError("a probability is not a finite number in [0, 1]")
