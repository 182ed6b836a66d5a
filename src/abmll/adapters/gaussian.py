"""LowRankGaussian: a Gaussian over a weight's difference from W0, held as four low-rank factors."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from abmll.kernels import Factors, Variance
from abmll.kernels.eager import mean, row_blocks, squared_norm, std_and_noise
from abmll.kernels.noise import noise_key


class StdSummary(NamedTuple):
    """Statistics of one layer's stds over its entries (or an even sample of its rows)."""

    minimum: float
    median: float
    maximum: float
    share_at_floor: float


class LowRankGaussian(nn.Module):
    """N(mean, var) over the entries of W - W0, with mean = s B A and var a function of s B' A'.

    Parameters are float32 whatever the base model's dtype. `std` may be left out: then the four-factor methods do
    not apply, and the module is an ordinary LoRA pair.

    Args:
        out_features: O.
        in_features: I.
        rank: R.
        variance: how s B' A' becomes a variance; its `scale` is s for the means too.
        with_std: hold the std factors B' and A' as well.

    >>> g = LowRankGaussian(6, 4, 2, Variance("square", 0.1, 1e-6, 2.0), with_std=True)
    >>> g.mean(torch.ones(3, 4)).shape, round(float(g.dense_std().mean()), 6)
    (torch.Size([3, 6]), 0.1)
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        rank: int,
        variance: Variance,
        *,
        with_std: bool,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features, self.rank = out_features, in_features, rank
        self.variance = variance
        self.mean_b = nn.Parameter(torch.zeros(out_features, rank))
        self.mean_a = nn.Parameter(_kaiming(rank, in_features, noise_key("mean_a", seed)))
        if with_std:
            self.std_b = nn.Parameter(torch.zeros(out_features, rank))
            self.std_a = nn.Parameter(_kaiming(rank, in_features, noise_key("std_a", seed)))

    @property
    def has_std(self) -> bool:
        """Whether the std factors are held."""
        return "std_b" in self._parameters

    @property
    def entries(self) -> int:
        """O * I, the number of weights this is a Gaussian over."""
        return self.out_features * self.in_features

    def factors(self, *, detached: bool = False) -> Factors:
        """All four factors; `detached` cuts them off from the gradient."""
        four = (self.mean_b, self.mean_a, self.std_b, self.std_a)
        return Factors(*(f.detach() for f in four)) if detached else Factors(*four)

    def mean(self, x: Float[Tensor, "*tokens I"]) -> Float[Tensor, "*tokens O"]:
        """x (s B A)^T, float32, by two thin products."""
        return mean(x, self.mean_b, self.mean_a, self.variance.scale)

    def mean_penalty(self, variance: float) -> Float[Tensor, ""]:
        """-log N(mean; 0, variance) summed over entries, float64."""
        squares = self.variance.scale**2 * squared_norm(self.mean_b, self.mean_a)
        return squares / (2 * variance) + 0.5 * self.entries * math.log(2 * math.pi * variance)

    def squared_distance(self, other: "LowRankGaussian") -> Float[Tensor, ""]:
        """Sum over entries of (mean_self - mean_other)^2, float64, differences before products."""
        b = torch.cat([self.mean_b - other.mean_b, other.mean_b], dim=1)
        a = torch.cat([self.mean_a, self.mean_a - other.mean_a], dim=0)
        return self.variance.scale**2 * squared_norm(b, a)

    @torch.no_grad()
    def std_summary(self, max_rows: int = 64) -> StdSummary:
        """Minimum, median and maximum std, and the share within 1 % of the floor, over evenly spaced rows."""
        rows = torch.linspace(0, self.out_features - 1, min(max_rows, self.out_features)).long()
        std = self.variance.of(self.variance.scale * (self.std_b[rows] @ self.std_a)).sqrt()
        at_floor = (std <= 1.01 * self.variance.floor).float().mean()
        return StdSummary(float(std.min()), float(std.median()), float(std.max()), float(at_floor))

    @torch.no_grad()
    def mean_variance(self) -> float:
        """Mean of var over all entries: `sum r^2 = |u|^2 + 2 f sum u + N f^2`, or tile by tile for `log_std`."""
        s, f = self.variance.scale, self.variance.offset
        if self.variance.form == "square":
            b, a = self.std_b.double(), self.std_a.double()
            squares = s**2 * squared_norm(b, a) + 2 * f * s * (b.sum(0) @ a.sum(1))
            return float(squares) / self.entries + f**2 + self.variance.floor**2
        total = 0.0
        for rows in row_blocks(self.out_features, self.in_features):
            total += float(self.variance.of(self.variance.scale * (self.std_b[rows] @ self.std_a)).double().sum())
        return total / self.entries

    def dense_mean(self) -> Float[Tensor, "O I"]:
        """The O x I means: for export and tests, never for training."""
        return self.variance.scale * (self.mean_b @ self.mean_a)

    def dense_std(self) -> Float[Tensor, "O I"]:
        """The O x I stds: for export and tests, never for training."""
        return self.variance.of(self.variance.scale * (self.std_b @ self.std_a)).sqrt()

    @torch.no_grad()
    def dense_draw(self, key: int, layer: int) -> Float[Tensor, "O I"]:
        """mean + std * E, with the E that the `weight` sampler regenerates for this key and layer."""
        out = self.dense_mean()
        for rows, _, std, noise in std_and_noise(self.std_b, self.std_a, self.variance, key, layer):
            out[rows] += std * noise
        return out

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Every factor at its initial value, as if made with this seed."""
        self.mean_b.zero_()
        self.mean_a.copy_(_kaiming(self.rank, self.in_features, noise_key("mean_a", seed)))
        if self.has_std:
            self.reset_std(seed)

    @torch.no_grad()
    def reset_std(self, seed: int) -> None:
        """Std factors at their initial values: B' = 0, so every std is sqrt(f^2 + eps^2)."""
        self.std_b.zero_()
        self.std_a.copy_(_kaiming(self.rank, self.in_features, noise_key("std_a", seed)))


def _kaiming(rank: int, in_features: int, key: int) -> Float[Tensor, "R I"]:
    """LoRA's initial A: uniform within 1 / sqrt(I) (kaiming_uniform with a = sqrt 5), from its own keyed generator."""
    generator = torch.Generator().manual_seed(key >> 1)
    bound = 1 / math.sqrt(in_features)
    return torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
