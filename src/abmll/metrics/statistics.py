"""Statistics: how far a mean, or a difference between two systems, may be an accident.

Sources of accident are the training seed, the draw of adaptation examples and the test questions; tasks are
fixed unless asked otherwise. All intervals are percentile bootstrap intervals; `seed` decides everything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from abmll.errors import AbmllError
from abmll.metrics.calibration import BINS
from abmll.metrics.resampling import TaskRuns, difference_of, ece_runs, mean_runs, resample


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """The difference of two systems, a - b.

    Attributes:
        difference: mean over tasks (unweighted) of the mean over seeds, draws and questions.
        low, high: percentile interval of the difference.
        p_value: two-sided, at least 2 / (repeats + 1).
        tasks, seeds: numbers of each.
        draws: adaptation draws, the fewest of any task.
        questions: test questions, all tasks together.
        repeats: bootstrap resamples.
        levels: what was resampled, out of `tasks`, `seeds`, `draws`, `questions`.
            The interval leaves out the variation of a level that is missing here.
    """

    difference: float
    low: float
    high: float
    p_value: float
    tasks: int
    seeds: int
    draws: int
    questions: int
    repeats: int
    levels: tuple[str, ...]


def bootstrap_interval(
    values: Float[np.ndarray, "N"], *, repeats: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile interval of the mean of N questions' values, questions resampled (Efron 1979).

    Raises:
        AbmllError: there are no values, or one is not finite.

    >>> low, high = bootstrap_interval(np.array([0.0, 1.0] * 50))
    >>> 0.38 < low < 0.42 and 0.58 < high < 0.62
    True
    """
    return stratified_bootstrap_interval({"": values}, repeats=repeats, seed=seed, level=level)


