"""Passes through a base model whose layers are spread over ranks: every rank takes part in each of them.

A layer is gathered from all ranks right before it is computed, so a rank that computes a pass waits for the others in
each layer. Ranks run tasks of their own, of unequal length; so each says what it wants before every pass, and those
that want something else, or nothing because they wait for the others, gather the same layers and compute nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from abmll.errors import AbmllError
from abmll.process.stopping import Stopped, asked, gently
from abmll.process.world import RankGroup, naming_lost_ranks, set_before_meeting

WAITING, FORWARD, BACKWARD = 0, 1, 2
"""What a rank wants: nothing, a forward pass, or, with the number of a layer added, a backward pass down to it."""


class SpreadLayer(Protocol):
    """A layer that FSDP2 has spread: what is used of `torch.distributed.fsdp.FSDPModule`."""

    def unshard(self) -> Any:
        """Gather the layer's weights from all ranks."""

    def reshard(self) -> None:
        """Free all of them but this rank's share."""

    def set_modules_to_backward_prefetch(self, modules: list[Any]) -> None:
        """The layers to gather while this one's gradient is computed."""


class Passes:
    """The passes of one model over the ranks that share it.

    The order in which layers are gathered is the same whoever computes: forwards the first to the last, backwards the
    last to the first whose output has a gradient. Nothing else of the model is gathered.

    Args:
        layers: in the order in which the model runs them.
        group: the ranks that hold the model together.

    Attributes:
        computed, followed: passes that this rank computed, and gathered for others.
        inside: a pass has begun and not ended; for good, if it ended in an error: then other ranks wait in its middle,
            and this one can follow no pass any more.
    """

    def __init__(self, layers: Sequence[Any], group: RankGroup) -> None:
        self.layers, self.group = list(layers), group
        self.computed = self.followed = 0
        self.inside = False
        self._ran: list[tuple[int, bool]] = []
        self._first: int | None = None
        for number, layer in enumerate(self.layers):
            layer.register_forward_hook(self._note(number))

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` returns, which runs the model once; going back through it announces a backward pass.

        Raises:
            Stopped: a rank was asked to stop. No rank has begun the pass then.
            AbmllError: another rank died; or the model does not run its layers one after the other.
        """
        self._enter(FORWARD)
        self._ran.clear()
        out = compute()
        if [number for number, _ in self._ran] != list(range(len(self.layers))):
            raise AbmllError(
                "model.shards: the model does not run each of its layers once, from the first to the last, so they "
                "cannot be spread over processes; use model.shards=1"
            )
        self.inside = False
        first = next((number for number, has_gradient in self._ran if has_gradient), len(self.layers))
        return _Announced.apply(out, self, first) if out.requires_grad else out

    def begin_backward(self, first: int) -> None:
        """Called by autograd, before it goes through the layers from the last to `first`."""
        self._enter(BACKWARD + first)
        if first != self._first:  # the default would go by which passes were computed before, in which ranks differ
            for number, layer in enumerate(self.layers):
                layer.set_modules_to_backward_prefetch([self.layers[number - 1] if number > first else layer])
            self._first = first
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def wait(self, long: bool) -> None:
        """Follow the passes of others, until every rank waits.

        Args:
            long: others may be at work for hours between two passes.

        Raises:
            AbmllError: another rank died; or a pass of this one broke off.
        """
        self._refuse_broken()
        with gently():  # a stop is told with the next exchange; in the middle of a gather it would leave others there
            while True:
                chosen, signal = self._exchange(WAITING, long)
                if chosen == WAITING:
                    return
                if not (chosen == FORWARD and signal):  # which no rank begins then
                    self._follow(chosen)

    def _enter(self, kind: int) -> None:
        """Return when this rank may compute a pass of this kind."""
        self._refuse_broken()
        while True:
            chosen, signal = self._exchange(kind, long=False)
            if chosen == FORWARD and signal:
                raise Stopped(signal)
            if chosen == kind:
                self.inside = True
                self.computed += 1
                return
            self._follow(chosen)

    def _exchange(self, kind: int, long: bool) -> tuple[int, int]:
        """What is run next, and the signal that asked any rank to stop: the same on all of them."""
        told = self.group.exchange((kind, asked()), long)
        chosen, signal = (max(row[column] for row in told) for column in (0, 1))
        return chosen, signal

    def _follow(self, chosen: int) -> None:
        """Gather what another rank computes with."""
        self.followed += 1
        with naming_lost_ranks():
            for layer in self.layers if chosen == FORWARD else reversed(self.layers[chosen - BACKWARD :]):
                layer.unshard()
                layer.reshard()

    def _note(self, number: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            self._ran.append((number, bool(tensor.requires_grad)))

        return hook

    def _end(self) -> None:
        self.inside = False

    def _refuse_broken(self) -> None:
        if self.inside:
            raise AbmllError("a pass through the base model broke off on this rank, so the others cannot go on with it")


class _Announced(torch.autograd.Function):
    """The identity, which announces the backward pass that goes through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passes: Passes, first: int) -> Tensor:
        ctx.passes, ctx.first = passes, first
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        ctx.passes.begin_backward(ctx.first)
        return upstream[0], None, None


_passes: "WeakKeyDictionary[nn.Module, Passes]" = WeakKeyDictionary()


def passes_of(model: nn.Module) -> Passes | None:
    """The passes of a model that is spread over ranks; None for one that is whole in this process.

    >>> passes_of(nn.Linear(2, 2)) is None
    True
    """
    return _passes.get(model)


def pass_together(model: nn.Module, passes: Passes) -> None:
    """Let every pass through a model be one of these, and ranks that wait for each other follow them."""
    _passes[model] = passes
    set_before_meeting(passes.wait, lambda: passes.inside)


def forward(model: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
    """What `compute` returns, which runs the model once."""
    passes = passes_of(model)
    return compute() if passes is None else passes.forward(compute)
