"""One number a task: no temperature, the most likely one, or a posterior over it.

A temperature T turns log p into log p / T, normalised again: flatter for T > 1, sharper for T < 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from abmll.calibrators.base import Calibrator, FittedCalibrator
from abmll.calibrators.quadrature import (
    POPULATION_NODES,
    LogLikelihood,
    PopulationPrior,
    fit_population,
    posterior,
)
from abmll.calibrators.rows import ChoiceRows, TaskRows
from abmll.metrics.calibration import fit_temperature

_BLOCK = 2_000_000  # numbers held at once: keeps memory flat for large files
_LEAST_WEIGHT = 1e-13  # of a node that is worth an exponential for every choice
LIMIT = 20.0
"""No prior mean of log T is further from 0: beyond it, answers are those of T = 0 or infinity for every purpose."""
LOG_SCALE_SD = 0.5
"""How well the sd of a prior is known before tasks are seen: its logarithm to within 0.5."""


@dataclass(frozen=True, eq=False)
class FittedTemperature(FittedCalibrator):
    """Answers averaged over temperatures.

    p(k | row) = sum_g weights_g softmax(log p / T_g)_k

    Attributes:
        log_temperatures: log T_g.
        weights: summing to 1.
    """

    log_temperatures: Float[np.ndarray, "G"]
    weights: Float[np.ndarray, "G"]

    @property
    def temperature(self) -> float:
        """The geometric mean, exp E log T: one number to show."""
        return float(np.exp(self.weights @ self.log_temperatures))

    def apply(self, rows: ChoiceRows) -> Float[np.ndarray, "N K"]:
        """Calibrated probabilities; see `FittedCalibrator.apply`."""
        return averaged_answers(rows, self.log_temperatures, self.weights)


class NoCalibration(Calibrator):
    """The stated probabilities as they are."""

    name: ClassVar[str] = "none"
    keeps_order: ClassVar[bool] = True

    def _fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None) -> FittedCalibrator:
        return FittedTemperature(np.zeros(1), np.ones(1))


class Temperature(Calibrator):
    """The most likely temperature of the held-out rows (Guo et al. 2017, equation 9), from 0.05 to 20; 1 without rows.

    With about 20 rows of which nearly all are right, or no more than by chance, the likelihood has its maximum at
    T = 0 or T = infinity, and the fit is at its bound.
    """

    name: ClassVar[str] = "temperature"
    keeps_order: ClassVar[bool] = True

    def _fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None) -> FittedCalibrator:
        if len(held_out) == 0:
            return FittedTemperature(np.zeros(1), np.ones(1))
        temperature = fit_temperature(held_out.probabilities(), held_out.answers)
        return FittedTemperature(np.log([temperature]), np.ones(1))


class PosteriorTemperature(Calibrator):
    """A posterior over the temperature: amortised Bayesian meta-learning in one dimension.

    The mathematics is in docs/method.md, section 8.

    log T_i ~ N(mu, sd^2) for task i;   p(y | row, T) = softmax(log p / T)_y
    p(log T | held-out rows) by quadrature;   answer = E [softmax(log p / T)] over it

    The defaults are a weak prior, for systems whose training tasks were not predicted; experiments/calibrators chose
    them: T between 0.14 and 51 with probability .95. `meta_fit` finds (mu, sd) by empirical Bayes on the held-out
    rows of training tasks (Efron and Morris 1973 name it so; Gordon et al. 2019 is the amortised setting):

    (mu, sd) = argmax  sum_i log integral p(D_i | x) N(x; mu, sd^2) dx + log p(mu, log sd)

    with p(mu, log sd) Gaussian around the values that are there now: sd of mu is `sd`, of log sd 0.5.

    Attributes:
        mu: mean of log T.
        sd: standard deviation of log T.
        answer: `average` over the posterior, or at its `mode` (maximum a posteriori).
    """

    name: ClassVar[str] = "posterior_temperature"
    keeps_order: ClassVar[bool] = True

    mu: float = Field(1.0, ge=-LIMIT, le=LIMIT)
    sd: float = Field(1.5, ge=1e-6)
    answer: Literal["average", "mode"] = "average"

    def meta_fit(self, tasks: Sequence[TaskRows]) -> "PosteriorTemperature":
        """Empirical Bayes for (mu, sd)."""
        likelihoods = population_log_likelihoods([task.held_out for task in tasks])
        if not len(likelihoods):
            return self
        prior = PopulationPrior(np.array([self.mu]), np.array([self.sd]), self.sd, LOG_SCALE_SD)
        (mu,), sd = fit_population(likelihoods, np.ones((len(likelihoods), 1)), prior)
        return self.model_copy(update={"mu": float(mu), "sd": sd})

    def _fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None) -> FittedTemperature:
        given_rows = posterior(log_likelihood_of(held_out), self.mu, self.sd)
        if self.answer == "mode":
            return FittedTemperature(np.array([given_rows.mode]), np.ones(1))
        heavy = given_rows.weights > _LEAST_WEIGHT
        weights = given_rows.weights[heavy]
        return FittedTemperature(given_rows.nodes[heavy], weights / weights.sum())


def log_likelihood_of(rows: ChoiceRows) -> LogLikelihood:
    """x -> sum_n log softmax(log p_n / e^x)_(answer of n), for labelled rows.

    >>> rows = ChoiceRows.from_scores(np.log([[0.9, 0.1]] * 4), np.array([0, 0, 0, 1]))
    >>> log_likelihood_of(rows)(np.log([1.0, 2.0])).round(3).tolist()  # 3 of 4 are right: T = 2 says 0.75
    [-2.619, -2.249]
    """
    shifted = below_best(rows)
    chosen = shifted[np.arange(len(rows)), rows.answers].sum()

    def value(x: Float[np.ndarray, "G"]) -> Float[np.ndarray, "G"]:
        out = np.empty(len(x))
        step = max(1, _BLOCK // max(1, shifted.size))
        for start in range(0, len(x), step):
            scale = np.exp(-x[start : start + step])
            total = np.exp(scale[:, None, None] * shifted).sum(axis=2)
            out[start : start + step] = scale * chosen - np.log(total).sum(axis=1)
        return out

    return value


def population_log_likelihoods(rows: Sequence[ChoiceRows]) -> Float[np.ndarray, "M G"]:
    """Log-likelihoods of log T at `POPULATION_NODES`, of the tasks that have labelled rows."""
    labelled = [r for r in (rows_of.labelled() for rows_of in rows) if len(r)]
    values = [log_likelihood_of(r)(POPULATION_NODES) for r in labelled]
    return np.array(values).reshape(len(values), len(POPULATION_NODES))


def averaged_answers(
    rows: ChoiceRows, log_temperatures: Float[np.ndarray, "G"], weights: Float[np.ndarray, "G"]
) -> Float[np.ndarray, "N K"]:
    """sum_g weights_g softmax(log p / T_g); one temperature at a time, so that memory does not grow with their number.

    >>> rows = ChoiceRows.from_scores(np.log([[0.9, 0.1]]))
    >>> averaged_answers(rows, np.log([1.0, 2.0]), np.array([0.5, 0.5])).round(3).tolist()
    [[0.825, 0.175]]
    """
    shifted = below_best(rows)
    out = np.zeros_like(shifted)
    for x, weight in zip(log_temperatures, weights, strict=True):
        parts = np.exp(np.exp(-x) * shifted)
        out += weight / parts.sum(axis=1, keepdims=True) * parts
    return out / out.sum(axis=1, keepdims=True)


def below_best(rows: ChoiceRows) -> Float[np.ndarray, "N K"]:
    """Log-probabilities less the row's highest: at most 0, so that nothing overflows."""
    logs = rows.log_probabilities
    return logs - logs.max(axis=1, keepdims=True) if logs.size else logs
