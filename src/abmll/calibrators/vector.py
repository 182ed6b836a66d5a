"""Vector scaling with Gaussian priors: a weight and a bias for each label, or for each position of a choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from threadpoolctl import threadpool_limits

from abmll.calibrators.base import Calibrator, FittedCalibrator
from abmll.calibrators.rows import ChoiceRows, TaskRows, widened
from abmll.calibrators.temperature import PosteriorTemperature

_PSEUDO_TASKS = 3.0  # how many tasks the widths that are there now count for
_ROUNDS, _SETTLED = 30, 0.01  # of expectation maximisation


class _Mode(NamedTuple):
    """The most probable (log T, v, b) of a task, and their variances by Laplace's approximation."""

    parameters: Float[np.ndarray, "P"]
    variances: Float[np.ndarray, "P"]


@dataclass(frozen=True, eq=False)
class FittedVector(FittedCalibrator):
    """Weights and biases; choices beyond those that were fitted have the prior's, all weights 1 / T and no bias.

    Attributes:
        log_temperature: log T.
        log_weights: v_k.
        biases: b_k.
    """

    log_temperature: float
    log_weights: Float[np.ndarray, "W"]
    biases: Float[np.ndarray, "W"]

    def apply(self, rows: ChoiceRows) -> Float[np.ndarray, "N K"]:
        """Calibrated probabilities; see `FittedCalibrator.apply`."""
        width = max(rows.log_probabilities.shape[1], len(self.biases))
        parameters = [_filled(part, width) for part in (self.log_weights, self.biases)]
        real = widened(rows.log_probabilities, width) > -np.inf
        scores = _scores(_centred(rows, width), np.concatenate([[self.log_temperature], *parameters]))
        scores = np.where(real, scores, -np.inf)[:, : rows.log_probabilities.shape[1]]
        return softmax(scores, axis=1) if scores.size else scores


class VectorScaling(Calibrator):
    """Vector scaling (Guo et al. 2017, section 4.2) as a MAP fit; for two choices it is Platt's (1999) a z + b.

    scores_k = exp(v_k) / T z_k + b_k,   z_k = log p_k - mean_j log p_j
    log T ~ N(mu, sd^2),   v_k ~ N(0, weight_sd^2),   b_k ~ N(0, bias_sd^2)

    z rather than log p, so that a constant added to a row's scores changes nothing. k is a label where choices are
    fixed, and the position of the choice where they are not. `meta_fit` learns (mu, sd) as `PosteriorTemperature` does,
    and then the two widths by expectation maximisation with Laplace's approximation on the tasks' held-out rows; the
    values that are there now count as three tasks.

    Attributes:
        scale: prior of log T.
        weight_sd: standard deviation of v.
        bias_sd: standard deviation of b.
    """

    name: ClassVar[str] = "vector_scaling"

    scale: PosteriorTemperature = PosteriorTemperature()
    weight_sd: float = Field(0.1, gt=0)
    bias_sd: float = Field(0.3, gt=0)

    def meta_fit(self, tasks: Sequence[TaskRows]) -> "VectorScaling":
        """Empirical Bayes for the prior of log T and the two widths."""
        labelled = [rows for rows in (task.held_out.labelled() for task in tasks) if len(rows)]
        if not labelled:
            return self
        fitted = self.model_copy(update={"scale": self.scale.meta_fit(tasks)})
        modes: list[_Mode | None] = [None] * len(labelled)
        for _ in range(_ROUNDS):
            modes = [fitted._mode(rows, last) for rows, last in zip(labelled, modes, strict=True)]
            before = np.array([fitted.weight_sd, fitted.bias_sd])
            after = self._widths([mode for mode in modes if mode is not None])
            fitted = fitted.model_copy(update={"weight_sd": float(after[0]), "bias_sd": float(after[1])})
            if np.abs(np.log(after / before)).max() < _SETTLED:
                break
        return fitted

    def _widths(self, modes: Sequence[_Mode]) -> Float[np.ndarray, "2"]:
        """The M step: root mean squares of v and b over tasks, shrunk to what is there."""
        squares = [(np.square(m.parameters) + m.variances)[1:].reshape(2, -1).mean(axis=1) for m in modes]
        prior = _PSEUDO_TASKS * np.square([self.weight_sd, self.bias_sd])
        return np.sqrt((prior + np.sum(squares, axis=0)) / (_PSEUDO_TASKS + len(modes)))

    def _fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None) -> FittedVector:
        log_temperature, *others = self._mode(held_out).parameters
        log_weights, biases = np.array(others).reshape(2, -1)
        return FittedVector(float(log_temperature), log_weights, biases)

    def _mode(self, rows: ChoiceRows, start: _Mode | None = None) -> _Mode:
        """Maximum a posteriori, by trust-region Newton steps with the Gauss-Newton matrix."""
        width = rows.log_probabilities.shape[1]
        mean = np.concatenate([[self.scale.mu], np.zeros(2 * width)])
        sd = np.concatenate([[self.scale.sd], np.full(width, self.weight_sd), np.full(width, self.bias_sd)])
        loss = _Loss(_centred(rows, width), rows, mean, sd)
        first = mean if start is None else start.parameters
        with threadpool_limits(1, "blas"):  # small products, for which threads would wait longer than they work
            mode = minimize(loss.value, first, jac=loss.slope, hess=loss.curvature, method="trust-exact").x
        return _Mode(mode, np.diag(np.linalg.inv(loss.curvature(mode))))


