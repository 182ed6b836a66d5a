"""Shifts of log p by what a system says without looking: of inputs without content, or of all inputs on average.

The two need no label. What remains, how far the shifted answers are to be believed, is a temperature's: `scale`.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from abmll.calibrators.base import Calibrator, FittedCalibrator
from abmll.calibrators.rows import ChoiceRows, TaskRows, join
from abmll.calibrators.temperature import NoCalibration, PosteriorTemperature
from abmll.errors import AbmllError


class _Shift(Calibrator):
    """log p - log prior_k, then `scale` fitted to the held-out rows that were shifted alike.

    Attributes:
        scale: a posterior over the temperature of what was shifted; None: the published form, no temperature.
    """

    needs_fixed_choices: ClassVar[bool] = True

    scale: PosteriorTemperature | None = None

    def meta_fit(self, tasks: Sequence[TaskRows]) -> "_Shift":
        """Learn the prior of `scale` from shifted tasks; tasks without fixed choices are left out."""
        usable = [task for task in tasks if not self.unmet_need(task.held_out, task.content_free)]
        if self.scale is None or not usable:
            return self
        shifted = [self._shifted(task) for task in usable]
        return self.model_copy(update={"scale": self.scale.meta_fit(shifted)})

    def _then(self) -> Calibrator:
        return NoCalibration() if self.scale is None else self.scale

    @abc.abstractmethod
    def _shifted(self, task: TaskRows) -> TaskRows:
        """The task with all its rows shifted."""


@dataclass(frozen=True, eq=False)
class _FittedContextual(FittedCalibrator):
    prior: Float[np.ndarray, "K"]
    then: FittedCalibrator

    def apply(self, rows: ChoiceRows) -> Float[np.ndarray, "N K"]:
        return self.then.apply(_without(rows, self.prior))


class Contextual(_Shift):
    """Contextual calibration (Zhao et al. 2021): divide by what is said of inputs without content.

    q_k proportional to p_k / prior_k,   prior = mean of p over content-free inputs ("N/A", "[MASK]", an empty text)

    It is the paper's W = diag(prior)^-1, b = 0, with the result normalised. The content-free answers are rows like any
    others, of the same task and the same labels, made by putting such a text where the question's own would stand, as
    `adaptation.content_free` does: `fit(held_out, content_free)`, and `TaskRows.content_free` for training tasks.
    """

    name: ClassVar[str] = "contextual"
    needs_content_free: ClassVar[bool] = True

    def _fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None) -> FittedCalibrator:
        if content_free is None or len(content_free) == 0:
            raise AbmllError(f"calibrator {self.name!r}: there are no content-free rows")
        prior = content_free.probabilities().mean(axis=0)
        return _FittedContextual(prior, self._then().fit(_without(held_out, prior)))

    def _shifted(self, task: TaskRows) -> TaskRows:
        assert task.content_free is not None  # unmet_need has looked
        prior = task.content_free.probabilities().mean(axis=0)
        return replace(task, held_out=_without(task.held_out, prior), test=_without(task.test, prior))


@dataclass(frozen=True, eq=False)
class _FittedBatch(FittedCalibrator):
    held_out: ChoiceRows
    then: Calibrator

    def apply(self, rows: ChoiceRows) -> Float[np.ndarray, "N K"]:
        if len(rows) == 0:
            return rows.probabilities()
        prior = join(self.held_out, rows).probabilities().mean(axis=0)
        return self.then.fit(_without(self.held_out, prior)).apply(_without(rows, prior))


class Batch(_Shift):
    """Batch calibration (Zhou et al. 2024): divide by the mean answer. Transductive: it needs all questions at once.

    q_k proportional to p_k / prior_k,   prior = mean of p over the questions to be answered and the held-out rows

    The paper's mean is over the questions to be answered alone; with the held-out rows in it, a few questions can be
    answered, too. It takes labels for equally frequent.
    """

    name: ClassVar[str] = "batch"
    transductive: ClassVar[bool] = True

    def _fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None) -> FittedCalibrator:
        return _FittedBatch(held_out, self._then())

    def _shifted(self, task: TaskRows) -> TaskRows:
        prior = join(task.held_out, task.test).probabilities().mean(axis=0)
        return replace(task, held_out=_without(task.held_out, prior), test=_without(task.test, prior))


def _without(rows: ChoiceRows, prior: Float[np.ndarray, "K"]) -> ChoiceRows:
    """Rows with log prior_k taken from every score of choice k."""
    if len(rows) == 0:
        return rows
    if not rows.fixed_choices:
        raise AbmllError("the choices of these rows differ from question to question; a shift needs fixed ones")
    if rows.log_probabilities.shape[1] != len(prior):
        raise AbmllError(f"rows of {rows.log_probabilities.shape[1]} choices, and a prior over {len(prior)}")
    return rows.with_scores(rows.log_probabilities - np.log(prior))
