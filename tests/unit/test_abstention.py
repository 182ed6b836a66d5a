"""Answering only above a confidence: the numbers of rows needed, the tests, and the promise itself."""

import functools
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from abmll.errors import AbmllError
from abmll.metrics.abstention import best, certify, error_interval, rows_needed, thresholds
from experiments.size.promise import SHIFTED, count_kept

RISK = 0.1


@pytest.mark.parametrize(("risk", "need"), [(0.1, 22), (0.05, 45), (0.2, 11), (0.01, 230)])
def test_rows_needed_is_the_fewest_that_can_succeed(risk: float, need: int) -> None:
    assert rows_needed(risk) == need
    for rows, promised in ((need, True), (need - 1, False)):
        found = certify(np.full(rows, 0.9), np.ones(rows, dtype=bool), (-math.inf,), risk)
        assert (best(found) is not None) == promised
        assert found[0].p_value == pytest.approx(binomtest(0, rows, risk, alternative="less").pvalue)


def test_one_error_among_22_promises_nothing() -> None:
    correct = np.ones(22, dtype=bool)
    correct[3] = False
    assert best(certify(np.full(22, 0.9), correct, (-math.inf,), RISK)) is None


@pytest.mark.parametrize(("errors", "count"), [(0, 5), (5, 5), (1, 22), (30, 100)])
def test_intervals_are_those_of_scipy(errors: int, count: int) -> None:
    low, high = error_interval(errors, count, 0.9)
    theirs = binomtest(errors, count).proportion_ci(0.9, method="exact")
    assert (low, high) == pytest.approx((theirs.low, theirs.high))


