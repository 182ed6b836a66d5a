"""The bets against a promise: fair at the promised rate, and no alarm too many; against scipy and Monte Carlo."""

import numpy as np
import pytest
from scipy.stats import binom

from abmll.errors import AbmllError
from abmll.metrics.betting import HORIZON, LEVEL, ON_HORIZON, first_alarm, most_power, wealth

RISKS = (0.01, 0.05, 0.1, 0.2, 0.5, 0.97)


@pytest.mark.parametrize("risk", RISKS)
@pytest.mark.parametrize("seen", [0, 1, 50, 99, 100, 101, 199, 200, 201, 400, 555])
def test_every_bet_is_fair(risk: float, seen: int) -> None:
    """The mean of the wealth after the next label, at the promised rate, is the wealth now: W is a martingale."""
    past = np.random.default_rng([seen, round(100 * risk)]).random(seen) < min(0.98, 1.3 * risk)
    now = wealth(past, risk)[-1] if seen else 1.0
    lost, won = (wealth(np.append(past, wrong), risk)[-1] for wrong in (False, True))
    assert min(lost, won) >= 0
    assert risk * won + (1 - risk) * lost == pytest.approx(now, rel=1e-9)


def test_wealth_begins_at_one_and_grows_with_errors_alone() -> None:
    assert wealth(np.array([True]), 0.1)[0] > 1 > wealth(np.array([False]), 0.1)[0]
    assert wealth(np.zeros(2000, dtype=bool), 0.1)[-1] < 0.01
    assert first_alarm(wealth(np.zeros(2000, dtype=bool), 0.1)) is None
    assert wealth(np.zeros((3, 0), dtype=bool), 0.1).shape == (3, 0)


def test_streams_side_by_side_are_each_alone() -> None:
    wrong = np.random.default_rng(0).random((5, 450)) < 0.15
    for row, alone in zip(wealth(wrong, 0.1), wrong, strict=True):
        assert row == pytest.approx(wealth(alone, 0.1), rel=1e-12)
        assert row[:77] == pytest.approx(wealth(alone[:77], 0.1), rel=1e-12)  # it does not look ahead


def test_so_many_errors_among_the_first_hundred_are_an_alarm_by_themselves() -> None:
    """The bet on the horizon pays what scipy's binomial says that it is worth."""
    enough = int(binom.isf(ON_HORIZON * LEVEL, HORIZON, 0.1)) + 1
    assert binom.sf(enough - 1, HORIZON, 0.1) <= ON_HORIZON * LEVEL < binom.sf(enough - 2, HORIZON, 0.1)
    wrong = np.zeros(HORIZON, dtype=bool)
    wrong[-enough:] = True
    assert first_alarm(wealth(wrong, 0.1)) is not None
    assert first_alarm(wealth(np.roll(wrong, -HORIZON // 2), 0.1)) is not None


@pytest.mark.parametrize("risk", [0.05, 0.1, 0.2])
def test_trust_39_alarms_are_as_rare_as_promised_and_a_doubled_risk_is_told(risk: float) -> None:
    """The short form of `python -m experiments.size run --parts watches`; other seeds."""
    rng = np.random.default_rng(round(1000 * risk))
    kept, doubled = rng.random((400, 1000)) < risk, rng.random((400, HORIZON)) < 2 * risk
    assert sum(first_alarm(each) is not None for each in wealth(kept, risk)) <= 27
    told = sum(first_alarm(each) is not None for each in wealth(doubled, risk))
    assert told >= (320 if risk >= 0.1 else 190)
    assert told <= binom.ppf(0.9999, 400, most_power(risk, 2 * risk))


def test_no_test_has_more_power_than_the_bound() -> None:
    """The bound is that of the exact binomial test, with a coin at its border: by simulation of just that test."""
    rng = np.random.default_rng(3)
    bound, border = most_power(0.05, 0.1), int(binom.isf(LEVEL, HORIZON, 0.05))
    coin = (LEVEL - binom.sf(border, HORIZON, 0.05)) / binom.pmf(border, HORIZON, 0.05)
    errors = rng.binomial(HORIZON, 0.1, 20_000)
    told = (errors > border) | ((errors == border) & (rng.random(20_000) < coin))
    assert told.mean() == pytest.approx(bound, abs=0.015)
    assert bound < 0.8


@pytest.mark.parametrize(("risk", "level"), [(0.0, 0.05), (1.0, 0.05), (0.1, 0.0), (float("nan"), 0.05)])
def test_what_is_no_share_is_refused(risk: float, level: float) -> None:
    with pytest.raises(AbmllError, match="expected a number between 0 and 1"):
        wealth(np.array([True]), risk, level)


def test_power_against_a_lower_rate_is_refused() -> None:
    with pytest.raises(AbmllError, match=r"rate 0\.1: expected more than the promised risk of 0\.2"):
        most_power(0.2, 0.1)
