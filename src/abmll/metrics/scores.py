"""Scores of answers as arrays: each function one number, computed without the model.

`probabilities` is N questions by K choices, float64, rows summing to 1, zeros after the last choice of a
question that has fewer than K. `answers` is the index of the right choice of each, int64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import roc_auc_score

from abmll.errors import AbmllError
from abmll.metrics.calibration import (
    Correct,
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
    "right_share",
    "risk_coverage",
    "scaled_probabilities",
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


def confidence_and_correct(
    probabilities: Float[np.ndarray, "N K"], answers: Int[np.ndarray, "N"]
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Probability of the predicted choice, and whether it is right: 1 or 0, and a share between them (`right_share`).

    Raises:
        AbmllError: there are no questions, an answer is not one of the choices, or a probability is not in
            [0, 1].

    >>> confidence, correct = confidence_and_correct(np.array([[0.5, 0.5], [0.2, 0.8]]), np.array([1, 1]))
    >>> confidence.tolist(), correct.tolist()
    ([0.5, 0.8], [0.5, 1.0])
    """
    share = right_share(probabilities, answers)
    return probabilities.max(axis=1), share


def right_share(probabilities: Float[np.ndarray, "N K"], answers: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Probability of a right answer, where one of the most probable choices of each question is drawn.

    1 or 0 where one choice is the most probable; 1 / m or 0 where m are. So what guesses is scored by what a guess is
    expected to score, and not by how often the first choice happens to be right.

    Raises:
        AbmllError: as `confidence_and_correct`.

    >>> right_share(np.array([[0.5, 0.5, 0.0], [0.2, 0.7, 0.1]]), np.array([1, 0])).tolist()
    [0.5, 0.0]
    """
    _check(probabilities, answers)
    best = probabilities == probabilities.max(axis=1, keepdims=True)
    return np.asarray(best[np.arange(len(answers)), answers] / best.sum(axis=1))


def accuracy(probabilities: Float[np.ndarray, "N K"], answers: Int[np.ndarray, "N"]) -> float:
    """Share of questions whose most probable choice is right; equally probable choices share it (`right_share`).

    Raises:
        AbmllError: as `confidence_and_correct`.

    >>> accuracy(np.array([[0.5, 0.5], [0.2, 0.8]]), np.array([1, 1]))
    0.75
    """
    return float(right_share(probabilities, answers).mean())


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


def auroc_of_confidence(confidence: Float[np.ndarray, "N"], correct: Correct) -> float | None:
    """Chance that a right answer is more confident than a wrong one, ties counting half.

    An answer that is right with probability c is both: a right one of weight c and a wrong one of weight 1 - c.

    Returns:
        None if all answers, or none, are right. 0.5 if all confidences are the same.

    Raises:
        AbmllError: there are no questions, or a confidence is not in [0, 1].

    >>> auroc_of_confidence(np.array([0.9, 0.6, 0.6]), np.array([True, True, False]))
    0.75
    """
    check_confidence(confidence)
    right = correct.astype(np.float64)
    if right.min() == 1 or right.max() == 0:
        return None
    weights = np.concatenate([right, 1 - right])
    truth = np.repeat([True, False], len(right))
    return float(roc_auc_score(truth, np.tile(confidence, 2), sample_weight=weights))


def risk_coverage(confidence: Float[np.ndarray, "N"], correct: Correct) -> RiskCoverage:
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


def temperature_of(rows: Sequence[Prediction]) -> float:
    """The temperature that fits these predictions best.

    Raises:
        AbmllError: there are none.
    """
    return fit_temperature(floored_probabilities(rows), _answers(rows))


def scaled_probabilities(predictions: Predictions, fitted: tuple[Prediction, ...]) -> Float[np.ndarray, "N K"]:
    """Probabilities of the test questions at the temperature that fits `fitted` best."""
    return apply_temperature(floored_probabilities(predictions.rows), temperature_of(fitted))


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
