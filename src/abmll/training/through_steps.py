"""Outer gradients through the inner steps: second order, step by step backwards, so that memory does not grow by them.

The steps are taken as ever, captured where they are captured, and phi and its moments are copied before each. On the
way back one step at a time is computed again, eagerly and in a form with gradients of gradients (no captured step and
no fused attention has those): the memory is that of one step's graph, and copies of the factors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from abmll.kernels import twice_differentiable
from abmll.methods.base import Group, Method, Terms, add_gradients
from abmll.methods.noise import StepCoordinates, step_key
from abmll.process.stopping import stop_if_asked
from abmll.prompts.batches import ChoiceBatch
from abmll.question import Question
from abmll.training.batcher import Batcher
from abmll.training.graphs import Graphs
from abmll.training.inner import inner_steps
from abmll.training.optimizers import ADAMW, GroupOptimizer, rates_of


class _Point(NamedTuple):
    """phi before a step, and the optimizer's state by name."""

    phi: list[Tensor]
    moments: dict[str, Tensor]


@dataclass
class TakenSteps:
    """Inner steps that can be gone back through; see `abmll.methods.base.InnerSteps`.

    SGD is differentiated as it is. Of AdamW the second moments, by which steps are divided, are taken for constants:
    their derivative is infinite where a gradient has been 0, as those of A are while B is. First moments are not.

    Attributes:
        method, optimizer, batcher: as in `inner_steps`.
        batches: questions of each step.
        coordinates: of their noise.
        factors: of the rates, for each step.
        points: phi before each step and after the last one.
    """

    method: Method
    optimizer: GroupOptimizer
    batcher: Batcher
    batches: Sequence[Sequence[Question]]
    coordinates: StepCoordinates
    factors: Sequence[float]
    points: list[_Point] = field(default_factory=list)

    def take(self, graphs: Graphs) -> list[Terms]:
        """Take the steps, so that the method's outer gradient can go back through them if it does; as `inner_steps`."""
        if self.method.through_steps:
            self.points = [self._point()]
            self.optimizer.after_step = lambda step: self.points.append(self._point())
        try:
            return inner_steps(
                self.method, self.optimizer, self.batcher, self.batches, self.coordinates, self.factors, graphs
            )
        finally:
            self.optimizer.after_step = None

    @property
    def support(self) -> list[ChoiceBatch]:
        """The batches of all steps."""
        return [batch for questions in self.batches for batch in self.batcher(questions)]

    def carry_back(self) -> list[Tensor]:
        """As `InnerSteps.carry_back`."""
        moving, others = self.optimizer.parameters, self._others()
        adjoint = [torch.zeros_like(p) if p.grad is None else p.grad for p in moving]
        of_momentum = [torch.zeros_like(p) for p in moving]
        by_log_rate = [torch.zeros((), device=p.device) for p in moving]
        for step in reversed(range(len(self.batches))):
            before, after = self.points[step].phi, self.points[step + 1].phi
            for total, a, end, start in zip(by_log_rate, adjoint, after, before, strict=True):
                total += (a * (end - start)).sum()
            pull, of_momentum = self._before_the_rule(step, adjoint, of_momentum)
            by_phi, by_others = self._products(step, before, pull, [*moving, *others])
            adjoint = [a + b for a, b in zip(adjoint, by_phi, strict=True)]
            add_gradients(others, by_others)
        _put(moving, self.points[-1].phi)
        for parameter, gradient in zip(moving, adjoint, strict=True):
            parameter.grad = gradient
        return by_log_rate

    def curvature(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """As `InnerSteps.curvature`."""
        products, _ = self._mean_products(vectors, [])
        return products

    def add_mixed(self, vectors: Sequence[Tensor]) -> None:
        """As `InnerSteps.add_mixed`."""
        others = self._others()
        add_gradients(others, self._mean_products(vectors, others)[1])

    def _mean_products(
        self, vectors: Sequence[Tensor], others: Sequence[nn.Parameter]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """As `_products`, at phi as the steps left it, averaged over them."""
        phi, share = self.points[-1].phi, 1 / len(self.batches)
        own: list[Tensor | None] = [None] * len(vectors)
        rest: list[Tensor | None] = [None] * len(others)
        for step in range(len(self.batches)):
            by_phi, by_others = self._products(step, phi, vectors, [*self.optimizer.parameters, *others])
            own = [_sum(total, share * part) for total, part in zip(own, by_phi, strict=True)]
            shares = [None if part is None else share * part for part in by_others]
            rest = [_sum(total, part) for total, part in zip(rest, shares, strict=True)]
        return [total for total in own if total is not None], rest

    def _point(self) -> _Point:
        state = {name: value.clone() for name, value in self.optimizer.state_dict().items()}
        return _Point([p.detach().clone() for p in self.optimizer.parameters], state)

    def _others(self) -> list[nn.Parameter]:
        """What steps can depend on besides what they move."""
        adapters, moving = self.method.adapters, {id(p) for p in self.optimizer.parameters}
        every = (*adapters.parameters("task"), *adapters.parameters("shared"), *self.method.temperature)
        return [p for p in every if p.requires_grad and id(p) not in moving]

    def _before_the_rule(
        self, step: int, adjoint: Sequence[Tensor], of_momentum: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """From gradients by phi and first moments after a step's rule: those by the loss's gradient and the moments."""
        pulls, momenta, place = [], [], 0
        for group in self.optimizer.groups:
            for index, rate in enumerate(rates_of(group, self.factors[step])):
                a, m = adjoint[place], of_momentum[place]
                if group.optimizer == "adamw":
                    m = m - a * self._adamw_multiple(group, index, step, rate).to(a.dtype)
                    pulls.append((1 - ADAMW.beta1) * m)
                    momenta.append(ADAMW.beta1 * m)
                else:
                    pulls.append(-rate * a)
                    momenta.append(m)
                place += 1
        return pulls, momenta

    def _adamw_multiple(self, group: Group, index: int, step: int, rate: float | Tensor) -> Tensor:
        """What the first moment after a step is multiplied by, and phi goes back by."""
        moments = self.points[step + 1].moments
        count, second = (moments[f"{group.name}.{index}.{name}"] for name in ("step", "exp_avg_sq"))
        root = second.sqrt() / (1 - ADAMW.beta2**count).sqrt() + ADAMW.eps
        return rate / (1 - ADAMW.beta1**count) / root

    def _products(
        self, step: int, phi: Sequence[Tensor], vectors: Sequence[Tensor], leaves: Sequence[nn.Parameter]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Of a step's loss at phi: its gradient by phi, times the vectors, differentiated by phi and by the others."""
        stop_if_asked()
        moving = self.optimizer.parameters
        _put(moving, phi)
        batches, key = self.batcher(self.batches[step]), step_key((*self.coordinates, step))
        key = key.to(self.batcher.device)[0]
        questions = sum(batch.questions for batch in batches)
        totals: list[Tensor | None] = [None] * len(leaves)
        with twice_differentiable(), torch.enable_grad():
            for batch in batches:
                loss = self.method.inner_loss(batch, key).total * (batch.questions / questions)
                gradients = torch.autograd.grad(loss, moving, create_graph=True)
                product = torch.stack([(g * v).sum() for g, v in zip(gradients, vectors, strict=True)]).sum()
                parts = torch.autograd.grad(product, leaves, allow_unused=True)
                totals = [_sum(old, new) for old, new in zip(totals, parts, strict=True)]
        own = [torch.zeros_like(p) if t is None else t for p, t in zip(moving, totals, strict=False)]
        return own, totals[len(moving) :]


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Of two gradients, None being zero."""
    return other if one is None else one if other is None else one + other


@contextmanager
def going_back(method: Method, steps: TakenSteps) -> Iterator[None]:
    """The method's outer gradient goes through these steps inside, if it goes through steps."""
    method.inner_taken = steps if method.through_steps else None
    try:
        yield
    finally:
        method.inner_taken = None


@torch.no_grad()
def _put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    torch._foreach_copy_(tuple(parameters), tuple(values))
