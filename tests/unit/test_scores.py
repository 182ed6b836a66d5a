"""Scores against scikit-learn, torchmetrics and cases worked by hand."""

import json
import math
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from abmll.errors import AbmllError
from abmll.metrics.baselines import label_frequency, uniform
from abmll.metrics.calibration import calibration_noise_floor
from abmll.metrics.predictions import Prediction, Predictions
from abmll.metrics.scores import (
    accuracy,
    auroc_of_confidence,
    brier,
    confidence_and_correct,
    expected_calibration_error,
    floored_probabilities,
    mean_nll,
    mean_nll_scaled,
    negative_log_likelihood,
    question_brier,
    question_nll,
    risk_coverage,
)
from abmll.scoring.scores import score


def _random(questions: int, choices: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(choices, 0.6), questions), rng.integers(0, choices, questions)


def _predictions(rows, adaptation=(), **other) -> Predictions:
    return Predictions("lora", "toy", 3, 1, 60, tuple(rows), tuple(adaptation), **other)


@pytest.mark.parametrize("choices", [2, 3, 5])
def test_trust_36_accuracy_nll_and_brier_are_those_of_scikit_learn(choices):
    probabilities, answers = _random(500, choices)
    labels = np.arange(choices)
    assert accuracy(probabilities, answers) == accuracy_score(answers, probabilities.argmax(1))
    assert negative_log_likelihood(probabilities, answers) == pytest.approx(
        log_loss(answers, probabilities, labels=labels), abs=1e-9
    )
    assert brier(probabilities, answers) == pytest.approx(
        brier_score_loss(answers, probabilities, labels=labels, scale_by_half=False), abs=1e-9
    )


@pytest.mark.parametrize("choices", [2, 4])
@pytest.mark.parametrize("bins", [10, 15])
def test_trust_36_ece_is_that_of_torchmetrics_away_from_confidence_one(choices, bins):
    probabilities, answers = _random(800, choices, seed=1)
    probabilities = 0.98 * probabilities + 0.02 / choices
    theirs = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(answers), num_classes=choices, n_bins=bins, norm="l1"
    )
    ours = expected_calibration_error(*confidence_and_correct(probabilities, answers), bins=bins)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_trust_36_confidence_one_is_in_the_last_bin():
    """One bin of 0.95 (right) and 1.0 (wrong): |1/2 - 0.975| = 0.475. torchmetrics splits it: (0.05 + 1) / 2."""
    probabilities, answers = np.array([[0.95, 0.05], [1.0, 0.0]]), np.array([0, 1])
    assert expected_calibration_error(*confidence_and_correct(probabilities, answers)) == pytest.approx(0.475)
    theirs = float(
        multiclass_calibration_error(
            torch.from_numpy(probabilities), torch.from_numpy(answers), num_classes=2, n_bins=15, norm="l1"
        )
    )
    # torchmetrics issue 3510; the second value is for the day when it is mended
    assert theirs == pytest.approx(0.525) or theirs == pytest.approx(0.475)


def test_auroc_is_that_of_scikit_learn_with_ties():
    rng = np.random.default_rng(2)
    confidence = rng.integers(1, 8, 300) / 8
    correct = rng.random(300) < confidence
    assert auroc_of_confidence(confidence, correct) == pytest.approx(roc_auc_score(correct, confidence), abs=1e-12)


@pytest.mark.parametrize("all_are", [True, False])
def test_auroc_of_one_class_is_none(all_are):
    assert auroc_of_confidence(np.array([0.4, 0.9]), np.full(2, all_are)) is None


def test_zero_probability_costs_a_finite_stated_number_of_nats():
    nll = question_nll(np.array([[1.0, 0.0], [0.25, 0.75]]), np.array([1, 0]))
    assert nll == pytest.approx([1022 * math.log(2), math.log(4)])  # the floor is 2 ** -1022


def test_trust_36_brier_by_hand():
    assert question_brier(np.array([[0.7, 0.2, 0.1]]), np.array([1])) == pytest.approx([0.49 + 0.64 + 0.01])


def test_equal_choices_share_the_answer():
    _, correct = confidence_and_correct(np.array([[1 / 3] * 3, [0.4, 0.2, 0.4], [0.4, 0.4, 0.2]]), np.array([2, 0, 2]))
    assert correct.tolist() == [1 / 3, 0.5, 0]


