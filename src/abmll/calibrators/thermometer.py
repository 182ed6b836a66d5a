"""Thermometer: a temperature predicted from what answers look like, without labels of the new task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator
from scipy.optimize import minimize
from scipy.special import expit
from threadpoolctl import threadpool_limits

from abmll.calibrators.base import Calibrator, FittedCalibrator
from abmll.calibrators.quadrature import PopulationPrior, fit_population
from abmll.calibrators.rows import ChoiceRows, TaskRows, join
from abmll.calibrators.temperature import (
    LIMIT,
    LOG_SCALE_SD,
    FittedTemperature,
    PosteriorTemperature,
    below_best,
    population_log_likelihoods,
)
from abmll.errors import AbmllError

_FURTHEST = 5.0  # standard deviations
_INVERSE_OF_ONE = float(np.log(np.expm1(1.0)))  # softplus of it is 1


def answer_features(rows: ChoiceRows) -> Float[np.ndarray, "N D"]:
    """What each answer looks like: log(1 + margin), entropy over log K, log K, and then `rows.features` if given.

    The margin is the difference of the two highest log-probabilities; of a single choice it is 0, as is the entropy.

    >>> rows = ChoiceRows.from_scores(np.log([[0.5, 0.5], [0.8, 0.2]]))
    >>> answer_features(rows).round(3).tolist()
    [[0.0, 1.0, 0.693], [0.87, 0.722, 0.693]]
    """
    if len(rows) == 0:
        return np.zeros((0, 3 + (0 if rows.features is None else rows.features.shape[1])))
    logs, log_count = rows.log_probabilities, np.log(rows.choices)
    best = -np.sort(-np.pad(logs, ((0, 0), (0, 1)), constant_values=-np.inf), axis=1)
    margin = np.where(rows.choices > 1, best[:, 0] - np.where(rows.choices > 1, best[:, 1], 0.0), 0.0)
    entropy = -(rows.probabilities() * np.where(rows.real, logs, 0.0)).sum(axis=1)
    derived = [np.log1p(margin), entropy / np.where(log_count > 0, log_count, 1.0), log_count]
    given = [] if rows.features is None else [rows.features]
    return np.concatenate([np.stack(derived, axis=1), *given], axis=1)


class _FromFeatures(Calibrator):
    """A linear function of standardised features.

    Attributes:
        centre: of each feature over the training tasks' rows; empty before `meta_fit`.
        spread: their standard deviations.
        coefficients: of the standardised features.
    """

    keeps_order: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True

    centre: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    coefficients: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> "_FromFeatures":
        if not len(self.centre) == len(self.spread) == len(self.coefficients) or min(self.spread, default=1.0) <= 0:
            raise ValueError("centre, spread and coefficients are not of equal length, or a spread is not above 0")
        return self

    def standardised(self, rows: ChoiceRows) -> Float[np.ndarray, "N D"]:
        """Features of each row, less the centre and over the spread, at most 5 from 0; none before `meta_fit`.

        The line is not followed further than that from what training tasks have shown.

        Raises:
            AbmllError: there are other features than those it was fitted with.
        """
        if not self.centre:
            return np.zeros((len(rows), 0))
        features = answer_features(rows)
        if features.shape[1] != len(self.centre):
            raise AbmllError(
                f"calibrator {self.name!r} was fitted with {len(self.centre)} features a row, these rows have "
                f"{features.shape[1]}; give `ChoiceRows.features` in both or in neither"
            )
        standard = (features - np.array(self.centre)) / np.array(self.spread)
        return np.clip(standard, -_FURTHEST, _FURTHEST)

    def _standard(self, rows: Sequence[ChoiceRows]) -> dict[str, tuple[float, ...]]:
        """Centre and spread of the features of these tasks' rows, and coefficients of 0: fields to be updated."""
        counts = {answer_features(r).shape[1] for r in rows}
        if len(counts) > 1:
            raise AbmllError(f"calibrator {self.name!r}: tasks have {sorted(counts)} features a row, not all the same")
        every = np.concatenate([answer_features(r) for r in rows])
        spread = every.std(axis=0)
        return {
            "centre": tuple(every.mean(axis=0).tolist()),
            "spread": tuple(np.where(spread > 1e-9, spread, 1.0).tolist()),
            "coefficients": (0.0,) * every.shape[1],
        }


