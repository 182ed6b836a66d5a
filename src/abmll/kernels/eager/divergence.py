"""KL(task | shared) and the Gamma prior of the shared variances: values, and gradients by the factors.

Nothing O x I outlives a tile. Gradients are formed tile by tile in the forward pass, where the tile is at hand,
and kept as factors, so that memory is O((O + I) R) per layer. Sums over a layer are accumulated in float64.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from abmll.kernels.eager.tiles import contract, row_blocks
from abmll.kernels.factors import Factors, Variance
from abmll.kernels.noise import philox

KLEntries = Callable[[Tensor, Tensor, Tensor, Variance, tuple[bool, bool]], tuple[Tensor, Tensor, Tensor, Tensor]]
"""See `kl_entries`. It may write what it gives over what it takes."""
PenaltyEntries = Callable[[Tensor, Variance, float, float], tuple[Tensor, Tensor]]
"""See `penalty_entries`. It may write what it gives over what it takes."""


# -------------------- KL(task | shared)


def kl_entries(
    mean_change: Float[Tensor, "o I"],
    u_change: Float[Tensor, "o I"],
    u_shared: Float[Tensor, "o I"],
    variance: Variance,
    wanted: tuple[bool, bool],
) -> tuple[Float[Tensor, ""], Tensor, Tensor, Tensor]:
    """The summed KL of a tile, float64, then G, H and H0: its gradients are G and H / 2, for theta -G and -H0 / 2.

    What only a side needs that is not `wanted`, of the task's and theta's, may be anything.
    """
    u_task = u_shared + u_change
    var_shared, var_task = variance.of(u_shared), variance.of(u_task)
    delta = variance.change(u_shared, u_change).div_(var_shared)
    pull = mean_change / var_shared
    distance = pull * mean_change
    total = _excess(delta, var_task, var_shared).add_(distance.sum(dtype=torch.float64)).mul_(0.5)
    by_u_task = (delta / var_task).mul_(variance.slope(u_task)) if wanted[0] else u_task
    by_u_shared = delta
    if wanted[1]:
        slope = variance.slope(u_shared).div_(var_shared)  # this quotient first: at the floor 1 / var^2 can overflow
        by_u_shared = delta.add_(distance).mul_(slope)
    return total, pull, by_u_task, by_u_shared


def task_kl(
    task: Sequence[Factors],
    shared: Sequence[Factors],
    variances: Sequence[Variance],
    stride: int = 1,
    key: Int[Tensor, ""] | None = None,
    entries: KLEntries = kl_entries,
    tile_entries: int | None = None,
) -> Float[Tensor, ""]:
    """KL(q(phi | D) || p(phi | theta)) summed over the entries of all layers, float64.

    Per entry, with D = mean_phi - mean_theta and delta = (var_phi - var_theta) / var_theta:
    KL = 1/2 (delta - log1p(delta)) + 1/2 D^2 / var_theta  (docs/method.md, section 3). Differentiable once in all eight
    factors; a side (task or shared) that needs no gradient costs none.

    Args:
        task: the factors of phi, by layer.
        shared: the factors of theta.
        variances: how products become variances, the same for both.
        stride: visit every `stride`-th row of each layer, from a start drawn by `key`, and scale up: unbiased.
        key: 64 bits as an int64 tensor; needed if `stride` is not 1.
        entries: what is done to a tile between its products and its contractions.
        tile_entries: how large a tile is; None: as `row_blocks` has it.
    """
    total = torch.zeros((), dtype=torch.float64, device=task[0].mean_b.device)
    for layer, (mine, theirs, variance) in enumerate(zip(task, shared, variances, strict=True)):
        if stride > 1:
            assert key is not None
            start = first_row(key, torch.full((), layer, device=key.device), stride)
            mine, theirs = (strided_rows(factors, start, stride) for factors in (mine, theirs))
        total = total + stride * layer_kl(mine, theirs, variance, entries, tile_entries)
    return total


def layer_kl(
    task: Factors,
    shared: Factors,
    variance: Variance,
    entries: KLEntries = kl_entries,
    tile_entries: int | None = None,
) -> Float[Tensor, ""]:
    """The KL of one layer."""
    blocks = row_blocks(task.mean_b.shape[0], task.mean_a.shape[1], task.mean_b.device, tile_entries)
    return _TaskKL.apply(variance, entries, blocks, *task, *shared)


def strided_rows(factors: Factors, start: Int[Tensor, ""], stride: int) -> Factors:
    """The factors of rows start, start + stride, ...; past the last one a row of zeros, whose KL and gradients are 0.

    The start stays a tensor, so that nothing waits for it and a CUDA graph can be captured.
    """
    rows = factors.mean_b.shape[0]
    chosen = start + stride * torch.arange(-(-rows // stride), device=start.device)
    inside, at = (chosen < rows)[:, None], chosen.clamp(max=rows - 1)
    mean_b, std_b = (torch.where(inside, b[at], 0.0) for b in (factors.mean_b, factors.std_b))
    return factors._replace(mean_b=mean_b, std_b=std_b)


def first_row(key: Int[Tensor, ""], layer: Int[Tensor, "*layers"], stride: int) -> Int[Tensor, "*layers"]:
    """The start of a layer's row subset: 0 ... stride - 1, all as likely."""
    zero = torch.zeros_like(layer)
    return philox(key, layer, zero, zero, zero)[0] % stride


