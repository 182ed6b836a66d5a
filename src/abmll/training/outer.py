"""The outer gradient of one task, added to a running sum: what a meta-iteration steps theta by."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from abmll.methods.base import Method, Terms
from abmll.methods.fitted import Fitted
from abmll.methods.noise import StepCoordinates, step_key
from abmll.prompts.batches import ChoiceBatch
from abmll.question import Question
from abmll.training.batcher import Batcher
from abmll.training.graphs import Graphs
from abmll.training.inner import as_values, clear, not_finite, terms_of
from abmll.training.optimizers import GroupOptimizer

NOT_CAPTURED = "it goes back through the inner steps, and captured steps have no gradients of gradients"
READS_FIT = "it reads the posterior of a task, which is not in the memory that captured steps go by"
READS_TASKS = "it reads the weights of every task, which are not in the memory that captured steps go by"


def add_outer_gradient(
    method: Method,
    batcher: Batcher,
    query: Sequence[Question],
    coordinates: StepCoordinates,
    sums: tuple[GroupOptimizer, Sequence[Tensor]],
    share: float,
    graphs: Graphs,
) -> Terms | None:
    """Add `share` of the gradient that theta takes from this task to `sums`; step nothing.

    Args:
        method: says what the gradient is.
        batcher: makes batches.
        query: the questions of the outer step; none for methods without.
        coordinates: of the noise of this step.
        sums: the outer optimizer, and a tensor for each of its parameters.
        share: of this task in the meta-batch.
        graphs: where the pass is captured.

    Returns:
        What the gradient is of, if it is of a loss.
    """
    outer, totals = sums
    temperature = {id(p): p.grad for p in method.temperature}  # left by the last inner step
    step = partial(_gradient, method, outer.parameters, totals, share)
    name = f"outer gradient {id(outer)} {share}"
    if graphs.capture and isinstance(method, Fitted):
        graphs.fallbacks[name] = READS_FIT
    elif graphs.capture and (method.inner_taken is not None or method.keeps_tasks):
        graphs.fallbacks[name] = READS_TASKS if method.keeps_tasks else NOT_CAPTURED
    outputs = graphs.run(name, step, batcher(query) if query else [], step_key(coordinates))
    for parameter, total in zip(outer.parameters, totals, strict=True):
        gradient = temperature.get(id(parameter))
        if not query and gradient is not None:
            total += share * gradient
    clear(method.temperature)
    return terms_of(outputs[0].clone()) if outputs else None


def _gradient(
    method: Method,
    parameters: Sequence[Tensor],
    totals: Sequence[Tensor],
    share: float,
    batches: Sequence[ChoiceBatch],
    keys: Tensor,
) -> tuple[Tensor, ...]:
    task = [p for group in method.task() for p in group.parameters]
    clear([*parameters, *task])
    terms = method.outer_gradient(batches, keys[0])
    pairs = [(total, p.grad) for total, p in zip(totals, parameters, strict=True) if p.grad is not None]
    if pairs:
        torch._foreach_add_([total for total, _ in pairs], [gradient for _, gradient in pairs], alpha=share)
    clear([*parameters, *task])
    return () if terms is None else (as_values(terms, not_finite(terms, [])),)
