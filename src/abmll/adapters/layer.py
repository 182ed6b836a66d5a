"""The adapted linear layer with its two slots, and the set of all adapted layers of a model."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from abmll.adapters.gaussian import LowRankGaussian
from abmll.kernels import op
from abmll.kernels.noise import kept

Sampler = Literal["mean", "weight", "activation"]
Part = Literal["mean", "std"]
Core = Callable[[Tensor, Tensor], Tensor]
"""Base output and input of an adapted layer -> its output."""


@dataclass(slots=True)
class Noise:
    """What a forward pass adds to the means: set by `AdapterSet.drawing`, read by every layer.

    Attributes:
        sampler: `mean` adds nothing; `weight` one weight matrix for all tokens; `activation` local
            reparameterisation.
        keys: S noise keys (`key_tensor`): the batch's rows are S equal consecutive groups, one draw each.
        questions: question keys of the batch's rows (activation noise).
        tokens: position of each token within its question (activation noise).
        kept: dropout masks, one for each key and layer, or None: what the means see of their inputs.
        cores: by their numbers the layers whose output somebody else makes of the base's: see `AdapterSet.with_cores`.
    """

    sampler: Sampler = "mean"
    keys: Int[Tensor, " S"] | None = None
    questions: Int[Tensor, " B"] | None = None
    tokens: Int[Tensor, "B T"] | None = None
    kept: Float[Tensor, "S L W"] | None = None
    cores: Mapping[int, Core] = field(default_factory=dict)


class AdaptedLinear(nn.Module):
    """y = base(x) + mean(x) + noise(x) of the `task` slot; the `shared` slot takes no part in a forward pass.

    W0 is never touched or read, so any base layer works, a quantised one too. The two added terms are computed in
    float32 and the sum is cast once.
    """

    def __init__(
        self, base: nn.Module, shared: LowRankGaussian, task: LowRankGaussian, noise: Noise, index: int
    ) -> None:
        super().__init__()
        self.base, self.shared, self.task = base, shared, task
        self.noise, self.index = noise, index

    def forward(self, x: Float[Tensor, "*tokens I"]) -> Float[Tensor, "*tokens O"]:
        """Base output plus the task's mean and, if one is being drawn, its noise; in the base's dtype."""
        y, noise, task = self.base(x), self.noise, self.task
        if noise.kept is not None:
            x = _dropped(x, noise.kept[:, self.index])
        if self.index in noise.cores:
            return noise.cores[self.index](y, x)
        if noise.sampler == "mean" or not task.has_std:
            return op("mean_output", x.device)(y, x, task.mean_b, task.mean_a, task.variance.scale)
        drawn = (y, x, task.factors(), task.variance, noise.keys, self.index)
        if noise.sampler == "weight":
            return op("weight_output", x.device)(*drawn)
        return op("activation_output", x.device)(*drawn, noise.questions, noise.tokens)


def _dropped(x: Float[Tensor, "N *tokens I"], kept: Float[Tensor, "S W"]) -> Float[Tensor, "N *tokens I"]:
    """Inputs with each draw's mask on its group of rows, the same for all tokens: columns of A that are left out."""
    masks = kept[:, : x.shape[-1]].repeat_interleave(x.shape[0] // kept.shape[0], 0)
    return x * masks.view(x.shape[0], *[1] * (x.ndim - 2), -1).to(x.dtype)


class AdapterSet:
    """All adapted layers of a model, in a fixed order: the shared weights (theta) and the task's (phi).

    Attributes:
        layers: module path -> adapted layer.
        noise: the draw that forward passes use; see `drawing`.
        seed: seed of the initial factors.
    """

    def __init__(self, layers: dict[str, AdaptedLinear], noise: Noise, seed: int) -> None:
        self.layers, self.noise, self.seed = layers, noise, seed

    @property
    def entries(self) -> int:
        """N, the number of adapted weights over all layers."""
        return sum(layer.task.entries for layer in self.layers.values())

    @property
    def has_std(self) -> bool:
        """Whether the layers hold std factors."""
        return all(layer.task.has_std for layer in self.layers.values())

    @property
    def base_dtype(self) -> str:
        """Name of the dtype that the base model computes in, as far as its first adapted layer tells: float16, ..."""
        base = next(iter(self.layers.values())).base
        dtype = getattr(base, "compute_dtype", None) or getattr(base.weight, "dtype", "")
        return str(dtype).removeprefix("torch.")

    def parameters(self, slot: Literal["shared", "task"], part: Part | None = None) -> list[nn.Parameter]:
        """The factors of a slot: of the means, of the stds, or all of them; in layer order."""
        return [
            parameter
            for layer in self.layers.values()
            for name, parameter in getattr(layer, slot).named_parameters()
            if part is None or name.startswith(part)
        ]

    def reset(self, seed: int) -> None:
        """Every factor of both slots at its initial value, as if attached with this seed; in place."""
        self.seed = seed
        for layer in self.layers.values():
            layer.shared.reset(layer_seed(seed, layer.index))
            layer.task.reset(layer_seed(seed, layer.index))

    def begin_task(self, std_start: Literal["copy", "init"] = "copy") -> None:
        """phi <- theta; with `init` the stds of phi start at f again instead."""
        with torch.no_grad():
            torch._foreach_copy_(tuple(self.parameters("task")), tuple(self.parameters("shared")))
        for layer in self.layers.values() if std_start == "init" else ():
            if layer.task.has_std:
                layer.task.reset_std(layer_seed(self.seed, layer.index))

    def kl(
        self,
        *,
        detach: Literal["shared", "task"] | None = None,
        stride: int = 1,
        key: Int[Tensor, ""] | None = None,
    ) -> Float[Tensor, ""]:
        """KL(q(phi | D) || p(phi | theta)) summed over all N entries, float64.

        Args:
            detach: the slot that takes no gradient.
            stride: visit every so-manieth row of each layer, from a start drawn by `key`, and scale up: unbiased.
            key: 64 bits as an int64 tensor; unused when `stride` is 1.
        """
        layers = self.layers.values()
        task = [layer.task.factors(detached=detach == "task") for layer in layers]
        shared = [layer.shared.factors(detached=detach == "shared") for layer in layers]
        variances = [layer.task.variance for layer in layers]
        return op("task_kl", self.device)(task, shared, variances, stride, key)

    def precision_penalty(self, shape: float, rate: float) -> Float[Tensor, ""]:
        """-log Gamma(1 / var_theta; shape, rate) over all entries, float64."""
        shared = [layer.shared for layer in self.layers.values()]
        factors = [[g.std_b for g in shared], [g.std_a for g in shared], [g.variance for g in shared]]
        return op("precision_penalty", self.device)(*factors, shape, rate)

    def mean_penalty(self, variance: float, slot: Literal["shared", "task"] = "shared") -> Float[Tensor, ""]:
        """-log N(mean; 0, variance) of a slot's means over all entries, float64."""
        return torch.stack([getattr(x, slot).mean_penalty(variance) for x in self.layers.values()]).sum()

    def add_displacement(self, part: Part | None = None) -> None:
        """Leave theta - phi in the .grad of theta's factors: Reptile's direction, A and B apart."""
        pairs = zip(self.parameters("shared", part), self.parameters("task", part), strict=True)
        for shared, task in pairs:
            step = (shared - task).detach()
            shared.grad = step if shared.grad is None else shared.grad.add_(step)

    def add_task_gradients(self) -> None:
        """Hand the .grad of phi's factors over to theta's, added to what is there: the first-order outer gradient."""
        for shared, task in zip(self.parameters("shared"), self.parameters("task"), strict=True):
            if task.grad is not None:
                shared.grad = task.grad if shared.grad is None else shared.grad.add_(task.grad)
                task.grad = None

    @contextmanager
    def drawing(
        self,
        sampler: Sampler,
        keys: Int[Tensor, " S"] | None = None,
        questions: Int[Tensor, " B"] | None = None,
        tokens: Int[Tensor, "B T"] | None = None,
    ) -> Iterator[None]:
        """Forward and backward passes inside add this draw's noise to the means; see `Noise` for the arguments."""
        noise = self.noise
        noise.sampler, noise.keys, noise.questions, noise.tokens = sampler, keys, questions, tokens
        try:
            yield
        finally:
            noise.sampler, noise.keys, noise.questions, noise.tokens = "mean", None, None, None

    @contextmanager
    def dropping(self, rate: float, keys: Int[Tensor, " S"]) -> Iterator[None]:
        """Forward passes inside see a share `rate` less of each adapted layer's inputs; the masks are named by `keys`.

        A batch's rows are S equal consecutive groups. A mask is one for all tokens, as a draw of the weights is.
        """
        width = max(layer.task.in_features for layer in self.layers.values())
        self.noise.kept = kept(keys, len(self.layers), width, rate) if rate else None
        try:
            yield
        finally:
            self.noise.kept = None

    @contextmanager
    def with_cores(self, cores: Mapping[int, Core]) -> Iterator[None]:
        """Forward passes inside take the outputs of some layers, by number, from these functions: no captured ones."""
        self.noise.cores = cores
        try:
            yield
        finally:
            self.noise.cores = {}

    @torch.no_grad()
    def mean_squared_distance(self) -> Float[Tensor, ""]:
        """Mean over the N weights of D^2 = (mean_phi - mean_theta)^2, float64."""
        total = torch.stack([layer.task.squared_distance(layer.shared) for layer in self.layers.values()]).sum()
        return total / self.entries

    def std_statistics(self) -> dict[str, dict[str, float]]:
        """What the stds of theta and phi do: min, median, max, share at the floor (over evenly spaced rows of each
        layer, the median that of the layers' medians), and the mean variance.
        """
        return {name: self._slot_statistics(name) for name in ("shared", "task")}

    def _slot_statistics(self, slot: str) -> dict[str, float]:
        gaussians = [getattr(layer, slot) for layer in self.layers.values()]
        columns = list(zip(*(g.std_summary() for g in gaussians), strict=True))
        weighted = sum(g.mean_variance() * g.entries for g in gaussians)
        return {
            "min": min(columns[0]),
            "median": statistics.median(columns[1]),
            "max": max(columns[2]),
            "share_at_floor": statistics.fmean(columns[3]),
            "mean_variance": weighted / self.entries,
        }

    @property
    def device(self) -> torch.device:
        """Where the factors live."""
        return next(iter(self.layers.values())).task.mean_a.device

    def state_dict(self, slot: Literal["shared", "task"]) -> dict[str, Tensor]:
        """`layer.factor` -> tensor of a slot; detached, not copied."""
        return {
            f"{path}.{name}": parameter.detach()
            for path, layer in self.layers.items()
            for name, parameter in getattr(layer, slot).named_parameters()
        }

    @torch.no_grad()
    def load_state_dict(self, slot: Literal["shared", "task"], state: dict[str, Tensor]) -> None:
        """Copy tensors into a slot.

        Raises:
            KeyError, ValueError: a name is missing or too many, or a shape differs; nothing is changed then.
        """
        mine = self.state_dict(slot)
        if mine.keys() != state.keys():
            raise KeyError(f"adapter tensors differ: {sorted(mine.keys() ^ state.keys())[:5]} ...")
        for name, tensor in mine.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name}: shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}")
        for name, tensor in mine.items():
            tensor.copy_(state[name])


def layer_seed(seed: int, index: int) -> int:
    """Seed of one layer's initial factors."""
    return seed * 1_000_003 + index
