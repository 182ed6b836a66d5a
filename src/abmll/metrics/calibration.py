"""Calibration: does a confidence of 0.8 come true 8 times in 10? Bins, errors, their noise, temperature.

Everything takes `confidence` (the stated probability of the predicted choice, in [0, 1]) and `correct` (whether it was
right; a share where equally probable choices share the answer), so both definitions of confidence, `choices` and
`vocabulary`, go through the same code.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar

from abmll.errors import AbmllError, NonFiniteError

Correct = Bool[np.ndarray, "N"] | Float[np.ndarray, "N"]
"""Whether each predicted choice is right, or the probability of it where equally probable choices share the answer."""
BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Lowest and highest temperature that is ever fitted."""

_FLAT = 1e-12  # nats: a smaller gain than this is rounding, no reason to leave T = 1
_BLOCK = 2_000_000  # simulated outcomes held at once: keeps memory flat for large files


@dataclass(frozen=True, eq=False)
class ReliabilityBins:
    """A reliability diagram: equal-width bins of confidence, closed on the right, all float64 but `count`.

    Attributes:
        edges: the B + 1 edges, from 0 to 1.
        count: questions in each bin, int64.
        mean_confidence: mean confidence in each bin, NaN where it is empty.
        mean_accuracy: share of right answers in each bin, NaN where it is empty.
    """

    edges: Float[np.ndarray, "E"]
    count: Int[np.ndarray, "B"]
    mean_confidence: Float[np.ndarray, "B"]
    mean_accuracy: Float[np.ndarray, "B"]


def bin_index(confidence: Float[np.ndarray, "N"], bins: int = BINS) -> Int[np.ndarray, "N"]:
    """The equal-width bin of each confidence: bin b is (b / bins, (b + 1) / bins], and 0 is in the first.

    >>> bin_index(np.array([0.0, 0.2, 0.21, 1.0]), bins=5).tolist()
    [0, 0, 1, 4]
    """
    index = np.searchsorted(_edges(bins), confidence, side="left") - 1
    return np.clip(index, 0, bins - 1)


def reliability_bins(confidence: Float[np.ndarray, "N"], correct: Correct, bins: int = BINS) -> ReliabilityBins:
    """The reliability diagram of N questions.

    Raises:
        AbmllError: there are no questions, or a confidence is not finite or outside [0, 1].

    >>> found = reliability_bins(np.array([0.4, 0.9, 1.0]), np.array([True, False, True]), bins=2)
    >>> found.mean_accuracy.tolist()
    [1.0, 0.5]
    """
    check_confidence(confidence)
    index = bin_index(confidence, bins)
    count = np.bincount(index, minlength=bins)
    some = np.where(count > 0, count, np.nan)
    return ReliabilityBins(
        edges=_edges(bins),
        count=count,
        mean_confidence=np.bincount(index, confidence, bins) / some,
        mean_accuracy=np.bincount(index, correct.astype(np.float64), bins) / some,
    )