def _world(kind: str, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and whether answers are right. Error rates sit where mistakes are easiest: just above the risk."""
    confidence = rng.random(rows)
    rate = {
        "just above": np.full(rows, 0.105),
        "good above a half": np.where(confidence > 0.5, 0.02, 0.3),
        "worst in the middle": np.where(confidence > 0.8, 0.02, np.where(confidence > 0.6, 0.35, 0.05)),
        "good": np.where(confidence > 0.5, 0.01, 0.08),
    }[kind]
    return confidence, rng.random(rows) >= rate


@functools.cache
def _true_risk(kind: str, threshold: float) -> float:
    confidence, correct = _world(kind, np.random.default_rng(99), 200_000)
    return 1 - float(correct[confidence >= threshold].mean())


@pytest.mark.parametrize("kind", ["just above", "good above a half", "worst in the middle", "good"])
@pytest.mark.parametrize("held", [22, 120])
def test_trust_39_the_promised_risk_holds_in_88_percent_of_400_repeats(kind: str, held: int) -> None:
    kept, answered = 0, 0
    for repeat in range(400):
        rng = np.random.default_rng([repeat, held])
        unlabelled, _ = _world(kind, rng, 100)
        found = best(certify(*_world(kind, rng, held), thresholds(unlabelled, held, RISK), RISK))
        answered += found is not None
        kept += found is None or _true_risk(kind, round(found.threshold, 2)) <= RISK + 1e-3
    assert kept >= 0.88 * 400
    assert answered > {"just above": 0, "good above a half": 0, "worst in the middle": 0, "good": 120}[kind]


@pytest.mark.parametrize("world", ["ties: five values", "ties: one value"])
@pytest.mark.parametrize("held", [22, 30])
def test_trust_39_it_holds_with_ties_and_few_rows(world: str, held: int) -> None:
    kept, made = count_kept(world, held)
    assert kept >= 0.88 * 400
    assert made > 0, "a promise that is never made is always kept"


def test_trust_39_it_fails_where_the_rows_to_come_are_harder() -> None:
    """As it must: the held-back rows, whose answers are nearly all right, say nothing of the others."""
    kept, made = count_kept(SHIFTED, 120, repeats=100)
    assert made > 90
    assert kept < 20


def test_trust_39_without_the_correction_the_promise_would_break() -> None:
    """The test can fail: the best-looking of many thresholds, as if it were the only one, breaks the promise."""
    broken = 0
    for repeat in range(200):
        rng = np.random.default_rng(repeat)
        confidence, correct = _world("just above", rng, 120)
        errors = np.cumsum(~correct[np.argsort(-confidence)])
        broken += bool((binom.cdf(errors, np.arange(1, 121), RISK) <= 0.1).any())
    assert broken > 0.12 * 200


def test_thresholds_do_not_look_at_held_back_rows_and_end_with_all() -> None:
    confidence = np.random.default_rng(0).random(500)
    found = thresholds(confidence, 400, RISK)
    assert list(found) == sorted(found, reverse=True)
    assert found[-1] == -math.inf
    assert 0.05 < float((confidence >= found[0]).mean()) < 0.25
    assert thresholds(np.zeros(0), 400, RISK) == (-math.inf,)
    assert thresholds(np.full(9, 0.5), 400, RISK) == (0.5, -math.inf)


def test_the_test_of_one_threshold_hands_its_share_on() -> None:
    """Family-wise: the last of two is tested at half of 10 % alone, at all of it after a success."""
    confidence = np.concatenate([np.full(40, 0.9), np.full(60, 0.1)])
    correct = np.ones(100, dtype=bool)
    correct[95:] = False  # 5 errors in 100: p = 0.058, between 5 and 10 %
    first, last = certify(confidence, correct, (0.5, -math.inf), RISK)
    assert (first.promised, last.promised) == (True, True)
    assert 0.05 < last.p_value < 0.1
    correct[:2], correct[95:97] = False, True  # the same number of errors, two of them among the confident
    first, last = certify(confidence, correct, (0.5, -math.inf), RISK)
    assert (first.promised, last.promised) == (False, False)


@pytest.mark.parametrize("risk", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_risk_that_is_none_is_refused(risk: float) -> None:
    with pytest.raises(AbmllError, match="between 0 and 1"):
        rows_needed(risk)


def test_rows_at_a_threshold_are_answered_and_tested_with_those_above() -> None:
    """Confidences repeat in practice; what is answered (`confidence < threshold` is not) is what was tested."""
    confidence = np.concatenate([np.full(10, 0.9), np.full(30, 0.6), np.full(20, 0.3)])
    correct = np.ones(60, dtype=bool)
    correct[[12, 45]] = False
    tests = certify(confidence, correct, (0.6, -math.inf), RISK)
    assert [(found.answered, found.errors) for found in tests] == [(40, 1), (60, 2)]
    assert tests[0].coverage == pytest.approx(40 / 60)
    assert tests[0].p_value == pytest.approx(binomtest(1, 40, RISK, alternative="less").pvalue)


def test_thresholds_answer_from_a_smallest_share_up_to_all_in_even_steps() -> None:
    """Eight tests: seven quantiles of the confidences, and all. The smallest share leaves one test enough rows."""
    confidence = np.linspace(0, 1, 1001)
    found = thresholds(confidence, 400, RISK)
    first = rows_needed(RISK, 0.95)  # half of 1 - level is the first test's
    smallest = (first + 2 * math.sqrt(first)) / 400
    assert found == pytest.approx([*(1 - np.linspace(smallest, 1, 8)[:7]), -math.inf])
    assert thresholds(confidence, 79, RISK) == (-math.inf,), "more than half would be needed for one test"
    assert len(thresholds(confidence, 80, RISK)) == 8
    assert thresholds(confidence, 0, RISK) == (-math.inf,)


def test_what_is_asked_of_the_tests_is_checked() -> None:
    sure = np.full(30, 0.9), np.ones(30, dtype=bool)
    for tested in ((), (0.5, 0.9), (-math.inf, 0.5)):
        with pytest.raises(AbmllError, match=r"^thresholds to test: at least one, the highest first$"):
            certify(*sure, tested, RISK)
    with pytest.raises(AbmllError, match=r"^level 1.0: expected a number between 0 and 1, such as 0.1$"):
        certify(*sure, (-math.inf,), RISK, level=1.0)
    with pytest.raises(AbmllError, match=r"^risk 0.0: expected a number between 0 and 1, such as 0.1$"):
        certify(*sure, (-math.inf,), 0.0)
    with pytest.raises(AbmllError, match=r"^level 0.0: "):
        rows_needed(RISK, 0.0)


def test_thresholds_that_answer_nothing_and_no_rows_at_all_promise_nothing() -> None:
    nothing, everything = certify(np.full(60, 0.5), np.ones(60, dtype=bool), (0.9, -math.inf), RISK)
    assert (nothing.answered, nothing.coverage, nothing.p_value, nothing.promised) == (0, 0.0, 1.0, False)
    assert (nothing.low, nothing.high, nothing.error_rate) == (0.0, 1.0, None)
    assert everything.promised
    assert (everything.coverage, everything.error_rate, everything.threshold) == (1.0, 0.0, -math.inf)
    assert best((nothing, everything)) is everything
    (empty,) = certify(np.zeros(0), np.zeros(0, dtype=bool), (-math.inf,), RISK)
    assert (empty.answered, empty.coverage, empty.p_value, empty.promised) == (0, 0.0, 1.0, False)
    assert best((empty,)) is None


def test_the_last_promised_threshold_is_the_one_to_answer_by() -> None:
    confidence = np.concatenate([np.full(60, 0.9), np.full(60, 0.6), np.full(60, 0.3)])
    correct = np.ones(180, dtype=bool)
    correct[120:150] = False
    tests = certify(confidence, correct, (0.9, 0.6, -math.inf), RISK)
    assert [found.promised for found in tests] == [True, True, False]
    found = best(tests)
    assert found is tests[1]
    assert (found.low, found.high) == pytest.approx(tuple(binomtest(0, 120).proportion_ci(0.9, method="exact")))
