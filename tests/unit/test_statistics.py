"""Statistics against scipy, textbook variances, a slow plain re-statement, and coverage on synthetic repeats."""

import numpy as np
import pytest
from scipy import stats

from abmll.errors import AbmllError
from abmll.metrics.calibration import expected_calibration_error
from abmll.metrics.statistics import (
    bootstrap_interval,
    ece_bootstrap_interval,
    holm,
    paired_hierarchical_bootstrap,
    paired_hierarchical_bootstrap_ece,
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


def test_intervals_do_not_depend_on_the_order_of_tasks_or_on_blocks(monkeypatch):
    rng = np.random.default_rng(3)
    values = {name: rng.random(50) for name in "cab"}
    found = stratified_bootstrap_interval(values)
    assert stratified_bootstrap_interval({name: values[name] for name in "abc"}) == found
    assert stratified_bootstrap_interval(values, seed=1) != found
    monkeypatch.setattr("abmll.metrics.resampling._BLOCK", 500)
    assert stratified_bootstrap_interval(values) == pytest.approx(found, abs=1e-12)


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


def test_paired_test_of_questions_only_is_that_of_scipy():
    rng = np.random.default_rng(7)
    a, b = rng.random((2, 1, 1, 150))
    b += 0.03
    found = paired_hierarchical_bootstrap({"t": a}, {"t": b}, repeats=20_000)
    theirs = stats.bootstrap(((a - b).ravel(),), np.mean, method="percentile", n_resamples=20_000, rng=1)
    assert found.difference == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.003)
    assert found.p_value == pytest.approx(stats.ttest_1samp((a - b).ravel(), 0).pvalue, abs=0.02)
    assert (found.tasks, found.seeds, found.draws, found.questions) == (1, 1, 1, 150)
    assert found.levels == ("questions",)


def test_paired_test_is_the_plain_crossed_bootstrap():
    """The same from index arrays: seeds once for all tasks, draws and questions per task, crossed."""
    rng = np.random.default_rng(8)
    a = {
        name: rng.normal(size=(4, 1, 1))
        + rng.normal(size=(4, draws, 1))
        + rng.normal(size=(1, 1, count))
        + rng.normal(size=(4, draws, count))
        for name, draws, count in (("x", 3, 20), ("y", 2, 30))
    }
    b = {name: np.zeros_like(values) for name, values in a.items()}
    plain = []
    for _ in range(6000):
        seeds = rng.integers(0, 4, 4)
        means = []
        for values in a.values():
            draws, questions = (rng.integers(0, n, n) for n in values.shape[1:])
            means.append(values[np.ix_(seeds, draws, questions)].mean())
        plain.append(np.mean(means))
    found = paired_hierarchical_bootstrap(a, b, repeats=6000)
    assert found.difference == pytest.approx(np.mean([values.mean() for values in a.values()]))
    spread = np.std(plain)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.1 * spread)
    assert (found.tasks, found.seeds, found.draws, found.questions) == (2, 4, 2, 50)
    assert found.levels == ("seeds", "draws", "questions")


@pytest.mark.parametrize(("axis", "level"), [(0, "seeds"), (1, "draws"), (2, "questions")])
def test_every_level_shows_with_its_textbook_variance(axis, level):
    """Values that vary along one level of 60 only: the interval is mean +- 1.96 s / sqrt(60)."""
    shape = [1, 1, 1]
    shape[axis] = 60
    values = np.random.default_rng(9).normal(size=shape)
    found = paired_hierarchical_bootstrap({"t": values}, {"t": np.zeros(shape)}, repeats=10_000)
    half = 1.96 * values.std() / np.sqrt(60)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert found.levels == (level,)


def test_tasks_are_resampled_on_request_only():
    values = {str(i): np.full((1, 1, 5), x) for i, x in enumerate(np.random.default_rng(10).normal(size=50))}
    zeros = {name: np.zeros((1, 1, 5)) for name in values}
    fixed = paired_hierarchical_bootstrap(values, zeros)
    free = paired_hierarchical_bootstrap(values, zeros, repeats=10_000, resample_tasks=True)
    means = np.array([v.mean() for v in values.values()])
    half = 1.96 * means.std() / np.sqrt(50)
    assert fixed.high - fixed.low == pytest.approx(0, abs=1e-12)
    assert (free.low, free.high) == pytest.approx((means.mean() - half, means.mean() + half), abs=0.1 * half)
    assert (fixed.levels, free.levels) == (("questions",), ("tasks", "questions"))


