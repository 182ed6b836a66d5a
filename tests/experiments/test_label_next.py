"""The ways to choose rows to label next, in short: `python -m experiments.label_next` is the long form."""

import json

import numpy as np
import pytest
from scipy.sparse import csr_array

from experiments.label_next.__main__ import RESULTS, summary
from experiments.label_next.choose import WAYS, Pool, by_gradients, far_apart, one_a_cluster

README = RESULTS.with_name("README.md").read_text(encoding="utf-8")


def pool(rows: int = 40, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    vectors = rng.random((rows + 6, 9))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Pool(csr_array(vectors[:rows]), csr_array(vectors[rows:]), rng.dirichlet(np.ones(3), rows))


@pytest.mark.parametrize("way", WAYS)
def test_different_rows_are_chosen_and_the_same_seed_chooses_the_same(way: str) -> None:
    chosen = [WAYS[way](pool(), 5, np.random.default_rng(1)).tolist() for _ in range(2)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 5
    assert set(chosen[0]) <= set(range(40))


def test_margins_and_distances_are_what_they_are_called() -> None:
    found, rng = pool(), np.random.default_rng(2)
    best = np.sort(found.probabilities, axis=1)
    near = np.argsort(best[:, -1] - best[:, -2])[:25]
    chosen = far_apart(found, 5, rng)
    assert set(chosen) <= set(near)
    similar = found.vectors.toarray()[near] @ found.labelled.toarray().T
    assert chosen[0] == near[similar.max(axis=1).argmin()]
    assert one_a_cluster(found, 1, rng).tolist() == [int(found.margins.argmin())]


def test_gradients_are_those_of_the_last_layer() -> None:
    """The first seed is the longest (p - e_best) x^T; a copy of a chosen row is not chosen while others differ."""
    found = pool()
    residual = found.probabilities - np.eye(3)[found.probabilities.argmax(axis=1)]
    gradients = np.einsum("nk,nd->nkd", residual, found.vectors.toarray()).reshape(40, -1)
    chosen = by_gradients(found, 4, np.random.default_rng(0))
    assert chosen[0] == np.linalg.norm(gradients, axis=1).argmax()
    rows = [0] * 30 + [1, 2, 3]
    copies = Pool(csr_array(found.vectors.toarray()[rows]), found.labelled, found.probabilities[rows])
    assert sum(row < 30 for row in by_gradients(copies, 4, np.random.default_rng(0))) == 1


def test_the_committed_verdict_is_that_of_its_numbers() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert len(results["sets"]) == 12
    for way, found in summary(results["sets"]).items():
        stored = results["summary"][way]
        assert (found["sets_lower"], found["ships"]) == (stored["sets_lower"], stored["ships"])
        p, gain = (f"{value:.3f}".removeprefix("0") for value in (found["p"], found["mean_gain"]))
        assert f"| {way} | {found['sets_lower']} | {p} | {gain} | {'yes' if found['ships'] else 'no'} |" in README
    assert not any(found["ships"] for found in results["summary"].values())
