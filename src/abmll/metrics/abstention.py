"""Answer only above a confidence whose error rate is promised: a threshold from labels that nothing was fitted to.

The promise: with probability `level` over the held-back rows, at most a share `risk` of the answered rows is wrong, in
the long run, for rows of the same kind as those held back. It holds for any model and any distribution, with ties and
with few rows, as long as held-back rows and the rows to come are exchangeable: drawn alike, and each by itself. Where
the rows to come differ (later, harder, from elsewhere) it does not hold, and no test of the held-back rows can notice
(`experiments/size` has a case). Rows that come in groups count as one each, see `abmll.everyday.labelled.hold_back`.

A threshold is fixed before a held-back label is looked at; the errors above it are then binomial, and the exact
binomial test says whether their rate may be above `risk`. Several thresholds are tested by the fallback procedure
(Wiens 2003; Wiens and Dmitrienko 2005), a way of testing in a fixed sequence, for risk control due to Angelopoulos et
al., "Learn then Test" (2021); Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks" (2017), have
the problem.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import bdtr, betaincinv

from abmll.errors import AbmllError
from abmll.metrics.calibration import check_finite

LEVEL = 0.9
"""Confidence of the promise."""
MOST_LEVELS = 8
"""Thresholds that are tested at most: a test more costs power."""


@dataclass(frozen=True)
class Covered:
    """Rows at or above a threshold.

    Attributes:
        threshold: of the confidence.
        answered, errors: of the held-back rows, those at or above it, and the wrong ones among them.
        coverage: share of the held-back rows that is answered.
        low, high: exact interval (Clopper and Pearson 1934) of the error rate at the level asked for, taken alone.
        p_value: of the hypothesis that the error rate is above the risk.
        promised: whether that is rejected, all tests considered.
    """

    threshold: float
    answered: int
    errors: int
    coverage: float
    low: float
    high: float
    p_value: float
    promised: bool

    @property
    def error_rate(self) -> float | None:
        """Share of the answered rows that is wrong; None if none is answered."""
        return self.errors / self.answered if self.answered else None


def rows_needed(risk: float, level: float = LEVEL) -> int:
    """Fewest held-back rows that can promise a risk: all of them answered, and none wrong.

    (1 - risk)^n <= 1 - level.

    Raises:
        AbmllError: risk or level is not between 0 and 1.

    >>> rows_needed(0.1), rows_needed(0.05)
    (22, 45)
    """
    check_share("risk", risk)
    check_share("level", level)
    return math.ceil(math.log(1 - level) / math.log(1 - risk))


def check_share(name: str, value: float) -> None:
    """Refuse what is not strictly between 0 and 1.

    Raises:
        AbmllError: with the name and the value.
    """
    if not 0 < value < 1:
        raise AbmllError(f"{name} {value}: expected a number between 0 and 1, such as 0.1")


@lru_cache(4096)
def error_interval(errors: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact two-sided interval of an error rate (Clopper and Pearson 1934).

    >>> low, high = error_interval(0, 22, 0.8)  # two-sided 0.8 has 0.9 on each side
    >>> low, round(high, 4)
    (0.0, 0.0994)
    """
    tail, right = (1 - level) / 2, count - errors
    low = betaincinv(errors, right + 1, tail) if errors else 0.0
    high = betaincinv(errors + 1, right, 1 - tail) if right else 1.0
    return float(low), float(high)


def thresholds(
    confidence: Float[np.ndarray, "N"], held_back: int, risk: float, level: float = LEVEL
) -> tuple[float, ...]:
    """Thresholds to test, the highest first, fixed by confidences of rows without labels alone.

    They answer from a smallest share of the rows, which leaves enough of `held_back` above it for one test to succeed,
    up to all of them (-inf), in even steps.

    Args:
        confidence: of rows whose labels play no part in the tests, such as the rows to be predicted.
        held_back: number of held-back rows.
        risk, level: of the promise.

    Raises:
        NonFiniteError: a confidence is NaN or infinite.

    >>> thresholds(np.linspace(0, 1, 101), held_back=30, risk=0.1)  # few rows: one test, of them all
    (-inf,)
    >>> [round(x, 2) for x in thresholds(np.linspace(0, 1, 101), held_back=400, risk=0.1)][:3]
    [0.9, 0.77, 0.64]
    """
    check_finite("confidence", confidence)
    first = rows_needed(risk, 1 - (1 - level) / 2)
    smallest = (first + 2 * math.sqrt(first)) / max(1, held_back)
    if smallest > 0.5 or len(confidence) == 0:  # so few rows are better spent on one test
        return (-math.inf,)
    shares = np.linspace(smallest, 1.0, MOST_LEVELS)[:-1]
    found = np.quantile(confidence, 1 - shares)
    return (*dict.fromkeys(float(x) for x in found), -math.inf)