def test_false_alarms_are_as_rare_as_promised():
    """No true difference, runs that differ by seed, draw and question: p < 0.05 in no more than 5 % of repeats."""
    rng = np.random.default_rng(11)
    p_values = []
    for repeat in range(200):
        noise = rng.normal(size=(10, 1, 1)) / 2 + rng.normal(size=(1, 1, 60)) + rng.normal(size=(10, 2, 60))
        test = paired_hierarchical_bootstrap({"t": noise}, {"t": np.zeros((10, 2, 60))}, repeats=400, seed=repeat)
        p_values.append(test.p_value)
    assert np.mean(np.array(p_values) < 0.05) <= 0.08  # 5 % and two standard errors


def test_p_value_is_never_zero_and_identical_systems_have_one():
    a = {"t": np.random.default_rng(12).random((2, 2, 30))}
    same = paired_hierarchical_bootstrap(a, a, repeats=99)
    far = paired_hierarchical_bootstrap({"t": a["t"] + 5}, a, repeats=99)
    assert (same.difference, same.p_value) == (0, 1)
    assert far.p_value == pytest.approx(2 / 100)


def test_exchanging_the_systems_changes_the_sign_only():
    rng = np.random.default_rng(13)
    a, b = ({"t": rng.random((3, 2, 40))} for _ in range(2))
    one, other = paired_hierarchical_bootstrap(a, b), paired_hierarchical_bootstrap(b, a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p_value == other.p_value


def _runs(seed: int, over: float) -> tuple[np.ndarray, np.ndarray]:
    runs = [_answers(300, 100 * seed + i, over) for i in range(6)]
    return tuple(np.stack([run[i] for run in runs]).reshape(3, 2, 300) for i in (0, 1))  # type: ignore[return-value]


def test_paired_ece_is_the_mean_difference_of_run_eces():
    a, b = {"x": _runs(1, 0.2), "y": _runs(2, 0.2)}, {"x": _runs(3, 0.0), "y": _runs(4, 0.0)}
    found = paired_hierarchical_bootstrap_ece(a, b, repeats=999)

    def mean(system) -> float:
        return np.mean(
            [
                expected_calibration_error(c.reshape(-1, 300)[i], k.reshape(-1, 300)[i])
                for c, k in system.values()
                for i in range(6)
            ]
        )

    assert found.difference == pytest.approx(mean(a) - mean(b))
    assert found.low < found.difference < found.high
    assert found.low > 0
    assert found.p_value == pytest.approx(2 / 1000)
    assert paired_hierarchical_bootstrap_ece(a, a, repeats=99).p_value == 1


def test_paired_ece_of_equal_systems_is_seldom_significant():
    found = [
        paired_hierarchical_bootstrap_ece({"t": _runs(2 * i, 0.1)}, {"t": _runs(2 * i + 1, 0.1)}, repeats=199)
        for i in range(60)
    ]
    assert np.mean([test.p_value < 0.05 for test in found]) <= 0.1


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({}, {}, "nothing to resample"),
        ({"x": np.zeros((1, 1, 3))}, {"y": np.zeros((1, 1, 3))}, "different tasks.*x, y"),
        ({"x": np.zeros((2, 1, 3))}, {"x": np.zeros((1, 1, 3))}, "'x'.*cannot be paired"),
        ({"x": np.zeros((1, 1, 0))}, {"x": np.zeros((1, 1, 0))}, "'x'.*empty"),
        ({"x": np.full((1, 1, 3), np.nan)}, {"x": np.zeros((1, 1, 3))}, "'x'.*not finite"),
        (
            {"x": np.zeros((2, 1, 3)), "y": np.zeros((3, 1, 3))},
            {"x": np.zeros((2, 1, 3)), "y": np.zeros((3, 1, 3))},
            "different numbers of training seeds",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused(a, b, message):
    with pytest.raises(AbmllError, match=message):
        paired_hierarchical_bootstrap(a, b, repeats=9)


def test_a_level_outside_0_to_1_is_refused():
    with pytest.raises(AbmllError, match=r"0\.95"):
        bootstrap_interval(np.ones(3), level=95.0)


def test_standard_error_is_that_of_scipy():
    values = np.random.default_rng(14).normal(size=5)
    assert standard_error(values) == pytest.approx(stats.sem(values))
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
    with pytest.raises(AbmllError, match="'a'"):
        holm({"a": float("nan")})


def test_paired_ece_interval_is_that_of_resampled_files_moved_to_the_observed_difference():
    """The same from a plain loop that scores both files anew. Noise raises the ECE of the calibrated one more."""
    (sure, right), (bold, wrong) = _answers(150, 15), _answers(150, 16, over=0.4)
    rng = np.random.default_rng(17)
    loop = []
    for _ in range(4000):
        taken = rng.integers(0, 150, 150)
        ours, theirs = (expected_calibration_error(c[taken], k[taken]) for c, k in ((sure, right), (bold, wrong)))
        loop.append(ours - theirs)
    observed = expected_calibration_error(sure, right) - expected_calibration_error(bold, wrong)
    bias = np.mean(loop) - observed
    runs = [{"t": (c[None, None], k[None, None])} for c, k in ((sure, right), (bold, wrong))]
    found = paired_hierarchical_bootstrap_ece(*runs, repeats=4000)
    assert found.difference == pytest.approx(observed)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(loop, [0.025, 0.975]) - bias), abs=0.006)
    assert bias > 0.015, "an interval that is not moved would pass"


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


