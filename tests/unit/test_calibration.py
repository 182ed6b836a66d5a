"""Calibration against scikit-learn, exact binomial sums and cases worked by hand."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from scipy.stats import binom
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from abmll.errors import AbmllError
from abmll.metrics.calibration import (
    adaptive_calibration_error,
    apply_temperature,
    bin_index,
    calibration_noise_floor,
    calibration_noise_range,
    check_confidence,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
    simulate_calibrated_ece,
)


def _calibrated(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = 0.3 + 0.7 * rng.beta(2, 1.5, count)
    return confidence, rng.random(count) < confidence


def test_edges_are_closed_on_the_right():
    edges = np.array([k / 15 for k in range(16)])
    assert bin_index(edges).tolist() == [0, *range(15)]
    assert bin_index(np.nextafter(edges[1:-1], 1)).tolist() == list(range(1, 15))
    # decimals as a person writes them: 3/15, 6/15, 9/15, 12/15
    assert bin_index(np.array([0.2, 0.4, 0.6, 0.8])).tolist() == [2, 5, 8, 11]


def test_trust_36_reliability_bins_are_those_of_scikit_learn():
    confidence, correct = _calibrated(2000, seed=0)
    confidence[:3] = [1.0, 0.6, 0.8]
    found = reliability_bins(confidence, correct)
    share, mean = calibration_curve(correct, confidence, n_bins=15, strategy="uniform")
    some = found.count > 0
    assert found.mean_accuracy[some] == pytest.approx(share, abs=1e-12)
    assert found.mean_confidence[some] == pytest.approx(mean, abs=1e-12)
    assert np.isnan(found.mean_accuracy[~some]).all()
    assert (~some).any()
    assert found.count.sum() == 2000
    assert len(found.edges) == 16
    weighted = np.nansum(found.count * np.abs(found.mean_accuracy - found.mean_confidence)) / 2000
    assert expected_calibration_error(confidence, correct) == pytest.approx(weighted, abs=1e-12)


def test_equal_mass_bins_are_those_of_scikit_learn():
    confidence, correct = _calibrated(150, seed=1)
    share, mean = calibration_curve(correct, confidence, n_bins=15, strategy="quantile")
    assert adaptive_calibration_error(confidence, correct) == pytest.approx(np.abs(share - mean).mean(), abs=1e-12)


@pytest.mark.parametrize("measure", [expected_calibration_error, adaptive_calibration_error])
def test_one_confidence_gives_the_gap_to_accuracy(measure):
    correct = np.arange(40) < 11
    assert measure(np.full(40, 0.7), correct) == pytest.approx(0.7 - 11 / 40)


def test_adaptive_error_with_fewer_questions_than_bins():
    assert adaptive_calibration_error(np.array([0.9, 0.4]), np.array([True, False])) == pytest.approx(0.25)


def test_certain_and_wrong_is_one():
    assert expected_calibration_error(np.ones(3), np.zeros(3, dtype=bool)) == 1
    assert expected_calibration_error(np.zeros(3), np.ones(3, dtype=bool)) == 1


def test_noise_floor_is_the_exact_binomial_expectation():
    """Two bins, so the ECE is the sum of two independent |right - expected| / N."""
    confidence = np.array([0.7] * 60 + [0.9] * 40)
    exact = sum(
        (binom.pmf(np.arange(n + 1), n, p) * np.abs(np.arange(n + 1) - n * p)).sum() / 100
        for n, p in ((60, 0.7), (40, 0.9))
    )
    assert calibration_noise_floor(confidence, repeats=20_000, seed=5) == pytest.approx(exact, rel=0.02)


def test_noise_floor_is_the_mean_ece_of_calibrated_files():
    """1,247 questions at 15 bins: a system that is perfectly calibrated still shows an ECE of about 0.03."""
    files = [_calibrated(1247, seed) for seed in range(300)]
    shown = np.mean([expected_calibration_error(*file) for file in files])
    assert calibration_noise_floor(files[0][0]) == pytest.approx(shown, rel=0.04)
    assert 0.02 < shown < 0.04


def test_simulation_is_seeded_and_blocks_do_not_change_it(monkeypatch):
    confidence, _ = _calibrated(100, seed=3)
    whole = simulate_calibrated_ece(confidence, repeats=50, seed=1)
    monkeypatch.setattr("abmll.metrics.calibration._BLOCK", 700)
    assert simulate_calibrated_ece(confidence, repeats=50, seed=1) == pytest.approx(whole, abs=0)
    assert simulate_calibrated_ece(confidence, repeats=50, seed=2) != pytest.approx(whole, abs=1e-6)


def test_trust_37_noise_range_covers_calibrated_systems_as_often_as_it_says():
    inside = 0
    for seed in range(400):
        confidence, correct = _calibrated(200, seed)
        low, high = calibration_noise_range(confidence, repeats=400, seed=seed)
        inside += low <= expected_calibration_error(confidence, correct) <= high
    assert 0.93 <= inside / 400 <= 0.97


def test_noise_range_excludes_an_overconfident_system():
    confidence, _ = _calibrated(1000, seed=4)
    correct = np.random.default_rng(4).random(1000) < confidence - 0.1
    assert expected_calibration_error(confidence, correct) > calibration_noise_range(confidence)[1]


@pytest.mark.parametrize("bad", [np.array([]), np.array([0.5, np.nan]), np.array([-0.1]), np.array([1.2])])
def test_confidences_that_are_none_are_refused(bad):
    correct = np.zeros(len(bad), dtype=bool)
    for measure in (expected_calibration_error, adaptive_calibration_error, reliability_bins):
        with pytest.raises(AbmllError, match=r"no questions|not in \[0, 1\]"):
            measure(bad, correct)
    with pytest.raises(AbmllError, match=r"no questions|not in \[0, 1\]"):
        calibration_noise_floor(bad)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("choices", [2, 5])
def test_trust_38_temperature_is_recovered(true, choices):
    """Answers drawn from softmax(z), system says softmax(z T): the fit must find T within 2 %."""
    rng = np.random.default_rng(choices)
    logits = 1.5 * rng.normal(size=(60_000, choices))
    answers = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((60_000, 1))).sum(axis=1).clip(max=choices - 1)
    assert fit_temperature(softmax(logits * true, axis=1), answers) == pytest.approx(true, rel=0.02)


def test_temperature_minimises_the_log_loss_of_scikit_learn():
    rng = np.random.default_rng(8)
    probabilities = rng.dirichlet(np.full(4, 0.4), 20)
    answers = np.where(rng.random(20) < 0.6, probabilities.argmax(axis=1), rng.integers(0, 4, 20))
    fitted = fit_temperature(probabilities, answers)

    def loss(temperature: float) -> float:
        return log_loss(answers, softmax(np.log(probabilities) / temperature, axis=1), labels=range(4))

    best = min(np.geomspace(0.5, 10, 600), key=loss)
    assert 1 < best < 8  # an inner minimum, so that the bounds play no part
    assert fitted == pytest.approx(best, rel=5e-3)
    assert loss(fitted) <= loss(best)


@pytest.mark.parametrize(("choices", "spread"), [(2, 0.3), (4, 2.0), (4, 40.0), (30, 6.0)])
def test_temperature_is_that_of_scipy_s_logsumexp(choices, spread):
    """Also where a choice has probability zero, and where rows are as good as certain."""
    rng = np.random.default_rng(choices)
    logits = spread * rng.normal(size=(200, choices))
    logits[::7, 0] = -np.inf
    answers = np.where(rng.random(200) < 0.7, logits.argmax(axis=1), 1)
    probabilities = softmax(logits, axis=1)
    possible = probabilities[np.arange(200), answers] > 0
    kept, chosen = np.ma.log(probabilities[possible]).filled(-np.inf), answers[possible, None]

    def loss(log_temperature: float) -> float:
        scaled = kept * np.exp(-log_temperature)
        return float((logsumexp(scaled, axis=1) - np.take_along_axis(scaled, chosen, axis=1)[:, 0]).mean())

    wanted = minimize_scalar(loss, bounds=np.log([0.05, 20]), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(probabilities, answers) == pytest.approx(np.exp(wanted.x), rel=1e-6)


def test_apply_temperature_is_the_softmax_of_scaled_logits():
    logits = np.random.default_rng(9).normal(size=(50, 3)) * 5
    expected = softmax(logits / 3, axis=1)
    assert apply_temperature(softmax(logits, axis=1), 3.0) == pytest.approx(expected, abs=1e-12)


def test_padding_stays_zero():
    scaled = apply_temperature(np.array([[0.8, 0.2, 0.0], [0.2, 0.3, 0.5]]), 4.0)
    assert scaled[0, 2] == 0
    assert scaled.sum(axis=1) == pytest.approx([1, 1])


def test_temperature_stays_in_its_range():
    always_right = np.array([[0.6, 0.4]] * 20)
    assert fit_temperature(always_right, np.zeros(20, dtype=int)) == pytest.approx(0.05, rel=1e-4)
    always_wrong = np.array([[0.9, 0.1]] * 20)
    assert fit_temperature(always_wrong, np.ones(20, dtype=int)) == pytest.approx(20, rel=1e-4)


def test_nothing_to_learn_a_temperature_from_leaves_it_at_one():
    assert fit_temperature(np.full((20, 4), 0.25), np.zeros(20, dtype=int)) == 1
    assert fit_temperature(np.array([[1.0, 0.0]] * 3), np.ones(3, dtype=int)) == 1
    with pytest.raises(AbmllError, match="no questions"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=int))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(AbmllError, match="temperature"):
        apply_temperature(np.array([[0.5, 0.5]]), temperature)


def test_extreme_probabilities_do_not_overflow():
    probabilities = np.array([[1.0, 5e-324, 0.0], [1e-300, 1.0, 1e-200]])
    for temperature in (0.05, 20.0):
        scaled = apply_temperature(probabilities, temperature)
        assert np.isfinite(scaled).all()
        assert scaled.sum(axis=1) == pytest.approx([1, 1])


MEASURES = (expected_calibration_error, adaptive_calibration_error)


def test_fifteen_bins_a_thousand_repeats_and_seed_0_are_what_is_taken_where_nothing_is_said():
    confidence, correct = _calibrated(70, seed=12)
    for measure in MEASURES:
        assert measure(confidence, correct) == measure(confidence, correct, 15) != measure(confidence, correct, 14)
    found, said = reliability_bins(confidence, correct), reliability_bins(confidence, correct, 15)
    assert found.count.tolist() == said.count.tolist()
    assert bin_index(confidence).tolist() == bin_index(confidence, 15).tolist()
    plain = simulate_calibrated_ece(confidence)
    assert plain.tolist() == simulate_calibrated_ece(confidence, 15, 1000, 0).tolist()
    assert calibration_noise_floor(confidence) == plain.mean()
    assert calibration_noise_range(confidence) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=1e-15)
    asked = {"bins": 4, "repeats": 80, "seed": 3}
    simulated = simulate_calibrated_ece(confidence, **asked)
    assert calibration_noise_floor(confidence, **asked) == simulated.mean()
    assert calibration_noise_range(confidence, **asked, level=0.5) == pytest.approx(
        tuple(np.quantile(simulated, [0.25, 0.75])), abs=1e-15
    )


def test_simulated_files_are_scored_as_real_ones_are():
    """The same random numbers, each file built and scored by itself."""
    confidence, _ = _calibrated(40, seed=13)
    ordered, rng = np.sort(confidence), np.random.default_rng(7)
    loop = [expected_calibration_error(ordered, rng.random(40) < ordered, 6) for _ in range(30)]
    assert simulate_calibrated_ece(confidence, 6, 30, 7) == pytest.approx(loop, abs=1e-12)
    assert simulate_calibrated_ece(confidence[::-1].copy(), 6, 30, 7) == pytest.approx(loop, abs=1e-12)


def test_bins_of_equal_mass_by_hand_with_a_tie_across_an_edge():
    """Bins of two: (.1, .2), (.2, .9), (.9, 1.0); at .2 one of two is right, at .9 both."""
    confidence = np.array([0.1, 0.2, 0.2, 0.9, 0.9, 1.0])
    correct = np.array([True, True, False, True, True, False])
    gaps = [(1 - 0.1) + (0.5 - 0.2), (0.5 - 0.2) + (1 - 0.9), (1 - 0.9) + (0 - 1.0)]
    assert adaptive_calibration_error(confidence, correct, 3) == pytest.approx(np.abs(gaps).sum() / 6)
    order = [5, 2, 3, 0, 1, 4]
    assert adaptive_calibration_error(confidence[order], correct[order], 3) == pytest.approx(np.abs(gaps).sum() / 6)


@pytest.mark.parametrize(
    ("confidence", "message"),
    [
        ([], "no questions to score: the predictions hold no test rows"),
        ([0.5, 1.2, -3.0], "confidence 1.2 of row 1 (from 0) is not in [0, 1]"),
        ([-0.1], "confidence -0.1 of row 0 (from 0) is not in [0, 1]"),
        ([0.5, np.nan], "confidence nan of row 1 (from 0) is not in [0, 1]"),
        ([1.0002], "confidence 1.0002 of row 0 (from 0) is not in [0, 1]"),
    ],
)
def test_confidences_that_are_none_are_said(confidence, message):
    given = np.array(confidence, dtype=np.float64)
    for act in (
        lambda: expected_calibration_error(given, np.zeros(len(given), dtype=bool)),
        lambda: simulate_calibrated_ece(given),
        lambda: check_confidence(given),
    ):
        with pytest.raises(AbmllError) as caught:
            act()
        assert str(caught.value) == message
    check_confidence(np.array([0.0, 1.0, 1.00005]))  # rows sum to 1 within 1e-4


def test_temperatures_that_are_none_are_said():
    for value in (0.0, float("inf"), float("nan")):
        with pytest.raises(AbmllError, match=rf"^temperature {value}: expected a finite number above zero$"):
            apply_temperature(np.array([[0.5, 0.5]]), value)
    with pytest.raises(AbmllError, match=r"^no questions to fit a temperature to; score without temperature scaling$"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=int))
    nothing = np.zeros((0, 3))
    scaled = apply_temperature(nothing, 2.0)
    assert scaled.shape == (0, 3)
    assert scaled is not nothing


def test_questions_whose_answer_is_impossible_do_not_move_the_temperature():
    sure = np.array([[0.9, 0.1]] * 4)
    answers = np.array([0, 0, 0, 1])
    with_lost = np.concatenate([sure, [[1.0, 0.0]] * 3])
    assert fit_temperature(with_lost, np.array([*answers, 1, 1, 1])) == pytest.approx(2.0, rel=1e-5)
    assert fit_temperature(sure, answers) == pytest.approx(2.0, rel=1e-5)
