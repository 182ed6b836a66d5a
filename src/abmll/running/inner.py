"""The inner loop: the one function by which every system takes its steps, in training and on an unseen task."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from abmll.errors import AbmllError
from abmll.methods.base import Method, Place, Terms, backward_by_share
from abmll.running.batcher import Batcher
from abmll.running.optimizers import GroupOptimizer
from abmll.tasks.question import Question


class NonFiniteError(AbmllError):
    """A loss or gradient is NaN or infinite; nothing was updated by it."""


def inner_steps(
    method: Method,
    optimizer: GroupOptimizer,
    batcher: Batcher,
    batches: Sequence[Sequence[Question]],
    place: Place,
    factor: float = 1.0,
) -> list[Terms]:
    """One gradient step on phi for each batch; theta is untouched.

    Args:
        method: says what a step descends.
        optimizer: over the method's task groups.
        batcher: makes batches.
        batches: the questions of each step.
        place: (seed, meta-iteration, position); the step's number is added to name its noise.
        factor: multiplies the inner rates.

    Returns:
        The terms of each step, before it was taken. The learned log-temperature, if any, is left with the gradient of
        the last batch alone.

    Raises:
        NonFiniteError: before the update that a non-finite loss or gradient would have made.
    """
    taken = []
    for step, questions in enumerate(batches):
        optimizer.zero_grad()
        clear(method.temperature)
        here = (*place, step)
        terms = backward_by_share(batcher(questions), partial(method.inner_loss, place=here))
        gradients = [p.grad for p in optimizer.parameters if p.grad is not None]
        check_finite(terms, gradients, f"inner step {step}", [q.id for q in questions])
        optimizer.step(factor)
        taken.append(terms)
    return taken


def clear(parameters: Sequence[Tensor]) -> None:
    """Drop gradients."""
    for parameter in parameters:
        parameter.grad = None


def check_finite(terms: Terms | None, gradients: Sequence[Tensor], what: str, ids: Sequence[str]) -> None:
    """Stop before an update by a non-finite loss or gradient; one wait for the device in all."""
    numbers = [] if terms is None else [terms.total.detach().float()]
    if gradients:
        numbers += [norm.float() for norm in torch._foreach_norm(list(gradients), float("inf"))]
    if numbers and not bool(torch.stack(numbers).isfinite().all()):
        raise NonFiniteError(
            f"{what}: the loss or a gradient is not finite (questions {', '.join(ids) or 'none'}); nothing was "
            "updated. Lower the learning rates, or look at these questions"
        )
