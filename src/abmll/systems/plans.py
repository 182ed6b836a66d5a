"""How a task is adapted to and how answers are drawn, as plain values; and what a configuration says of both."""

from dataclasses import dataclass
from typing import Literal

from abmll.config import RunConfig


@dataclass(frozen=True, slots=True)
class AdaptationPlan:
    """How an unseen task is adapted to: the same examples and steps for every system."""

    examples: int = 20
    steps: int = 10
    batch_size: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PredictionPlan:
    """How a posterior becomes probabilities.

    Attributes:
        sampler: `weight` (the model as written) or `activation`; `mean` uses the mean weights.
        samples: draws whose probabilities are averaged.
        batch_tokens: most padded tokens of one forward pass.
    """

    sampler: Literal["mean", "weight", "activation"] = "weight"
    samples: int = 10
    batch_tokens: int = 4096


def adaptation_plan(config: RunConfig) -> AdaptationPlan:
    """How unseen tasks are adapted to, from a configuration."""
    a = config.adaptation
    return AdaptationPlan(a.examples, a.steps, a.batch_size, a.seed)


def prediction_plan(config: RunConfig) -> PredictionPlan:
    """How probabilities are made, from a configuration."""
    a = config.adaptation
    return PredictionPlan(a.sampler, a.samples, a.batch_tokens)


def plan_for(rows: int, usual: AdaptationPlan, steps: int | None = None) -> AdaptationPlan:
    """How so many rows are adapted to, all of them as examples.

    Args:
        rows: labelled rows.
        usual: batch size, seed, and the steps that are taken at least.
        steps: exactly so many instead; None: `steps_for`.
    """
    return AdaptationPlan(rows, steps_for(rows, usual) if steps is None else steps, usual.batch_size, usual.seed)


def steps_for(rows: int, usual: AdaptationPlan) -> int:
    """Gradient steps for so many rows: the run's own number, or as many more as one pass over the rows takes.

    >>> steps_for(20, AdaptationPlan()), steps_for(51, AdaptationPlan())
    (10, 26)
    """
    return max(usual.steps, -(-rows // usual.batch_size))
