"""Scores at the posterior temperature, against a dense grid in float64, scipy, and the calibrator itself."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm

from abmll.calibrators import TaskRows, calibrated, calibrator
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.errors import AbmllError, NonFiniteError
from abmll.everyday.check import calibrated_by_folds
from abmll.metrics.baselines import label_frequency, uniform
from abmll.metrics.ensemble import ensemble
from abmll.metrics.predictions import Prediction, Predictions
from abmll.scoring.posterior import mean_nll_posterior, posterior_probabilities
from abmll.scoring.scores import score
from abmll.systems.folds import deal

WEAK = (1.0, 1.5)
GRID = np.linspace(-9.0, 11.0, 40_001)


def rows_of(seed: int, count: int, sure: float = 3.0, group: bool = False) -> tuple[Prediction, ...]:
    """Answers of 2 to 4 choices, of which the right one is likelier than the others, stated `sure` times too surely."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        logits = rng.normal(0, 1, int(rng.integers(2, 5)))
        answer = int(rng.choice(len(logits), p=np.exp(log_softmax(logits))))
        stated = np.exp(log_softmax(sure * logits))
        out.append(Prediction(f"{seed}-{i}", answer, tuple(stated.tolist()), group=f"g{i // 3}" if group else None))
    return tuple(out)


def dense(rows: tuple[Prediction, ...], given: tuple[Prediction, ...], prior: tuple[float, float]) -> dict[str, float]:
    """The scores by a sum over 40,001 values of log T, a row at a time."""
    logs = norm.logpdf(GRID, *prior)
    for row in given:
        logs += log_softmax(np.log(row.probabilities)[:, None] * np.exp(-GRID), axis=0)[row.answer]
    weights = np.exp(logs - logsumexp(logs))
    answers = [np.exp(log_softmax(np.log(r.probabilities)[:, None] * np.exp(-GRID), axis=0)) @ weights for r in rows]
    truth = [np.eye(len(p))[r.answer] for p, r in zip(answers, rows, strict=True)]
    return {
        "nll": float(np.mean([-math.log(p[r.answer]) for p, r in zip(answers, rows, strict=True)])),
        "brier": float(np.mean([np.square(p - t).sum() for p, t in zip(answers, truth, strict=True)])),
        "temperature": math.exp(float(weights @ GRID)),
    }


