"""Thermometer: its prior and gradient against torch, its limits, and tasks whose temperature can be seen."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from abmll.calibrators import ChoiceRows, TaskRows
from abmll.calibrators.temperature import PosteriorTemperature, log_likelihood_of
from abmll.calibrators.thermometer import (
    InductiveThermometer,
    PosteriorThermometer,
    Thermometer,
    _ThermometerLoss,
    answer_features,
)
from abmll.errors import AbmllError
from tests.calibrators import mean_nll, ragged_rows, simulated_rows, simulated_tasks


def test_features_are_margin_entropy_and_number_of_choices():
    rows = ragged_rows(0, 12)
    for row, features in zip(rows.log_probabilities, answer_features(rows), strict=True):
        logits = torch.tensor(row[np.isfinite(row)])
        top = logits.topk(2).values
        entropy = torch.distributions.Categorical(logits=logits).entropy() / np.log(len(logits))
        expected = [np.log1p((top[0] - top[1]).item()), entropy.item(), np.log(len(logits))]
        assert features == pytest.approx(expected, abs=1e-9)


def test_a_single_choice_has_features_of_zero():
    rows = ChoiceRows.from_scores(np.array([[0.0, -np.inf], [0.0, 0.0]]), features=np.array([[5.0], [6.0]]))
    assert answer_features(rows).tolist()[0] == [0.0, 0.0, 0.0, 5.0]
    assert answer_features(rows)[1, 3] == 6.0


def _task(seed: int, temperature: float, noise: float = 0.1, count: int = 20) -> TaskRows:
    """A task whose rows show log T, with noise, as a feature."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, size in enumerate((count, 100)):
        plain = simulated_rows(10_000 * seed + i, size, temperature=temperature)
        seen = np.log(temperature) + noise * rng.normal(size=(size, 1))
        rows.append(ChoiceRows(plain.log_probabilities, plain.answers, True, seen))
    return TaskRows(str(seed), *rows)


def _seen_tasks(count: int, first: int = 0) -> list[TaskRows]:
    rng = np.random.default_rng(first)
    return [_task(first + i, float(np.exp(t))) for i, t in enumerate(rng.normal(0.8, 0.8, size=count))]


def test_loss_and_gradient_are_those_of_torch():
    tasks = [simulated_rows(0, 12, temperature=3.0), ragged_rows(1, 15)]
    model = Thermometer(penalty=0.3, ridge=0.2)
    model = model.model_copy(update=model._standard(tasks))
    loss = _ThermometerLoss.of(model, tasks)
    parameters = torch.tensor([0.3, -0.2, 0.4, 0.1], dtype=torch.float64, requires_grad=True)
    prior = torch.distributions.Gamma(torch.tensor(1.25, dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64))
    total = 0.1 * (parameters[:3] ** 2).sum()
    constant = 0.0
    for rows in tasks:
        features = torch.tensor(model.standardised(rows))
        temperature = 1 / torch.nn.functional.softplus(features @ parameters[:3] + parameters[3]).mean()
        logits = torch.tensor(rows.log_probabilities).nan_to_num(neginf=-1e30)  # autograd knows no limit of -inf / T
        nll = torch.nn.functional.cross_entropy(logits / temperature, torch.tensor(rows.answers))
        total = total + (nll - 0.3 * prior.log_prob(temperature)) / 2
        one = torch.tensor(1.0, dtype=torch.float64)
        constant -= 0.3 * (prior.log_prob(one) + 0.25).item() / 2  # of the density, which the loss leaves out
    value, slope = loss.value_and_slope(parameters.detach().numpy())
    assert value == pytest.approx(total.item() - constant, abs=1e-9)
    assert slope == pytest.approx(torch.autograd.grad(total, parameters)[0].numpy(), abs=1e-9)