def test_a_share_of_a_right_answer_counts_as_drawing_from_the_ties_would():
    """The mean over many draws of which of the equal choices is answered, by scikit-learn's AUROC."""
    rng = np.random.default_rng(0)
    confidence = rng.integers(1, 5, 40) / 5
    share = rng.choice([0.0, 0.25, 0.5, 1.0], 40)
    drawn = [rng.random(40) < share for _ in range(4000)]
    assert auroc_of_confidence(confidence, share) == pytest.approx(
        np.mean([roc_auc_score(right, confidence) for right in drawn]), abs=0.01
    )
    risks = np.mean([risk_coverage(confidence, right).risk for right in drawn], axis=0)
    assert risk_coverage(confidence, share).risk == pytest.approx(risks, abs=0.02)


def test_a_guess_has_a_score_for_everything_that_confidence_is_scored_by():
    found = score(uniform(_predictions([Prediction(str(i), i % 3, (0.2, 0.3, 0.5)) for i in range(7)])))
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.auroc == 0.5
    assert found.aurc == pytest.approx(2 / 3)
    assert (found.ece, found.ece_adaptive) == pytest.approx((0, 0), abs=1e-12)


def test_risk_coverage_by_hand():
    curve = risk_coverage(np.array([0.6, 0.9, 0.7, 0.8]), np.array([True, True, False, True]))
    assert curve.risk == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert curve.coverage == pytest.approx([0.25, 0.5, 0.75, 1])
    assert curve.area == pytest.approx((1 / 3 + 1 / 4) / 4)


def test_tied_risk_coverage_is_the_mean_over_all_orders_of_the_tie():
    confidence = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.2])
    wrong = np.array([0.0, 1, 0, 1, 1, 0])
    orders = [[0, *middle, 5] for middle in permutations(range(1, 5))]
    expected = np.mean([np.cumsum(wrong[order]) / np.arange(1, 7) for order in orders], axis=0)
    assert risk_coverage(confidence, wrong == 0).risk == pytest.approx(expected, abs=1e-12)


def test_score_with_every_number_by_hand():
    """Two questions of three choices and one of two; the letter's own probability is lower than the share."""
    rows = [
        Prediction("a", 0, (0.5, 0.25, 0.25), vocabulary_confidence=0.4),
        Prediction("b", 2, (0.5, 0.25, 0.25), vocabulary_confidence=0.3),
        Prediction("c", 1, (0.25, 0.75), vocabulary_confidence=0.7),
    ]
    found = score(_predictions(rows))
    assert found.n == 3
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.nll == pytest.approx((math.log(2) + math.log(4) + math.log(4 / 3)) / 3)
    assert found.brier == pytest.approx((0.375 + 0.875 + 0.125) / 3)
    assert found.ece == pytest.approx((2 * 0 + 0.25) / 3)
    assert found.ece_adaptive == pytest.approx((0 + 0 + 0.25) / 3)
    # 0.4 = 6 / 15 is the upper edge of its bin, 0.3 lies in the bin below
    assert found.ece_vocabulary == pytest.approx((0.6 + 0.3 + 0.3) / 3)
    assert found.auroc == pytest.approx((0.5 + 1) / 2)
    assert found.aurc == pytest.approx((0 + 0.25 + 1 / 3) / 3)
    assert found.nll_over_uniform == pytest.approx((2 * math.log(3) + math.log(2)) / 3 - found.nll)
    assert (found.temperature, found.nll_scaled, found.ece_scaled, found.brier_scaled) == (None,) * 4
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["n"] == 3


def test_vocabulary_ece_is_undefined_if_one_row_has_none():
    rows = [Prediction("a", 0, (0.9, 0.1), vocabulary_confidence=0.5), Prediction("b", 0, (0.9, 0.1))]
    assert score(_predictions(rows)).ece_vocabulary is None


def test_score_scales_by_the_adaptation_rows_only():
    """3 of 4 right at a stated 0.9 gives T = 2 (see fit_temperature), which turns 0.9 into 0.75."""
    adaptation = [Prediction(str(i), int(i == 3), (0.9, 0.1)) for i in range(4)]
    found = score(_predictions([Prediction("t", 0, (0.9, 0.1))], adaptation))
    assert found.temperature == pytest.approx(2.0, abs=1e-4)
    assert found.nll_scaled == pytest.approx(-math.log(0.75), abs=1e-4)
    assert found.ece_scaled == pytest.approx(0.25, abs=1e-4)
    assert found.brier_scaled == pytest.approx(2 * 0.0625, abs=1e-4)