def stratified_bootstrap_interval(
    values: Mapping[str, Float[np.ndarray, "..."]],
    *,
    repeats: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the unweighted mean over tasks, questions resampled within each task.

    Args:
        values: per task [N], or [..., N] where the leading axes are runs (seeds, draws) on the same N
            questions: runs are averaged, not resampled.

    Raises:
        AbmllError: there are no tasks or no values, or one is not finite.

    >>> low, high = stratified_bootstrap_interval({"easy": np.ones(9), "hard": np.zeros(5)})
    >>> low, high
    (0.5, 0.5)
    """
    tasks = {name: mean_runs(_as_runs(name, array)) for name, array in values.items()}
    _, resampled = resample(tasks, repeats, seed, fixed_runs=True)
    return _percentiles(resampled, level)


def ece_bootstrap_interval(
    confidence: Float[np.ndarray, "N"],
    correct: Bool[np.ndarray, "N"],
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
    values: Mapping[str, tuple[Float[np.ndarray, "..."], Bool[np.ndarray, "..."]]],
    *,
    bins: int = BINS,
    repeats: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`ece_bootstrap_interval` of the unweighted mean over tasks, questions resampled within each task.

    Args:
        values: (confidence, correct) per task, each [N], or [..., N] where the leading axes are runs on the
            same N questions: the ECE is computed per run, then averaged; runs are not resampled.

    Raises:
        AbmllError: there are no tasks or no questions, shapes differ, or a confidence is not in [0, 1].

    >>> low, high = stratified_ece_bootstrap_interval({"t": (np.ones((2, 1, 9)), np.ones((2, 1, 9), bool))})
    >>> low, high
    (0.0, 0.0)
    """
    tasks = {name: _ece_runs(name, confidence, correct, bins) for name, (confidence, correct) in values.items()}
    observed, resampled = resample(tasks, repeats, seed, fixed_runs=True)
    low, high = _percentiles(resampled - (resampled.mean() - observed), level)
    return Interval(max(low, 0.0), min(high, 1.0))


def paired_hierarchical_bootstrap(
    a: Mapping[str, Float[np.ndarray, "_ _ _"]],
    b: Mapping[str, Float[np.ndarray, "_ _ _"]],
    *,
    repeats: int = 2000,
    seed: int = 0,
    resample_tasks: bool = False,
    level: float = 0.95,
) -> PairedTest:
    """Test the difference a - b of two systems' per-question scores on the same questions.

    Seeds, draws and questions are crossed: draw 2 adapts every seed's system on the same examples, and
    every run answers the same questions. So each level is resampled on its own, and an answer's weight is
    the product (the pigeonhole bootstrap, Owen 2007, which errs towards wide intervals): training seeds
    once for all tasks, as one trained system answers them all; draws and questions within each task. A
    level of one is not resampled, see `PairedTest.levels`. The same seeds and draws are taken of both
    systems: seed s orders the data alike in both, so their runs are paired.

    p = min(1, 2 (1 + min(#{d* <= 0}, #{d* >= 0})) / (repeats + 1)), d* the resampled differences. With S
    seeds the bootstrap sees (S - 1) / S of the variance between seeds: with 2 or 3, read p with care.

    Args:
        a: per task [seeds, draws, questions], scores such as correctness (0, 1) or nats.
        b: the same tasks and shapes; row, draw and seed i are those of `a`.
        resample_tasks: whether tasks are a sample too: what other tasks would show, not these ones.

    Raises:
        AbmllError: tasks or shapes differ, seeds differ between tasks, there is nothing, or a value is
            not finite.

    >>> a, b = np.full((2, 1, 50), 0.5), np.zeros((2, 1, 50))
    >>> test = paired_hierarchical_bootstrap({"toy": a}, {"toy": b}, repeats=999)
    >>> test.difference, test.low, test.p_value, test.levels
    (0.5, 0.5, 0.002, ('seeds', 'questions'))
    """
    _check_same_tasks(a, b)
    tasks = {}
    for name in a:
        _check_same_shape(name, np.shape(a[name]), np.shape(b[name]))
        tasks[name] = mean_runs(_as_runs(name, a[name]) - _as_runs(name, b[name]))
    observed, resampled = resample(tasks, repeats, seed, resample_tasks=resample_tasks)
    return _paired_test(tasks, observed, resampled, level, resample_tasks)


def paired_hierarchical_bootstrap_ece(
    a: Mapping[str, tuple[Float[np.ndarray, "_ _ _"], Bool[np.ndarray, "_ _ _"]]],
    b: Mapping[str, tuple[Float[np.ndarray, "_ _ _"], Bool[np.ndarray, "_ _ _"]]],
    *,
    bins: int = BINS,
    repeats: int = 2000,
    seed: int = 0,
    resample_tasks: bool = False,
    level: float = 0.95,
) -> PairedTest:
    """`paired_hierarchical_bootstrap` for the ECE, which is no mean over questions.

    Here `a` and `b` hold (confidence, correct) per task, each [seeds, draws, questions]. The ECE is
    computed per seed and draw, then averaged. The resampled differences are moved by
    -(mean(resampled) - observed), for the reason given at `ece_bootstrap_interval`.

    Raises:
        AbmllError: as `paired_hierarchical_bootstrap`, or a confidence is not in [0, 1].

    >>> sure, right = np.full((1, 1, 50), 0.9), np.ones((1, 1, 50), bool)
    >>> a, b = {"toy": (sure, right)}, {"toy": (sure + 0.1, right)}
    >>> test = paired_hierarchical_bootstrap_ece(a, b, repeats=999)
    >>> round(test.difference, 6), test.p_value
    (0.1, 0.002)
    """
    _check_same_tasks(a, b)
    tasks = {}
    for name in a:
        _check_same_shape(name, np.shape(a[name][0]), np.shape(b[name][0]))
        tasks[name] = difference_of(_ece_runs(name, *a[name], bins), _ece_runs(name, *b[name], bins))
    observed, resampled = resample(tasks, repeats, seed, resample_tasks=resample_tasks)
    recentred = resampled - (resampled.mean() - observed)
    return _paired_test(tasks, observed, recentred, level, resample_tasks)


def standard_error(values: Float[np.ndarray, "S"]) -> float | None:
    """Standard error of the mean over S seeds: sd / sqrt(S), sd with S - 1 degrees of freedom.

    Returns:
        None with fewer than 2 seeds.

    >>> standard_error(np.array([1.0, 2.0, 6.0])) == float(np.sqrt(7 / 3))
    True
    """
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for being m tests: the step-down method of Holm (1979), in the order given.

    p~_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), p sorted.

    Raises:
        AbmllError: a p-value is not in [0, 1].

    >>> holm({"lora": 0.01, "reptile": 0.04, "fomaml": 0.03})
    {'lora': 0.03, 'reptile': 0.06, 'fomaml': 0.06}
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise AbmllError(f"p-value of {name!r} is {p}: expected a number in [0, 1]")
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def _paired_test(
    tasks: Mapping[str, TaskRuns],
    observed: float,
    resampled: Float[np.ndarray, "R"],
    level: float,
    resample_tasks: bool,
) -> PairedTest:
    seeds, draws, questions = (tuple(task.shape[axis] for task in tasks.values()) for axis in range(3))
    resampled_levels = {
        "tasks": resample_tasks and len(tasks) > 1,
        "seeds": seeds[0] > 1,
        "draws": max(draws) > 1,
        "questions": max(questions) > 1,
    }
    # differences that are equal to 0 but for rounding count on both sides, as exact zeros do
    slack = 1e-12 * max(1.0, float(np.abs(resampled).max()))
    tail = min(int((resampled <= slack).sum()), int((resampled >= -slack).sum()))
    low, high = _percentiles(resampled, level)
    return PairedTest(
        difference=observed,
        low=low,
        high=high,
        p_value=min(1.0, 2 * (1 + tail) / (len(resampled) + 1)),
        tasks=len(tasks),
        seeds=seeds[0],
        draws=min(draws),
        questions=sum(questions),
        repeats=len(resampled),
        levels=tuple(name for name, done in resampled_levels.items() if done),
    )


def _ece_runs(name: str, confidence: np.ndarray, correct: np.ndarray, bins: int) -> TaskRuns:
    _check_same_shape(name, np.shape(confidence), np.shape(correct))
    return ece_runs(_as_runs(name, confidence), _as_runs(name, correct), bins)


def _percentiles(resampled: Float[np.ndarray, "R"], level: float) -> Interval:
    if not 0 < level < 1:
        raise AbmllError(f"level {level}: expected a number between 0 and 1, such as 0.95")
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _as_runs(name: str, values: np.ndarray) -> np.ndarray:
    """[..., N] as [S, D, N], checked."""
    runs = np.asarray(values)
    runs = runs if runs.ndim == 3 else runs.reshape(1, -1, runs.shape[-1]) if runs.size else runs
    if runs.size == 0 or not np.isfinite(runs).all():
        raise AbmllError(
            f"task {name!r}: scores of shape {np.shape(values)} are empty or hold a value that is not finite"
        )
    return runs


def _check_same_tasks(a: Mapping[str, object], b: Mapping[str, object]) -> None:
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise AbmllError(f"systems scored on different tasks: only one of the two has {', '.join(odd)}")


def _check_same_shape(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    if ours != theirs:
        raise AbmllError(
            f"task {name!r}: arrays of [seeds, draws, questions] {list(ours)} and {list(theirs)} cannot be paired; "
            "a system without training seeds must be repeated to the other's"
        )