def test_what_cannot_be_paired_is_said():
    one, other = np.zeros((1, 1, 3)), np.zeros((2, 1, 3))
    with pytest.raises(AbmllError) as caught:
        paired_hierarchical_bootstrap({"t": one}, {"t": other})
    assert str(caught.value) == (
        "task 't': arrays of [seeds, draws, questions] [1, 1, 3] and [2, 1, 3] cannot be paired; a system without "
        "training seeds must be repeated to the other's"
    )
    with pytest.raises(AbmllError, match=r"^systems scored on different tasks: only one of the two has a, b$"):
        paired_hierarchical_bootstrap({"t": one, "a": one}, {"t": one, "b": one})
    with pytest.raises(AbmllError, match=r"^tasks have different numbers of training seeds: \[1, 2\]$"):
        paired_hierarchical_bootstrap({"t": one, "a": other}, {"t": one, "a": other})
    with pytest.raises(AbmllError, match=r"^task 't': scores of shape \(1, 0\) are empty or hold a value that is not"):
        stratified_bootstrap_interval({"t": np.zeros((1, 0))})


def test_holm_is_that_of_the_textbook_and_refuses_what_is_no_p_value():
    """Holm 1979: of sorted p, the i-th is multiplied by m - i + 1, never less than the one before, at most 1."""
    found = holm({"a": 0.6, "b": 0.01, "c": 0.04, "d": 0.02, "e": 0.0, "f": 1.0})
    assert found == pytest.approx({"a": 1.0, "b": 0.05, "c": 0.12, "d": 0.08, "e": 0.0, "f": 1.0})
    assert list(found) == list("abcdef")
    for bad in (-0.01, 1.01, float("nan")):
        with pytest.raises(AbmllError, match=rf"^p-value of 'x' is {bad}: expected a number in \[0, 1\]$"):
            holm({"x": bad})


def test_a_standard_error_is_that_of_scipy():
    values = np.array([0.3, 0.9, 0.4, 0.1])
    assert standard_error(values) == pytest.approx(stats.sem(values))
    assert standard_error(values[:2]) == pytest.approx(stats.sem(values[:2]))
    assert standard_error(values[:1]) is None


def test_a_test_says_what_it_was_made_of_and_takes_2000_resamples():
    (sure, right), (bold, wrong) = _answers(40, 21), _answers(40, 22)
    one, other = {"t": right[None, None] * 1.0}, {"t": wrong[None, None] * 1.0}
    plain = paired_hierarchical_bootstrap(one, other)
    files = {"t": (sure[None, None], right[None, None])}, {"t": (bold[None, None], wrong[None, None])}
    ece = paired_hierarchical_bootstrap_ece(*files)
    for found in (plain, ece):
        assert (found.repeats, found.tasks, found.seeds, found.draws, found.questions) == (2000, 1, 1, 1, 40)
        assert found.levels == ("questions",)
    said = {"repeats": 2000, "seed": 0, "resample_tasks": False, "level": 0.95}
    assert paired_hierarchical_bootstrap(one, other, **said) == plain
    assert paired_hierarchical_bootstrap_ece(*files, bins=15, **said) == ece
    for asked in ({"seed": 1}, {"level": 0.5}, {"repeats": 999}):
        assert paired_hierarchical_bootstrap(one, other, **asked) != plain
        assert paired_hierarchical_bootstrap_ece(*files, **asked) != ece
    assert paired_hierarchical_bootstrap_ece(*files, bins=4) != ece
