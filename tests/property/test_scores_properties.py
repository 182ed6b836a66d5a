"""Properties of the scores on arbitrary files: ties, certainty, impossible answers, one class, one question."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from abmll.metrics.calibration import (
    adaptive_calibration_error,
    apply_temperature,
    calibration_noise_floor,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from abmll.metrics.predictions import Prediction, Predictions
from abmll.metrics.scores import (
    accuracy,
    auroc_of_confidence,
    brier,
    confidence_and_correct,
    negative_log_likelihood,
    risk_coverage,
)
from abmll.metrics.statistics import holm
from abmll.scoring.scores import score

# edges of bins, certainty and impossibility, and anything between
levels = st.one_of(st.sampled_from([k / 15 for k in range(16)]), st.floats(0, 1))


@st.composite
def answered(draw):
    """Confidences with ties, and whether each was right."""
    pool = draw(st.lists(levels, min_size=1, max_size=6))
    confidence = draw(st.lists(st.sampled_from(pool) | levels, min_size=1, max_size=40))
    correct = draw(st.lists(st.booleans(), min_size=len(confidence), max_size=len(confidence)))
    return np.array(confidence), np.array(correct)


@st.composite
def files(draw, fewest=2):
    """Probabilities with ties, ones and zeros, and answers."""
    count, width = draw(st.integers(1, 30)), draw(st.integers(fewest, 5))
    row = st.lists(st.integers(0, 6) | st.integers(0, 10**12), min_size=width, max_size=width).filter(any)
    weights = np.array(draw(st.lists(row, min_size=count, max_size=count)), dtype=np.float64)
    answers = draw(st.lists(st.integers(0, width - 1), min_size=count, max_size=count))
    return weights / weights.sum(axis=1, keepdims=True), np.array(answers)


def _textbook_ece(confidence, correct, bins=15):
    """sum_b n_b / N |accuracy - confidence| over (b / B, (b + 1) / B], 0 in the first; a loop over bins."""
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if b == 0:
            inside |= confidence == 0
        if inside.any():
            total += inside.sum() / len(confidence) * abs(correct[inside].mean() - confidence[inside].mean())
    return total


@settings(max_examples=1000, deadline=None)
@given(answered())
def test_trust_36_ece_is_the_textbook_sum(case):
    assert expected_calibration_error(*case) == pytest.approx(_textbook_ece(*case), abs=1e-12)


@settings(max_examples=400, deadline=None)
@given(files(fewest=3))
def test_trust_36_nll_and_brier_are_those_of_scikit_learn(case):
    probabilities, answers = case
    labels = list(range(probabilities.shape[1]))
    assert brier(probabilities, answers) == pytest.approx(
        brier_score_loss(answers, probabilities, labels=labels, scale_by_half=False), abs=1e-6
    )
    possible = probabilities[np.arange(len(answers)), answers] > 0  # scikit-learn has another floor
    if possible.any():
        assert negative_log_likelihood(probabilities[possible], answers[possible]) == pytest.approx(
            log_loss(answers[possible], probabilities[possible], labels=labels), abs=1e-6
        )


@settings(max_examples=120, deadline=None)
@given(answered())
def test_auroc_is_that_of_scikit_learn(case):
    confidence, correct = case
    found = auroc_of_confidence(confidence, correct)
    if correct.all() or not correct.any():
        assert found is None
    else:
        assert found == pytest.approx(roc_auc_score(correct, confidence), abs=1e-9)


@settings(max_examples=120, deadline=None)
@given(answered(), st.randoms(use_true_random=False))
def test_trust_37_order_of_rows_changes_nothing(case, random):
    confidence, correct = case
    order = random.sample(range(len(confidence)), len(confidence))
    other, right = confidence[order], correct[order]
    for measure in (expected_calibration_error, adaptive_calibration_error):
        assert measure(other, right) == pytest.approx(measure(confidence, correct), abs=1e-12)
    assert auroc_of_confidence(other, right) == auroc_of_confidence(confidence, correct)
    assert risk_coverage(other, right).risk == pytest.approx(risk_coverage(confidence, correct).risk, abs=1e-12)
    assert calibration_noise_floor(other, repeats=5) == calibration_noise_floor(confidence, repeats=5)
    assert reliability_bins(other, right).count.tolist() == reliability_bins(confidence, correct).count.tolist()


@settings(max_examples=60, deadline=None)
@given(files(), st.randoms(use_true_random=False))
def test_trust_37_order_of_rows_changes_no_score_of_a_file(case, random):
    probabilities, answers = case
    rows = [
        Prediction(str(i), a, tuple(p))
        for i, (p, a) in enumerate(zip(probabilities.tolist(), answers.tolist(), strict=True))
    ]
    first = score(Predictions("s", "t", 0, 0, 0, tuple(rows), tuple(rows))).to_dict()
    random.shuffle(rows)
    second = score(Predictions("s", "t", 0, 0, 0, tuple(rows), tuple(rows))).to_dict()
    assert first == {name: value if value is None else pytest.approx(value, abs=1e-9) for name, value in second.items()}


@settings(max_examples=120, deadline=None)
@given(files())
def test_ranges(case):
    probabilities, answers = case
    confidence, correct = confidence_and_correct(probabilities, answers)
    assert 0 <= accuracy(probabilities, answers) <= 1
    assert 0 <= negative_log_likelihood(probabilities, answers) <= 708.4
    assert 0 <= brier(probabilities, answers) <= 2 + 1e-12
    adaptive, equal_width = (f(confidence, correct) for f in (adaptive_calibration_error, expected_calibration_error))
    assert 0 <= adaptive <= 1 + 1e-12
    # merging bins can only cancel gaps: one bin is the least error there is
    assert abs(correct.mean() - confidence.mean()) - 1e-12 <= equal_width <= 1 + 1e-12
    assert 0 <= risk_coverage(confidence, correct).area <= 1
    assert risk_coverage(confidence, correct).risk[-1] == pytest.approx(1 - correct.mean())


@settings(max_examples=120, deadline=None)
@given(files())
def test_trust_38_temperature_never_worsens_the_fit_and_keeps_the_prediction(case):
    probabilities, answers = case
    temperature = fit_temperature(probabilities, answers)
    scaled = apply_temperature(probabilities, temperature)
    assert 0.05 <= temperature <= 20
    assert negative_log_likelihood(scaled, answers) <= negative_log_likelihood(probabilities, answers) + 1e-9
    best = probabilities.argmax(axis=1)
    assert (scaled[np.arange(len(best)), best] == scaled.max(axis=1)).all()
    assert scaled.sum(axis=1) == pytest.approx(np.ones(len(best)))


@settings(max_examples=120, deadline=None)
@given(files(), st.floats(0.05, 20))
def test_temperature_of_the_paper_is_the_power_of_the_probability(case, temperature):
    probabilities, _ = case
    powers = (probabilities / probabilities.max(axis=1, keepdims=True)) ** (1 / temperature)
    assert apply_temperature(probabilities, temperature) == pytest.approx(
        powers / powers.sum(axis=1, keepdims=True), abs=1e-9
    )


@settings(max_examples=120, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0, 1))
def test_holm_rejects_as_the_stepwise_procedure_does(p_values, alpha):
    """Walk up from the smallest p, stop at the first above alpha / (tests left)."""
    named = {str(i): p for i, p in enumerate(p_values)}
    rejected = set()
    for left, (name, p) in zip(range(len(named), 0, -1), sorted(named.items(), key=lambda item: item[1]), strict=True):
        if left * p > alpha:
            break
        rejected.add(name)
    # an adjusted p is capped at 1, where alpha = 1 rejects everything
    if alpha < 1:
        assert {name for name, p in holm(named).items() if p <= alpha} == rejected
