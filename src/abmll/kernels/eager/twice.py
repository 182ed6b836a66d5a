"""The ops whose usual form has one derivative, in a form that has all of them: for gradients of gradients.

They hold matrices of a layer's size until their graph is gone, about 40 bytes an adapted weight, where the usual forms
walk through tiles.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from abmll.kernels.eager.divergence import first_row, strided_rows
from abmll.kernels.eager.output import mean, rows_per_key
from abmll.kernels.factors import Factors, Variance
from abmll.kernels.noise import normal


def task_kl(
    task: Sequence[Factors],
    shared: Sequence[Factors],
    variances: Sequence[Variance],
    stride: int = 1,
    key: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """As `abmll.kernels.eager.task_kl`, differentiable any number of times."""
    total = torch.zeros((), dtype=torch.float64, device=task[0].mean_b.device)
    for layer, (mine, theirs, variance) in enumerate(zip(task, shared, variances, strict=True)):
        if stride > 1:
            assert key is not None
            start = first_row(key, torch.full((), layer, device=key.device), stride)
            mine, theirs = (strided_rows(factors, start, stride) for factors in (mine, theirs))
        total = total + stride * _layer_kl(mine, theirs, variance)
    return total


def _layer_kl(task: Factors, shared: Factors, variance: Variance) -> Float[Tensor, ""]:
    s = variance.scale
    distance = _difference(task.mean_b, task.mean_a, shared.mean_b, shared.mean_a, s)
    step = _difference(task.std_b, task.std_a, shared.std_b, shared.std_a, s)
    u = s * (shared.std_b @ shared.std_a)
    var = _variance(variance, u)
    delta = (_change(variance, u, step) / var).double()
    return 0.5 * (delta - delta.log1p() + (distance.square() / var).double()).sum()


def _difference(b: Tensor, a: Tensor, b0: Tensor, a0: Tensor, scale: float) -> Float[Tensor, "O I"]:
    """scale (B A - B0 A0), differences first."""
    return scale * (torch.cat([b - b0, b0], dim=1) @ torch.cat([a, a - a0], dim=0))


def _variance(variance: Variance, u: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """`Variance.of` without writing over anything."""
    if variance.form == "square":
        return (u + variance.offset).square() + variance.floor**2
    return variance.offset**2 * torch.exp(2 * u) + variance.floor**2


def _change(variance: Variance, u: Float[Tensor, "O I"], step: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """`Variance.change` without writing over anything."""
    if variance.form == "square":
        return (2 * (u + variance.offset) + step) * step
    return variance.offset**2 * torch.exp(2 * u) * torch.expm1(2 * step)


def weight_output(
    y0: Float[Tensor, "*tokens O"],
    x: Float[Tensor, "*tokens I"],
    factors: Factors,
    variance: Variance,
    keys: Int[Tensor, " S"],
    layer: int,
) -> Float[Tensor, "*tokens O"]:
    """As `abmll.kernels.eager.weight_output`, differentiable any number of times.

    Raises:
        AbmllError: the rows do not divide into S groups.
    """
    x = x.to(factors.mean_a.dtype)
    std = _variance(variance, variance.scale * (factors.std_b @ factors.std_a)).sqrt()
    counters = torch.arange(std.shape[0], device=std.device)
    groups = x.split(rows_per_key(x.shape[0], keys))
    drawn = [std * normal(key, std.shape[1], counters, layer).to(std.dtype) for key in keys.unbind()]
    noise = torch.cat([linear(group, weight) for group, weight in zip(groups, drawn, strict=True)])
    return (y0.to(x.dtype) + mean(x, factors.mean_b, factors.mean_a, variance.scale) + noise).to(y0.dtype)