def test_scaling_reaches_a_choice_that_underflowed_to_zero():
    """Certain and wrong once in four: only a high temperature can explain it, and the score says so."""
    adaptation = [Prediction(str(i), int(i == 3), (1.0, 0.0)) for i in range(4)]
    found = score(_predictions([Prediction("t", 1, (1.0, 0.0))], adaptation))
    assert found.temperature == pytest.approx(20, rel=1e-4)
    assert found.nll_scaled < found.nll / 10


def test_score_is_deterministic_and_ignores_padding():
    rows = [Prediction("a", 1, (0.2, 0.8)), Prediction("b", 0, (0.6, 0.4))]
    wide = [*rows, Prediction("c", 3, (0.1, 0.1, 0.1, 0.7))]
    narrow, padded = score(_predictions(rows)), score(_predictions(wide))
    assert narrow == score(_predictions(rows))
    assert padded.brier * 3 == pytest.approx(narrow.brier * 2 + 0.12)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "no questions"),
        ((Prediction("a", 2, (0.5, 0.5)),), "not all among"),
        ((Prediction("a", 0, (1.5, -0.5)),), r"not a finite number in \[0, 1\]"),
        ((Prediction("a", 0, (0.5, 0.5), vocabulary_confidence=1.5),), r"not in \[0, 1\]"),
    ],
)
def test_score_refuses_what_it_cannot_score(rows, message):
    with pytest.raises(AbmllError, match=message):
        score(_predictions(rows))


def test_uniform_guesses_every_choice_and_gains_nothing():
    real = _predictions(
        [Prediction("a", 0, (0.9, 0.1), vocabulary_confidence=0.5), Prediction("b", 3, (0.0, 0.0, 0.0, 1.0))],
        [Prediction("s", 1, (0.9, 0.1))],
    )
    made = uniform(real)
    assert made.system == "uniform"
    assert (made.task, made.seed, made.draw, made.examples_consumed) == ("toy", 3, 1, 60)
    assert [(row.id, row.answer, row.probabilities) for row in made.rows] == [
        ("a", 0, (0.5, 0.5)),
        ("b", 3, (0.25,) * 4),
    ]
    found = score(made)
    assert found.nll_over_uniform == pytest.approx(0, abs=1e-12)
    assert found.nll_scaled == pytest.approx(found.nll)
    assert found.ece_vocabulary is None


def test_label_frequency_by_hand():
    """20 examples, 12 / 5 / 3: (13, 6, 4) / 23."""
    real = _predictions([Prediction("a", 1, (0.2, 0.2, 0.6))], label_counts=(12, 5, 3))
    made = label_frequency(real)
    assert made is not None
    assert made.system == "label_frequency"
    assert made.rows[0].probabilities == pytest.approx((13 / 23, 6 / 23, 4 / 23))
    assert score(made).nll == pytest.approx(math.log(23 / 6))


def test_label_frequency_needs_fixed_labels():
    assert label_frequency(_predictions([Prediction("a", 1, (0.2, 0.8))])) is None


@pytest.mark.parametrize("counts", [(1, 2, 3), (2, -1)])
def test_label_frequency_refuses_counts_that_do_not_fit(counts):
    with pytest.raises(AbmllError, match="toy"):
        label_frequency(_predictions([Prediction("a", 1, (0.2, 0.8))], label_counts=counts))


def test_both_temperatures_have_scores_of_their_own():
    """3 of 4 right at .9 is T = 2; 9 of 10 right is T = 1: the held-out rows' scores are those without scaling."""
    adaptation = [Prediction(str(i), int(i == 3), (0.9, 0.1)) for i in range(4)]
    held = tuple(Prediction(str(i), int(i == 9), (0.9, 0.1)) for i in range(10))
    found = score(_predictions([Prediction("t", 0, (0.9, 0.1))], adaptation, held_out_rows=held))
    assert (found.temperature, found.temperature_cv) == pytest.approx((2.0, 1.0), abs=1e-4)
    assert (found.nll_scaled, found.nll_scaled_cv) == pytest.approx((-math.log(0.75), -math.log(0.9)), abs=1e-4)
    assert (found.ece_scaled, found.ece_scaled_cv) == pytest.approx((0.25, 0.1), abs=1e-4)
    assert (found.brier_scaled, found.brier_scaled_cv) == pytest.approx((2 * 0.0625, 2 * 0.01), abs=1e-4)
    assert found.ece_noise_floor == calibration_noise_floor(np.array([0.9]))
    alone = score(_predictions([Prediction("t", 0, (0.9, 0.1))], (), held_out_rows=held))
    assert (alone.temperature, alone.nll_scaled, alone.temperature_cv) == (None, None, found.temperature_cv)


