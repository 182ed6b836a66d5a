"""Intervals over test questions, the standard error over training seeds, and Holm's correction.

Tasks, seeds and draws are fixed here: `abmll.metrics.paired` tests differences that allow for these too. Questions
that belong together are resampled together. All intervals are percentile bootstrap intervals, and `seed` decides them.
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats
from threadpoolctl import ThreadpoolController

from abmll.errors import AbmllError
from abmll.metrics.calibration import BINS, Correct
from abmll.metrics.resampling import Groups, TaskRuns, as_ece_runs, as_mean_runs

_BLOCK = 4_000_000  # numbers of questions in memory at once (32 MB)


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


def bootstrap_interval(
    values: Float[np.ndarray, "N"],
    *,
    groups: Int[np.ndarray, "N"] | None = None,
    repeats: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the mean of N questions' values, questions resampled (Efron 1979).

    Args:
        values: of the questions.
        groups: number of the group that each is of; these are resampled then.
        repeats, seed, level: resamples, what they are drawn by, and the interval's coverage.

    Raises:
        AbmllError: there are no values, or one is not finite.

    >>> low, high = bootstrap_interval(np.array([0.0, 1.0] * 50))
    >>> 0.38 < low < 0.42 and 0.58 < high < 0.62
    True
    """
    known = None if groups is None else {"": groups}
    return stratified_bootstrap_interval({"": values}, groups=known, repeats=repeats, seed=seed, level=level)


