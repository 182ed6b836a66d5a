"""The temperature and its posterior: against scikit-learn, adaptive quadrature, and tasks whose truth is known."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import softmax
from scipy.stats import norm
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from abmll.calibrators import TaskRows, calibrator
from abmll.calibrators.temperature import FittedTemperature, PosteriorTemperature, Temperature, log_likelihood_of
from abmll.metrics.calibration import TEMPERATURES, fit_temperature
from tests.calibrators import CHANCE, mean_nll, ragged_rows, simulated_rows, simulated_tasks


class Scores(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its scores."""

    def __init__(self, classes: int = 3):
        self.classes = classes

    def fit(self, scores, labels):
        self.classes_ = np.arange(self.classes)
        return self

    def decision_function(self, scores):
        return scores

    def predict(self, scores):
        return scores.argmax(axis=1)


def test_the_log_likelihood_is_that_of_torch():
    rows = ragged_rows(0, 40)
    log_temperatures = np.array([-3.0, 0.0, 1.3, 6.0])
    logits = torch.tensor(rows.log_probabilities)
    expected = [
        torch.distributions.Categorical(logits=logits / np.exp(x)).log_prob(torch.tensor(rows.answers)).sum().item()
        for x in log_temperatures
    ]
    assert log_likelihood_of(rows)(log_temperatures) == pytest.approx(expected, abs=1e-9)


def test_a_large_file_is_taken_in_blocks():
    rows = simulated_rows(0, 2000)
    x = np.linspace(-1, 2, 600)  # 4.8 million numbers
    assert log_likelihood_of(rows)(x)[::50] == pytest.approx(
        [log_likelihood_of(rows)(x[i : i + 1])[0] for i in range(0, 600, 50)]
    )


@pytest.mark.parametrize("temperature", [0.7, 3.0])
def test_the_plain_fit_and_the_mode_of_a_flat_prior_are_those_of_scikit_learn(temperature):
    rows, others = (simulated_rows(seed, 300, temperature=temperature, choices=3) for seed in (0, 1))
    frozen = FrozenEstimator(Scores().fit(None, None))
    stock = CalibratedClassifierCV(frozen, method="temperature").fit(rows.log_probabilities, rows.answers)
    expected = stock.predict_proba(others.log_probabilities)
    assert Temperature().fit(rows).apply(others) == pytest.approx(expected, abs=1e-5)
    flat = PosteriorTemperature(sd=1e3, answer="mode")
    assert flat.fit(rows).apply(others) == pytest.approx(expected, abs=1e-5)