@pytest.mark.parametrize(
    ("probabilities", "answers", "message"),
    [
        (np.zeros((0, 2)), [], "no questions to score: the predictions hold no test rows"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 2], "answers 0 to 2 are not all among the 2 choices"),
        ([[0.5, 0.5]], [-1], "answers -1 to -1 are not all among the 2 choices"),
        ([[1.0002, 0.0]], [0], "a probability is not a finite number in [0, 1]"),
        ([[-1e-9, 1.0]], [0], "a probability is not a finite number in [0, 1]"),
        ([[np.nan, 1.0]], [0], "a probability is not a finite number in [0, 1]"),
    ],
)
def test_what_cannot_be_scored_is_said(probabilities, answers, message):
    for measure in (question_nll, question_brier, accuracy, confidence_and_correct):
        with pytest.raises(AbmllError) as caught:
            measure(np.array(probabilities, dtype=np.float64), np.array(answers, dtype=np.int64))
        assert str(caught.value) == message


def test_probabilities_may_be_above_one_by_what_rows_may_sum_to():
    assert accuracy(np.array([[1.00009, 0.0]]), np.array([0])) == 1


def test_choices_that_are_there_are_never_quite_impossible():
    """2^-1022, the smallest normal float64; a choice that a question does not have stays at 0."""
    rows = (Prediction("a", 0, (1.0, 0.0)), Prediction("b", 0, (0.5, 0.25, 0.25)))
    assert floored_probabilities(rows).tolist() == [[1.0, 2.0**-1022, 0.0], [0.5, 0.25, 0.25]]


def test_baselines_have_every_row_of_every_split_under_their_own_name():
    real = _predictions(
        [Prediction("a", 1, (0.9, 0.1), 0.5, (0.1, 0.1))],
        [Prediction("s", 0, (0.9, 0.1))],
        held_out_rows=(Prediction("h", 1, (0.2, 0.8)),),
        label_counts=(1, 5),
    )
    for made, name, shares in (
        (uniform(real), "uniform", (0.5, 0.5)),
        (label_frequency(real), "label_frequency", (0.25, 0.75)),
    ):
        assert made is not None
        assert made.system == name
        rows = [*made.rows, *made.adaptation_rows, *made.held_out_rows]
        assert [(row.id, row.answer) for row in rows] == [("a", 1), ("s", 0), ("h", 1)]
        assert {row.probabilities for row in rows} == {shares}
        assert {(row.vocabulary_confidence, row.spread) for row in rows} == {(None, None)}
        assert (made.label_counts, made.examples_consumed) == ((1, 5), 60)


def test_label_counts_that_fit_no_question_are_said():
    rows = [Prediction("a", 1, (0.2, 0.8))]
    for counts, message in (
        ((1, 2, 3), "task 'toy', question 'a': 2 choices, 3 label counts"),
        ((2, -1), "task 'toy': a label count is negative: (2, -1)"),
    ):
        with pytest.raises(AbmllError) as caught:
            label_frequency(_predictions(rows, label_counts=counts))
        assert str(caught.value) == message
    assert label_frequency(_predictions(rows, label_counts=(0, 0))).rows[0].probabilities == (0.5, 0.5)


def test_what_chooses_a_checkpoint_is_what_a_table_reports() -> None:
    """A right answer that was all but ruled out costs the same in both; it cost 27.6 nats in one of them alone."""
    rows = (Prediction("a", 0, (1e-30, 1 - 1e-30)), Prediction("b", 2, (0.25, 0.25, 0.5)))
    expected = (30 * math.log(10) + math.log(2)) / 2
    assert mean_nll(rows) == pytest.approx(expected, rel=1e-12) == score(_predictions(rows)).nll
    assert mean_nll_scaled(rows) == pytest.approx(score(_predictions(rows, rows)).nll_scaled, rel=1e-12)


def test_an_unknown_answer_has_no_nll() -> None:
    with pytest.raises(AbmllError, match="not all among the 2 choices"):
        mean_nll((Prediction("a", -1, (0.5, 0.5)),))