class Thermometer(_FromFeatures):
    """Thermometer (Shen et al. 2024): T from the looks of all questions to be answered. Transductive.

    1 / T_i = mean_n softplus(c . f_n + bias)   over the rows n of task i, f_n standardised
    loss = mean over tasks of [ mean NLL at T_i - penalty log Gamma(T_i; shape, scale) ] + ridge / 2 |c|^2

    The penalty .01 and Gamma(1.25, 4), whose mode is T = 1, are the paper's. Its recognition network is three small
    ReLU networks on the last hidden state of a large model, of a width that is not published; with the few dozen
    training tasks there are here, the network is linear, on `answer_features` and whatever else is given, as lengths.

    Attributes:
        bias: with the default and no features T = 1, the mode of the Gamma prior.
        penalty: weight of that prior, the paper's lambda.
        shape, scale: of the Gamma prior.
        ridge: ours, in place of AdamW's weight decay.
    """

    name: ClassVar[str] = "thermometer"
    transductive: ClassVar[bool] = True

    bias: float = _INVERSE_OF_ONE
    penalty: float = Field(1e-2, ge=0)
    shape: float = Field(1.25, gt=0)
    scale: float = Field(4.0, gt=0)
    ridge: float = Field(1e-2, ge=0)

    def meta_fit(self, tasks: Sequence[TaskRows]) -> "Thermometer":
        """Learn bias and coefficients from every labelled row of the training tasks."""
        labelled = [rows for rows in (join(t.held_out, t.test).labelled() for t in tasks) if len(rows)]
        if not labelled:
            return self
        ready = self.model_copy(update=self._standard(labelled))
        loss = _ThermometerLoss.of(ready, labelled)
        start = np.append(np.zeros(len(ready.centre)), self.bias)
        with threadpool_limits(1, "blas"):  # small products, for which threads would wait longer than they work
            *coefficients, bias = minimize(loss.value_and_slope, start, jac=True, method="L-BFGS-B").x.tolist()
        return ready.model_copy(update={"coefficients": tuple(coefficients), "bias": bias})

    def temperature(self, rows: ChoiceRows) -> float:
        """T of a task, from the looks of its answers; without rows, that of the mean features."""
        features = self.standardised(rows) if len(rows) else np.zeros((1, len(self.centre)))
        scale = np.logaddexp(0, features @ np.array(self.coefficients) + self.bias).mean()
        return float(1 / np.clip(scale, np.exp(-LIMIT), np.exp(LIMIT)))

    def _fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None) -> FittedCalibrator:
        return _FittedThermometer(self)


class InductiveThermometer(Thermometer):
    """`Thermometer` with T from the held-out rows' looks (not their answers): each question can be answered alone."""

    name: ClassVar[str] = "thermometer_inductive"
    transductive: ClassVar[bool] = False

    def _fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None) -> FittedCalibrator:
        return FittedTemperature(np.log([self.temperature(held_out)]), np.ones(1))


@dataclass(frozen=True, eq=False)
class _FittedThermometer(FittedCalibrator):
    thermometer: Thermometer

    def apply(self, rows: ChoiceRows) -> Float[np.ndarray, "N K"]:
        temperature = self.thermometer.temperature(rows)
        return FittedTemperature(np.log([temperature]), np.ones(1)).apply(rows)