def stratified_bootstrap_interval(
    values: Mapping[str, Float[np.ndarray, "..."]],
    *,
    groups: Groups | None = None,
    repeats: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the unweighted mean over tasks, questions resampled within each task.

    Args:
        values: per task [N], or [..., N] where the leading axes are runs (seeds, draws) on the same N
            questions: runs are averaged, not resampled.
        groups: which questions belong together, by task.
        repeats, seed, level: as `bootstrap_interval`.

    Raises:
        AbmllError: there are no tasks or no values, or one is not finite.

    >>> low, high = stratified_bootstrap_interval({"easy": np.ones(9), "hard": np.zeros(5)})
    >>> low, high
    (0.5, 0.5)
    """
    tasks = {name: as_mean_runs(name, array, groups) for name, array in values.items()}
    return _percentiles(_resampled_means(tasks, repeats, seed), level)


def ece_bootstrap_interval(
    confidence: Float[np.ndarray, "N"],
    correct: Correct,
    *,
    bins: int = BINS,
    repeats: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of the ECE that this system shows on N questions, questions resampled.

    A resample adds sampling noise to the noise already in the data, and noise raises an ECE. So the
    percentiles are moved down by the bootstrap's own estimate of that bias, mean(resampled) - observed,
    which puts the interval around the observed value. It is for the mean ECE of files of this size, noise
    floor included: do not look for 0 in it, compare with `calibration_noise_range`. Near perfect
    calibration it is wider than it need be (98 % coverage at a level of 95 %).

    Raises:
        AbmllError: there are no questions, or a confidence is not in [0, 1].

    >>> low, high = ece_bootstrap_interval(np.full(400, 0.9), np.arange(400) % 2 == 0)  # ECE 0.4, s.e. 0.025
    >>> 0.33 < low < 0.37 and 0.43 < high < 0.47
    True
    """
    return stratified_ece_bootstrap_interval(
        {"": (confidence, correct)}, bins=bins, repeats=repeats, seed=seed, level=level
    )


def stratified_ece_bootstrap_interval(
    values: Mapping[str, tuple[Float[np.ndarray, "..."], Bool[np.ndarray, "..."] | Float[np.ndarray, "..."]]],
    *,
    bins: int = BINS,
    groups: Groups | None = None,
    repeats: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`ece_bootstrap_interval` of the unweighted mean over tasks, questions resampled within each task.

    Args:
        values: (confidence, correct) per task, each [N], or [..., N] where the leading axes are runs on the
            same N questions: the ECE is computed per run, then averaged; runs are not resampled.
        bins: equal-width bins of the ECE.
        groups, repeats, seed, level: as `stratified_bootstrap_interval`.

    Raises:
        AbmllError: there are no tasks or no questions, shapes differ, or a confidence is not in [0, 1].

    >>> low, high = stratified_ece_bootstrap_interval({"t": (np.ones((2, 1, 9)), np.ones((2, 1, 9), bool))})
    >>> low, high
    (0.0, 0.0)
    """
    tasks = {name: as_ece_runs(name, *pair, bins, groups) for name, pair in values.items()}
    observed = float(np.mean([task.observed().mean() for task in tasks.values()]))
    resampled = _resampled_means(tasks, repeats, seed)
    low, high = _percentiles(resampled - (resampled.mean() - observed), level)
    return Interval(max(low, 0.0), min(high, 1.0))


def standard_error(values: Float[np.ndarray, "S"]) -> float | None:
    """Standard error of the mean over S seeds: sd / sqrt(S), sd with S - 1 degrees of freedom.

    Returns:
        None with fewer than 2 seeds.

    >>> standard_error(np.array([1.0, 2.0, 6.0])) == float(np.sqrt(7 / 3))
    True
    """
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """P-values adjusted for being m tests: the step-down method of Holm (1979), in the order given.

    p~_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), p sorted. A comparison without a p is no test: it stays
    without, and is not one of the m.

    Raises:
        AbmllError: a p-value is not in [0, 1].

    >>> holm({"lora": 0.01, "reptile": 0.04, "fomaml": 0.03})
    {'lora': 0.03, 'reptile': 0.06, 'fomaml': 0.06}
    >>> holm({"lora": 0.01, "one seed": None})
    {'lora': 0.01, 'one seed': None}
    """
    tested = {name: p for name, p in p_values.items() if p is not None}
    for name, p in tested.items():
        if not 0 <= p <= 1:
            raise AbmllError(f"p-value of {name!r} is {p}: expected a number in [0, 1]")
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(tested, key=lambda name: tested[name])):
        highest = max(highest, min(1.0, (len(tested) - rank) * tested[name]))
        adjusted[name] = highest
    return {name: adjusted.get(name) for name in p_values}


def check_level(level: float) -> None:
    """Refuse a level that is none.

    Raises:
        AbmllError: it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise AbmllError(f"level {level}: expected a number between 0 and 1, such as 0.95")


def _resampled_means(tasks: Mapping[str, TaskRuns], repeats: int, seed: int) -> Float[np.ndarray, "R"]:
    """The unweighted mean over tasks in each of R resamples of the groups within each task."""
    names = sorted(tasks)  # the result must not depend on the order in which files were read
    if not names or repeats < 1:
        raise AbmllError(f"nothing to resample: {len(names)} tasks, {repeats} repeats")
    several = [name for name in names if tasks[name].shape[2] > 1]  # scipy refuses a sample of one
    fixed = sum(float(tasks[name].observed().mean()) for name in names if name not in several)
    if not several:
        return np.full(repeats, fixed / len(names))

    def mean(*taken: Int[np.ndarray, "R _"], axis: int) -> Float[np.ndarray, "R"]:
        means = [tasks[name].resampled(numbers) for name, numbers in zip(several, taken, strict=True)]
        return (np.sum(means, axis=0) + fixed) / len(names)

    samples = [np.arange(tasks[name].shape[2]) for name in several]
    batch = max(1, _BLOCK // max(len(sample) for sample in samples))
    options = {"n_resamples": repeats, "batch": batch, "vectorized": True, "method": "percentile"}
    with _libraries().limit(limits=1, user_api="blas"):  # counting takes the time; threads would wait, spinning
        result = stats.bootstrap(samples, mean, **options, rng=np.random.default_rng(seed))
    return np.asarray(result.bootstrap_distribution)


@cache
def _libraries() -> ThreadpoolController:
    """NumPy's and SciPy's BLAS, which are loaded by now: looking through the libraries of the process takes 1.4 ms."""
    return ThreadpoolController()


def _percentiles(resampled: Float[np.ndarray, "R"], level: float) -> Interval:
    check_level(level)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