def file(rows: tuple[Prediction, ...], held_out: tuple[Prediction, ...] = (), **other: object) -> Predictions:
    return Predictions("abmll", "toy", 0, 0, 0, rows, held_out_rows=held_out, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("prior", [None, (0.4, 0.2), (3.0, 1.0)])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_the_scores_are_those_of_a_dense_grid(prior: tuple[float, float] | None, count: int) -> None:
    rows, given = rows_of(0, 30), rows_of(1, count)
    found = score(file(rows, given, scale_prior=prior))
    if prior is None and not count:
        assert (found.nll_posterior, found.ece_posterior, found.brier_posterior, found.temperature_posterior) == (
            None,
        ) * 4
        return
    expected = dense(rows, given, prior or WEAK)
    assert found.nll_posterior == pytest.approx(expected["nll"], abs=1e-8)
    assert found.brier_posterior == pytest.approx(expected["brier"], abs=1e-8)
    assert found.temperature_posterior == pytest.approx(expected["temperature"], rel=1e-7)
    guess = np.mean([math.log(len(row.probabilities)) for row in rows])
    assert found.nll_posterior_over_uniform == pytest.approx(guess - expected["nll"], abs=1e-8)


@pytest.mark.parametrize("prior", [WEAK, (0.4, 0.2)])
def test_the_answers_are_those_of_the_calibrator(prior: tuple[float, float]) -> None:
    stated = file(rows_of(2, 25), rows_of(3, 20), scale_prior=prior)
    found = posterior_probabilities(stated)
    task = TaskRows.from_predictions(stated)
    made = calibrator("posterior_temperature", {"mu": prior[0], "sd": prior[1]})
    assert found is not None
    assert np.array_equal(found, made.fit(task.held_out).apply(task.test))
    other = calibrated(stated, made)
    assert score(other).nll == pytest.approx(score(stated).nll_posterior, abs=1e-12)
    assert score(other).ece == pytest.approx(score(stated).ece_posterior, abs=1e-12)
    assert score(other).nll_posterior is None  # it is calibrated: once is enough


def test_answers_that_are_too_sure_are_better_at_the_posterior() -> None:
    found = score(file(rows_of(4, 200, sure=8.0), rows_of(5, 20, sure=8.0)))
    assert found.nll_posterior is not None
    assert found.nll_posterior < found.nll - 0.3
    assert found.accuracy == score(file(rows_of(4, 200, sure=8.0))).accuracy


def test_a_file_without_held_out_rows_says_so_unless_the_prior_was_learned() -> None:
    rows, learned = rows_of(6, 30), rows_of(7, 20)
    fitted = replace(file(rows), adaptation_rows=learned, adapted=True)
    assert score(fitted).nll_posterior is None
    assert score(fitted).nll_scaled is not None  # T on what was learned by heart: for the record
    by_prior = score(replace(fitted, scale_prior=(0.4, 0.2)))
    assert by_prior.nll_posterior == pytest.approx(dense(rows, (), (0.4, 0.2))["nll"], abs=1e-8)


def test_before_adapting_every_example_was_answered_without_being_learned() -> None:
    rows, examples = rows_of(8, 30), rows_of(9, 20)
    before = replace(file(rows), adaptation_rows=examples, adapted=False)
    assert score(before).nll_posterior == score(file(rows, examples)).nll_posterior
    assert score(replace(before, adapted=None)).nll_posterior is None  # an early file does not say


def test_baselines_and_ensembles_have_no_learned_prior() -> None:
    stated = file(rows_of(10, 9), rows_of(11, 9), scale_prior=(0.4, 0.2))
    guess = uniform(stated)
    assert guess.scale_prior is None
    assert score(guess).nll_posterior == pytest.approx(score(guess).nll, abs=1e-12)
    two = tuple(replace(row, probabilities=(0.5, 0.5), answer=0) for row in stated.rows)
    assert label_frequency(replace(stated, rows=two, held_out_rows=two, label_counts=(3, 4))).scale_prior is None  # type: ignore[union-attr]
    assert ensemble([stated, stated], "both").scale_prior is None


def test_padding_of_ragged_choices_changes_nothing() -> None:
    """Rows of other questions with more choices, beside them, leave a row's answer as it is."""
    short = tuple(row for row in rows_of(12, 40) if len(row.probabilities) == 2)
    wide = (*short, Prediction("wide", 5, (0.1, 0.1, 0.1, 0.1, 0.1, 0.5)))
    held_out = rows_of(13, 20)
    alone, beside = (posterior_probabilities(file(rows, held_out)) for rows in (short, wide))
    assert alone is not None
    assert beside is not None
    assert beside[: len(short), :2] == pytest.approx(alone, abs=1e-15)
    assert (beside[: len(short), 2:] == 0).all()


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="no prediction"):
        file(rows_of(14, 3), (Prediction("a", 0, (math.nan, 0.5)),))
    with pytest.raises(AbmllError, match="not all numbers in"):
        score(file(rows_of(14, 3), (Prediction("a", 0, (1.5, -0.5)),)))
    with pytest.raises(AbmllError, match="sd"):
        score(file(rows_of(14, 3), scale_prior=(0.0, math.nan)))


def test_validation_rows_are_scored_at_the_posterior_of_their_other_half() -> None:
    rows = rows_of(15, 21)
    side = np.random.default_rng(0).permutation(21) % 2
    halves = tuple(tuple(row for row, s in zip(rows, side, strict=True) if s == half) for half in (0, 1))
    assert {len(half) for half in halves} == {10, 11}
    parts = [dense(a, b, WEAK)["nll"] * len(a) for a, b in (halves, halves[::-1])]
    assert mean_nll_posterior(rows) == pytest.approx(sum(parts) / 21, abs=1e-8)
    assert mean_nll_posterior(rows[:1]) == pytest.approx(dense(rows[:1], (), WEAK)["nll"], abs=1e-8)
    with pytest.raises(AbmllError, match="no questions to score"):
        mean_nll_posterior(())


def test_rows_of_a_group_are_in_one_half() -> None:
    rows = rows_of(16, 12, group=True)  # groups of three, in order
    side = np.repeat(np.random.default_rng(0).permutation(4) % 2, 3)
    halves = tuple(tuple(row for row, s in zip(rows, side, strict=True) if s == half) for half in (0, 1))
    parts = [dense(a, b, WEAK)["nll"] * len(a) for a, b in (halves, halves[::-1])]
    assert mean_nll_posterior(rows) == pytest.approx(sum(parts) / 12, abs=1e-8)


def test_the_everyday_check_takes_the_temperature_of_the_other_folds() -> None:
    """Ragged rows that are nearly all right, where the most likely temperature would be at its bound."""
    rows = tuple(replace(row, answer=int(np.argmax(row.probabilities))) for row in rows_of(17, 12))
    padded = np.array([(*row.probabilities, *(0.0,) * (4 - len(row.probabilities))) for row in rows])
    answers = np.array([row.answer for row in rows])
    folds = deal(answers.tolist(), list(range(12)))
    found = calibrated_by_folds(padded, folds, answers, PosteriorTemperature())
    for fold in folds:
        given = tuple(rows[i] for i in fold.fitted)
        for i in fold.answered:
            assert -math.log(found[i, answers[i]]) == pytest.approx(dense((rows[i],), given, WEAK)["nll"], abs=1e-6)
            assert (found[i] == 0).tolist() == (padded[i] == 0).tolist()