@dataclass(frozen=True, eq=False)
class _Loss:
    """-log posterior of (log T, v, b), up to a constant."""

    z: Float[np.ndarray, "N K"]
    rows: ChoiceRows
    mean: Float[np.ndarray, "P"]
    sd: Float[np.ndarray, "P"]

    def value(self, parameters: Float[np.ndarray, "P"]) -> float:
        scores = np.where(self.rows.real, _scores(self.z, parameters), -np.inf)
        chosen = scores[np.arange(len(scores)), self.rows.answers]
        nll = (logsumexp(scores, axis=1) - chosen).sum() if scores.size else 0.0
        return float(nll + 0.5 * np.square((parameters - self.mean) / self.sd).sum())

    def slope(self, parameters: Float[np.ndarray, "P"]) -> Float[np.ndarray, "P"]:
        gap = self._answers(parameters)
        gap[np.arange(len(gap)), self.rows.answers] -= 1.0
        by_parameter = np.einsum("nkp,nk->p", _jacobian(self.z, parameters), gap)
        return by_parameter + (parameters - self.mean) / np.square(self.sd)

    def curvature(self, parameters: Float[np.ndarray, "P"]) -> Float[np.ndarray, "P P"]:
        """sum_n J_n^T (diag(p_n) - p_n p_n^T) J_n + prior precision: positive definite."""
        jacobian, p = _jacobian(self.z, parameters), self._answers(parameters)
        weighted = p[:, :, None] * jacobian
        mean = weighted.sum(axis=1)
        second = np.tensordot(weighted, jacobian, axes=((0, 1), (0, 1)))
        return second - mean.T @ mean + np.diag(1 / np.square(self.sd))

    def _answers(self, parameters: Float[np.ndarray, "P"]) -> Float[np.ndarray, "N K"]:
        scores = np.where(self.rows.real, _scores(self.z, parameters), -np.inf)
        return softmax(scores, axis=1) if scores.size else scores


def _centred(rows: ChoiceRows, width: int) -> Float[np.ndarray, "N K"]:
    """log p less its mean over the row's choices; 0 in the padding."""
    logs = np.where(rows.real, rows.log_probabilities, 0.0)
    centred = np.where(rows.real, logs - logs.sum(axis=1, keepdims=True) / rows.choices[:, None], 0.0)
    return np.pad(centred, ((0, 0), (0, width - centred.shape[1])))


def _scores(z: Float[np.ndarray, "N K"], parameters: Float[np.ndarray, "P"]) -> Float[np.ndarray, "N K"]:
    log_weights, biases = parameters[1:].reshape(2, -1)
    return np.exp(log_weights - parameters[0]) * z + biases


def _jacobian(z: Float[np.ndarray, "N K"], parameters: Float[np.ndarray, "P"]) -> Float[np.ndarray, "N K P"]:
    """d scores / d (log T, v, b)."""
    width = z.shape[1]
    weighted = np.exp(parameters[1 : 1 + width] - parameters[0]) * z
    out = np.zeros((*z.shape, 1 + 2 * width))
    own = np.arange(width)
    out[:, :, 0] = -weighted
    out[:, own, 1 + own] = weighted
    out[:, own, 1 + width + own] = 1.0
    return out


def _filled(values: Float[np.ndarray, "W"], width: int) -> Float[np.ndarray, "V"]:
    return np.pad(values, (0, width - len(values)))
