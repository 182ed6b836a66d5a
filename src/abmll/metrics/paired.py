"""Is one system better than another? A paired test that knows training seeds, adaptation draws and questions apart.

Each of these scatters, and few of the first two are ever measured. The test adds up what each contributes and asks for
a larger difference where much of it comes from few seeds or draws; where one of them was measured once, it gives no p.
How often it rejects where there is no difference was simulated: `experiments/size`.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from scipy.special import stdtrit

from abmll.errors import AbmllError
from abmll.metrics.calibration import BINS
from abmll.metrics.resampling import (
    Groups,
    TaskRuns,
    as_ece_runs,
    as_mean_runs,
    beyond_rounding,
    check_same_shape,
    difference_of,
)
from abmll.metrics.statistics import check_level

Confidences = tuple[Float[np.ndarray, "_ _ _"], Bool[np.ndarray, "_ _ _"] | Float[np.ndarray, "_ _ _"]]
"""Confidence, and whether the answer is right, of one task: each [seeds, draws, questions]."""
SMALLEST_P = 1e-12


@dataclass(frozen=True)
class PairedTest:
    """The difference of two systems, a - b.

    Attributes:
        difference: mean over tasks (unweighted) of the mean over seeds, draws and questions.
        standard_error: of the difference, over the `levels`.
        low, high: interval of the difference. It leaves out the variation of a level in `measured_once`.
        p_value: two-sided; None if a level was measured once, or nothing scatters: then nothing can be said of chance.
        tasks, seeds: numbers of each.
        draws: adaptation draws, the fewest of any task.
        questions: test questions, all tasks together.
        groups: of questions that belong together, all tasks together; `questions` if each stands alone.
        levels: what the interval allows for, out of `tasks`, `seeds`, `draws`, `questions`.
        measured_once: levels that scatter and were measured once, so that nobody knows by how much.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float | None
    tasks: int
    seeds: int
    draws: int
    questions: int
    groups: int
    levels: tuple[str, ...]
    measured_once: tuple[str, ...]


class _Part(NamedTuple):
    """What a level contributes to the variance of the difference, and the degrees of freedom that it is known by."""

    variance: float
    freedom: float


def paired_test(
    a: Mapping[str, Float[np.ndarray, "_ _ _"]],
    b: Mapping[str, Float[np.ndarray, "_ _ _"]],
    *,
    groups: Groups | None = None,
    resample_tasks: bool = False,
    constant: Collection[str] = (),
    level: float = 0.95,
) -> PairedTest:
    """Test the difference a - b of two systems' per-question scores on the same questions.

    Seeds, draws and questions are crossed: draw 2 adapts every seed's system on the same examples, and every run
    answers the same questions. With d the mean difference and d_s, d_td, d_tq its means by seed, by draw and by
    question of a task t (of T tasks, S seeds, D draws, and Q questions or groups of them),

        v = v_seeds + v_draws + v_questions,    v_seeds = var(d_s) / S,    v_draws = sum_t var(d_td) / D / T^2,

    and v_questions likewise, by the jackknife over groups. An interaction of two levels is counted in both, so v errs
    towards too much (as the pigeonhole bootstrap does, Owen 2007). The difference is compared with the mean of
    Student's t-quantiles, each level's weighted by its share of v (Cochran and Cox 1950): p is the smallest alpha for
    which

        |d| > sqrt(v) * sum_l (v_l / v) t(1 - alpha / 2; df_l),    df_seeds = S - 1,

    and Satterthwaite's degrees of freedom where a level is a sum over tasks. With three seeds that scatter more than
    all else it asks for 4.3 standard errors, with many for 1.96. The same seeds and draws are taken of both systems.

    Args:
        a: per task [seeds, draws, questions], scores such as correctness (0, 1) or nats.
        b: the same tasks and shapes; row, draw and seed i are those of `a`.
        groups: which questions belong together, by task; without it each question stands alone.
        resample_tasks: whether tasks are a sample too: what other tasks would show, not these ones. Draws and questions
            then scatter with their tasks.
        constant: levels that change nothing, so that one member is enough: `seeds` of two systems that were not
            meta-trained, `draws` where nothing is adapted.
        level: of the interval.

    Raises:
        AbmllError: tasks or shapes differ, seeds differ between tasks, there is nothing, or a value is not finite.

    >>> rng = np.random.default_rng(0)
    >>> a, b = {"toy": rng.normal(0.5, 1, (5, 4, 50))}, {"toy": np.zeros((5, 4, 50))}
    >>> test = paired_test(a, b)
    >>> test.p_value < 0.01, test.levels, test.measured_once
    (True, ('seeds', 'draws', 'questions'), ())
    >>> one = paired_test({"toy": a["toy"][:1]}, {"toy": b["toy"][:1]})
    >>> one.p_value, one.measured_once
    (None, ('seeds',))
    """
    _check_same_tasks(a, b)
    tasks = {}
    for name in sorted(a):  # the result must not depend on the order in which files were read
        check_same_shape(name, np.shape(a[name]), np.shape(b[name]))
        tasks[name] = difference_of(*(as_mean_runs(name, side[name], groups) for side in (a, b)))
    return _tested(list(tasks.values()), resample_tasks, constant, level)


