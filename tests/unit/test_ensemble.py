"""The mean of several systems' probabilities, against numpy."""

from dataclasses import replace

import numpy as np
import pytest

from abmll.errors import AbmllError
from abmll.metrics.ensemble import ensemble
from abmll.metrics.predictions import Prediction, Predictions

TABLES = np.random.default_rng(0).dirichlet([1, 1, 1], (4, 5))
"""Three members' probabilities, and one to spare, of two test rows, two adaptation rows and one held out."""


def member(number: int, **other: object) -> Predictions:
    rows = [Prediction(f"q{i}", i % 3, tuple(p), 0.5) for i, p in enumerate(TABLES[number].tolist())]
    made = Predictions("reptile", "toy", number, 2, 60, tuple(rows[:2]), tuple(rows[2:4]), (1, 2), tuple(rows[4:]))
    return replace(made, **other)


def test_probabilities_are_averaged_and_their_spread_is_that_over_members() -> None:
    made = ensemble([member(n) for n in range(3)], "three", seed=7)
    rows = [*made.rows, *made.adaptation_rows, *made.held_out_rows]
    assert [len(part) for part in (made.rows, made.adaptation_rows, made.held_out_rows)] == [2, 2, 1]
    np.testing.assert_allclose([row.probabilities for row in rows], TABLES[:3].mean(axis=0), atol=1e-15)
    np.testing.assert_allclose([row.spread for row in rows], TABLES[:3].std(axis=0), atol=1e-15)
    assert [(row.id, row.answer, row.vocabulary_confidence) for row in rows] == [
        (f"q{i}", i % 3, None) for i in range(5)
    ]
    assert (made.system, made.seed, made.task, made.draw, made.examples_consumed) == ("three", 7, "toy", 2, 60)
    assert made.label_counts == (1, 2)


def test_an_ensemble_has_seed_0_unless_told_otherwise() -> None:
    assert ensemble([member(3)], "one").seed == 0


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "an ensemble needs members"),
        (
            [member(0), member(1, task="other")],
            "members of task 'toy', draw 2 and of 'other', draw 2 make no ensemble",
        ),
        ([member(0), member(1, draw=3)], "members of task 'toy', draw 2 and of 'toy', draw 3 make no ensemble"),
        ([member(0), member(1, rows=member(1).rows[::-1])], "task 'toy': the members .* answered other questions"),
        ([member(0), member(1, held_out_rows=())], "task 'toy': the members .* answered other questions"),
    ],
)
def test_members_of_different_questions_are_refused(members: list[Predictions], message: str) -> None:
    with pytest.raises(AbmllError, match=f"^{message}$"):
        ensemble(members, "none")
