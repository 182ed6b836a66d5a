"""Bets against a promise: evidence, label by label, that more answers are wrong than was promised.

The promise (`abmll.metrics.abstention`) is that an answer is wrong with probability r at most. Whoever doubts it bets
on each label before it is seen, at odds that are fair if r is true: where a stake turns the wealth W into W a if the
answer is wrong and into W b if it is right, fair means r a + (1 - r) b = 1. Where the error rate is r, whatever came
before, W is then a martingale that begins at 1 and is never negative; where it is lower, W falls on average. By Ville's
inequality (Ville 1939; see Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics and safe anytime-valid
inference", Statistical Science 2023)

    P(W ever reaches 1 / level) <= level,

so an alarm at that wealth is false in a share `level` of all tasks that keep their promise, however often one looks and
however long. The capital is shared out, and what is watched is the sum:

- .25 on the alternative 2 r, and .05 on 1.4 r. Of these, with alternative q, E errors among n labels make the
  likelihood ratio (q / r)^E ((1 - q) / (1 - r))^(n - E): Kelly's stakes (Kelly 1956), the fastest growth there is, if q
  is the truth (Grünwald, de Heide and Koolen, "Safe testing", 2024).
- .1 on 2 r, laid at the labels 100, 200, 400, 800, ..., half as much each time: what was lost while the promise held is
  then not there to be won back, if it fails later (the idea of e-detectors: Shin, Ramdas and Rinaldo 2023).
- .6 on "k errors or more among the first H = 100", the most powerful test of r against any higher rate at that number
  (Neyman and Pearson 1933), as a bet: after n labels with E errors its worth is
  P(Bin(H - n, r) >= k - E) / P(Bin(H, r) >= k), and k is the smallest number that pays 1 / level or more.

No test at `level`, of whatever kind, has more power within 100 labels than that of Neyman and Pearson, which
`most_power` has: .63 of streams with twice a promised risk of .05, .89 for .1, 1.00 for .2 (experiments/size).
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import bdtrc, betainc

from abmll.errors import AbmllError
from abmll.metrics.abstention import check_share

LEVEL = 0.05
"""Share of the tasks that keep their promise for which there is an alarm, at most."""
HORIZON = 100
"""Labels within which a doubled risk is to be noticed."""
ON_HORIZON, LATER = 0.6, 0.1
ON_RATES = ((1.4, 0.05), (2.0, 0.25))
"""Multiple of the risk, and share of the capital on it from the first label on."""


def wealth(wrong: Bool[np.ndarray, "*S N"], risk: float, level: float = LEVEL) -> Float[np.ndarray, "*S N"]:
    """Wealth of who bets against a promise, after each label; 1 before the first.

    Args:
        wrong: whether each answer was wrong, in the order in which labels came: answers that were given (not abstained
            from), of rows that were chosen to be labelled without regard to whether the answers are right.
        risk: share of wrong answers that was promised.
        level: at 1 / level is the alarm.

    Raises:
        AbmllError: risk or level is not between 0 and 1.

    >>> wealth(np.array([False, True, True]), risk=0.1).round(2).tolist()
    [0.92, 1.6, 2.79]
    """
    check_share("risk", risk)
    check_share("level", level)
    errors = np.cumsum(wrong, axis=-1)
    seen = np.arange(1, errors.shape[-1] + 1)
    total = ON_HORIZON * _on_horizon(errors, seen, risk, level)
    total += sum(share * _on_rate(errors, seen, times, risk) for times, share in ON_RATES)
    start, share = HORIZON, LATER / 2
    while start < len(seen):
        before = np.maximum(seen - start, 0)
        total += share * _on_rate(np.maximum(errors - errors[..., start - 1 : start], 0), before, ON_RATES[-1][0], risk)
        start, share = 2 * start, share / 2
    return np.asarray(total + 2 * share)  # what is not laid yet


def first_alarm(wealth_after: Float[np.ndarray, "N"], level: float = LEVEL) -> int | None:
    """Number of labels after which the wealth is 1 / level for the first time; None: it never was.

    >>> first_alarm(wealth(np.ones(8, dtype=bool), risk=0.1))
    6
    """
    reached = np.flatnonzero(wealth_after >= (1 - 1e-9) / level)
    return int(reached[0]) + 1 if len(reached) else None


def most_power(risk: float, rate: float, labels: int = HORIZON, level: float = LEVEL) -> float:
    """The share of streams with a known error rate that any test at `level` can notice within so many labels, at most.

    It is the power of Neyman and Pearson's test, which knows the rate, looks once, and tosses a coin at its border.

    >>> [round(most_power(risk, 2 * risk), 2) for risk in (0.05, 0.1, 0.2)]
    [0.63, 0.89, 1.0]
    """
    above = np.arange(labels + 1)
    if rate <= risk:
        raise AbmllError(f"rate {rate}: expected more than the promised risk of {risk}")
    first = int(above[bdtrc(above, labels, risk) <= level][0])  # P(more than `first` errors) <= level
    at = _tail(first, labels, risk) - bdtrc(first, labels, risk)
    coin = (level - bdtrc(first, labels, risk)) / at
    return float(bdtrc(first, labels, rate) + coin * (_tail(first, labels, rate) - bdtrc(first, labels, rate)))


def _on_rate(errors: Int[np.ndarray, "*S N"], seen: Int[np.ndarray, "N"], times: float, risk: float) -> Any:
    rate = min(times * risk, (1 + risk) / 2)
    return np.exp(errors * np.log(rate / risk) + (seen - errors) * np.log((1 - rate) / (1 - risk)))


def _on_horizon(errors: Int[np.ndarray, "*S N"], seen: Int[np.ndarray, "N"], risk: float, level: float) -> Any:
    counts = np.arange(HORIZON + 2)
    enough = int(counts[_tail(counts, HORIZON, risk) <= ON_HORIZON * level][0])
    if enough > HORIZON:  # so high a risk that not even 100 errors of 100 are evidence enough
        return 1.0
    left, at_horizon = np.maximum(HORIZON - seen, 0), errors[..., min(HORIZON, len(seen)) - 1 : HORIZON]
    counted = np.where(seen <= HORIZON, errors, at_horizon)
    return _tail(enough - counted, left, risk) / _tail(enough, HORIZON, risk)


def _tail(least: Any, count: Any, rate: float) -> Any:
    """P(Bin(count, rate) >= least)."""
    inside = betainc(np.clip(least, 1, None), np.clip(count - least + 1, 1, None), rate)
    return np.where(least <= 0, 1.0, np.where(least > count, 0.0, inside))
