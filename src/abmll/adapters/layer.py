"""The adapted linear layer with its two slots, and the set of all adapted layers of a model."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from abmll.adapters.gaussian import LowRankGaussian
from abmll.kernels import op

Sampler = Literal["mean", "weight", "activation"]
Part = Literal["mean", "std"]


@dataclass(slots=True)
class Noise:
    """What a forward pass adds to the means: set by `AdapterSet.drawing`, read by every layer.

    Attributes:
        sampler: `mean` adds nothing; `weight` one weight matrix for all tokens; `activation` local
            reparameterisation.
        key: 64-bit key of this draw.
        questions: question keys of the batch's rows (activation noise).
        tokens: position of each token within its question (activation noise).
    """

    sampler: Sampler = "mean"
    key: int = 0
    questions: Int[Tensor, " B"] | None = None
    tokens: Int[Tensor, "B T"] | None = None


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
        y = self.base(x)
        x = x.to(self.task.mean_a.dtype)
        return (y.to(x.dtype) + self._added(x)).to(y.dtype)

    def _added(self, x: Float[Tensor, "*tokens I"]) -> Float[Tensor, "*tokens O"]:
        mean, noise, std = self.task.mean(x), self.noise, self.task
        if noise.sampler == "mean" or not std.has_std:
            return mean
        if noise.sampler == "weight":
            return mean + op("weight_noise")(x, std.std_b, std.std_a, std.variance, noise.key, self.index)
        return mean + op("activation_noise")(
            x, std.std_b, std.std_a, std.variance, noise.key, self.index, noise.questions, noise.tokens
        )


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

    def parameters(self, slot: Literal["shared", "task"], part: Part | None = None) -> list[nn.Parameter]:
        """The factors of a slot: of the means, of the stds, or all of them; in layer order."""
        return [
            parameter
            for layer in self.layers.values()
            for name, parameter in getattr(layer, slot).named_parameters()
            if part is None or name.startswith(part)
        ]

    def begin_task(self, std_start: Literal["copy", "init"] = "copy") -> None:
        """phi <- theta; with `init` the stds of phi start at f again instead."""
        for layer in self.layers.values():
            layer.task.copy_from(layer.shared)
            if std_start == "init" and layer.task.has_std:
                layer.task.reset_std(layer_seed(self.seed, layer.index))

    def kl(
        self, *, detach: Literal["shared", "task"] | None = None, fraction: float = 1.0, key: int = 0
    ) -> Float[Tensor, ""]:
        """KL(q(phi | D) || p(phi | theta)) summed over all N entries, float64.

        Args:
            detach: the slot that takes no gradient.
            fraction: visit this share of each layer's row blocks, drawn by `key`, and rescale: unbiased.
            key: 64 bits from `noise_key`; unused when `fraction` is 1.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for layer in self.layers.values():
            blocks, weight = _choose_blocks(layer, fraction, key)
            total = total + weight * layer.task.kl(layer.shared, detach=detach, blocks=blocks)
        return total

    def precision_penalty(self, shape: float, rate: float) -> Float[Tensor, ""]:
        """-log Gamma(1 / var_theta; shape, rate) over all entries, float64."""
        return torch.stack([x.shared.precision_penalty(shape, rate) for x in self.layers.values()]).sum()

    def mean_penalty(self, variance: float) -> Float[Tensor, ""]:
        """-log N(mean_theta; 0, variance) over all entries, float64."""
        return torch.stack([x.shared.mean_penalty(variance) for x in self.layers.values()]).sum()

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
        key: int,
        questions: Int[Tensor, " B"] | None = None,
        tokens: Int[Tensor, "B T"] | None = None,
    ) -> Iterator[None]:
        """Forward and backward passes inside add this draw's noise to the means."""
        noise = self.noise
        noise.sampler, noise.key, noise.questions, noise.tokens = sampler, key, questions, tokens
        try:
            yield
        finally:
            noise.sampler, noise.questions, noise.tokens = "mean", None, None

    @torch.no_grad()
    def mean_squared_distance(self) -> float:
        """Mean over the N weights of D^2 = (mean_phi - mean_theta)^2."""
        total = torch.stack([layer.task.squared_distance(layer.shared) for layer in self.layers.values()]).sum()
        return float(total) / self.entries

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


def _choose_blocks(layer: AdaptedLinear, fraction: float, key: int) -> tuple[list[slice] | None, float]:
    """Row blocks for an unbiased share of the KL, and the factor that rescales their sum."""
    if fraction >= 1.0:
        return None, 1.0
    from_rows, columns = layer.task.out_features, layer.task.in_features
    height = max(1, min(round(from_rows * fraction), (1 << 18) // columns))
    blocks = [slice(start, min(start + height, from_rows)) for start in range(0, from_rows, height)]
    count = max(1, round(fraction * len(blocks)))
    generator = torch.Generator().manual_seed((key ^ layer.index) & 0x7FFFFFFFFFFFFFFF)
    chosen = torch.randperm(len(blocks), generator=generator)[:count]
    return [blocks[i] for i in sorted(chosen.tolist())], len(blocks) / count
