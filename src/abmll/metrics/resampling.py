"""One task's runs, reduced to what a bootstrap or a jackknife of its questions needs.

Questions that belong together (several about one passage) are one group, and are taken or left together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from abmll.errors import AbmllError
from abmll.metrics.calibration import bin_index, check_confidence

_BLOCK = 4_000_000  # counts in memory at once (32 MB): keeps memory flat for large tasks

Statistic = Callable[[Float[np.ndarray, "R G"]], Float[np.ndarray, "R S D"]]
"""How often each of G groups was taken in each of R resamples -> the statistic of each seed's, draw's run."""

Groups = Mapping[str, Int[np.ndarray, "_"]]
"""Task -> number of the group that each question is of; a task that is not in it has none."""


@dataclass(frozen=True)
class TaskRuns:
    """One task's runs.

    Attributes:
        shape: numbers of seeds, draws and groups of questions.
        questions: in all groups together.
        statistic: of every run, from the counts of the groups.
    """

    shape: tuple[int, int, int]
    questions: int
    statistic: Statistic

    def observed(self) -> Float[np.ndarray, "S D"]:
        """The statistic of every run as it was measured, each group taken once."""
        return self.statistic(np.ones((1, self.shape[2])))[0]

    def resampled(self, taken: Int[np.ndarray, "R G"]) -> Float[np.ndarray, "R"]:
        """The mean over runs when these groups are taken: row r of `taken` has the groups' numbers in resample r."""
        repeats, groups = taken.shape
        cells = (taken + groups * np.arange(repeats)[:, None]).ravel()
        counts = np.bincount(cells, minlength=repeats * groups).reshape(repeats, groups)
        return self.statistic(counts.astype(np.float64)).mean(axis=(1, 2))

    def jackknife_variance(self) -> float:
        """Variance of the mean over runs that is due to the questions, by leaving out each group once.

        (G - 1) / G sum_g (t_(-g) - mean of them)^2 (Tukey 1958); for a mean over questions it is s^2 / G.
        """
        groups = self.shape[2]
        step = max(1, _BLOCK // groups)
        parts = [np.arange(start, min(start + step, groups)) for start in range(0, groups, step)]
        left = [self.statistic((np.arange(groups) != part[:, None]).astype(np.float64)) for part in parts]
        means = np.concatenate([values.mean(axis=(1, 2)) for values in left])
        return beyond_rounding(float((groups - 1) * means.var()), means)


def beyond_rounding(variance: float, means: Float[np.ndarray, "M"]) -> float:
    """The variance of the mean of these, or 0 where rounding alone would make as much."""
    return variance if variance > (1e-12 * max(1.0, float(np.abs(means).max()))) ** 2 else 0.0


def group_numbers(groups: Sequence[str | None]) -> Int[np.ndarray, "N"]:
    """Groups numbered from 0 in order of first appearance; a question without a group is one by itself.

    >>> group_numbers(["story 2", None, "story 2", None]).tolist()
    [0, 1, 0, 2]
    """
    known: dict[object, int] = {}
    keys = (number if name is None else name for number, name in enumerate(groups))
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def as_mean_runs(name: str, values: np.ndarray, groups: Groups | None) -> TaskRuns:
    """Values of one task, [..., N], as runs.

    Raises:
        AbmllError: there are none, or one is not finite.
    """
    runs = _as_runs(name, values)
    return _mean_runs(runs, _groups_of(name, groups, runs.shape[-1]))


def as_ece_runs(name: str, confidence: np.ndarray, correct: np.ndarray, bins: int, groups: Groups | None) -> TaskRuns:
    """Confidences and whether answers are right, [..., N], as runs of one task.

    Raises:
        AbmllError: shapes differ, there are none, or a confidence is not in [0, 1].
    """
    check_same_shape(name, np.shape(confidence), np.shape(correct))
    sure, right = _as_runs(name, confidence), _as_runs(name, correct)
    return _ece_runs(sure, right, bins, _groups_of(name, groups, sure.shape[-1]))


def difference_of(ours: TaskRuns, theirs: TaskRuns) -> TaskRuns:
    """Runs whose statistic is the difference of two systems' statistics, on the same resampled questions."""
    return TaskRuns(ours.shape, ours.questions, lambda counts: ours.statistic(counts) - theirs.statistic(counts))


def check_same_shape(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    """Refuse arrays that cannot be paired.

    Raises:
        AbmllError: names the task and both shapes.
    """
    if ours != theirs:
        raise AbmllError(
            f"task {name!r}: arrays of [seeds, draws, questions] {list(ours)} and {list(theirs)} cannot be paired; "
            "a system without training seeds must be repeated to the other's"
        )


def _groups_of(name: str, groups: Groups | None, questions: int) -> Int[np.ndarray, "_"] | None:
    numbers = None if groups is None else groups.get(name)
    if numbers is not None and len(numbers) != questions:
        raise AbmllError(f"task {name!r}: {len(numbers)} group numbers for {questions} questions")
    return numbers


def _as_runs(name: str, values: np.ndarray) -> np.ndarray:
    """[..., N] as [S, D, N], checked."""
    runs = np.asarray(values)
    runs = runs if runs.ndim == 3 else runs.reshape(1, -1, runs.shape[-1]) if runs.size else runs
    if runs.size == 0 or not np.isfinite(runs).all():
        raise AbmllError(
            f"task {name!r}: scores of shape {np.shape(values)} are empty or hold a value that is not finite"
        )
    return runs


def _mean_runs(values: Float[np.ndarray, "S D N"], groups: Int[np.ndarray, "N"] | None) -> TaskRuns:
    """Runs whose statistic is the mean over questions."""
    seeds, draws, questions = values.shape
    flat = values.reshape(-1, questions).T.astype(np.float64)
    sums, sizes = _by_group(flat, groups)

    def statistic(counts: Float[np.ndarray, "R G"]) -> Float[np.ndarray, "R S D"]:
        return (counts @ sums / (counts @ sizes)[:, None]).reshape(-1, seeds, draws)

    return TaskRuns((seeds, draws, len(sizes)), questions, statistic)


def _ece_runs(
    confidence: Float[np.ndarray, "S D N"],
    correct: Bool[np.ndarray, "S D N"] | Float[np.ndarray, "S D N"],
    bins: int,
    groups: Int[np.ndarray, "N"] | None,
) -> TaskRuns:
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
    sums, sizes = _by_group(gaps.reshape(questions, -1), groups)

    def statistic(counts: Float[np.ndarray, "R G"]) -> Float[np.ndarray, "R S D"]:
        errors = np.abs(counts @ sums).reshape(-1, seeds, draws, bins).sum(axis=3)
        return errors / (counts @ sizes)[:, None, None]

    return TaskRuns((seeds, draws, len(sizes)), questions, statistic)


def _by_group(
    columns: Float[np.ndarray, "N C"], groups: Int[np.ndarray, "N"] | None
) -> tuple[Float[np.ndarray, "G C"], Float[np.ndarray, "G"]]:
    """Sums of each column over the questions of a group, and how many these are."""
    if groups is None:
        return columns, np.ones(len(columns))
    _, number = np.unique(groups, return_inverse=True)
    sizes = np.bincount(number).astype(np.float64)
    sums = np.zeros((len(sizes), columns.shape[1]))
    np.add.at(sums, number, columns)
    return sums, sizes
