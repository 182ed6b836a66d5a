"""The inner loop: the one function by which every system takes its steps, in training and on an unseen task."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from abmll.adapters.layer import AdapterSet
from abmll.errors import NonFiniteError
from abmll.methods.base import Method, Terms, backward_by_share
from abmll.methods.fitted import Fitted, Pieces
from abmll.methods.noise import StepCoordinates, step_key
from abmll.process.stopping import stop_if_asked
from abmll.prompts.batches import ChoiceBatch
from abmll.question import Question
from abmll.training.batcher import Batcher
from abmll.training.failed_batch import FailedBatch
from abmll.training.finite import dtype_advice
from abmll.training.graphs import Graphs
from abmll.training.optimizers import GroupOptimizer


class Announced(Sequence[Sequence[Question]]):
    """The batches of some steps, which tell how many steps are done while those are taken.

    Args:
        batches: the questions of each step.
        listener: hears of the number of steps done, after each of them.

    >>> done = []
    >>> len([batch for batch in Announced([[], []], done.append)]), done
    (2, [1, 2])
    """

    def __init__(self, batches: Sequence[Sequence[Question]], listener: Callable[[int], None]) -> None:
        self._batches, self._listener = batches, listener

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: Any) -> Any:
        return self._batches[step]

    def __iter__(self) -> Iterator[Sequence[Question]]:
        for done, batch in enumerate(self._batches, start=1):
            yield batch
            self._listener(done)


def inner_steps(
    method: Method,
    optimizer: GroupOptimizer,
    batcher: Batcher,
    batches: Sequence[Sequence[Question]],
    coordinates: StepCoordinates,
    factor: float | Sequence[float] = 1.0,
    graphs: Graphs | None = None,
) -> list[Terms]:
    """One gradient step on phi for each batch, or what stands for them (`Fitted`); theta is untouched.

    On CUDA a step is captured and replayed, so it cannot stop in its middle: the optimizer itself skips an update by
    what is not finite and those after it, and the end of the steps raises.

    Args:
        method: says what a step descends.
        optimizer: over the method's task groups.
        batcher: makes batches.
        batches: the questions of each step.
        coordinates: of the noise, for all steps of this task; the number of a step is added.
        factor: multiplies the inner rates: one number for all steps, or one for each.
        graphs: where steps are captured; None runs them eagerly.

    Returns:
        The terms of each step, before it was taken. The learned log-temperature, if any, is left with the gradient of
        the last batch alone.

    Raises:
        NonFiniteError: before the update that a non-finite loss or gradient would have made.
        Stopped: between two steps, if the process was asked to stop.
    """
    if isinstance(method, Fitted):
        return fit_rows(method, batcher, batches, coordinates)
    graphs = Graphs(batcher.device, capture=False) if graphs is None else graphs
    factors = [factor] * len(batches) if isinstance(factor, float) else list(factor)
    optimizer.set_rates(factors[0] if factors else 1.0)
    optimizer.skip_from_here.zero_()
    taken: list[Tensor] = []
    for step, questions in enumerate(batches):
        stop_if_asked()
        if step and factors[step] != factors[step - 1]:
            optimizer.set_rates(factors[step])
        key = step_key((*coordinates, step))
        values, *temperature = graphs.run(
            f"inner step {id(optimizer)}", partial(_step, method, optimizer), batcher(questions), key
        )
        taken.append(values.clone())
        for parameter, gradient in zip(method.temperature, temperature, strict=True):
            parameter.grad = gradient.clone()
        if not optimizer.skips_by_itself or step == len(batches) - 1:
            _check_steps(taken, batches, coordinates, method.adapters)
        if optimizer.after_step is not None:
            optimizer.after_step(step)
    return [terms_of(values) for values in taken]


def _step(
    method: Method, optimizer: GroupOptimizer, batches: Sequence[ChoiceBatch], keys: Tensor
) -> tuple[Tensor, ...]:
    """One step, as it can be captured: nothing here waits for the device where the optimizer skips by itself."""
    optimizer.zero_grad()
    clear(method.temperature)
    terms = backward_by_share(batches, partial(method.inner_loss, key=keys[0]), optimizer.parameters)
    bad = not_finite(terms, [p.grad for p in optimizer.parameters if p.grad is not None])
    if optimizer.skips_by_itself or not bool(bad):
        optimizer.step(skip=bad)
    optimizer.zero_grad()
    temperature = [torch.zeros_like(p) if p.grad is None else p.grad for p in method.temperature]
    clear(method.temperature)
    return (as_values(terms, bad), *temperature)


def as_values(terms: Terms, bad: Tensor) -> Float[Tensor, " parts"]:
    """Total, NLL, whether anything is not finite and, if there is one, KL as one tensor."""
    parts = [terms.total, terms.nll, bad] + ([] if terms.task_kl is None else [terms.task_kl])
    return torch.stack([part.detach().float().reshape(()) for part in parts])


def terms_of(values: Float[Tensor, " parts"]) -> Terms:
    """The inverse of `as_values`."""
    return Terms((values[0],), values[1], values[3] if len(values) > 3 else None)


def _check_steps(
    taken: Sequence[Tensor], batches: Sequence[Sequence[Question]], coordinates: StepCoordinates, adapters: AdapterSet
) -> None:
    for step, is_bad in enumerate(torch.stack([values[2] for values in taken]).tolist()):
        if is_bad:
            raise _error(f"inner step {step}", FailedBatch(tuple(batches[step]), (*coordinates, step)), adapters)


def clear(parameters: Sequence[Tensor]) -> None:
    """Drop gradients."""
    for parameter in parameters:
        parameter.grad = None


def not_finite(terms: Terms | None, gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """1 if a loss or a gradient is NaN or infinite, else 0; waits for nothing."""
    numbers = [] if terms is None else [terms.total.detach().float()]
    if gradients:
        numbers += [norm.float() for norm in torch._foreach_norm(list(gradients), float("inf"))]
    return 1.0 - torch.stack(numbers).isfinite().all().float()


def check_finite(
    terms: Terms | None, gradients: Sequence[Tensor], what: str, batch: FailedBatch, adapters: AdapterSet
) -> None:
    """Stop before an update by a non-finite loss or gradient; one wait for the device in all.

    Raises:
        NonFiniteError: names `what` and the questions.
    """
    if (terms is not None or gradients) and bool(not_finite(terms, gradients)):
        raise _error(what, batch, adapters)


def _error(what: str, batch: FailedBatch, adapters: AdapterSet) -> NonFiniteError:
    ids = ", ".join(question.id for question in batch.questions) or "none"
    return NonFiniteError(
        f"{what}: the loss or a gradient is not finite (questions {ids}); nothing was updated. "
        f"Lower the learning rates, or look at these questions; {dtype_advice(adapters.base_dtype)}",
        batch,
    )


def fit_rows(
    method: Fitted, batcher: Batcher, batches: Sequence[Sequence[Question]], coordinates: StepCoordinates
) -> list[Terms]:
    """Make phi from the rows of all batches, each of which counts once whatever batches it is in.

    Raises:
        NonFiniteError: a number of the posterior is NaN or infinite; phi is not to be used then.
        Stopped: before, or between two batches, if the process was asked to stop.
    """
    stop_if_asked()
    blocks = [batch for batch in _once(batches) if batch]
    if not blocks:
        return []
    if method.rows_at_once == "all":
        blocks = [[question for batch in blocks for question in batch]]
    if method.fit_tokens is None:
        terms = method.fit([_made(batcher, block) for block in blocks])
    else:
        dealt = [_in_pieces(batcher, block, method.fit_tokens) for block in blocks]
        terms = method.fit([made for made, _ in dealt], [pieces for _, pieces in dealt])
    numbers = [part.detach().double().reshape(()) for each in terms for part in each.losses]
    if not bool(torch.stack(numbers).isfinite().all()):
        asked = tuple(question for block in blocks for question in block)
        raise NonFiniteError(
            f"the posterior of the cores is not finite (questions {', '.join(q.id for q in asked)}); nothing was "
            "updated. Lower method.core_std and method.outer_lr, or look at these questions; "
            f"{dtype_advice(method.adapters.base_dtype)}",
            FailedBatch(asked, (*coordinates, 0)),
        )
    return terms


def _once(batches: Sequence[Sequence[Question]]) -> list[list[Question]]:
    """The batches without the questions that were in an earlier one."""
    seen: set[Question] = set()
    out = []
    for batch in batches:
        new = [question for question in dict.fromkeys(batch) if question not in seen]
        seen.update(new)
        out.append(new)
    return out


def _in_pieces(batcher: Batcher, questions: Sequence[Question], tokens: int) -> tuple[list[ChoiceBatch], Pieces]:
    """Batches of questions that are alike, with few tokens each."""
    dealt = batcher.alike(questions, tokens)
    made = [batcher.batch([questions[number] for number in numbers]) for numbers in dealt]
    choices = tuple(len(questions[numbers[0]].choices) for numbers in dealt)
    return made, Pieces(tuple(map(tuple, dealt)), choices)


def _made(batcher: Batcher, questions: Sequence[Question]) -> list[ChoiceBatch]:
    """Batches of questions; those that share a premise's row with others are batches of their own."""
    made = batcher(questions)
    if any(batch.premises for batch in made):
        return [batcher.batch([question]) for question in questions]
    return made
