# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""KL and Gamma prior entry by entry on the GPU, between products and contractions that torch makes: for wide factors.

Above the rank whose tiles fit into registers (`triton_kl.MOST_RANK`) the tiles go through memory, in float32: `eager`
forms their products, one launch here reads them and puts the gradients in their place, and `eager` contracts those.
Each program stores one sum, so that the bits are the same every time.
"""

import os
from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from abmll.kernels import eager
from abmll.kernels.factors import Factors, Variance

FAST = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")  # the interpreter has no assembly and no bf16 products

_TILE_ENTRIES = 1 << 24  # the three products of a tile are 192 MiB; small ones leave SMs idle in the products
_BLOCK = 1024

# -------------------- device code


@triton.jit
@no_type_check
def reciprocal(x):
    """1 / x to a unit in the last place."""
    if FAST:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return 1.0 / x


@triton.jit
@no_type_check
def log(x):
    """log x to 2^-22, absolute where x is not far from 1."""
    if FAST:
        x = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
        return x * 0.6931471805599453
    return tl.log(x)


@triton.jit
@no_type_check
def twice_half_excess(delta, var_task, inverse_shared):
    """delta - log1p(delta), by a polynomial to 3e-7 where delta is not far from 0."""
    near = -0.15581537783145905 + delta * 0.13585349917411804
    near = -0.19958801567554474 + delta * (0.1663724035024643 + delta * near)
    near = 0.5 + delta * (-0.33333656191825867 + delta * (0.25000110268592834 + delta * near))
    return tl.where(tl.abs(delta) < 0.25, delta * (delta * near), delta - log(var_task * inverse_shared))


@triton.jit
@no_type_check
def _kl_pass(
    mean_change, u_change, u_shared, losses, size, offset, floor,
    TASK: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`eager.kl_entries` of one block of entries, the gradients over the products: G, H, H0 in their order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size  # beyond, all reads as zeros, where KL is 0
    change, step = tl.load(mean_change + at, inside, 0.0), tl.load(u_change + at, inside, 0.0)
    r = tl.load(u_shared + at, inside, 0.0) + offset
    r_task = r + step
    var_shared, var_task = r * r + floor, r_task * r_task + floor
    inverse_shared = reciprocal(var_shared)
    delta, pull = step * (2.0 * r + step) * inverse_shared, change * inverse_shared
    distance = pull * change
    tl.store(losses + tl.program_id(0), tl.sum(twice_half_excess(delta, var_task, inverse_shared) + distance, 0))
    if TASK or SHARED:
        tl.store(mean_change + at, pull, inside)
    if TASK:
        tl.store(u_change + at, 2.0 * r_task * (delta * reciprocal(var_task)), inside)
    if SHARED:
        tl.store(u_shared + at, (delta + distance) * (2.0 * r * inverse_shared), inside)


@triton.jit
@no_type_check
def _penalty_pass(u, losses, size, offset, floor, shape, rate, BLOCK: tl.constexpr):
    """`eager.penalty_entries` of one block of entries, but the constant; the gradient over u."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    r = tl.load(u + at, inside, 0.0) + offset
    var = r * r + floor
    inverse = reciprocal(var)
    tl.store(losses + tl.program_id(0), tl.sum(tl.where(inside, (shape - 1) * log(var) + rate * inverse, 0.0), 0))
    tl.store(u + at, ((shape - 1) - rate * inverse) * (2.0 * r * inverse), inside)


# -------------------- the ops


def task_kl(
    task: Sequence[Factors],
    shared: Sequence[Factors],
    variances: Sequence[Variance],
    stride: int = 1,
    key: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """`eager.task_kl` with one launch for the entries of a tile."""
    return eager.task_kl(task, shared, variances, stride, key, _kl_entries, _TILE_ENTRIES)


def precision_penalty(
    std_b: Sequence[Tensor], std_a: Sequence[Tensor], variances: Sequence[Variance], shape: float, rate: float
) -> Float[Tensor, ""]:
    """`eager.precision_penalty` with one launch for the entries of a tile."""
    return eager.precision_penalty(std_b, std_a, variances, shape, rate, _penalty_entries, _TILE_ENTRIES)


def _kl_entries(
    mean_change: Tensor, u_change: Tensor, u_shared: Tensor, variance: Variance, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    size = u_shared.numel()
    losses = u_shared.new_empty(triton.cdiv(size, _BLOCK))
    _kl_pass[losses.shape](
        mean_change, u_change, u_shared, losses, size, variance.offset, variance.floor**2,
        TASK=wanted[0], SHARED=wanted[1], BLOCK=_BLOCK,
    )  # fmt: skip
    return losses.sum(dtype=torch.float64).mul_(0.5), mean_change, u_change, u_shared


def _penalty_entries(u: Tensor, variance: Variance, shape: float, rate: float) -> tuple[Tensor, Tensor]:
    size = u.numel()
    losses = u.new_empty(triton.cdiv(size, _BLOCK))
    _penalty_pass[losses.shape](u, losses, size, variance.offset, variance.floor**2, shape, rate, BLOCK=_BLOCK)
    return losses.sum(dtype=torch.float64).add_(size * eager.gamma_constant(shape, rate)), u