class _TaskKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, variance: Variance, entries: KLEntries, blocks: Sequence[slice], *factors: Tensor) -> Tensor:
        task, shared = Factors(*factors[:4]), Factors(*factors[4:])
        with_gradient = [any(ctx.needs_input_grad[3:7]), any(ctx.needs_input_grad[7:])]
        gradients = [torch.zeros_like(f) if with_gradient[i // 4] else None for i, f in enumerate(factors)]
        total = torch.zeros((), dtype=torch.float64, device=factors[0].device)
        for rows in blocks:
            total += _kl_tile(task, shared, variance, entries, rows, gradients)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *(None if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors))


def difference_of_products(
    b: Float[Tensor, "O R"], a: Float[Tensor, "R I"], b0: Float[Tensor, "O R"], a0: Float[Tensor, "R I"], scale: float
) -> Float[Tensor, "O I"]:
    """scale (B A - B0 A0) as [B - B0, B0] [A ; A - A0]: differences first, so nearly equal ones lose nothing."""
    return torch.cat([b - b0, b0], dim=1) @ torch.cat([a, a - a0], dim=0).mul_(scale)


def _kl_tile(
    task: Factors,
    shared: Factors,
    variance: Variance,
    entries: KLEntries,
    rows: slice,
    gradients: list[Tensor | None],
) -> Float[Tensor, ""]:
    """The KL of a block of rows, float64; adds the block's share of each wanted gradient in place."""
    s, wanted = variance.scale, (gradients[0] is not None, gradients[4] is not None)
    mean_change = difference_of_products(task.mean_b[rows], task.mean_a, shared.mean_b[rows], shared.mean_a, s)
    u_change = difference_of_products(task.std_b[rows], task.std_a, shared.std_b[rows], shared.std_a, s)
    u_shared = shared.std_b[rows] @ (s * shared.std_a)
    total, by_mean, by_u_task, by_u_shared = entries(mean_change, u_change, u_shared, variance, wanted)
    if wanted[0]:
        contract(gradients[:2], by_mean, task.mean_b, task.mean_a, rows, s)
        contract(gradients[2:4], by_u_task, task.std_b, task.std_a, rows, 0.5 * s)
    if wanted[1]:
        contract(gradients[4:6], by_mean, shared.mean_b, shared.mean_a, rows, -s)
        contract(gradients[6:], by_u_shared, shared.std_b, shared.std_a, rows, -0.5 * s)
    return total


def _excess(
    delta: Float[Tensor, "o I"], var_task: Float[Tensor, "o I"], var_shared: Float[Tensor, "o I"]
) -> Float[Tensor, ""]:
    """Sum of delta - log1p(delta), float64: in float32 its digits would cancel near 0.

    Below -1/2, where 1 + delta would lose them, the logarithm is that of the quotient of the variances; it is put
    together as log1p(max(delta, -1/2)) + min(log(quotient), log(1/2)) - log(1/2), as torch's `where` is slow on CPUs.
    """
    wide = delta.double()
    if not delta.is_cuda and not bool(delta.amin() < -0.5):
        return (wide - wide.log1p()).sum()
    near = (wide - wide.clamp_min(-0.5).log1p_()).sum()
    below = (var_task / var_shared).log_().clamp_max_(-math.log(2.0)).add_(math.log(2.0))
    return near - below.sum(dtype=torch.float64)


# -------------------- -log p(theta), Gamma part


def penalty_entries(
    u: Float[Tensor, "o I"], variance: Variance, shape: float, rate: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "o I"]]:
    """The summed penalty of a tile, float64, and its gradient by u."""
    var = variance.of(u)
    total = (gamma_constant(shape, rate) + (shape - 1) * var.log() + rate / var).sum(dtype=torch.float64)
    return total, ((shape - 1) - rate / var) * (variance.slope(u) / var)  # in this order, as above


