"""The paired test against scipy's t-tests where one level scatters, and a plain crossed bootstrap where all do."""

import numpy as np
import pytest
from scipy import stats

from abmll.errors import AbmllError
from abmll.metrics.calibration import expected_calibration_error
from abmll.metrics.paired import critical_value, paired_ece_test, paired_test

ALL = ("seeds", "draws", "questions")


def _zeros(a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(values) for name, values in a.items()}


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("count", [3, 60])
def test_one_level_alone_is_scipys_t_test(axis, count):
    shape = [1, 1, 1]
    shape[axis] = count
    values = np.random.default_rng(count).normal(0.2, 1, shape)
    others = tuple(name for i, name in enumerate(ALL) if i != axis)
    found = paired_test({"t": values}, {"t": np.zeros(shape)}, constant=others)
    theirs = stats.ttest_1samp(values.ravel(), 0)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-6)
    assert found.levels == (ALL[axis],)
    assert found.standard_error == pytest.approx(stats.sem(values.ravel()))


def test_tasks_that_are_drawn_are_a_t_test_over_their_means():
    rng = np.random.default_rng(1)
    a = {str(i): rng.normal(rng.normal(0.3), 1, (1, 1, 20)) for i in range(9)}
    found = paired_test(a, _zeros(a), resample_tasks=True, constant=("seeds",))
    theirs = stats.ttest_1samp([values.mean() for values in a.values()], 0)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-6)
    assert (found.levels, found.measured_once) == (("tasks",), ())


def test_the_standard_error_is_that_of_the_plain_crossed_bootstrap():
    """From index arrays: seeds once for all tasks, draws and questions per task, crossed. Many of each."""
    rng = np.random.default_rng(8)
    a = {
        name: rng.normal(size=(40, 1, 1)) + rng.normal(size=(1, draws, 1)) + 3 * rng.normal(size=(1, 1, count))
        for name, draws, count in (("x", 30, 60), ("y", 50, 90))
    }
    plain = []
    for _ in range(3000):
        seeds = rng.integers(0, 40, 40)
        means = []
        for values in a.values():
            draws, questions = (rng.integers(0, n, n) for n in values.shape[1:])
            means.append(values[np.ix_(seeds, draws, questions)].mean())
        plain.append(np.mean(means))
    found = paired_test(a, _zeros(a))
    assert found.difference == pytest.approx(np.mean([values.mean() for values in a.values()]))
    assert found.standard_error == pytest.approx(np.std(plain), rel=0.06)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.25 * np.std(plain))
    assert (found.tasks, found.seeds, found.draws, found.questions, found.levels) == (2, 40, 30, 150, ALL)


def test_interactions_are_counted_and_never_left_out():
    """Answers that scatter by seed and question together: their own variance, sigma^2 / (S Q), at least once."""
    rng = np.random.default_rng(9)
    errors = []
    means = []
    for _ in range(200):
        values = np.broadcast_to(rng.normal(size=(4, 1, 25)), (4, 3, 25))
        found = paired_test({"t": values}, {"t": np.zeros(values.shape)})
        errors.append(found.standard_error**2)
        means.append(found.difference)
    assert np.mean(errors) == pytest.approx(2 / 100, rel=0.15)  # once by seed and once by question
    assert np.mean(errors) > np.var(means)


