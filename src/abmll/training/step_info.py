"""What a meta-iteration did, as values; and as the line of the journal that says so."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abmll.methods.base import Terms


class Validation(NamedTuple):
    """The mean NLL on the validation tasks, infinite where it is not finite, and why it is not."""

    nll: float
    not_finite: str = ""

    def fields(self) -> dict[str, Any]:
        """Its part of the journal's line."""
        if not self.not_finite:
            return {"validation_nll": self.nll}
        return {"validation_nll": None, "validation_not_finite": self.not_finite}


@dataclass(frozen=True)
class TaskInfo:
    """What one task of a meta-iteration gave.

    Attributes:
        task: its name; "" on a rank that had none.
        losses: by the journal's names; those that are finite.
        squared_distance: mean squared distance of theta and phi, before theta moved; None without stds.
    """

    task: str = ""
    losses: Mapping[str, float] = field(default_factory=dict)
    squared_distance: float | None = None

    def followed_by(self, later: "TaskInfo") -> "TaskInfo":
        """The later one, with the losses that it has not."""
        return TaskInfo(later.task or self.task, {**self.losses, **later.losses}, later.squared_distance)


@dataclass(frozen=True)
class StepInfo:
    """What one meta-iteration did.

    Attributes:
        step: meta-iterations done with it.
        seconds: that it took, without validation.
        examples: consumed so far.
        task: of its last task.
        skipped: why it was left out; "" if it was not.
        stds: statistics of the stds, where it was their turn; None: it was not.
        squared_distance: running mean of the tasks', where it was their turn.
        validation: if there was one after it.
    """

    step: int
    seconds: float
    examples: int
    task: TaskInfo = TaskInfo()
    skipped: str = ""
    stds: Mapping[str, Any] | None = None
    squared_distance: float | None = None
    validation: Validation | None = None

    def event(self) -> dict[str, Any]:
        """The journal's line.

        >>> StepInfo(2, 0.5, 24, TaskInfo("plurals", {"nll": 1.25})).event()
        {'event': 'step', 'task': 'plurals', 'nll': 1.25, 'step': 2, 'seconds': 0.5, 'examples_consumed': 24}
        >>> StepInfo(2, 0.5, 24, skipped="a gradient is not finite").event()["event"]
        'skipped'
        """
        line: dict[str, Any] = {"event": "skipped", "why": self.skipped} if self.skipped else {"event": "step"}
        line |= {"task": self.task.task, **self.task.losses} if self.task.task else {}
        line |= {"step": self.step, "seconds": self.seconds}
        if self.stds is not None:
            line |= {"stds": dict(self.stds), "mean_squared_distance": self.squared_distance}
        line["examples_consumed"] = self.examples
        return line if self.validation is None else line | self.validation.fields()


def losses_of(taken: Sequence[Terms], query: Terms | None) -> dict[str, float]:
    """The losses of a task's inner steps and query batch by the journal's names, fetched from the device in one go."""
    named: dict[str, Tensor | None] = {}
    if taken:
        named |= {"nll_first": taken[0].nll, "nll": taken[-1].nll, "task_kl": taken[-1].task_kl}
    if query is not None:
        named |= {"query_nll": query.nll, "query_task_kl": query.task_kl}
    losses = {name: value.detach().double().reshape(()) for name, value in named.items() if value is not None}
    if not losses:
        return {}
    values = torch.stack(list(losses.values())).tolist()
    return {name: value for name, value in zip(losses, values, strict=True) if math.isfinite(value)}
