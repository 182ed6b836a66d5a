"""Intervals against scipy, textbook variances, a slow plain re-statement, and coverage on synthetic repeats."""

import numpy as np
import pytest
from scipy import stats

from abmll.errors import AbmllError
from abmll.metrics.calibration import expected_calibration_error
from abmll.metrics.statistics import (
    bootstrap_interval,
    ece_bootstrap_interval,
    holm,
    standard_error,
    stratified_bootstrap_interval,
    stratified_ece_bootstrap_interval,
)


def _answers(count: int, seed: int, over: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and whether right; right less often than stated by `over`."""
    rng = np.random.default_rng(seed)
    confidence = 0.4 + 0.6 * rng.beta(2, 1.5, count)
    return confidence, rng.random(count) < confidence - over


def test_interval_is_that_of_scipy():
    values = np.random.default_rng(0).exponential(size=80)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert bootstrap_interval(values, repeats=20_000) == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_stratified_interval_has_the_textbook_width():
    """Var of the unweighted mean of two tasks: (s1^2 / n1 + s2^2 / n2) / 4; the larger task does not dominate."""
    rng = np.random.default_rng(1)
    values = {"small": rng.normal(0, 1, 100), "large": rng.normal(2, 3, 2000)}
    error = np.sqrt(sum(v.var() / len(v) for v in values.values())) / 2
    middle = sum(v.mean() for v in values.values()) / 2
    low, high = stratified_bootstrap_interval(values, repeats=10_000)
    assert (low, high) == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), abs=0.08 * error)


def test_runs_are_averaged_before_questions_are_resampled():
    values = np.random.default_rng(2).random((5, 3, 200))
    averaged = bootstrap_interval(values.mean(axis=(0, 1)))
    assert stratified_bootstrap_interval({"": values}) == pytest.approx(averaged, abs=1e-12)


def test_intervals_do_not_depend_on_the_order_of_tasks_nor_much_on_blocks(monkeypatch):
    rng = np.random.default_rng(3)
    values = {name: rng.random(50) for name in "cab"}
    found = stratified_bootstrap_interval(values)
    assert stratified_bootstrap_interval({name: values[name] for name in "abc"}) == found
    assert stratified_bootstrap_interval(values, seed=1) != found
    monkeypatch.setattr("abmll.metrics.statistics._BLOCK", 500)  # resamples are drawn task by task within a block
    assert stratified_bootstrap_interval(values) == pytest.approx(found, abs=0.01)


def test_groups_are_resampled_as_wholes():
    """Ten groups of five equal answers know as much as ten answers, and of unequal sizes as a ratio of sums does."""
    rng = np.random.default_rng(4)
    single = rng.random(10)
    groups = np.repeat(np.arange(10), 5)
    found = bootstrap_interval(np.repeat(single, 5), groups=groups, repeats=20_000)
    assert found == pytest.approx(bootstrap_interval(single, repeats=20_000), abs=0.01)
    assert found == stratified_bootstrap_interval({"t": np.repeat(single, 5)}, groups={"t": groups}, repeats=20_000)
    sizes = rng.integers(1, 8, 40)
    values, of = (
        np.repeat(rng.normal(size=40), sizes) + 0.1 * rng.normal(size=sizes.sum()),
        np.repeat(np.arange(40), sizes),
    )
    sums = np.bincount(of, values)
    theirs = stats.bootstrap(
        (sums, sizes),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
    )
    assert bootstrap_interval(values, groups=of, repeats=20_000) == pytest.approx(
        tuple(theirs.confidence_interval), abs=0.02
    )


def test_a_task_of_one_group_or_question_adds_its_mean_and_no_width():
    values = {"one": np.array([0.25]), "many": np.random.default_rng(5).random(50)}
    low, high = stratified_bootstrap_interval(values)
    alone = bootstrap_interval(values["many"])
    assert (low, high) == pytest.approx(((alone.low + 0.25) / 2, (alone.high + 0.25) / 2))
    assert bootstrap_interval(np.array([0.0, 1.0]), groups=np.array([3, 3])) == (0.5, 0.5)


def test_the_ece_of_groups_is_that_of_their_questions():
    """Each group's questions are alike, so resampling groups of three is resampling one of each three."""
    confidence, correct = _answers(60, 6)
    groups = np.repeat(np.arange(60), 3)
    thrice = {"t": (np.repeat(confidence, 3), np.repeat(correct, 3))}
    found = stratified_ece_bootstrap_interval(thrice, groups={"t": groups}, repeats=4000)
    alone = ece_bootstrap_interval(confidence, correct, repeats=4000)
    assert found == pytest.approx(alone, abs=0.01)
    apart = stratified_ece_bootstrap_interval(thrice, repeats=4000)
    assert apart.high - apart.low < 0.8 * (alone.high - alone.low)


def test_trust_37_interval_covers_the_truth_as_often_as_it_says():
    """400 calibrated systems: the mean of (right - confidence) is 0 in truth."""
    inside = 0
    for seed in range(400):
        confidence, correct = _answers(150, seed)
        low, high = bootstrap_interval(correct - confidence, repeats=600, seed=seed)
        inside += low <= 0 <= high
    assert 0.93 <= inside / 400 <= 0.97


def test_ece_interval_covers_the_ece_of_files_of_its_size():
    files = [_answers(400, seed, over=0.1) for seed in range(200)]
    mean = np.mean([expected_calibration_error(*file) for file in files])
    intervals = [ece_bootstrap_interval(*file, repeats=300) for file in files]
    assert np.mean([low <= mean <= high for low, high in intervals]) >= 0.92
    assert np.mean([high - low for low, high in intervals]) < 4.5 * np.std(
        [expected_calibration_error(*f) for f in files]
    )


def test_ece_interval_is_that_of_resampled_files():
    """The same numbers from a plain loop that builds every resampled file and scores it."""
    confidence, correct = _answers(120, 5)
    rng = np.random.default_rng(6)
    loop = []
    for _ in range(4000):
        taken = rng.integers(0, 120, 120)
        loop.append(expected_calibration_error(confidence[taken], correct[taken]))
    shifted = np.quantile(loop, [0.025, 0.975]) - (np.mean(loop) - expected_calibration_error(confidence, correct))
    found = ece_bootstrap_interval(confidence, correct, repeats=4000)
    assert found == pytest.approx(tuple(shifted.clip(min=0)), abs=0.004)


def test_stratified_ece_averages_the_ece_of_runs():
    """Errors of opposite sign do not cancel between runs: each has ECE 0.5."""
    confidence = np.full((2, 1, 40), 0.5)
    correct = np.stack([np.ones((1, 40), dtype=bool), np.zeros((1, 40), dtype=bool)])
    assert stratified_ece_bootstrap_interval({"t": (confidence, correct)}) == pytest.approx((0.5, 0.5))


def test_a_level_outside_0_to_1_is_refused():
    with pytest.raises(AbmllError, match=r"0\.95"):
        bootstrap_interval(np.ones(3), level=95.0)


def test_standard_error_is_that_of_scipy():
    values = np.random.default_rng(14).normal(size=5)
    assert standard_error(values) == pytest.approx(stats.sem(values))
    assert standard_error(values[:2]) == pytest.approx(stats.sem(values[:2]))
    assert standard_error(values[:1]) is None
    assert standard_error(values[:0]) is None


def test_holm_by_hand():
    """Holm's step-down: 4 * 0.005, 3 * 0.01, max(0.03, 2 * 0.03), max(0.06, 0.04)."""
    found = holm({"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.005})
    assert list(found) == ["c", "a", "d", "b"]
    assert found == pytest.approx({"b": 0.02, "a": 0.03, "c": 0.06, "d": 0.06})


def test_holm_at_its_ends():
    assert holm({}) == {}
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}


def test_stratified_ece_interval_lies_around_the_observed_value():
    file = _answers(150, 18)
    other = _answers(90, 19)
    observed = np.mean([expected_calibration_error(*one) for one in (file, other)])
    low, high = stratified_ece_bootstrap_interval({"a": file, "b": other}, level=0.02)
    assert (low, high) == pytest.approx((observed, observed), abs=0.004)


def test_every_argument_of_an_interval_reaches_the_bootstrap():
    """The interval of one file is that of a mean over one task, whatever is asked for."""
    confidence, correct = _answers(60, 20)
    plain = ece_bootstrap_interval(confidence, correct)
    assert plain == ece_bootstrap_interval(confidence, correct, bins=15, repeats=2000, seed=0, level=0.95)
    for asked in ({"bins": 3}, {"repeats": 500}, {"seed": 1}, {"level": 0.5}):
        found = ece_bootstrap_interval(confidence, correct, **asked)
        assert found == stratified_ece_bootstrap_interval({"t": (confidence, correct)}, **asked)
        assert found != plain
    values = confidence - correct
    plain = bootstrap_interval(values)
    assert plain == bootstrap_interval(values, repeats=2000, seed=0, level=0.95)
    for asked in ({"repeats": 500}, {"seed": 1}, {"level": 0.5}):
        found = bootstrap_interval(values, **asked)
        assert found == stratified_bootstrap_interval({"t": values}, **asked)
        assert found != plain


def test_one_resample_is_enough_and_none_is_an_error():
    low, high = bootstrap_interval(np.array([1.0, 2.0, 3.0]), repeats=1)
    assert low == high
    with pytest.raises(AbmllError, match=r"^nothing to resample: 1 tasks, 0 repeats$"):
        bootstrap_interval(np.array([1.0, 2.0, 3.0]), repeats=0)
    with pytest.raises(AbmllError, match=r"^nothing to resample: 0 tasks, 2000 repeats$"):
        stratified_bootstrap_interval({})


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_level_that_is_none_is_refused(level):
    with pytest.raises(AbmllError, match=f"^level {level}: expected a number between 0 and 1, such as 0.95$"):
        bootstrap_interval(np.array([1.0, 2.0]), level=level)


def test_holm_is_that_of_the_textbook_and_refuses_what_is_no_p_value():
    """Holm 1979: of sorted p, the i-th is multiplied by m - i + 1, never less than the one before, at most 1."""
    found = holm({"a": 0.6, "b": 0.01, "c": 0.04, "d": 0.02, "e": 0.0, "f": 1.0})
    assert found == pytest.approx({"a": 1.0, "b": 0.05, "c": 0.12, "d": 0.08, "e": 0.0, "f": 1.0})
    assert list(found) == list("abcdef")
    for bad in (-0.01, 1.01, float("nan")):
        with pytest.raises(AbmllError, match=rf"^p-value of 'x' is {bad}: expected a number in \[0, 1\]$"):
            holm({"x": bad})


def test_what_is_no_test_is_not_corrected_for():
    """One training seed gives no p: it stays without, and the others are two tests, not three."""
    assert holm({"one seed": None, "a": 0.01, "b": 0.5}) == {"one seed": None, "a": 0.02, "b": 0.5}
    assert holm({"one seed": None}) == {"one seed": None}


def test_groups_of_other_questions_are_refused():
    with pytest.raises(AbmllError, match="3 group numbers for 2 questions"):
        stratified_bootstrap_interval({"t": np.ones(2)}, groups={"t": np.arange(3)})
