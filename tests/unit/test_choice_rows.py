"""Rows of choices: made from predictions, checked, joined."""

import numpy as np
import pytest
from scipy.special import log_softmax

from abmll.calibrators import ChoiceRows, TaskRows
from abmll.calibrators.rows import join
from abmll.errors import AbmllError
from abmll.metrics.predictions import Prediction, Predictions

ROWS = (Prediction("a", 1, (0.75, 0.25)), Prediction("b", 2, (0.5, 0.5, 0.0)))


def test_rows_of_predictions_are_their_logarithms_with_a_floor():
    rows = ChoiceRows.from_predictions(ROWS)
    assert rows.log_probabilities[0, :2] == pytest.approx(np.log([0.75, 0.25]), abs=1e-15)
    assert rows.log_probabilities[0, 2] == -np.inf
    assert rows.log_probabilities[1, 2] == pytest.approx(np.log(np.finfo(np.float64).tiny))  # a choice, so never -inf
    assert rows.choices.tolist() == [2, 3]
    assert rows.answers.tolist() == [1, 2]
    assert rows.probabilities().sum(axis=1) == pytest.approx(1.0)


def test_scores_are_normalised_however_large():
    scores = np.array([[1e300, -1e300, 0.0], [3.0, 1.0, -np.inf], [-1e5, -1e5 - 1, -1e5 + 1]])
    rows = ChoiceRows.from_scores(scores)
    assert rows.log_probabilities[2] == pytest.approx(log_softmax(scores[2]), abs=1e-9)
    assert rows.log_probabilities[1, :2] == pytest.approx(log_softmax([3.0, 1.0]), abs=1e-12)
    assert (rows.log_probabilities[0, 1:] == np.log(np.finfo(np.float64).tiny)).all()
    assert (rows.answers == -1).all()


def test_only_labelled_rows_are_labelled():
    rows = ChoiceRows.from_scores(np.zeros((3, 2)), np.array([0, -1, 1]), features=np.arange(3.0)[:, None])
    assert rows.labelled().answers.tolist() == [0, 1]
    assert rows.labelled().features is not None
    assert rows.labelled().features.tolist() == [[0.0], [2.0]]


def test_joined_rows_have_the_wider_padding():
    one = ChoiceRows.from_predictions(ROWS[:1], features=np.ones((1, 2)))
    two = ChoiceRows.from_predictions(ROWS[1:], features=np.zeros((1, 2)))
    both, all_at_once = join(one, two), ChoiceRows.from_predictions(ROWS)
    assert (both.log_probabilities == all_at_once.log_probabilities).all()
    assert both.features is not None
    assert both.features.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert join(one, all_at_once).features is None


@pytest.mark.parametrize(
    ("scores", "answers", "options", "message"),
    [
        ([[0.0, np.nan]], [0], {}, "row 0 .* not all finite"),
        ([[0.0, 0.0], [0.0, np.inf]], [0, 0], {}, "row 1 .* not all finite"),
        ([[0.0, 0.0], [-np.inf, -np.inf]], [0, -1], {}, "row 1 .* no choices"),
        ([[-np.inf, 0.0]], [-1], {}, "row 0 .* a choice after the last one"),
        ([[0.0, 0.0, -np.inf]], [2], {}, "row 0 .* the answer is not one of the choices"),
        ([[0.0, 0.0]], [-2], {}, "row 0 .* the answer is not one of the choices"),
        ([[0.0, 0.0]], [0], {"features": np.array([[np.nan]])}, "row 0 .* a feature is not finite"),
        ([[0.0, 0.0], [0.0, -np.inf]], [0, 0], {"fixed_choices": True}, "row 1 .* though they are fixed"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(scores, answers, options, message):
    with pytest.raises(AbmllError, match=message):
        ChoiceRows.from_scores(np.array(scores), np.array(answers), **options)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.5])
def test_predictions_that_are_no_probabilities_are_refused_by_question(bad):
    with pytest.raises(AbmllError, match="question 'spoilt'"):
        ChoiceRows.from_predictions((*ROWS, Prediction("spoilt", 0, (bad, 0.5))))


def test_log_probabilities_above_zero_are_refused():
    with pytest.raises(AbmllError, match=r"row 0 .* not finite"):
        ChoiceRows(np.array([[0.5, -1.0]]), np.array([0]))


def test_a_tasks_rows_are_those_of_its_file():
    binary = (Prediction("c", 0, (0.5, 0.5)),)
    held_out = (Prediction("d", 1, (0.9, 0.1)),)
    labels = Predictions("lora", "toy", 0, 0, 0, binary, label_counts=(3, 2), held_out_rows=held_out)
    task = TaskRows.from_predictions(labels)
    assert (task.name, task.test.fixed_choices, len(task.held_out)) == ("toy", True, 1)
    assert task.held_out.answers.tolist() == [1]
    free = TaskRows.from_predictions(Predictions("lora", "toy", 0, 0, 0, ROWS))
    assert not free.test.fixed_choices
    assert len(free.held_out) == 0
    with pytest.raises(AbmllError, match="'toy': choices are fixed in"):
        TaskRows("toy", free.held_out, task.test)
