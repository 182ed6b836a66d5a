"""A predictions file, calibrated: what stays, what goes, and that it can be scored and stored."""

from pathlib import Path

import pytest

from abmll.calibrators import calibrated, calibrator
from abmll.errors import AbmllError
from abmll.metrics.predictions import Prediction, Predictions, read_predictions
from abmll.scoring.scores import score
from tests.calibrators import ragged_rows


def _predictions() -> Predictions:
    def rows(seed: int, count: int) -> tuple[Prediction, ...]:
        made = ragged_rows(seed, count)
        return tuple(
            Prediction(f"{seed}-{i}", int(a), tuple(p[:k].tolist()), 0.3, (0.1,) * int(k))
            for i, (p, a, k) in enumerate(zip(made.probabilities(), made.answers, made.choices, strict=True))
        )

    return Predictions("abmll", "toy", 1, 2, 30, rows(0, 40), rows(1, 20), held_out_rows=rows(2, 20))


def test_the_plain_temperature_gives_the_scaled_scores_of_the_file():
    stated = _predictions()
    assert score(calibrated(stated, calibrator("temperature"))).nll == pytest.approx(score(stated).nll_scaled_cv)
    assert score(calibrated(stated, calibrator("none"))).nll == pytest.approx(score(stated).nll)


def test_a_calibrated_file_can_be_stored(tmp_path: Path):
    stated = _predictions()
    changed = calibrated(stated, calibrator("posterior_temperature"))
    changed.write(tmp_path / "toy.jsonl")
    assert read_predictions(tmp_path / "toy.jsonl") == changed
    assert (changed.seed, changed.draw, changed.examples_consumed) == (1, 2, 30)
    assert changed.held_out_rows == changed.adaptation_rows == ()
    for before, after in zip(stated.rows, changed.rows, strict=True):
        assert (after.id, after.answer, after.vocabulary_confidence) == (before.id, before.answer, 0.3)
        assert len(after.probabilities) == len(before.probabilities)
        assert after.spread is None


def test_a_need_that_is_not_met_is_named():
    with pytest.raises(AbmllError, match="'batch' needs fixed choices"):
        calibrated(_predictions(), calibrator("batch"))