def expected_calibration_error(confidence: Float[np.ndarray, "N"], correct: Correct, bins: int = BINS) -> float:
    """Expected calibration error over equal-width bins, in [0, 1].

    ECE = sum_b (n_b / N) |accuracy_b - confidence_b|   (Naeini et al. 2015; Guo et al. 2017, equation 3)

    Raises:
        AbmllError: there are no questions, or a confidence is not finite or outside [0, 1].

    >>> round(expected_calibration_error(np.array([0.6, 0.9]), np.array([True, False])), 3)
    0.65
    """
    check_confidence(confidence)
    gaps = np.bincount(bin_index(confidence, bins), correct - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def adaptive_calibration_error(confidence: Float[np.ndarray, "N"], correct: Correct, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal mass: N / bins questions each, in order of confidence.

    The equation is that of `expected_calibration_error` (equal-mass bins: Nguyen and O'Connor 2015).
    Questions of the same confidence share their mean accuracy, so a tie across a bin's edge does not depend
    on the order of rows. With fewer questions than bins each question is a bin.

    Raises:
        AbmllError: there are no questions, or a confidence is not finite or outside [0, 1].

    >>> confidence, correct = np.array([0.6, 0.6, 0.9, 0.9]), np.array([True, False, True, True])
    >>> round(adaptive_calibration_error(confidence, correct, bins=2), 3)
    0.1
    """
    check_confidence(confidence)
    count = len(confidence)
    order = np.argsort(confidence)
    gap = (share_ties(confidence, correct) - confidence)[order]
    bounds = np.arange(bins + 1) * count // bins
    sums = np.diff(np.concatenate([[0.0], np.cumsum(gap)])[bounds])
    return float(np.abs(sums).sum() / count)


def calibration_noise_floor(
    confidence: Float[np.ndarray, "N"], bins: int = BINS, repeats: int = 1000, seed: int = 0
) -> float:
    """Mean ECE that a perfectly calibrated system with these confidences would show.

    A finite file hardly ever shows an ECE of 0. Each answer is drawn right with its own stated confidence,
    `repeats` times (consistency resampling: Broecker and Smith 2007), and the mean of the ECE is returned.

    Raises:
        AbmllError: there are no questions, or a confidence is not finite or outside [0, 1].

    >>> round(calibration_noise_floor(np.full(100, 0.5)), 2)  # mean |share - 0.5| is 0.5 sqrt(2 / (100 pi))
    0.04
    """
    return float(simulate_calibrated_ece(confidence, bins, repeats, seed).mean())


def calibration_noise_range(
    confidence: Float[np.ndarray, "N"],
    bins: int = BINS,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Where the ECE of a perfectly calibrated system with these confidences lies, with probability `level`.

    An observed ECE inside the range gives no reason to doubt the calibration.

    Raises:
        AbmllError: there are no questions, or a confidence is not finite or outside [0, 1].

    >>> low, high = calibration_noise_range(np.full(100, 0.5))
    >>> 0 <= low < 0.04 < high < 0.12
    True
    """
    simulated = simulate_calibrated_ece(confidence, bins, repeats, seed)
    low, high = np.quantile(simulated, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def simulate_calibrated_ece(
    confidence: Float[np.ndarray, "N"], bins: int = BINS, repeats: int = 1000, seed: int = 0
) -> Float[np.ndarray, "R"]:
    """ECE of `repeats` simulated files whose answers are right with exactly the stated confidences.

    >>> simulate_calibrated_ece(np.ones(5), repeats=3).tolist()  # certain, and always right
    [0.0, 0.0, 0.0]
    """
    check_confidence(confidence)
    rng = np.random.default_rng(seed)
    ordered = np.sort(confidence)  # so that neither the bins nor the random numbers depend on the order of rows
    _, starts = np.unique(bin_index(ordered, bins), return_index=True)
    out = np.empty(repeats)
    step = max(1, _BLOCK // len(ordered))
    for start in range(0, repeats, step):
        rows = min(step, repeats - start)
        gap = (rng.random((rows, len(ordered))) < ordered) - ordered
        out[start : start + rows] = np.abs(np.add.reduceat(gap, starts, axis=1)).sum(axis=1)
    return out / len(ordered)


def fit_temperature(probabilities: Float[np.ndarray, "N K"], answers: Int[np.ndarray, "N"]) -> float:
    """The temperature T in [0.05, 20] that minimises the mean negative log-likelihood of softmax(log p / T).

    Temperature scaling, Guo et al. 2017, equation 9. The objective is convex in 1 / T. The likelihood at the
    result is never worse than at T = 1. A choice of probability zero stays at zero for every T, so a question
    whose answer has probability zero says nothing of T.

    Raises:
        AbmllError: there are no questions to fit to.
        NonFiniteError: a probability is NaN or infinite.

    >>> overconfident = np.array([[0.9, 0.1]] * 4)  # right 3 times in 4: sigmoid(log(9) / T) = 3 / 4
    >>> round(fit_temperature(overconfident, np.array([0, 0, 0, 1])), 3)
    2.0
    """
    if len(answers) == 0:
        raise AbmllError("no questions to fit a temperature to; score without temperature scaling")
    check_finite("probability", probabilities)
    possible = probabilities[np.arange(len(answers)), answers] > 0
    if not possible.any():
        return 1.0
    logits = _log(probabilities[possible])
    chosen = np.take_along_axis(logits, answers[possible, None], axis=1)[:, 0]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        # an exact sum: where the likelihood is flat, rounding would make T depend on the order of rows
        return math.fsum(np.logaddexp.reduce(scale * logits, axis=1) - scale * chosen) / len(chosen)

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-7})
    return float(np.exp(found.x)) if found.fun < loss(0.0) - _FLAT else 1.0


def apply_temperature(probabilities: Float[np.ndarray, "N K"], temperature: float) -> Float[np.ndarray, "N K"]:
    """softmax(log p / T) of each row: flatter for T > 1, sharper for T < 1. Zeros stay zero.

    The most probable choice stays the most probable (two choices that differ by rounding may become equal).

    Raises:
        AbmllError: the temperature is not a finite number above zero.
        NonFiniteError: a probability is NaN or infinite.

    >>> apply_temperature(np.array([[0.9, 0.1]]), 2.0).round(4).tolist()
    [[0.75, 0.25]]
    """
    if not 0 < temperature < np.inf:
        raise AbmllError(f"temperature {temperature}: expected a finite number above zero")
    check_finite("probability", probabilities)
    if probabilities.size == 0:
        return probabilities.copy()
    logits = _log(probabilities / probabilities.max(axis=1, keepdims=True))  # at most 0: nothing overflows
    weights = np.exp(logits / temperature)
    return weights / weights.sum(axis=1, keepdims=True)


def share_ties(confidence: Float[np.ndarray, "N"], correct: Correct) -> Float[np.ndarray, "N"]:
    """Each question's correctness replaced by its mean over the questions of the same confidence.

    >>> share_ties(np.array([0.5, 0.5, 0.9]), np.array([True, False, True])).tolist()
    [0.5, 0.5, 1.0]
    """
    _, group = np.unique(confidence, return_inverse=True)
    return (np.bincount(group, correct.astype(np.float64)) / np.bincount(group))[group]


def check_finite(what: str, values: Float[np.ndarray, "*shape"]) -> None:
    """Refuse numbers from which nothing follows.

    Args:
        what: names one of them.
        values: a row of them, or a table with a row for each question.

    Raises:
        NonFiniteError: one is NaN or infinite; names the first row.

    >>> check_finite("confidence", np.array([0.5, np.nan]))
    Traceback (most recent call last):
    ...
    abmll.errors.NonFiniteError: a confidence of row 1 (from 0) is NaN or infinite: that is no answer
    """
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad.reshape(len(values), -1).any(axis=1)))
        raise NonFiniteError(f"a {what} of row {row} (from 0) is NaN or infinite: that is no answer")


def check_confidence(confidence: Float[np.ndarray, "N"]) -> None:
    """Refuse what no calibration can be computed from.

    Raises:
        AbmllError: there are no questions, or a confidence is not finite or outside [0, 1].
    """
    if len(confidence) == 0:
        raise AbmllError("no questions to score: the predictions hold no test rows")
    # rows may sum to 1 within 1e-4 only, see abmll.metrics.predictions
    bad = ~((confidence >= 0) & (confidence <= 1 + 1e-4))
    if bad.any():
        where = int(np.argmax(bad))
        raise AbmllError(f"confidence {confidence[where]} of row {where} (from 0) is not in [0, 1]")


def _edges(bins: int) -> Float[np.ndarray, "E"]:
    # each edge correctly rounded, which linspace's are not: a confidence of 0.6 is the edge 9 / 15
    return np.arange(bins + 1) / bins


def _log(values: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    with np.errstate(divide="ignore"):
        return np.log(values)
