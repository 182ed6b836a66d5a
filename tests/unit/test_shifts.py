"""Contextual and batch calibration where the bias of the labels is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from abmll.calibrators import ChoiceRows, TaskRows
from abmll.calibrators.shifts import Batch, Contextual
from abmll.calibrators.temperature import PosteriorTemperature
from tests.calibrators import mean_nll, simulated_rows

BIAS = np.array([1.5, 0.0, -1.0, 0.3])


def _content_free(bias: np.ndarray = BIAS) -> ChoiceRows:
    """Inputs without content: all that is said of them is the bias."""
    return ChoiceRows.from_scores(np.tile(bias, (3, 1)), fixed_choices=True)


def test_contextual_calibration_is_the_published_matrix():
    """W = diag(p_cf)^-1, W p normalised."""
    rows, empty = simulated_rows(0, 30, bias=BIAS), simulated_rows(1, 3, spread=1.0)
    prior = empty.probabilities().mean(axis=0)
    weighted = rows.probabilities() @ np.diag(1 / prior)
    expected = weighted / weighted.sum(axis=1, keepdims=True)
    assert Contextual().fit(rows, empty).apply(rows) == pytest.approx(expected, abs=1e-12)


def test_contextual_calibration_takes_away_what_is_said_without_looking():
    biased, plain = simulated_rows(2, 40, bias=BIAS), simulated_rows(2, 40)
    fitted = Contextual().fit(biased, _content_free())
    assert fitted.apply(biased) == pytest.approx(plain.probabilities(), abs=1e-9)


def test_batch_calibration_divides_by_the_mean_answer():
    held_out, rows = simulated_rows(3, 20, bias=BIAS), simulated_rows(4, 50, bias=BIAS)
    prior = np.concatenate([held_out.probabilities(), rows.probabilities()]).mean(axis=0)
    expected = softmax(rows.log_probabilities - np.log(prior), axis=1)
    assert Batch().fit(held_out).apply(rows) == pytest.approx(expected, abs=1e-12)


def test_batch_calibration_helps_where_labels_are_biased():
    held_out, rows = simulated_rows(5, 20, bias=BIAS), simulated_rows(6, 2000, bias=BIAS)
    before, after = mean_nll(rows.probabilities(), rows), mean_nll(Batch().fit(held_out).apply(rows), rows)
    best = mean_nll(simulated_rows(6, 2000).probabilities(), rows)
    assert after - best < 0.5 * (before - best)


@pytest.mark.parametrize("kind", [Contextual, Batch])
def test_the_temperature_is_fitted_to_what_was_shifted(kind):
    """Shift, then posterior temperature, is what the two do one after the other."""
    held_out, rows = (simulated_rows(s, n, temperature=4.0, bias=BIAS) for s, n in ((7, 20), (8, 60)))
    prior = np.concatenate([held_out.probabilities(), rows.probabilities()]).mean(axis=0)
    if kind is Contextual:
        prior = softmax(BIAS)
    shifted = [part.with_scores(part.log_probabilities - np.log(prior)) for part in (held_out, rows)]
    expected = PosteriorTemperature().fit(shifted[0]).apply(shifted[1])
    answers = kind(scale=PosteriorTemperature()).fit(held_out, _content_free()).apply(rows)
    assert answers == pytest.approx(expected, abs=1e-9)
    assert answers != pytest.approx(PosteriorTemperature().fit(held_out).apply(shifted[1]), abs=1e-4)


@pytest.mark.parametrize("kind", [Contextual, Batch])
def test_the_prior_of_the_temperature_is_learned_from_shifted_tasks(kind):
    def task(seed: int, bias: np.ndarray) -> TaskRows:
        held_out, rows = (simulated_rows(2 * seed + i, 40, temperature=3.0, bias=bias) for i in range(2))
        return TaskRows(str(seed), held_out, rows, _content_free(bias))

    learned = [
        kind(scale=PosteriorTemperature()).meta_fit([task(seed, bias) for seed in range(20)])
        for bias in (np.zeros(4), 2 * BIAS)
    ]
    unshifted = PosteriorTemperature().meta_fit([task(seed, 2 * BIAS) for seed in range(20)])
    assert learned[0].scale is not None
    assert learned[1].scale is not None
    tolerance = 1e-6 if kind is Contextual else 0.25
    assert learned[1].scale.mu == pytest.approx(learned[0].scale.mu, abs=tolerance)
    assert abs(unshifted.mu - learned[0].scale.mu) > 0.1  # so the shift matters to it
    assert kind().meta_fit([task(0, BIAS)]) == kind()


def test_tasks_without_content_free_rows_do_not_teach():
    held_out, rows = simulated_rows(0, 20), simulated_rows(1, 20)
    tasks = [TaskRows(str(i), held_out, rows, _content_free()) for i in range(3)]
    bare = [replace(tasks[0], content_free=None)]
    made = Contextual(scale=PosteriorTemperature())
    assert made.meta_fit(tasks + bare) == made.meta_fit(tasks) != made
