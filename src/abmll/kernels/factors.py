"""The two small values that every kernel takes: the low-rank factors, and how a product becomes a variance."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Factors(NamedTuple):
    """The four factors of one low-rank Gaussian. Products are `scale * B @ A`, of shape O x I, never kept."""

    mean_b: Float[Tensor, "O R"]
    mean_a: Float[Tensor, "R I"]
    std_b: Float[Tensor, "O R"]
    std_a: Float[Tensor, "R I"]


StdForm = Literal["square", "log_std"]


@dataclass(frozen=True, slots=True)
class Variance:
    """The variance of a weight as a function of the low-rank product u = s B' A' (docs/method.md, sections 1 and 2).

    `square`:  r = u + offset,  var = r^2 + floor^2. Only r^2 matters, so r may change sign.
    `log_std`: var = offset^2 exp(2 u) + floor^2.

    Attributes:
        form: "square" or "log_std".
        offset: the std that u = 0 gives, up to the floor.
        floor: a bound that no std goes below.
        scale: s = alpha / rank.
    """

    form: StdForm
    offset: float
    floor: float
    scale: float

    def of(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """var(u), elementwise.

        >>> Variance("square", offset=3.0, floor=4.0, scale=1.0).of(torch.zeros(()))
        tensor(25.)
        """
        if self.form == "square":
            return (u + self.offset).square().add_(self.floor**2)
        return self.offset**2 * torch.exp(2 * u) + self.floor**2

    def slope(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """d var / d u, elementwise: 2 r, or 2 f^2 exp(2 u)."""
        if self.form == "square":
            return 2 * (u + self.offset)
        return 2 * self.offset**2 * torch.exp(2 * u)

    def change(self, u: Float[Tensor, "*shape"], step: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """var(u + step) - var(u) without the cancellation of subtracting two nearly equal variances."""
        if self.form == "square":
            return (2 * (u + self.offset)).add_(step).mul_(step)
        return self.offset**2 * torch.exp(2 * u) * torch.expm1(2 * step)
