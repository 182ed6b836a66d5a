"""The tests that the library's was chosen over: the crossed bootstrap that it had, and a t-test on the seeds' means."""

import numpy as np
from jaxtyping import Float
from scipy.stats import ttest_1samp

REPEATS = 1000
FEWER = 300
"""Resamples of the studentised bootstrap, which looks at every question of each."""


def crossed_bootstrap(worlds: Float[np.ndarray, "W T S D N"]) -> list[float | None]:
    """p of the percentile bootstrap over seeds, draws and questions, crossed (the pigeonhole bootstrap, Owen 2007).

    2 (1 + min(#{d* <= 0}, #{d* >= 0})) / (R + 1). The same resamples are taken of every world.
    """
    count, tasks, seeds, draws, questions = worlds.shape
    rng = np.random.default_rng(0)
    by_seed = _counts(rng, seeds)
    resampled = np.zeros((count, REPEATS))
    for task in range(tasks):
        by_question, by_draw = _counts(rng, questions), _counts(rng, draws)
        flat = worlds[:, task].reshape(-1, questions)
        means = (flat @ by_question.T).reshape(count, seeds, draws, REPEATS)
        resampled += np.einsum("wsdr,rs,rd->wr", means, by_seed, by_draw, optimize=True) / tasks
    tail = np.minimum((resampled <= 0).sum(axis=1), (resampled >= 0).sum(axis=1))
    return [float(p) for p in np.minimum(1.0, 2 * (1 + tail) / (REPEATS + 1))]


def studentised_bootstrap(worlds: Float[np.ndarray, "W T S D N"]) -> list[float | None]:
    """p of |d* - d| / e* against |d| / e, e the standard error that the library's test has, e* that of a resample."""
    count, tasks, seeds, draws, questions = worlds.shape
    rng = np.random.default_rng(0)
    by_seed = _counts(rng, seeds, FEWER)
    resampled, seed_means = np.zeros((count, FEWER)), np.zeros((count, FEWER, seeds))
    variance, observed = np.zeros((count, FEWER)), worlds.mean(axis=(1, 3, 4)).var(axis=1, ddof=1) / seeds
    for task in range(tasks):
        values = worlds[:, task]
        by_question, by_draw = _counts(rng, questions, FEWER), _counts(rng, draws, FEWER)
        runs = np.einsum("wsdn,rn->wrsd", values, by_question, optimize=True)
        means = np.einsum("wrsd,rs,rd->wr", runs, by_seed, by_draw, optimize=True)
        of_draws = np.einsum("wrsd,rs->wrd", runs, by_seed, optimize=True)
        runs_taken = np.einsum("rs,rd->rsd", by_seed, by_draw).reshape(FEWER, -1)
        of_questions = np.einsum("wkn,rk->wrn", values.reshape(count, -1, questions), runs_taken, optimize=True)
        variance += _spread(of_draws, by_draw, means) / tasks**2 + _spread(of_questions, by_question, means) / tasks**2
        seed_means += np.einsum("wrsd,rd->wrs", runs, by_draw, optimize=True) / tasks
        resampled += means / tasks
        observed = observed + values.mean(axis=(1, 3)).var(axis=1, ddof=1) / draws / tasks**2
        observed = observed + values.mean(axis=(1, 2)).var(axis=1, ddof=1) / questions / tasks**2
    difference = worlds.mean(axis=(1, 2, 3, 4))
    errors = np.sqrt(variance + _spread(seed_means, by_seed, resampled))
    beyond = np.abs(resampled - difference[:, None]) >= errors * (np.abs(difference) / np.sqrt(observed))[:, None]
    return [float(p) for p in (1 + beyond.sum(axis=1)) / (FEWER + 1)]


def _spread(
    means: Float[np.ndarray, "W R M"], counts: Float[np.ndarray, "R M"], mean: Float[np.ndarray, "W R"]
) -> Float[np.ndarray, "W R"]:
    """Variance of a resample's mean that its members of one level make."""
    return (np.einsum("wrm,rm->wr", means**2, counts, optimize=True) - mean**2) / (means.shape[2] - 1)


def _counts(rng: np.random.Generator, size: int, repeats: int = REPEATS) -> Float[np.ndarray, "R N"]:
    return (rng.multinomial(size, np.full(size, 1 / size), repeats) / size).astype(np.float32)


def over_seeds(worlds: Float[np.ndarray, "W T S D N"]) -> list[float | None]:
    """p of a t-test on the seeds' means: draws and questions, which all seeds share, do not show in it."""
    if worlds.shape[2] < 2:
        return [None] * len(worlds)
    return [float(p) for p in ttest_1samp(worlds.mean(axis=(1, 3, 4)), 0, axis=1).pvalue]
