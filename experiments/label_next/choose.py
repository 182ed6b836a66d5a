"""Three ways to choose the next rows to label by margin and diversity, fixed before any was measured.

Each takes a pool of rows without labels: their vectors x_i of length 1, and the probabilities p_i that a classifier
gives them now. The margin of a row is p_i(best label) - p_i(second best): small where the classifier wavers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from sklearn.cluster import KMeans

NEAREST = 5
"""Rows of the least margin that `far_apart` chooses from, for each that it chooses."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows without labels, and the labelled ones beside them.

    Attributes:
        vectors: of the rows without labels, each of length 1.
        labelled: those of the labelled rows.
        probabilities: of each label, for the rows without labels.
    """

    vectors: csr_array
    labelled: csr_array
    probabilities: Float[np.ndarray, "N K"]

    @property
    def margins(self) -> Float[np.ndarray, "N"]:
        """Probability of the best label less that of the second best."""
        best = np.sort(self.probabilities, axis=1)
        return np.asarray(best[:, -1] - best[:, -2])


Choose = Callable[[Pool, int, np.random.Generator], Int[np.ndarray, "k"]]
"""A pool, how many rows, a generator -> their numbers."""


def at_random(pool: Pool, count: int, rng: np.random.Generator) -> Int[np.ndarray, "k"]:
    """Rows drawn at random: what the others are compared with."""
    return rng.choice(len(pool.probabilities), count, replace=False)


def far_apart(pool: Pool, count: int, rng: np.random.Generator) -> Int[np.ndarray, "k"]:
    """Of the rows of the least margin those that are far from each other and from the labelled ones, one by one."""
    near = np.argsort(pool.margins, kind="stable")[: NEAREST * count]
    vectors = pool.vectors[near]
    closest = (vectors @ pool.labelled.T).toarray().max(axis=1)
    chosen: list[int] = []
    for _ in range(count):
        closest[chosen] = np.inf
        chosen.append(int(closest.argmin()))
        closest = np.maximum(closest, (vectors @ vectors[[chosen[-1]]].T).toarray()[:, 0])
    return near[chosen]


def one_a_cluster(pool: Pool, count: int, rng: np.random.Generator) -> Int[np.ndarray, "k"]:
    """The row of the least margin of each of `count` clusters of the pool (k-means)."""
    found = KMeans(count, n_init=1, random_state=int(rng.integers(2**31))).fit_predict(pool.vectors)
    return np.array([min(np.flatnonzero(found == i), key=lambda row: pool.margins[row]) for i in np.unique(found)])


def by_gradients(pool: Pool, count: int, rng: np.random.Generator) -> Int[np.ndarray, "k"]:
    """BADGE (Ash et al. 2020): k-means++ seeds of the gradients that the rows would have, were the best label right.

    The gradient of a row by the last layer is (p - e_best) x^T: long where p is unsure, apart where texts are.
    """
    residual = pool.probabilities - np.eye(pool.probabilities.shape[1])[pool.probabilities.argmax(axis=1)]
    products = (residual @ residual.T) * (pool.vectors @ pool.vectors.T).toarray()
    lengths = np.diag(products)
    chosen = [int(lengths.argmax())]
    squared = np.full(len(lengths), np.inf)
    while len(chosen) < count:
        last = chosen[-1]
        squared = np.minimum(squared, np.maximum(lengths + lengths[last] - 2 * products[last], 0))
        squared[chosen] = 0
        share = squared / squared.sum() if squared.sum() > 0 else _others(len(lengths), chosen)
        chosen.append(int(rng.choice(len(lengths), p=share)))
    return np.array(chosen)


def _others(count: int, chosen: list[int]) -> Float[np.ndarray, "N"]:
    share = np.ones(count)
    share[chosen] = 0
    return np.asarray(share / share.sum())


RANDOM = "at random"
WAYS: Mapping[str, Choose] = {
    RANDOM: at_random,
    "least margin, far apart": far_apart,
    "least margin of each cluster": one_a_cluster,
    "gradients, k-means++ (BADGE)": by_gradients,
}
