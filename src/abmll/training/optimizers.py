"""torch's optimizers over a method's groups: built once, reset in place, their state as named tensors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abmll.methods.base import Group, Method, Schedule


class AdamWConstants(NamedTuple):
    """What AdamW has besides a rate."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


ADAMW = AdamWConstants()


class GroupOptimizer:
    """One torch optimizer per group.

    A group with `float64_state` is stepped on float64 copies of its parameters, so that moments of very large
    gradients stay finite; the copies are the parameters' masters.

    On CUDA the fused optimizers are used, whose rates and counters are on the device: a step can be captured in a
    graph, and skips by itself an update that is not finite.

    Args:
        groups: parameters and their rules; `set_rates` multiplies their rates.

    Attributes:
        skips_by_itself: whether `step(skip)` obeys `skip` without waiting for the device.
        skip_from_here: whether steps are being skipped, until it is set to 0 again.
        after_step: hears the number of each inner step that was taken (`inner_steps`).
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = [g for g in groups if g.parameters]
        self._masters = [
            [p.detach().double().requires_grad_() for p in g.parameters] if g.float64_state else g.parameters
            for g in self.groups
        ]
        self._optimizers = [_build(g, masters) for g, masters in zip(self.groups, self._masters, strict=True)]
        device = self.parameters[0].device if self.groups else torch.device("cpu")
        self.skips_by_itself = device.type == "cuda"
        self.skip_from_here = torch.zeros((), device=device)
        self.after_step: Callable[[int], None] | None = None
        for optimizer in self._optimizers if self.skips_by_itself else ():
            optimizer.found_inf = self.skip_from_here  # type: ignore[attr-defined]

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All parameters, in group order."""
        return [p for g in self.groups for p in g.parameters]

    def zero_grad(self) -> None:
        """Drop every gradient."""
        for parameter in self.parameters:
            parameter.grad = None

    def take_rates(self, groups: Sequence[Group]) -> None:
        """From here on go by the rates of these groups, which are the same ones otherwise."""
        self.groups = [g for g in groups if g.parameters]
        self.set_rates(1.0)

    def set_rates(self, factor: float) -> None:
        """From here on step at `factor` times each group's rate."""
        for group, optimizer in zip(self.groups, self._optimizers, strict=True):
            for rates, multiple in zip(optimizer.param_groups, _multiples(group), strict=True):
                if isinstance(rates["lr"], Tensor):
                    rates["lr"].fill_(group.lr * factor * multiple)
                else:
                    rates["lr"] = group.lr * factor * float(multiple)

    def step(self, skip: Tensor | None = None) -> None:
        """Apply the gradients.

        Args:
            skip: on CUDA, if it is 1 this step and all later ones change nothing; elsewhere it is not looked at.
        """
        if skip is not None and self.skips_by_itself:
            torch.maximum(self.skip_from_here, skip, out=self.skip_from_here)
        for group, masters, optimizer in zip(self.groups, self._masters, self._optimizers, strict=True):
            if group.float64_state:
                for parameter, master in zip(group.parameters, masters, strict=True):
                    master.grad = None if parameter.grad is None else parameter.grad.double()
            optimizer.step()
            if group.float64_state:
                with torch.no_grad():
                    torch._foreach_copy_(tuple(group.parameters), tuple(masters))

    def restart(self) -> None:
        """Forget the moments, and take the parameters' present values: a new task begins."""
        with torch.no_grad():
            for optimizer in self._optimizers:
                values = [value for state in optimizer.state.values() for value in state.values()]
                if values:
                    torch._foreach_zero_(values)
        self.follow()

    def follow(self) -> None:
        """Take the parameters' present values as masters, keeping the moments."""
        with torch.no_grad():
            for group, masters in zip(self.groups, self._masters, strict=True):
                if group.float64_state:
                    torch._foreach_copy_(tuple(masters), tuple(group.parameters))

    def state_dict(self) -> dict[str, Tensor]:
        """Moments, counters and masters as `group.index.name` -> tensor."""
        state = {}
        for group, masters, optimizer in zip(self.groups, self._masters, self._optimizers, strict=True):
            for index, master in enumerate(masters):
                for name, value in optimizer.state.get(master, {}).items():
                    state[f"{group.name}.{index}.{name}"] = value
                if group.float64_state:
                    state[f"{group.name}.{index}.master"] = master.detach()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`; state that is there already stays in its memory, which graphs go by."""
        for group, masters, optimizer in zip(self.groups, self._masters, self._optimizers, strict=True):
            for index, master in enumerate(masters):
                prefix = f"{group.name}.{index}."
                stored = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                if "master" in stored:
                    master.copy_(stored.pop("master"))
                if not stored:  # as it was before the first step
                    for value in optimizer.state.get(master, {}).values():
                        value.zero_()
                else:
                    # torch keeps AdamW's counter on the CPU, unless it is fused, and the moments with their parameter
                    counter = master.device if self.skips_by_itself else torch.device("cpu")
                    mine = optimizer.state[master]
                    for name, value in stored.items():
                        if name in mine:
                            mine[name].copy_(value)
                        else:
                            mine[name] = value.clone().to(counter if name == "step" else master.device)


@dataclass(frozen=True)
class Optimizers:
    """What meta-training steps by, made once: trainings one after the other then replay each other's captured steps.

    Attributes:
        inner, outer: over a method's task and shared groups.
        totals: sums of the outer gradient, one for each parameter of `outer`.
    """

    inner: GroupOptimizer
    outer: GroupOptimizer
    totals: list[Tensor]

    @classmethod
    def of(cls, method: Method) -> "Optimizers":
        """New ones."""
        outer = GroupOptimizer(method.shared())
        return cls(GroupOptimizer(method.task()), outer, [torch.zeros_like(p) for p in outer.parameters])

    def step_outer(self, *, shared: bool) -> None:
        """An outer step; with `shared` it takes the inner steps' moments and counters, and gives them back moved."""
        if shared:
            self.outer.load_state_dict({**self.outer.state_dict(), **self.inner.state_dict()})
        self.outer.step()
        if shared:
            self.inner.load_state_dict(self.outer.state_dict())

    def restart(self) -> None:
        """As new: no moments, no counters, the parameters' present values as masters."""
        self.inner.restart()
        self.outer.restart()


def rates_of(group: Group, factor: float) -> list[float | Tensor]:
    """The rate of each parameter of a group, times a factor."""
    multiples = list(_multiples(group)) * (len(group.parameters) if group.log_rates is None else 1)
    return [group.lr * factor * multiple for multiple in multiples]


def _multiples(group: Group) -> Sequence[float | Tensor]:
    """What the rate of each of torch's groups is multiplied by: there is one of all parameters, or one for each."""
    return [1.0] if group.log_rates is None else list(group.log_rates.detach().exp())


def _build(group: Group, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    cuda = parameters[0].is_cuda
    together = [parameters] if group.log_rates is None else [[parameter] for parameter in parameters]
    parts: list[dict[str, Any]] = [
        {"params": part, "lr": torch.tensor(group.lr, device=parameters[0].device) if cuda else group.lr}
        for part in together
    ]
    if group.optimizer == "sgd":
        return torch.optim.SGD(parts, fused=cuda or None)
    betas = (ADAMW.beta1, ADAMW.beta2)
    return torch.optim.AdamW(parts, betas=betas, eps=ADAMW.eps, weight_decay=0.0, fused=cuda or None, capturable=cuda)


def schedule_factor(schedule: Schedule, iteration: int, total: int, warmup: int = 0) -> float:
    """What a rate is multiplied by at a meta-iteration (from 0): linear warm-up, then constant, linear or cosine to 0.

    >>> [schedule_factor("linear", i, 4) for i in range(4)], schedule_factor("constant", 0, 9, warmup=2)
    ([1.0, 0.75, 0.5, 0.25], 0.5)
    """
    if iteration < warmup:
        return (iteration + 1) / warmup
    done = (iteration - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0


def rates_at(method: Method, iteration: int, total: int) -> dict[str, float]:
    """The rate of every group at a meta-iteration (from 0), as `inner/GROUP` and `outer/GROUP`; of several the mean."""
    s = method.settings
    sides = {"inner": (method.task(), s.inner_schedule), "outer": (method.shared(), s.outer_schedule)}
    return {
        f"{side}/{group.name}": _middle_rate(group) * schedule_factor(schedule, iteration, total, s.warmup)
        for side, (groups, schedule) in sides.items()
        for group in groups
        if group.parameters
    }


def _middle_rate(group: Group) -> float:
    """The rate of a group; the geometric mean of those of its parameters."""
    return group.lr * (1.0 if group.log_rates is None else float(group.log_rates.detach().mean().exp()))
