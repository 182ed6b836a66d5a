"""The resampling behind every bootstrap of `abmll.metrics.statistics`: crossed levels, one weight matrix each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from abmll.errors import AbmllError
from abmll.metrics.calibration import bin_index, check_confidence

_BLOCK = 4_000_000  # question counts held at once (32 MB): keeps memory flat for large tasks

Statistic = Callable[[Float[np.ndarray, "R N"]], Float[np.ndarray, "R S D"]]
"""How often each question was taken in each of R resamples -> N times the statistic of each seed's, draw's run."""


@dataclass(frozen=True)
class TaskRuns:
    """One task's runs, reduced to what a resample needs.

    Attributes:
        shape: numbers of seeds, draws and questions.
        statistic: N times the statistic of every run, from the counts of the questions.
    """

    shape: tuple[int, int, int]
    statistic: Statistic


def resample(
    tasks: Mapping[str, TaskRuns],
    repeats: int,
    seed: int,
    *,
    resample_tasks: bool = False,
    fixed_runs: bool = False,
) -> tuple[float, Float[np.ndarray, "R"]]:
    """The observed mean over tasks, and the mean over tasks in each of R = `repeats` resamples.

    Args:
        resample_tasks: draw the tasks too; else they are fixed.
        fixed_runs: average over seeds and draws instead of drawing them.

    Raises:
        AbmllError: there is nothing to resample, or runs are drawn and tasks have different numbers of seeds.
    """
    names = sorted(tasks)  # the result must not depend on the order in which files were read
    if not names or repeats < 1:
        raise AbmllError(f"nothing to resample: {len(names)} tasks, {repeats} repeats")
    seeds = {tasks[name].shape[0] for name in names}
    if len(seeds) > 1 and not fixed_runs:
        raise AbmllError(f"tasks have different numbers of training seeds: {sorted(seeds)}")
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2 + len(names))]
    by_seed = _counts(streams[0], seeds.pop(), repeats)  # once for all tasks: one trained system answers them all
    by_task = _counts(streams[1], len(names), repeats) if resample_tasks else 1.0
    observed = np.empty(len(names))
    means = np.empty((repeats, len(names)))
    for i, (name, rng) in enumerate(zip(names, streams[2:], strict=True)):
        observed[i], means[:, i] = _resample_task(tasks[name], rng, None if fixed_runs else by_seed, repeats)
    return float(observed.mean()), (by_task * means).sum(axis=1) / len(names)


def _resample_task(
    task: TaskRuns, rng: np.random.Generator, by_seed: Float[np.ndarray, "R S"] | None, repeats: int
) -> tuple[float, Float[np.ndarray, "R"]]:
    seeds, draws, questions = task.shape
    by_draw = _counts(rng, draws, repeats)
    out = np.empty(repeats)
    step = max(1, _BLOCK // questions)
    for start in range(0, repeats, step):
        part = slice(start, min(repeats, start + step))
        runs = task.statistic(_counts(rng, questions, part.stop - part.start))
        if by_seed is None:
            out[part] = runs.sum(axis=(1, 2))
        else:
            out[part] = np.einsum("rsd,rs,rd->r", runs, by_seed[part], by_draw[part])
    observed = float(task.statistic(np.ones((1, questions))).mean()) / questions
    return observed, out / (seeds * draws * questions)


def _counts(rng: np.random.Generator, count: int, repeats: int) -> Float[np.ndarray, "R N"]:
    """Take `count` of `count` things with replacement, `repeats` times: how often each was taken."""
    taken = rng.integers(0, count, size=(repeats, count)) + count * np.arange(repeats)[:, None]
    counts = np.bincount(taken.ravel(), minlength=repeats * count)
    return counts.reshape(repeats, count).astype(np.float64)  # floating point: matrix products then use BLAS


def mean_runs(values: Float[np.ndarray, "S D N"]) -> TaskRuns:
    """Runs whose statistic is the mean over questions."""
    seeds, draws, questions = values.shape
    flat = values.reshape(-1, questions).T.astype(np.float64)
    return TaskRuns((seeds, draws, questions), lambda counts: (counts @ flat).reshape(-1, seeds, draws))


def ece_runs(confidence: Float[np.ndarray, "S D N"], correct: Bool[np.ndarray, "S D N"], bins: int) -> TaskRuns:
    """Runs whose statistic is the expected calibration error over `bins` equal-width bins.

    Raises:
        AbmllError: a confidence is not in [0, 1].
    """
    check_confidence(confidence.ravel())
    seeds, draws, questions = confidence.shape
    flat = confidence.reshape(-1, questions)
    # gaps[n, run, bin] = correct - confidence, in the question's own bin: counts @ gaps are the bins' sums
    gaps = np.zeros((questions, len(flat), bins))
    run, question = np.indices(flat.shape)
    gaps[question, run, bin_index(flat.ravel(), bins).reshape(flat.shape)] = correct.reshape(flat.shape) - flat
    columns = gaps.reshape(questions, -1)

    def statistic(counts: Float[np.ndarray, "R N"]) -> Float[np.ndarray, "R S D"]:
        return np.abs(counts @ columns).reshape(-1, seeds, draws, bins).sum(axis=3)

    return TaskRuns((seeds, draws, questions), statistic)


def difference_of(ours: TaskRuns, theirs: TaskRuns) -> TaskRuns:
    """Runs whose statistic is the difference of two systems' statistics, on the same resampled questions."""
    return TaskRuns(ours.shape, lambda counts: ours.statistic(counts) - theirs.statistic(counts))
