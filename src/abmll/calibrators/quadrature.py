"""The posterior of one number by quadrature, and the population that many tasks' numbers come from.

The number is called x; its log-likelihood may be anything that can be evaluated on an array. For a temperature it is
x = log T. Nothing here knows of choices.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp, softmax
from threadpoolctl import threadpool_limits

LogLikelihood = Callable[[Float[np.ndarray, "G"]], Float[np.ndarray, "G"]]

NODES = 65
_DEPTH = 30.0  # nats below the highest point at which the posterior is cut: 1e-13 of its height
_REACH = 9.0  # standard deviations of the prior that are looked at
_LIMIT = 40.0  # |x| is never larger: e^40 times the largest difference of two log-probabilities is a float


@dataclass(frozen=True, eq=False)
class Posterior:
    """A posterior as points with weights: E f(x) is close to sum_g weights_g f(nodes_g).

    Attributes:
        nodes: equally spaced, G of them.
        weights: of the nodes, summing to 1.
        log_evidence: log of the integral of likelihood times prior.
        log_joint: log of likelihood times prior, of an array of x.
    """

    nodes: Float[np.ndarray, "G"]
    weights: Float[np.ndarray, "G"]
    log_evidence: float
    log_joint: LogLikelihood = field(repr=False)

    @property
    def mean(self) -> float:
        """E x."""
        return float(self.weights @ self.nodes)

    @property
    def sd(self) -> float:
        """Standard deviation of x."""
        return float(np.sqrt(self.weights @ np.square(self.nodes - self.mean)))

    @cached_property
    def mode(self) -> float:
        """The most probable x: it is looked for when it is asked for, as an average needs none."""
        highest = int(self.weights.argmax())
        bounds = self.nodes[max(highest - 1, 0)], self.nodes[min(highest + 1, len(self.nodes) - 1)]
        tolerance = {"xatol": 1e-9}
        best = minimize_scalar(
            lambda x: -self.log_joint(np.array([x]))[0], bounds=bounds, method="bounded", options=tolerance
        )
        return float(best.x)


def log_normal_density(x: Float[np.ndarray, "*S"], mean: float, sd: float) -> Float[np.ndarray, "*S"]:
    """log N(x; mean, sd^2)."""
    return -0.5 * np.square((x - mean) / sd) - np.log(sd) - 0.5 * np.log(2 * np.pi)


def posterior(log_likelihood: LogLikelihood, mean: float, sd: float) -> Posterior:
    """p(x | D) proportional to p(D | x) N(x; mean, sd^2), by the trapezoidal rule on equally spaced nodes.

    The rule converges exponentially for a smooth density that vanishes at both ends (Trefethen and Weideman 2014). The
    interval begins at 9 prior standard deviations, is widened where the density does not vanish at an end, and narrowed
    to where it is within 30 nats of its highest point; so neither a narrow likelihood nor a narrow prior is missed, nor
    one far from the other.

    Args:
        log_likelihood: of an array of x.
        mean, sd: of the prior, the mean within 20 of 0 and the sd at least 1e-6.

    >>> likelihood = lambda x: log_normal_density(x, 2.0, 1.0)  # one observation, 2, with variance 1
    >>> exact = posterior(likelihood, mean=0.0, sd=1.0)
    >>> round(exact.mean, 6), round(exact.sd**2, 6), round(exact.mode, 4)
    (1.0, 0.5, 1.0)
    """

    def log_joint(x: Float[np.ndarray, "G"]) -> Float[np.ndarray, "G"]:
        return log_likelihood(x) + log_normal_density(x, mean, sd)

    low, high = _inside(mean - _REACH * sd, mean + _REACH * sd)
    while True:
        nodes = np.linspace(low, high, NODES)
        values = log_joint(nodes)
        left, right = _ends_of_mass(nodes, values)
        if 0.8 <= (right - left) / (high - low) <= 1.0:
            break
        low, high = left, right
    log_evidence = float(logsumexp(values) + np.log(nodes[1] - nodes[0]))
    return Posterior(nodes, softmax(values), log_evidence, log_joint)


def _inside(low: float, high: float) -> tuple[float, float]:
    return max(float(low), -_LIMIT), min(float(high), _LIMIT)


def _ends_of_mass(nodes: Float[np.ndarray, "G"], values: Float[np.ndarray, "G"]) -> tuple[float, float]:
    """The nodes just outside of all that is within `_DEPTH` of the highest; beyond the interval if it has no such."""
    near = np.flatnonzero(values >= values.max() - _DEPTH)
    width = nodes[-1] - nodes[0]
    left = nodes[near[0] - 1] if near[0] > 0 else nodes[0] - width
    right = nodes[near[-1] + 1] if near[-1] < len(nodes) - 1 else nodes[-1] + width
    return _inside(left, right)


@dataclass(frozen=True, eq=False)
class PopulationPrior:
    """What is believed of a population before any task: independent Gaussians on coefficients and on log sd.

    Attributes:
        mean: of the D coefficients.
        sd: of the D coefficients.
        scale: median of the population's standard deviation.
        log_scale_sd: standard deviation of its logarithm.
    """

    mean: Float[np.ndarray, "D"]
    sd: Float[np.ndarray, "D"]
    scale: float
    log_scale_sd: float


POPULATION_NODES = np.arange(-120, 201) / 10
"""Where the tasks' log-likelihoods are evaluated: spacing 0.1, so that a population's sd may not be below it."""
_LEAST_SD = 0.1


def fit_population(
    log_likelihoods: Float[np.ndarray, "M G"], design: Float[np.ndarray, "M D"], prior: PopulationPrior
) -> tuple[Float[np.ndarray, "D"], float]:
    """Empirical Bayes: x_i ~ N(design_i . c, sd^2) for task i, c and sd at the mode of their own posterior.

    (c, sd) = argmax  sum_i log integral p(D_i | x) N(x; design_i . c, sd^2) dx + log p(c) + log p(log sd)

    With one column of ones in the design, c is the population's mean (type II maximum likelihood, regularised).

    Args:
        log_likelihoods: of M tasks at `POPULATION_NODES`.
        design: D known numbers of each task.
        prior: what c and sd are drawn to; with two or three tasks it keeps sd from collapsing.

    Returns:
        c and sd.
    """
    width = design.shape[1]
    log_scale = np.log(prior.scale)

    def loss(parameters: Float[np.ndarray, "P"]) -> tuple[float, Float[np.ndarray, "P"]]:
        c, log_sd = parameters[:width], parameters[width]
        standard = (POPULATION_NODES - (design @ c)[:, None]) / np.exp(log_sd)
        joint = log_likelihoods - 0.5 * np.square(standard) - log_sd
        evidence = logsumexp(joint, axis=1)
        weights = np.exp(joint - evidence[:, None])
        by_mean = (weights * standard).sum(axis=1) / np.exp(log_sd)
        by_log_sd = (weights * np.square(standard)).sum() - len(design)
        pull, pull_scale = (c - prior.mean) / prior.sd, (log_sd - log_scale) / prior.log_scale_sd
        value = -evidence.sum() + 0.5 * (pull @ pull + pull_scale**2)
        slope = [pull / prior.sd - design.T @ by_mean, [pull_scale / prior.log_scale_sd - by_log_sd]]
        return float(value), np.concatenate(slope)

    bounds = [(None, None)] * width + [(np.log(_LEAST_SD), None)]
    with threadpool_limits(1, "blas"):  # small products, for which threads would wait longer than they work
        mode = minimize(loss, np.append(prior.mean, log_scale), jac=True, method="L-BFGS-B", bounds=bounds).x
    return mode[:width], float(np.exp(mode[width]))