def test_without_a_spread_the_temperature_is_a_constant():
    rows, others = simulated_rows(0, 20, temperature=5.0), simulated_rows(1, 50)
    for answer in ("average", "mode"):
        fitted = PosteriorTemperature(mu=np.log(3.0), sd=1e-5, answer=answer).fit(rows)
        assert fitted.apply(others) == pytest.approx(softmax(others.log_probabilities / 3.0, axis=1), abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_answers_are_averaged_over_the_posterior(seed):
    held_out, others = ragged_rows(seed, 15), ragged_rows(seed + 10, 4)
    likelihood = log_likelihood_of(held_out)
    answers = PosteriorTemperature(mu=0.5, sd=0.8).fit(held_out).apply(others)

    def weighted(x: float, row: int, choice: int) -> float:
        density = np.exp(likelihood(np.array([x]))[0]) * norm.pdf(x, 0.5, 0.8)
        return density * softmax(others.log_probabilities[row] / np.exp(x))[choice]

    for row in range(4):
        parts = [quad(weighted, -8, 9, args=(row, k), epsabs=1e-16, limit=300)[0] for k in range(others.choices[row])]
        assert answers[row, : len(parts)] == pytest.approx(np.array(parts) / sum(parts), abs=1e-5)


def test_one_number_to_show_is_the_geometric_mean():
    assert FittedTemperature(np.log([1.0, 4.0]), np.array([0.5, 0.5])).temperature == pytest.approx(2.0)
    fitted = PosteriorTemperature().fit(simulated_rows(0, 500, temperature=3.0))
    assert isinstance(fitted, FittedTemperature)
    assert fitted.temperature == pytest.approx(3.0, rel=0.2)


@pytest.mark.parametrize(("mu", "sd"), [(0.0, 0.3), (1.2, 0.8)])
def test_the_population_of_temperatures_is_recovered(mu, sd):
    rng = np.random.default_rng(0)
    temperatures = np.exp(mu + sd * rng.normal(size=150))
    rows = [simulated_rows(i, 200, temperature=t) for i, t in enumerate(temperatures)]
    learned = PosteriorTemperature().meta_fit([TaskRows(str(i), r, r) for i, r in enumerate(rows)])
    assert learned.mu == pytest.approx(mu, abs=0.15)
    assert learned.sd == pytest.approx(sd, abs=0.1)


def test_with_twenty_rows_a_task_a_learned_prior_is_worth_more_than_none():
    """A hundred tasks of one population: the learned posterior beats the weak one, and that the plain fit."""
    rng = np.random.default_rng(1)
    tasks = [
        TaskRows(str(i), simulated_rows(2 * i, 20, temperature=t), simulated_rows(2 * i + 1, 200, temperature=t))
        for i, t in enumerate(np.exp(1.0 + 0.4 * rng.normal(size=100)))
    ]
    learned = PosteriorTemperature().meta_fit(tasks[:40])
    nll = {
        name: np.mean([mean_nll(made.fit(t.held_out).apply(t.test), t.test) for t in tasks[40:]])
        for name, made in (("plain", Temperature()), ("weak", PosteriorTemperature()), ("learned", learned))
    }
    assert nll["learned"] < nll["weak"] - 0.005
    assert nll["weak"] < nll["plain"]


def _excess(made, tasks, temperature: float) -> float:
    """Mean NLL over that at the true temperature."""
    gaps = []
    for task in tasks:
        best = softmax(task.test.log_probabilities / temperature, axis=1)
        gaps.append(mean_nll(made.fit(task.held_out).apply(task.test), task.test) - mean_nll(best, task.test))
    return float(np.mean(gaps))


@pytest.mark.parametrize("spread", [1.0, 6.0, 20.0])
@pytest.mark.parametrize("choices", [2, 4])
def test_where_answers_carry_nothing_it_is_hardly_worse_than_guessing(spread, choices):
    settings = {"temperature": CHANCE, "spread": spread, "choices": choices}
    tasks, training = simulated_tasks(60, seed=1, **settings), simulated_tasks(34, seed=2, **settings)
    learned = PosteriorTemperature().meta_fit(training)
    assert _excess(learned, tasks, CHANCE) < 0.01
    assert _excess(PosteriorTemperature(), tasks, CHANCE) < 0.06


@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_where_answers_are_right_as_they_are_it_costs_little(spread):
    tasks, training = (simulated_tasks(count, seed=s, spread=spread) for count, s in ((60, 3), (34, 4)))
    assert _excess(PosteriorTemperature().meta_fit(training), tasks, 1.0) < 0.02
    assert _excess(PosteriorTemperature(), tasks, 1.0) < 0.05


@pytest.mark.parametrize("case", ["all right", "by chance"])
def test_the_temperature_is_never_at_a_bound(case):
    """The plain fit is, where nearly all rows are right, and where they are right by chance."""
    right = {"temperature": 1e-9, "spread": 6.0} if case == "all right" else {"temperature": -1.0}
    rows = simulated_rows(0, 20, **right)
    plain = fit_temperature(rows.probabilities(), rows.answers)
    assert min(abs(np.log(plain) - np.log(TEMPERATURES))) < 1e-3
    fitted = calibrator("posterior_temperature").fit(rows)
    assert isinstance(fitted, FittedTemperature)
    assert 2 * TEMPERATURES[0] < fitted.temperature < 200
    assert np.std(fitted.log_temperatures) > 0.3


def test_tasks_without_held_out_rows_teach_nothing():
    tasks = simulated_tasks(5)
    empty = TaskRows(
        "empty", tasks[0].held_out.__class__.from_scores(np.zeros((0, 4)), fixed_choices=True), tasks[0].test
    )
    assert PosteriorTemperature().meta_fit([*tasks, empty]) == PosteriorTemperature().meta_fit(tasks)
