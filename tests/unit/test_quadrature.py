"""Posteriors of one number against conjugate formulas, scipy's adaptive quadrature and dense grids."""

import numpy as np
import pytest
from scipy.integrate import quad, trapezoid
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from abmll.calibrators.quadrature import (
    POPULATION_NODES,
    PopulationPrior,
    fit_population,
    log_normal_density,
    posterior,
)
from abmll.calibrators.temperature import log_likelihood_of
from tests.calibrators import CHANCE, ragged_rows, simulated_rows


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (-3.0, 0.01), (2.0, 3.0)])
@pytest.mark.parametrize(("observed", "noise"), [(0.5, 1.0), (4.0, 0.002), (1.0, 20.0)])  # near, far, vague
def test_a_gaussian_likelihood_gives_the_conjugate_posterior(mean, sd, observed, noise):
    result = posterior(lambda x: norm.logpdf(observed, x, noise), mean, sd)
    variance = 1 / (1 / sd**2 + 1 / noise**2)
    centre = variance * (mean / sd**2 + observed / noise**2)
    assert result.mean == pytest.approx(centre, abs=1e-7 * sd)
    assert result.mode == pytest.approx(centre, abs=1e-4 * variance**0.5)
    assert result.sd == pytest.approx(variance**0.5, rel=1e-7)
    assert result.log_evidence == pytest.approx(norm.logpdf(observed, mean, np.hypot(sd, noise)), rel=1e-9, abs=1e-8)
    assert result.weights.sum() == pytest.approx(1.0, abs=1e-12)


LIKELIHOODS = {
    "overconfident": simulated_rows(0, 20, temperature=4.0, spread=8.0),
    "by chance": simulated_rows(1, 20, temperature=CHANCE, spread=6.0),
    "all right": simulated_rows(2, 20, temperature=1e-6),
    "ragged": ragged_rows(3, 20),
    "one row": simulated_rows(4, 1),
    "many rows": simulated_rows(5, 3000, temperature=2.0),
}


@pytest.mark.parametrize("sd", [0.3, 1.5])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_posterior_of_a_log_temperature_is_that_of_adaptive_quadrature(name, sd):
    likelihood = log_likelihood_of(LIKELIHOODS[name])
    result = posterior(likelihood, 1.0, sd)
    highest = likelihood(np.array([result.mode]))[0]
    around = {"points": [result.mode], "limit": 400, "epsabs": 1e-14}

    def moment(power: int) -> float:
        def integrand(x: float) -> float:
            return (x - 1.0) ** power * np.exp(likelihood(np.array([x]))[0] - highest) * norm.pdf(x, 1.0, sd)

        return quad(integrand, -15.0, 17.0, **around)[0]

    assert result.log_evidence == pytest.approx(np.log(moment(0)) + highest, abs=1e-6)
    assert result.mean == pytest.approx(1.0 + moment(1) / moment(0), abs=1e-6)


def test_two_modes_are_both_seen():
    def likelihood(x):
        return np.logaddexp(norm.logpdf(x, -2.0, 0.1), norm.logpdf(x, 3.0, 0.2) + np.log(2.0))

    result = posterior(likelihood, 0.0, 2.0)
    dense = np.linspace(-20, 20, 400_001)
    density = np.exp(likelihood(dense) + norm.logpdf(dense, 0.0, 2.0))
    assert result.log_evidence == pytest.approx(np.log(trapezoid(density, dense)), abs=1e-4)
    assert result.mean == pytest.approx(trapezoid(dense * density, dense) / trapezoid(density, dense), abs=1e-4)


def test_the_density_is_that_of_scipy():
    x = np.linspace(-3, 3, 7)
    assert log_normal_density(x, 0.5, 2.0) == pytest.approx(norm.logpdf(x, 0.5, 2.0), abs=1e-13)


def _gaussian_tasks(seed: int, count: int, mean: np.ndarray, sd: float) -> tuple[np.ndarray, np.ndarray]:
    """Observations of x_i ~ N(mean_i, sd^2) and the variances of their noise."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0.2, 1.0, count)
    return mean + sd * rng.normal(size=count) + noise * rng.normal(size=count), noise


def test_a_population_is_that_of_the_closed_form():
    """With Gaussian likelihoods the evidence is N(observed; design . c, sd^2 + noise^2)."""
    count = 12
    design = np.stack([np.ones(count), np.linspace(-1, 1, count)], axis=1)
    observed, noise = _gaussian_tasks(0, count, design @ [1.0, 0.5], 0.8)
    prior = PopulationPrior(np.array([0.5, 0.0]), np.array([2.0, 0.3]), 1.2, 0.5)
    likelihoods = norm.logpdf(observed[:, None], POPULATION_NODES, noise[:, None])

    def loss(p: np.ndarray) -> float:
        evidence = norm.logpdf(observed, design @ p[:2], np.sqrt(np.exp(2 * p[2]) + noise**2)).sum()
        beliefs = multivariate_normal.logpdf(p, [0.5, 0.0, np.log(1.2)], np.diag([4.0, 0.09, 0.25]))
        return -evidence - beliefs

    expected = minimize(loss, [0.0, 0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10}).x
    coefficients, sd = fit_population(likelihoods, design, prior)
    assert coefficients == pytest.approx(expected[:2], abs=1e-3)
    assert sd == pytest.approx(np.exp(expected[2]), rel=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_equal_tasks_do_not_collapse_the_spread(count):
    prior = PopulationPrior(np.array([1.0]), np.array([1.5]), 1.5, 0.5)
    likelihoods = np.tile(norm.logpdf(2.0, POPULATION_NODES, 0.3), (count, 1))
    (mean,), sd = fit_population(likelihoods, np.ones((count, 1)), prior)
    assert 1.0 < mean < 2.0
    assert sd > 0.6


def test_many_tasks_give_their_own_mean_and_spread():
    observed, noise = _gaussian_tasks(1, 3000, np.full(3000, -0.5), 0.6)
    likelihoods = norm.logpdf(observed[:, None], POPULATION_NODES, noise[:, None])
    prior = PopulationPrior(np.array([1.0]), np.array([1.5]), 1.5, 0.5)
    (mean,), sd = fit_population(likelihoods, np.ones((3000, 1)), prior)
    assert mean == pytest.approx(-0.5, abs=0.05)
    assert sd == pytest.approx(0.6, abs=0.05)
    assert logsumexp(likelihoods) > -np.inf