class PosteriorThermometer(_FromFeatures):
    """Ours: the prediction from the looks is the prior mean of log T, and the held-out answers give the posterior.

    log T_i ~ N(mu + c . f_i, sd^2),   f_i: mean features of the held-out rows;   the rest as `PosteriorTemperature`

    (mu, c, sd) by empirical Bayes on the training tasks' held-out rows, with c ~ N(0, coefficient_sd^2).

    Attributes:
        prior: of log T where all features are at their centre.
        coefficient_sd: of the change of log T with one standard deviation of a feature.
    """

    name: ClassVar[str] = "thermometer_posterior"

    prior: PosteriorTemperature = PosteriorTemperature()
    coefficient_sd: float = Field(0.3, gt=0)

    def meta_fit(self, tasks: Sequence[TaskRows]) -> "PosteriorThermometer":
        """Empirical Bayes for the line and the spread around it."""
        labelled = [rows for rows in (task.held_out.labelled() for task in tasks) if len(rows)]
        if not labelled:
            return self
        ready = self.model_copy(update=self._standard(labelled))
        features = np.array([ready.standardised(rows).mean(axis=0) for rows in labelled])
        design = np.concatenate([np.ones((len(labelled), 1)), features], axis=1)
        widths = np.append(self.prior.sd, np.full(features.shape[1], self.coefficient_sd))
        means = np.append(self.prior.mu, np.zeros(features.shape[1]))
        population = PopulationPrior(means, widths, self.prior.sd, LOG_SCALE_SD)
        (mu, *coefficients), sd = fit_population(population_log_likelihoods(labelled), design, population)
        prior = self.prior.model_copy(update={"mu": float(mu), "sd": sd})
        return ready.model_copy(update={"prior": prior, "coefficients": tuple(map(float, coefficients))})

    def _fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None) -> FittedCalibrator:
        shift = 0.0
        if len(held_out):
            shift = float(self.standardised(held_out).mean(axis=0) @ np.array(self.coefficients))
        mu = float(np.clip(self.prior.mu + shift, -LIMIT, LIMIT))
        return self.prior.model_copy(update={"mu": mu}).fit(held_out)


@dataclass(frozen=True, eq=False)
class _SeenTask:
    """A task's rows and their standardised features, with a last column of ones for the bias."""

    inputs: Float[np.ndarray, "N P"]
    rows: ChoiceRows


@dataclass(frozen=True, eq=False)
class _ThermometerLoss:
    """The published loss over all tasks, and its gradient."""

    model: Thermometer
    tasks: Sequence[_SeenTask]

    @classmethod
    def of(cls, model: Thermometer, rows: Sequence[ChoiceRows]) -> "_ThermometerLoss":
        """Of tasks as rows, with their features."""
        ones = [np.ones((len(r), 1)) for r in rows]
        inputs = [np.append(model.standardised(r), one, axis=1) for r, one in zip(rows, ones, strict=True)]
        return cls(model, [_SeenTask(*pair) for pair in zip(inputs, rows, strict=True)])

    def value_and_slope(self, parameters: Float[np.ndarray, "P"]) -> tuple[float, Float[np.ndarray, "P"]]:
        """At (coefficients, bias)."""
        coefficients = parameters[:-1]
        value = 0.5 * self.model.ridge * float(coefficients @ coefficients)
        slope = np.append(self.model.ridge * coefficients, 0.0)
        for task in self.tasks:
            raw = task.inputs @ parameters
            scale = float(np.logaddexp(0, raw).mean())  # 1 / T
            loss, by_scale = self._of_scale(scale, task.rows)
            value += loss / len(self.tasks)
            slope += by_scale * (expit(raw)[:, None] * task.inputs).mean(axis=0) / len(self.tasks)
        return value, slope

    def _of_scale(self, scale: float, rows: ChoiceRows) -> tuple[float, float]:
        """Mean NLL at 1 / T less the prior's log density of T, and its derivative by 1 / T."""
        logs = np.where(rows.real, below_best(rows), 0.0)
        weights = np.where(rows.real, np.exp(scale * logs), 0.0)
        total = weights.sum(axis=1)
        chosen = logs[np.arange(len(rows)), rows.answers]
        expected = (weights * logs).sum(axis=1) / total
        model = self.model
        prior = (model.shape - 1) * np.log(scale) + 1 / (scale * model.scale)
        by_scale = (model.shape - 1) / scale - 1 / (scale**2 * model.scale)
        loss = float((np.log(total) - scale * chosen).mean()) + model.penalty * prior
        return loss, float((expected - chosen).mean()) + model.penalty * by_scale
