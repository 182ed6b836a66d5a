"""The temperature of one task's answers: learned from rows that were answered out of folds, stored, and applied.

The mathematics is that of `abmll.calibrators.temperature.PosteriorTemperature` (docs/method.md, section 8). What a
saved task keeps of it is enough to answer as it was learned, whatever becomes of the run that it was adapted from.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from abmll.calibrators import ChoiceRows
from abmll.calibrators.quadrature import NODES
from abmll.calibrators.temperature import LIMIT, FittedTemperature
from abmll.config import LikelihoodConfig, RunConfig
from abmll.errors import AbmllError
from abmll.metrics.predictions import pad_probabilities
from abmll.metrics.scores import floor_probabilities
from abmll.systems.predict import Answer
from abmll.systems.scale import FEWEST_TASKS, NO_OTHER_SCALE, prior_of

VERSION = 1
_FURTHEST = 2 * LIMIT  # of log T from 0, as in `abmll.calibrators.quadrature`
_ROUNDING = 1e-6

LearnedFrom = Literal["rows", "prior", "nothing"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScalePrior(_Part):
    """The prior of log T that a task's temperature was learned with.

    Attributes:
        mu, sd: of log T.
        tasks: training tasks that it was learned from; with 0 it is the weak prior.
    """

    mu: float = Field(ge=-LIMIT, le=LIMIT)
    sd: float = Field(ge=1e-6)
    tasks: int = Field(ge=0)


class TaskTemperature(_Part):
    """The posterior of a task's temperature as points with weights, and what it was learned from.

    p(k | row) = sum_g weights_g softmax(log p / T_g)_k

    Attributes:
        version: of the meaning of the fields.
        learned_from: `rows` that were answered out of folds, the `prior` alone, or `nothing`: then probabilities stay
            as the model states them.
        rows: number of labelled rows that were answered out of folds.
        prior: of log T.
        sampler, likelihood: settings of the answers that it is of; others have another scale.
        mean, sd: of log T.
        log_temperatures: log T_g.
        weights: summing to 1.
    """

    version: Literal[1] = 1
    learned_from: LearnedFrom
    rows: int = Field(ge=0)
    prior: ScalePrior
    sampler: str
    likelihood: dict[str, Any]
    mean: float
    sd: float = Field(ge=0)
    log_temperatures: tuple[float, ...] = Field(min_length=1, max_length=NODES)
    weights: tuple[float, ...] = Field(min_length=1, max_length=NODES)

    @model_validator(mode="after")
    def _is_a_distribution(self) -> "TaskTemperature":
        x, weights = np.array(self.log_temperatures), np.array(self.weights)
        if len(x) != len(weights) or (np.abs(x) > _FURTHEST).any() or (np.diff(x) <= 0).any():
            raise ValueError(f"log_temperatures: not {len(weights)} rising numbers within {_FURTHEST:g} of 0")
        if (weights < 0).any() or abs(weights.sum() - 1) > _ROUNDING:
            raise ValueError("weights: not shares that sum to 1")
        if max(abs(weights @ x - self.mean), abs(_sd(x, weights) - self.sd)) > _ROUNDING * (1 + abs(self.mean)):
            raise ValueError("mean and sd: not those of log_temperatures and weights")
        if (self.learned_from == "rows") != (self.rows > 0):
            raise ValueError(f"rows: {self.rows}, and learned from {self.learned_from}")
        if self.learned_from == "nothing" and (self.log_temperatures, self.weights) != ((0.0,), (1.0,)):
            raise ValueError("learned from nothing, and changes probabilities")
        return self

    @property
    def temperature(self) -> float:
        """The geometric mean, exp E log T: one number to show."""
        return float(np.exp(self.mean))

    @property
    def changes(self) -> bool:
        """Whether probabilities are anything but as the model states them."""
        return self.learned_from != "nothing"

    def apply(self, stated: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
        """Probabilities at this temperature; the order of the choices stays.

        Args:
            stated: probabilities of the choices of each row.

        Raises:
            AbmllError: one of them is NaN or infinite.
        """
        if not self.changes or not len(stated):
            return tuple(map(tuple, stated))
        fitted = FittedTemperature(np.array(self.log_temperatures), np.array(self.weights))
        table = fitted.apply(choice_rows(stated))
        return tuple(tuple(p[: len(row)].tolist()) for p, row in zip(table, stated, strict=True))

    def answers(self, stated: Sequence[Answer]) -> tuple[Answer, ...]:
        """Answers at this temperature: the same choices, with other probabilities of them.

        What the draws say of each other (`spread`, `information`) is of the stated probabilities, and stays.
        """
        scaled = self.apply([answer.probabilities for answer in stated])
        return tuple(
            replace(answer, probabilities=p, confidence=p[answer.choice])
            for answer, p in zip(stated, scaled, strict=True)
        )

    def differs_from(self, config: RunConfig) -> tuple[str, ...]:
        """Settings in which answers are others now than those that it is of, so that it says nothing of them."""
        now, then = likelihood_of(config), {**LikelihoodConfig().model_dump(mode="json"), **self.likelihood}
        sampler = ["adaptation.sampler"] if config.adaptation.sampler != self.sampler else []
        return (*sampler, *(f"likelihood.{name}" for name, value in now.items() if then.get(name) != value))

    def describe(self) -> str:
        """In words."""
        if not self.changes:
            return "none, probabilities are as the model states them"
        count = "1 row" if self.rows == 1 else f"{self.rows:,} rows"
        source = f"{count} answered by what was fitted to the others" if self.rows else "the prior of the run alone"
        return f"{self.temperature:.2f} (log T {self.mean:.2f} +- {self.sd:.2f}), from {source}"


def _sd(x: Float[np.ndarray, "G"], weights: Float[np.ndarray, "G"]) -> float:
    return float(np.sqrt(weights @ np.square(x - weights @ x)))


def likelihood_of(config: RunConfig) -> dict[str, Any]:
    """The settings of a likelihood that the scale of its answers depends on."""
    return config.likelihood.model_dump(mode="json", exclude=set(NO_OTHER_SCALE))


def choice_rows(stated: Sequence[Sequence[float]], answers: Int[np.ndarray, "N"] | None = None) -> ChoiceRows:
    """Stated probabilities as what calibrators read.

    Raises:
        AbmllError: one of them is NaN or infinite, or an answer is not one of the choices.
    """
    counts = np.array([len(row) for row in stated], dtype=np.int64)
    with np.errstate(divide="ignore"):
        return ChoiceRows.from_scores(np.log(floor_probabilities(pad_probabilities(stated), counts)), answers)


def learn_temperature(folder: Path, config: RunConfig, out_of_folds: ChoiceRows | None = None) -> TaskTemperature:
    """The posterior of a task's temperature.

    p(log T | rows) proportional to N(log T; mu, sd^2) product over rows of softmax(log p / T)_answer

    Without rows it is the prior alone, if that was learned on training tasks. The weak prior alone says nothing of
    these answers: N(1, 1.5^2) would flatten them all, right as they may be.

    Args:
        folder: the run directory, which may carry the prior.
        config: of the run, with what the user set.
        out_of_folds: labelled rows, each answered by a system that was not fitted to it; None: there are none.

    Raises:
        AbmllError: the run's prior is damaged.
    """
    calibrator, tasks = prior_of(folder, config)
    prior = ScalePrior(mu=calibrator.mu, sd=calibrator.sd, tasks=tasks)
    labelled = None if out_of_folds is None else out_of_folds.labelled()
    rows = 0 if labelled is None else len(labelled)
    about: dict[str, Any] = {"prior": prior, "rows": rows, "sampler": config.adaptation.sampler}
    about["likelihood"] = likelihood_of(config)
    if labelled is not None and rows:
        return _of(cast(FittedTemperature, calibrator.fit(labelled)), "rows", about)
    if tasks >= FEWEST_TASKS:
        nothing = ChoiceRows.from_scores(np.zeros((0, 1)))
        return _of(cast(FittedTemperature, calibrator.fit(nothing)), "prior", about)
    return _of(FittedTemperature(np.zeros(1), np.ones(1)), "nothing", about)


def _of(fitted: FittedTemperature, learned_from: LearnedFrom, about: dict[str, Any]) -> TaskTemperature:
    x, weights = fitted.log_temperatures, fitted.weights
    return TaskTemperature(
        learned_from=learned_from,
        mean=float(weights @ x),
        sd=_sd(x, weights),
        log_temperatures=tuple(x.tolist()),
        weights=tuple(weights.tolist()),
        **about,
    )


def read_temperature(value: Any, where: Path) -> TaskTemperature | None:
    """What a saved task keeps of its temperature; None for one of before there were any.

    Args:
        value: as `TaskTemperature.model_dump(mode="json")` gave it, or None.
        where: the file that it is from, for a message.

    Raises:
        AbmllError: it is damaged, or of another version.
    """
    if value is None:
        return None
    advice = "adapt again"
    if isinstance(value, dict) and value.get("version") != VERSION:
        raise AbmllError(f"{where}: its temperature is of version {value.get('version')!r}, not {VERSION}; {advice}")
    try:
        return TaskTemperature.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, ("temperature", *first["loc"])))
        raise AbmllError(f"{where}: {name}: {first['msg']}; {advice}") from error