def certify(
    confidence: Float[np.ndarray, "N"],
    correct: Bool[np.ndarray, "N"],
    tested: Sequence[float],
    risk: float,
    level: float = LEVEL,
) -> tuple[Covered, ...]:
    """Test thresholds on held-back rows; the last one that is `promised` is the one to answer by.

    Half of 1 - level is the first threshold's, half the last one's (-inf, answer all). A test that succeeds hands its
    share to the next: so the family-wise error is at most 1 - level.

    Args:
        confidence, correct: of the held-back rows: independent rows of the kind that is to be predicted.
        tested: thresholds, the highest first, fixed without looking at these rows.
        risk, level: of the promise.

    Raises:
        AbmllError: risk or level is not between 0 and 1, or nothing is to be tested.
        NonFiniteError: a confidence is NaN or infinite: it is neither above a threshold nor below.

    >>> sure = np.full(22, 0.9), np.ones(22, dtype=bool)
    >>> [found.promised for found in certify(*sure, (-math.inf,), risk=0.1)]
    [True]
    """
    check_share("risk", risk)
    check_share("level", level)
    if not tested or list(tested) != sorted(tested, reverse=True):
        raise AbmllError("thresholds to test: at least one, the highest first")
    check_finite("confidence", confidence)
    weights = np.zeros(len(tested))
    weights[0] += 0.5
    weights[-1] += 0.5
    handed, out = 0.0, []
    for threshold, weight in zip(tested, weights, strict=True):
        above = confidence >= threshold
        answered, errors = int(above.sum()), int((above & ~correct).sum())
        p_value = float(bdtr(errors, answered, risk)) if answered else 1.0  # of so few errors or fewer
        budget = handed + (1 - level) * weight
        promised = p_value <= budget * (1 + 1e-12)
        handed = budget if promised else 0.0
        ends = error_interval(errors, answered, level) if answered else (0.0, 1.0)
        share = answered / len(confidence) if len(confidence) else 0.0
        out.append(Covered(float(threshold), answered, errors, share, *ends, p_value, bool(promised)))
    return tuple(out)


def choose_threshold(
    held_back: tuple[Float[np.ndarray, "N"], Bool[np.ndarray, "N"]],
    unlabelled: Float[np.ndarray, "M"],
    risk: float,
    level: float = LEVEL,
) -> Covered | None:
    """The threshold to answer rows by; None if no threshold keeps the promise.

    Args:
        held_back: confidence, and whether it is right, of each answer to rows that nothing was fitted to.
        unlabelled: confidences of the rows to answer, which fix the thresholds that are tested.
        risk, level: of the promise.

    Raises:
        AbmllError, NonFiniteError: as `certify`.
    """
    tested = thresholds(unlabelled, len(held_back[0]), risk, level)
    return best(certify(*held_back, tested, risk, level))


def conformal_threshold(of_truth: Float[np.ndarray, "N"], risk: float) -> float:
    """The probability from which a label belongs to the set of labels of a row: split-conformal sets.

    The set holds every label whose probability is at least that of the ceil((1 - risk) (N + 1))-th most probable right
    label among N held-back rows. Where those and a new row are exchangeable, the set misses the new row's label with
    probability `risk` at most, over all of these rows (Vovk, Gammerman and Shafer 2005; by probabilities: Sadinle, Lei
    and Wasserman 2019), whatever the model.

    Args:
        of_truth: probability of the right label of each held-back row.
        risk: share of the sets that may miss the right label.

    Raises:
        AbmllError: the risk is not between 0 and 1, or there are too few rows for it.
        NonFiniteError: a probability is NaN or infinite.

    >>> conformal_threshold(np.array([0.9, 0.2, 0.8, 0.7]), risk=0.4)
    0.7
    """
    check_share("risk", risk)
    check_finite("probability", of_truth)
    count = len(of_truth)
    rank = math.ceil((1 - risk) * (count + 1) - 1e-9)
    if rank > count:
        raise AbmllError(
            f"sets that miss the label of at most {100 * risk:g} % of the rows need {math.ceil(1 / risk - 1 - 1e-9)} "
            f"labelled rows or more that were held back from adapting; here are {count}"
        )
    return float(np.sort(of_truth)[::-1][rank - 1])


def best(tests: Sequence[Covered]) -> Covered | None:
    """The promised threshold that answers most; None if none is promised."""
    return next((found for found in reversed(tests) if found.promised), None)