def paired_ece_test(
    a: Mapping[str, Confidences],
    b: Mapping[str, Confidences],
    *,
    bins: int = BINS,
    groups: Groups | None = None,
    resample_tasks: bool = False,
    constant: Collection[str] = (),
    level: float = 0.95,
) -> PairedTest:
    """`paired_test` for the ECE, which is no mean over questions: it is computed per seed and draw, then averaged.

    Args:
        a, b: (confidence, correct) per task, each [seeds, draws, questions].
        bins: equal-width bins of the ECE.
        groups, resample_tasks, constant, level: as `paired_test`.

    Raises:
        AbmllError: as `paired_test`, or a confidence is not in [0, 1].

    >>> rng = np.random.default_rng(0)
    >>> sure, more, right = *rng.uniform(0.5, 0.7, (2, 5, 4, 200)), np.ones((5, 4, 200), bool)
    >>> test = paired_ece_test({"toy": (sure, right)}, {"toy": (more + 0.1, right)})
    >>> round(test.difference, 2), test.p_value < 0.001
    (0.1, True)
    """
    _check_same_tasks(a, b)
    tasks = {}
    for name in sorted(a):
        check_same_shape(name, np.shape(a[name][0]), np.shape(b[name][0]))
        tasks[name] = difference_of(*(as_ece_runs(name, *side[name], bins, groups) for side in (a, b)))
    return _tested(list(tasks.values()), resample_tasks, constant, level)


def critical_value(parts: Sequence[tuple[float, float | int]], alpha: float) -> float:
    """How many standard errors a difference must be away from 0 to have a two-sided p below `alpha`.

    Args:
        parts: of each level, its variance (not 0) and the degrees of freedom that it is known by.

    >>> round(critical_value([(1.0, 2)], 0.05), 2), round(critical_value([(1.0, 2), (3.0, 1000)], 0.05), 2)
    (4.3, 2.55)
    """
    whole = sum(variance for variance, _ in parts)
    return float(sum(variance / whole * -stdtrit(freedom, alpha / 2) for variance, freedom in parts))