def gamma_constant(shape: float, rate: float) -> float:
    """What the penalty of every entry has in common: lgamma(a0) - a0 log b0."""
    return math.lgamma(shape) - shape * math.log(rate)


def precision_penalty(
    std_b: Sequence[Tensor],
    std_a: Sequence[Tensor],
    variances: Sequence[Variance],
    shape: float,
    rate: float,
    entries: PenaltyEntries = penalty_entries,
    tile_entries: int | None = None,
) -> Float[Tensor, ""]:
    """-log Gamma(1 / var_theta; shape, rate) summed over the entries of all layers, float64.

    Per entry: -a0 log b0 + lgamma(a0) + (a0 - 1) log var + b0 / var, the density in 1 / var as written, with no
    Jacobian (docs/method.md, section 2). `entries` and `tile_entries` as in `task_kl`.
    """
    layers = zip(std_b, std_a, variances, strict=True)
    of_layers = [layer_precision_penalty(*layer, shape, rate, entries, tile_entries) for layer in layers]
    return torch.stack(of_layers).sum()


def layer_precision_penalty(
    std_b: Float[Tensor, "O R"],
    std_a: Float[Tensor, "R I"],
    variance: Variance,
    shape: float,
    rate: float,
    entries: PenaltyEntries = penalty_entries,
    tile_entries: int | None = None,
) -> Float[Tensor, ""]:
    """The penalty of one layer."""
    blocks = row_blocks(std_b.shape[0], std_a.shape[1], std_b.device, tile_entries)
    return _PrecisionPenalty.apply((variance, shape, rate, entries), blocks, std_b, std_a)


class _PrecisionPenalty(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        how: tuple[Variance, float, float, PenaltyEntries],
        blocks: Sequence[slice],
        std_b: Tensor,
        std_a: Tensor,
    ) -> Tensor:
        variance, shape, rate, entries = how
        gradients: list[Tensor | None] = [torch.zeros_like(std_b), torch.zeros_like(std_a)]
        total = torch.zeros((), dtype=torch.float64, device=std_b.device)
        for rows in blocks:
            loss, by_u = entries(variance.scale * (std_b[rows] @ std_a), variance, shape, rate)
            total += loss
            contract(gradients, by_u, std_b, std_a, rows, variance.scale)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(g * upstream.to(g.dtype) for g in ctx.saved_tensors))


def squared_norm(b: Float[Tensor, "O R"], a: Float[Tensor, "R I"]) -> Float[Tensor, ""]:
    """||B A||_F^2 from two R x R Gram matrices, float64: the mean part of the prior needs no tile."""
    b, a = b.double(), a.double()
    return ((b.T @ b) * (a @ a.T)).sum()
