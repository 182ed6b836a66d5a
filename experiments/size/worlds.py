"""Simulated worlds in which two systems do not differ on average."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from experiments.size.components import Components

LEVEL = 0.05
BLOCK = 50  # worlds in memory at once


@dataclass(frozen=True)
class Design:
    """What is measured in a world.

    Attributes:
        seeds, draws, tasks: numbers of each.
        questions: in each task.
        cluster: questions that belong together; their effects correlate by `correlation`.
        correlation: within a cluster.
        fallen: probability that a seed of one system falls apart, which moves it by `fall`; its mean is taken out, so
            that there is still no difference on average.
        fall: in units of the score.
    """

    seeds: int
    draws: int = 5
    tasks: int = 8
    questions: int = 100
    cluster: int = 1
    correlation: float = 0.6
    fallen: float = 0.0
    fall: float = 0.1


def worlds(design: Design, parts: Components, count: int, seed: int) -> Iterator[Float[np.ndarray, "W T S D N"]]:
    """Blocks of worlds; the differences of two systems of equal mean."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, BLOCK):
        yield _block(design, parts, min(BLOCK, count - start), rng)


def _block(design: Design, parts: Components, count: int, rng: np.random.Generator) -> Float[np.ndarray, "W T S D N"]:
    tasks, seeds, draws, questions = design.tasks, design.seeds, design.draws, design.questions

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((count, *shape), dtype=np.float32)

    def asked(*shape: int) -> np.ndarray:
        """Effects of questions, alike within a cluster."""
        if design.cluster == 1:
            return normal(*shape, questions)
        shared = np.repeat(normal(*shape, -(-questions // design.cluster)), design.cluster, axis=-1)[..., :questions]
        own, both = np.sqrt(1 - design.correlation), np.sqrt(design.correlation)
        return own * normal(*shape, questions) + both * shared

    out = parts.seed * normal(1, seeds, 1, 1) + parts.seed_task * normal(tasks, seeds, 1, 1)
    if design.fallen:
        fell = rng.random((count, 1, seeds, 1, 1)) < design.fallen
        out = out + design.fall * (fell - design.fallen).astype(np.float32)
    out = out + parts.draw * normal(tasks, 1, draws, 1) + parts.seed_draw * normal(tasks, seeds, draws, 1)
    out = out + parts.question * asked(tasks, 1, 1) + parts.seed_question * asked(tasks, seeds, 1)
    return out + parts.draw_question * asked(tasks, 1, draws) + parts.rest * asked(tasks, seeds, draws)


def tasks_drawn(world: np.ndarray, parts: Components, seed: int) -> np.ndarray:
    """The same worlds with tasks that differ: what `resample_tasks` is for."""
    rng = np.random.default_rng(seed)
    return world + np.float32(parts.task) * rng.standard_normal((*world.shape[:2], 1, 1, 1), dtype=np.float32)