def _tested(tasks: Sequence[TaskRuns], resample_tasks: bool, constant: Collection[str], level: float) -> PairedTest:
    check_level(level)
    runs = [task.observed() for task in tasks]
    means = np.array([run.mean() for run in runs])
    sizes = _sizes(tasks, resample_tasks)
    parts = _parts(tasks, runs, resample_tasks)
    once = tuple(name for name, size in sizes.items() if size == 1 and name not in constant)
    scattered = [part for part in parts.values() if part.variance > 0]
    difference, error = float(means.mean()), math.sqrt(sum(part.variance for part in scattered))
    half = critical_value(scattered, 1 - level) * error if scattered else 0.0
    return PairedTest(
        difference=difference,
        standard_error=error,
        low=difference - half,
        high=difference + half,
        p_value=None if once else _p_value(difference, error, scattered),
        tasks=len(tasks),
        seeds=tasks[0].shape[0],
        draws=min(task.shape[1] for task in tasks),
        questions=sum(task.questions for task in tasks),
        groups=sum(task.shape[2] for task in tasks),
        levels=tuple(parts),
        measured_once=once,
    )


def _sizes(tasks: Sequence[TaskRuns], resample_tasks: bool) -> dict[str, int]:
    """How many members there are of each level, the fewest of any task."""
    if not tasks:
        raise AbmllError("nothing to test: 0 tasks")
    seeds = {task.shape[0] for task in tasks}
    if len(seeds) > 1:
        raise AbmllError(f"tasks have different numbers of training seeds: {sorted(seeds)}")
    if resample_tasks:
        return {"tasks": len(tasks), "seeds": seeds.pop()}
    draws, groups = (min(task.shape[axis] for task in tasks) for axis in (1, 2))
    return {"seeds": seeds.pop(), "draws": draws, "questions": groups}


def _parts(
    tasks: Sequence[TaskRuns], runs: Sequence[Float[np.ndarray, "_ _"]], resample_tasks: bool
) -> dict[str, _Part]:
    """The levels that have two members or more (in any task), and what each contributes."""
    by_seed = np.mean([run.mean(axis=1) for run in runs], axis=0)
    seeds = [_Part(_variance(by_seed), len(by_seed) - 1)] if len(by_seed) > 1 else []
    if resample_tasks:
        means = np.array([run.mean() for run in runs])
        levels = {"tasks": [_Part(_variance(means), len(means) - 1)] if len(means) > 1 else [], "seeds": seeds}
        return {name: _pooled(parts, 1) for name, parts in levels.items() if parts}
    draws = [_Part(_variance(run.mean(axis=0)), run.shape[1] - 1) for run in runs if run.shape[1] > 1]
    questions = [_Part(task.jackknife_variance(), task.shape[2] - 1) for task in tasks if task.shape[2] > 1]
    out = {"seeds": _pooled(seeds, 1), "draws": _pooled(draws, len(tasks)), "questions": _pooled(questions, len(tasks))}
    return {name: part for name, part in out.items() if part.freedom > 0}


def _variance(means: Float[np.ndarray, "M"]) -> float:
    """Of the mean of M independent values."""
    return beyond_rounding(float(means.var(ddof=1)) / len(means), means)


def _pooled(parts: Sequence[_Part], tasks: int) -> _Part:
    """The variance of a mean over tasks, and its degrees of freedom (Satterthwaite 1946)."""
    whole = sum(part.variance for part in parts)
    if not whole:
        return _Part(0.0, sum(part.freedom for part in parts))
    return _Part(whole / tasks**2, whole**2 / sum(part.variance**2 / part.freedom for part in parts))


def _p_value(difference: float, error: float, parts: Sequence[_Part]) -> float | None:
    """The smallest alpha at which the difference is large enough; None if nothing scatters, so that none is."""
    if not parts:
        return 1.0 if abs(difference) < 1e-12 else None
    statistic = abs(difference) / error

    def beyond(log_alpha: float) -> float:
        return critical_value(parts, math.exp(log_alpha)) - statistic

    least = math.log(SMALLEST_P)
    return SMALLEST_P if beyond(least) < 0 else min(1.0, math.exp(brentq(beyond, least, 0.0, xtol=1e-12)))


def _check_same_tasks(a: Mapping[str, object], b: Mapping[str, object]) -> None:
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise AbmllError(f"systems scored on different tasks: only one of the two has {', '.join(odd)}")