def test_the_critical_value_is_the_mean_of_t_quantiles_by_their_share():
    """Cochran and Cox 1950: between the quantiles, each weighted by its part of the variance."""
    expected = (0.3 * stats.t.isf(0.025, 2) + 0.1 * stats.t.isf(0.025, 7.5)) / 0.4
    assert critical_value([(0.3, 2), (0.1, 7.5)], 0.05) == pytest.approx(expected)
    rng = np.random.default_rng(10)
    values = rng.normal(size=(3, 1, 1)) + rng.normal(size=(1, 4, 1)) + rng.normal(0.5, 5, size=(1, 1, 40))
    found = paired_test({"t": values}, {"t": np.zeros(values.shape)})
    parts = [
        (values.mean(axis=other).var(ddof=1) / size, size - 1)
        for other, size in (((1, 2), 3), ((0, 2), 4), ((0, 1), 40))
    ]
    assert found.standard_error == pytest.approx(np.sqrt(sum(v for v, _ in parts)))
    assert found.p_value is not None
    assert abs(found.difference) == pytest.approx(critical_value(parts, found.p_value) * found.standard_error, rel=1e-6)
    assert found.high - found.difference == pytest.approx(critical_value(parts, 0.05) * found.standard_error)


def test_the_freedom_of_a_sum_over_tasks_is_satterthwaites():
    """Two tasks of equal scatter know a level twice as well; one that scatters alone, no better than by itself."""
    rng = np.random.default_rng(11)
    values = rng.normal(size=(1, 5, 1))
    both = paired_test({"x": values, "y": values}, {"x": 0 * values, "y": 0 * values}, constant=("seeds", "questions"))
    one = paired_test(
        {"x": values, "y": 0 * values}, {"x": 0 * values, "y": 0 * values}, constant=("seeds", "questions")
    )
    assert (both.high - both.difference) / both.standard_error == pytest.approx(stats.t.isf(0.025, 8))
    assert (one.high - one.difference) / one.standard_error == pytest.approx(stats.t.isf(0.025, 4))


def test_groups_of_questions_are_one_each():
    rng = np.random.default_rng(12)
    of = np.repeat(np.arange(12), 5)
    single = rng.normal(0.5, 1, 12)
    values = np.repeat(single, 5).reshape(1, 1, 60)
    options = {"groups": {"t": of}, "constant": ("seeds", "draws")}
    found = paired_test({"t": values}, {"t": np.zeros(values.shape)}, **options)
    assert found.p_value == pytest.approx(stats.ttest_1samp(single, 0).pvalue, rel=1e-6)
    assert (found.questions, found.groups) == (60, 12)
    sizes = rng.integers(1, 9, 50)
    of, values = np.repeat(np.arange(50), sizes), np.repeat(rng.normal(size=50), sizes).reshape(1, 1, -1)
    found = paired_test({"t": values}, {"t": np.zeros(values.shape)}, groups={"t": of}, constant=("seeds", "draws"))
    residuals = np.bincount(of, values.ravel() - values.mean())  # the usual variance of a ratio of sums
    assert found.standard_error == pytest.approx(np.sqrt(50 / 49 * (residuals**2).sum()) / sizes.sum(), rel=0.05)


@pytest.mark.parametrize(
    ("shape", "once"),
    [((1, 5, 30), ("seeds",)), ((5, 1, 30), ("draws",)), ((1, 1, 30), ("seeds", "draws")), ((3, 3, 1), ("questions",))],
)
def test_what_was_measured_once_has_an_interval_and_no_p(shape, once):
    values = np.random.default_rng(13).normal(1, 0.1, shape)
    found = paired_test({"t": values}, {"t": np.zeros(shape)})
    assert (found.p_value, found.measured_once) == (None, once)
    assert found.low < found.difference < found.high
    assert paired_test({"t": values}, {"t": np.zeros(shape)}, constant=once).p_value is not None


def test_one_task_or_group_that_was_measured_once_is_enough_to_withhold_p():
    values = {
        "x": np.random.default_rng(14).normal(size=(3, 4, 30)),
        "y": np.random.default_rng(15).normal(size=(3, 1, 30)),
    }
    assert paired_test(values, _zeros(values)).measured_once == ("draws",)
    assert paired_test(values, _zeros(values), resample_tasks=True).measured_once == ()  # draws come with their tasks
    del values["y"]
    assert paired_test(values, _zeros(values), resample_tasks=True).measured_once == ("tasks",)
    one = {"x": np.zeros(30, dtype=np.int64)}
    assert paired_test(values, _zeros(values), groups=one).measured_once == ("questions",)