def test_before_it_has_seen_tasks_the_temperature_is_the_mode_of_its_prior():
    rows = simulated_rows(0, 20, temperature=5.0)
    for kind in (Thermometer, InductiveThermometer):
        assert kind().temperature(rows) == pytest.approx(1.0)
        assert kind().fit(rows).apply(rows) == pytest.approx(rows.probabilities(), abs=1e-12)


def test_with_features_that_say_nothing_it_is_the_best_pooled_temperature():
    """All tasks of one size, no penalty, coefficients held at 0 by the ridge."""
    tasks = simulated_tasks(6, temperature=3.0)
    learned = Thermometer(penalty=0.0, ridge=1e6).meta_fit(tasks)
    every = [log_likelihood_of(rows) for task in tasks for rows in (task.held_out, task.test)]
    pooled = minimize_scalar(lambda x: -sum(f(np.array([x]))[0] for f in every), bounds=(-3, 5), method="bounded").x
    assert learned.temperature(tasks[0].test) == pytest.approx(np.exp(pooled), rel=1e-3)


@pytest.mark.parametrize("kind", [Thermometer, InductiveThermometer])
def test_a_temperature_that_can_be_seen_is_learned(kind):
    learned = kind().meta_fit(_seen_tasks(60))
    for temperature in (0.7, 2.0, 4.0):
        assert learned.temperature(_task(900, temperature).test) == pytest.approx(temperature, rel=0.3)
    assert learned.transductive == (kind is Thermometer)


def test_ours_learns_how_far_to_trust_the_looks():
    tasks, others = _seen_tasks(60), _seen_tasks(30, first=500)
    learned, blind = PosteriorThermometer().meta_fit(tasks), PosteriorTemperature().meta_fit(tasks)
    assert learned.prior.sd < 0.6 * blind.sd
    nll = [np.mean([mean_nll(made.fit(t.held_out).apply(t.test), t.test) for t in others]) for made in (learned, blind)]
    assert nll[0] < nll[1] - 0.003


def test_ours_without_features_that_matter_is_the_posterior_temperature():
    tasks = simulated_tasks(20, temperature=3.0)
    learned = PosteriorThermometer(coefficient_sd=1e-4).meta_fit(tasks)
    blind = PosteriorTemperature().meta_fit(tasks)
    assert learned.prior.mu == pytest.approx(blind.mu, abs=0.01)
    held_out, rows = tasks[0].held_out, tasks[0].test
    assert learned.fit(held_out).apply(rows) == pytest.approx(blind.fit(held_out).apply(rows), abs=1e-3)


@pytest.mark.parametrize("kind", [Thermometer, InductiveThermometer, PosteriorThermometer])
def test_other_features_than_those_learned_from_are_refused(kind):
    learned = kind().meta_fit(_seen_tasks(3))
    with pytest.raises(AbmllError, match="was fitted with 4 features a row, these rows have 3"):
        learned.fit(simulated_rows(0, 20)).apply(simulated_rows(1, 20))
    with pytest.raises(AbmllError, match=r"tasks have \[3, 4\] features a row"):
        kind().meta_fit([*_seen_tasks(1), *simulated_tasks(1)])


@pytest.mark.parametrize("kind", [Thermometer, InductiveThermometer, PosteriorThermometer])
def test_the_line_is_followed_for_five_standard_deviations_and_no_further(kind):
    learned, plain = kind().meta_fit(_seen_tasks(10)), simulated_rows(0, 20)
    answers = {}
    for deviations in (-1e9, -5.0, 4.0, 5.0, 1e9):
        seen = np.full((20, 1), learned.centre[3] + deviations * learned.spread[3])
        rows = ChoiceRows(plain.log_probabilities, plain.answers, True, seen)
        answers[deviations] = learned.fit(rows).apply(rows)
    assert answers[1e9] == pytest.approx(answers[5.0], abs=1e-12)
    assert answers[-1e9] == pytest.approx(answers[-5.0], abs=1e-12)
    assert np.abs(answers[4.0] - answers[5.0]).max() > 1e-3
