"""Vector scaling: Platt for two choices against scikit-learn, derivatives against autograd, its priors' limits."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from abmll.calibrators import ChoiceRows, TaskRows
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.calibrators.vector import VectorScaling, _centred, _jacobian, _Loss, _scores
from tests.calibrators import mean_nll, ragged_rows, simulated_rows
from tests.unit.test_posterior_temperature import Scores

FLAT = PosteriorTemperature(mu=0.0, sd=1e3)


def _odds(rows: ChoiceRows) -> np.ndarray:
    """log p of the second label less that of the first."""
    return np.diff(rows.log_probabilities, axis=1)


def test_for_two_choices_and_flat_priors_it_is_platt_scaling():
    rows = simulated_rows(0, 200, temperature=3.0, choices=2, bias=np.array([2.0, 0.0]))
    others = simulated_rows(1, 50, choices=2)
    fitted = VectorScaling(scale=FLAT, weight_sd=1e-3, bias_sd=1e3).fit(rows)
    platt = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(_odds(rows), rows.answers)
    assert fitted.apply(others) == pytest.approx(platt.predict_proba(_odds(others)), abs=1e-4)


def test_it_is_the_sigmoid_calibration_of_scikit_learn_where_that_ones_own_prior_is_outweighed():
    """scikit-learn shrinks the labels to (n + 1) / (n + 2), as Platt did: with 20,000 rows that is nothing."""
    rows = simulated_rows(2, 20_000, temperature=2.0, choices=2)
    others = simulated_rows(3, 50, choices=2)
    frozen = FrozenEstimator(Scores(2).fit(None, None))
    stock = CalibratedClassifierCV(frozen, method="sigmoid").fit(_odds(rows)[:, 0], rows.answers)
    fitted = VectorScaling(scale=FLAT, weight_sd=1e-3, bias_sd=1e3).fit(rows)
    assert fitted.apply(others) == pytest.approx(stock.predict_proba(_odds(others)[:, 0]), abs=1e-3)


def _loss(rows: ChoiceRows) -> tuple[_Loss, np.ndarray]:
    width = rows.log_probabilities.shape[1]
    rng = np.random.default_rng(0)
    mean, sd = rng.normal(size=1 + 2 * width), rng.uniform(0.5, 2.0, size=1 + 2 * width)
    return _Loss(_centred(rows, width), rows, mean, sd), 0.5 * rng.normal(size=1 + 2 * width)


@pytest.mark.parametrize("rows", [simulated_rows(4, 15), ragged_rows(5, 15)], ids=["labels", "ragged"])
def test_value_slope_and_curvature_are_those_of_autograd(rows):
    loss, at = _loss(rows)
    z, real, answers = torch.tensor(loss.z), torch.tensor(rows.real), torch.tensor(rows.answers)
    mean, sd, width = torch.tensor(loss.mean), torch.tensor(loss.sd), rows.log_probabilities.shape[1]

    def scores(p: torch.Tensor) -> torch.Tensor:
        return torch.exp(p[1 : 1 + width] - p[0]) * z + p[1 + width :]

    def value(p: torch.Tensor) -> torch.Tensor:
        masked = scores(p).masked_fill(~real, -torch.inf)
        prior = torch.distributions.Normal(mean, sd)
        return (
            torch.nn.functional.cross_entropy(masked, answers, reduction="sum")
            - (prior.log_prob(p) - prior.log_prob(mean)).sum()
        )

    point = torch.tensor(at, requires_grad=True)
    assert loss.value(at) == pytest.approx(value(point).item(), abs=1e-9)
    assert loss.slope(at) == pytest.approx(torch.autograd.grad(value(point), point)[0].numpy(), abs=1e-9)
    jacobian = torch.autograd.functional.jacobian(scores, point).numpy()
    assert _jacobian(loss.z, at) == pytest.approx(jacobian, abs=1e-12)
    p = softmax(np.where(rows.real, _scores(loss.z, at), -np.inf), axis=1)
    inner = np.stack([np.diag(row) - np.outer(row, row) for row in p])
    expected = np.einsum("nkp,nkl,nlq->pq", jacobian, inner, jacobian) + np.diag(1 / loss.sd**2)
    assert loss.curvature(at) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rows", [simulated_rows(6, 25, temperature=3.0), ragged_rows(7, 25)], ids=["labels", "ragged"])
def test_without_room_for_weights_and_biases_it_is_the_temperatures_mode(rows):
    tight = VectorScaling(weight_sd=1e-5, bias_sd=1e-5).fit(rows)
    mode = PosteriorTemperature(answer="mode").fit(rows)
    others = ragged_rows(8, 30)
    assert tight.apply(others) == pytest.approx(mode.apply(others), abs=1e-4)


def test_a_constant_added_to_a_rows_scores_changes_nothing():
    rows = simulated_rows(9, 20)
    moved = ChoiceRows.from_scores(rows.log_probabilities + np.arange(20.0)[:, None], rows.answers, fixed_choices=True)
    others = simulated_rows(10, 5)
    assert VectorScaling().fit(moved).apply(others) == pytest.approx(VectorScaling().fit(rows).apply(others), abs=1e-6)


def test_choices_that_were_not_fitted_have_no_bias():
    narrow = simulated_rows(11, 200, choices=2, bias=np.array([2.0, 0.0]), fixed_choices=False)
    wide = ChoiceRows.from_scores(np.zeros((1, 4)))
    answers = VectorScaling(weight_sd=0.01, bias_sd=2.0).fit(narrow).apply(wide)[0]
    assert answers[0] < answers[2] == answers[3] < answers[1]


def _biased_tasks(bias_sd: float) -> list[TaskRows]:
    rng = np.random.default_rng(0)
    tasks = []
    for seed in range(40):
        bias = bias_sd * rng.normal(size=4)
        rows = [simulated_rows(2 * seed + i, count, temperature=2.0, bias=bias) for i, count in enumerate((40, 100))]
        tasks.append(TaskRows(str(seed), *rows))
    return tasks


def test_the_width_of_the_biases_is_learned():
    """Scores have the biases before the temperature of 2; the mean bias over labels does nothing, hence 3 / 4."""
    narrow, wide = (VectorScaling().meta_fit(_biased_tasks(sd)) for sd in (0.0, 2.0))
    assert narrow.bias_sd < 0.25
    assert wide.bias_sd == pytest.approx(2.0 / 2 * 0.75**0.5, rel=0.25)


def test_where_labels_are_biased_it_is_worth_more_than_a_temperature():
    tasks = _biased_tasks(3.0)
    learned = [made.meta_fit(tasks[:20]) for made in (VectorScaling(), PosteriorTemperature())]
    vector, plain = (
        np.mean([mean_nll(made.fit(t.held_out).apply(t.test), t.test) for t in tasks[20:]]) for made in learned
    )
    assert vector < plain - 0.05