def test_systems_that_are_the_same_and_differences_that_do_not_scatter():
    a = {"t": np.random.default_rng(16).random((3, 2, 30))}
    same, moved = paired_test(a, a), paired_test({"t": a["t"] + 5}, a)
    assert (same.difference, same.p_value, same.standard_error) == (0, 1, 0)
    assert moved.p_value is None, "nothing scatters, so nobody knows what chance would do"
    assert moved.difference == pytest.approx(5)
    far = paired_test({"t": a["t"] + 5}, {"t": np.random.default_rng(17).random((3, 2, 30))})
    assert far.p_value is not None
    assert 0 < far.p_value < 0.01


def test_exchanging_the_systems_changes_the_sign_only():
    rng = np.random.default_rng(18)
    a, b = ({"t": rng.random((3, 2, 40))} for _ in range(2))
    one, other = paired_test(a, b), paired_test(b, a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p_value == pytest.approx(other.p_value)


def test_the_order_of_tasks_and_questions_changes_nothing():
    rng = np.random.default_rng(19)
    a = {name: rng.random((3, 2, 40)) for name in "cab"}
    one, other = paired_test(a, _zeros(a)), paired_test({n: a[n][..., ::-1] for n in "abc"}, _zeros(a))
    assert one.p_value == pytest.approx(other.p_value, rel=1e-9)
    assert one.standard_error == pytest.approx(other.standard_error)


def _answers(count: int, seed: int, over: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and whether right; right less often than stated by `over`."""
    rng = np.random.default_rng(seed)
    confidence = 0.4 + 0.6 * rng.beta(2, 1.5, count)
    return confidence, rng.random(count) < confidence - over


def _runs(seed: int, over: float) -> tuple[np.ndarray, np.ndarray]:
    runs = [_answers(300, 100 * seed + i, over) for i in range(6)]
    return tuple(np.stack([run[i] for run in runs]).reshape(3, 2, 300) for i in (0, 1))  # type: ignore[return-value]


def test_paired_ece_is_the_mean_difference_of_run_eces():
    a, b = {"x": _runs(1, 0.2), "y": _runs(2, 0.2)}, {"x": _runs(3, 0.0), "y": _runs(4, 0.0)}
    found = paired_ece_test(a, b)

    def mean(system) -> float:
        pairs = [(c.reshape(-1, 300)[i], k.reshape(-1, 300)[i]) for c, k in system.values() for i in range(6)]
        return np.mean([expected_calibration_error(*pair) for pair in pairs])

    assert found.difference == pytest.approx(mean(a) - mean(b))
    assert 0 < found.low < found.difference < found.high
    assert found.p_value < 0.05
    assert paired_ece_test(a, a).p_value == 1


def test_paired_ece_interval_is_that_of_resampled_files_moved_to_the_observed_difference():
    """The same from a plain loop over two files that are scored anew. Noise raises a calibrated one's ECE more."""
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
    found = paired_ece_test(*runs, constant=("seeds", "draws"))
    low, high = np.quantile(loop, [0.025, 0.975]) - bias
    assert found.difference == pytest.approx(observed)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    assert bias > 0.015, "an interval that is not moved would pass"


def test_paired_ece_of_equal_systems_is_seldom_significant():
    found = [paired_ece_test({"t": _runs(2 * i, 0.1)}, {"t": _runs(2 * i + 1, 0.1)}) for i in range(60)]
    assert np.mean([test.p_value < 0.05 for test in found]) <= 0.1


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({}, {}, "nothing to test"),
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
        paired_test(a, b)


def test_a_level_outside_0_to_1_is_refused():
    with pytest.raises(AbmllError, match=r"0\.95"):
        paired_test({"x": np.ones((2, 2, 3))}, {"x": np.zeros((2, 2, 3))}, level=95.0)
