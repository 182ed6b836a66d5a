# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""KL(task | shared) and the Gamma prior on the GPU: all layers of one shape in one launch, nothing O x I in memory.

A tile of the three products it needs (the change of the means, the change of u and the shared u itself) is formed by
the tensor cores from bfloat16 parts of float32 factors, x = hi + mid + lo, which keep all its 24 bits. A gradient tile
G is contracted where it stands, both ways, from its first two parts: with the columns' A factors into the program's own
rows of dB, and with the program's rows of B into its share of dA, which a sum over blocks of rows completes. So a tile
is visited once, there are no atomics, and the bits are the same every time.
"""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from abmll.kernels import eager, fallbacks
from abmll.kernels.factors import Factors, Variance

MOST_RANK = 16  # a wider factor needs more registers than a thread has
_CHUNK_BYTES = 384 << 20  # of operands and shares of dA made for one launch
_FAST = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")  # the interpreter has no assembly and no bf16 products

# The planes of an operand, [L, planes, n, K], each two halves side by side. From 0: the shared std factor as pairs of
# parts, whose product is [hi mid] [hi mid]^T + [hi mid] [mid hi]^T + [hi lo] [lo hi]^T. From 4: hi, mid and lo of the
# means' and of the stds' differences and what they are multiplied by. From 10: [hi mid] and [lo 0] of
# phi's mean factor, then of its std factor.
_PAIRS, _PLANES = 4, 14


# -------------------- device code


@triton.jit
@no_type_check
def _inverse(x):
    if _FAST:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return 1.0 / x


@triton.jit
@no_type_check
def _log(x):
    if _FAST:
        x = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
        return x * 0.6931471805599453
    return tl.log(x)


@triton.jit
@no_type_check
def _dot(a, b, out=None):
    if _FAST:
        return tl.dot(a, b, out)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), out)


@triton.jit
@no_type_check
def _split_once(x):
    """The nearest bfloat16 and the rest, by integer arithmetic: a conversion has an eighth of its rate."""
    bits = (x.to(tl.uint32, bitcast=True) + 0x8000) & 0xFFFF0000
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True), x - bits.to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _split(x):
    hi, rest = _split_once(x)
    if _FAST:
        return hi, rest.to(tl.bfloat16)  # two at a time; and what is not a number stays so
    mid, _ = _split_once(rest)
    return hi, mid


@triton.jit
@no_type_check
def _product(a_hi, a_mid, a_lo, b_hi, b_mid, b_lo):
    out = _dot(a_lo, b_hi)
    out = _dot(a_hi, b_lo, out)
    out = _dot(a_mid, b_mid, out)
    out = _dot(a_mid, b_hi, out)
    out = _dot(a_hi, b_mid, out)
    return _dot(a_hi, b_hi, out)


@triton.jit
@no_type_check
def _contract(g_hi, g_mid, hi, mid, lo):
    """G X of one tile from their parts; the caller adds tiles up, since tensor cores cut where they should round."""
    out = _dot(g_mid, mid)
    out = _dot(g_hi, lo, out)
    out = _dot(g_mid, hi, out)
    out = _dot(g_hi, mid, out)
    return _dot(g_hi, hi, out)


@triton.jit
@no_type_check
def _contract_pair(g_hi, g_mid, pair, rest):
    """G [hi mid] + G [lo 0]: the two halves add up to G X."""
    return _dot(g_hi, pair, _dot(g_hi, rest, _dot(g_mid, pair)))


@triton.jit
@no_type_check
def _halves(x, N: tl.constexpr, K: tl.constexpr):
    """The first and the last K / 2 columns of [N, K]."""
    return tl.split(tl.permute(tl.reshape(x, (N, 2, K // 2)), (0, 2, 1)))


@triton.jit
@no_type_check
def _store_parts(out, plane, x, inside):
    hi, rest = _split_once(x)
    mid, lo = _split(rest)
    tl.store(out, hi, inside)
    tl.store(out + plane, mid, inside)
    tl.store(out + 2 * plane, lo, inside)


@triton.jit
@no_type_check
def _store_pair(out, plane, x, is_first, inside):
    hi, rest = _split_once(x)
    mid, lo = _split(rest)
    tl.store(out, tl.where(is_first, hi, mid), inside)
    tl.store(out + plane, tl.where(is_first, lo, 0.0), inside)


@triton.jit
@no_type_check
def _prepare(
    addresses, out, starts, stride, n, total, row_step, rank_step, scale,
    PLANES: tl.constexpr, IS_B: tl.constexpr, R: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The planes of an operand from the factors at `addresses` [L, 4]: mean and std factor of phi, then of theta.

    Row j of the operand is row `starts + j stride` of the factors, zeros from `total` on. Differences come before
    products: B A - B0 A0 = [B - B0, B0] [A ; A - A0], and the B side carries the scale.
    """
    layer = tl.program_id(1).to(tl.int64)
    rows, k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, K)
    source = tl.load(starts + layer) + rows.to(tl.int64) * stride
    inside, rank, is_first = (rows < n)[:, None] & (k < K)[None, :], k % (K // 2), (k < K // 2)[None, :]
    used = (source < total)[:, None] & (rank < R)[None, :]
    at = source[:, None] * row_step + rank[None, :] * rank_step
    plane = n * K
    here = out + layer * PLANES * plane + rows[:, None] * K + k[None, :]
    theirs = tl.load(tl.load(addresses + 4 * layer + 3).to(tl.pointer_type(tl.float32)) + at, used, 0.0) * scale
    hi, rest = _split_once(theirs)
    mid, lo = _split(rest)
    tl.store(here, tl.where(is_first, hi, mid), inside)
    tl.store(here + plane, tl.where(is_first, mid, hi), inside)
    tl.store(here + 2 * plane, tl.where(is_first, hi, lo), inside)
    tl.store(here + 3 * plane, tl.where(is_first, lo, hi), inside)
    if PLANES == 14:
        mine = tl.load(tl.load(addresses + 4 * layer + 1).to(tl.pointer_type(tl.float32)) + at, used, 0.0) * scale
        mean = tl.load(tl.load(addresses + 4 * layer).to(tl.pointer_type(tl.float32)) + at, used, 0.0) * scale
        mean_0 = tl.load(tl.load(addresses + 4 * layer + 2).to(tl.pointer_type(tl.float32)) + at, used, 0.0) * scale
        if IS_B:
            _store_parts(here + 4 * plane, plane, tl.where(is_first, mean - mean_0, mean_0), inside)
            _store_parts(here + 7 * plane, plane, tl.where(is_first, mine - theirs, theirs), inside)
        else:
            _store_parts(here + 4 * plane, plane, tl.where(is_first, mean, mean - mean_0), inside)
            _store_parts(here + 7 * plane, plane, tl.where(is_first, mine, mine - theirs), inside)
        _store_pair(here + 10 * plane, plane, mean, is_first, inside)
        _store_pair(here + 12 * plane, plane, mine, is_first, inside)


@triton.jit
@no_type_check
def _twice_half_excess(change, delta, var_task, var_shared, inverse_shared):
    """delta - log1p(delta), by the series of atanh in z = delta / (2 + delta) where that is not far from 0."""
    z = change * _inverse(var_task + var_shared)
    w = z * z
    near = delta * z - z * w * (2 / 3 + w * (2 / 5 + w * (2 / 7 + w * (2 / 9))))
    return tl.where(tl.abs(delta) < 0.25, near, delta - _log(var_task * inverse_shared))


@triton.jit
@no_type_check
def _kl_pass(
    left, right, by_b, by_a, losses, offsets, floors, starts, stride, n, m, height, weight, scale,
    R: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    TASK: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """One block of rows of one layer against all columns: its loss, its rows of dB, and its share of dA.

    Rows and columns past n and m read as zeros, where KL and its gradients are 0. The means' gradients of theta and phi
    come from one contraction with [B - B0, B0] and [A ; A - A0], so that what is left of their sum keeps its digits.
    """
    layer, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    rows, k, q = block * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, K), tl.arange(0, K // 2)
    inside = (rows < n)[:, None]
    plane = n * K
    mine = left + layer * 14 * plane + rows[:, None] * K + k[None, :]
    hi_mid, hi_lo = tl.load(mine, inside, 0.0), tl.load(mine + 2 * plane, inside, 0.0)
    mean_hi, std_hi = tl.load(mine + 4 * plane, inside, 0.0), tl.load(mine + 7 * plane, inside, 0.0)
    mean_mid, std_mid = tl.load(mine + 5 * plane, inside, 0.0), tl.load(mine + 8 * plane, inside, 0.0)
    mean_lo, std_lo = tl.load(mine + 6 * plane, inside, 0.0), tl.load(mine + 9 * plane, inside, 0.0)
    if TASK:
        own_mean, own_std = tl.load(mine + 10 * plane, inside, 0.0), tl.load(mine + 12 * plane, inside, 0.0)
        own_mean_lo, own_std_lo = tl.load(mine + 11 * plane, inside, 0.0), tl.load(mine + 13 * plane, inside, 0.0)
    offset, floor = tl.load(offsets + layer), tl.load(floors + layer)
    by_mean = tl.zeros((BLOCK_N, K), tl.float32)
    by_task_std = tl.zeros((BLOCK_N, K), tl.float32)
    by_shared_std = tl.zeros((BLOCK_N, K), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    slots: tl.constexpr = 2 * TASK + 2 * SHARED
    size = R * m
    shares = by_a + (layer * tl.num_programs(0) + block) * slots * size
    for start in range(0, m, BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        there = (columns < m)[None, :]
        plane = m * K
        theirs = right + layer * 14 * plane + columns[None, :] * K + k[:, None]
        r_hi_mid, r_mid_hi = tl.load(theirs, there, 0.0), tl.load(theirs + plane, there, 0.0)
        r_lo_hi = tl.load(theirs + 3 * plane, there, 0.0)
        r_mean_hi, r_std_hi = tl.load(theirs + 4 * plane, there, 0.0), tl.load(theirs + 7 * plane, there, 0.0)
        r_mean_mid, r_std_mid = tl.load(theirs + 5 * plane, there, 0.0), tl.load(theirs + 8 * plane, there, 0.0)
        r_mean_lo, r_std_lo = tl.load(theirs + 6 * plane, there, 0.0), tl.load(theirs + 9 * plane, there, 0.0)

        mean_change = _product(mean_hi, mean_mid, mean_lo, r_mean_hi, r_mean_mid, r_mean_lo)
        u_change = _product(std_hi, std_mid, std_lo, r_std_hi, r_std_mid, r_std_lo)
        u = _dot(hi_lo, r_lo_hi)
        u = _dot(hi_mid, r_mid_hi, u)
        r_shared = _dot(hi_mid, r_hi_mid, u) + offset
        r_task = r_shared + u_change
        var_shared, var_task = r_shared * r_shared + floor, r_task * r_task + floor
        change = u_change * (r_shared + r_task)
        inverse_shared = _inverse(var_shared)
        delta, pull = change * inverse_shared, mean_change * inverse_shared
        excess = _twice_half_excess(change, delta, var_task, var_shared, inverse_shared)
        total += tl.sum(excess + pull * mean_change, 1)

        put = shares + q[None, :] * m + columns[:, None]
        to = (q < R)[None, :] & (columns < m)[:, None]
        if SHARED:
            g_hi, g_mid = _split(pull)
            by_mean += _contract(g_hi, g_mid, tl.trans(r_mean_hi), tl.trans(r_mean_mid), tl.trans(r_mean_lo))
            change_share, shared_share = _halves(
                _contract(tl.trans(g_hi), tl.trans(g_mid), mean_hi, mean_mid, mean_lo), BLOCK_M, K
            )
            if TASK:
                tl.store(put, weight * (change_share + shared_share), to)
            tl.store(put + 2 * TASK * size, -weight * shared_share, to)
            g_hi, g_mid = _split(-(delta + pull * mean_change) * (r_shared * inverse_shared))
            by_shared_std += _contract(g_hi, g_mid, tl.trans(r_std_hi), tl.trans(r_std_mid), tl.trans(r_std_lo))
            _, shared_share = _halves(_contract(tl.trans(g_hi), tl.trans(g_mid), std_hi, std_mid, std_lo), BLOCK_M, K)
            tl.store(put + (2 * TASK + 1) * size, weight * shared_share, to)
        elif TASK:
            g_hi, g_mid = _split(pull)
            r_own, r_lo = tl.load(theirs + 10 * plane, there, 0.0), tl.load(theirs + 11 * plane, there, 0.0)
            by_mean += _contract_pair(g_hi, g_mid, tl.trans(r_own), tl.trans(r_lo))
            one, other = _halves(_contract_pair(tl.trans(g_hi), tl.trans(g_mid), own_mean, own_mean_lo), BLOCK_M, K)
            tl.store(put, weight * (one + other), to)
        if TASK:
            g_hi, g_mid = _split(r_task * delta * _inverse(var_task))
            r_own, r_lo = tl.load(theirs + 12 * plane, there, 0.0), tl.load(theirs + 13 * plane, there, 0.0)
            by_task_std += _contract_pair(g_hi, g_mid, tl.trans(r_own), tl.trans(r_lo))
            one, other = _halves(_contract_pair(tl.trans(g_hi), tl.trans(g_mid), own_std, own_std_lo), BLOCK_M, K)
            tl.store(put + size, weight * (one + other), to)
    tl.store(losses + layer * n + rows, 0.5 * weight * total, rows < n)
    source = tl.load(starts + layer) + rows.to(tl.int64) * stride
    to = ((rows < n) & (source < height))[:, None] & (q < R)[None, :]
    size, gain = height * R, weight * scale
    put = by_b + layer * slots * size + source[:, None] * R + q[None, :]
    first, second = _halves(by_mean, BLOCK_N, K)
    if TASK:
        tl.store(put, gain * (first if SHARED else first + second), to)
        one, other = _halves(by_task_std, BLOCK_N, K)
        tl.store(put + size, gain * (one + other), to)
    if SHARED:
        tl.store(put + 2 * TASK * size, gain * (second - first), to)  # dB0 = -G A0^T, of G A^T and G (A - A0)^T
        first, second = _halves(by_shared_std, BLOCK_N, K)
        tl.store(put + (2 * TASK + 1) * size, gain * (first - second), to)


@triton.jit
@no_type_check
def _penalty_pass(
    left, right, by_b, by_a, losses, offsets, floors, n, m, scale, shape, rate,
    R: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """As `_kl_pass`, for (a0 - 1) log var + b0 / var of the shared stds."""
    layer, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    rows, k, q = block * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, K), tl.arange(0, K // 2)
    inside = (rows < n)[:, None]
    plane = n * K
    mine = left + layer * 4 * plane + rows[:, None] * K + k[None, :]
    hi_mid, hi_lo = tl.load(mine, inside, 0.0), tl.load(mine + 2 * plane, inside, 0.0)
    offset, floor = tl.load(offsets + layer), tl.load(floors + layer)
    by_std = tl.zeros((BLOCK_N, K), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, m, BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        there = (columns < m)[None, :]
        plane = m * K
        theirs = right + layer * 4 * plane + columns[None, :] * K + k[:, None]
        r_hi_mid, r_mid_hi = tl.load(theirs, there, 0.0), tl.load(theirs + plane, there, 0.0)
        u = _dot(hi_lo, tl.load(theirs + 3 * plane, there, 0.0))
        u = _dot(hi_mid, r_mid_hi, u)
        r = _dot(hi_mid, r_hi_mid, u) + offset
        var = r * r + floor
        inverse = _inverse(var)
        total += tl.sum(tl.where(there, (shape - 1) * _log(var) + rate * inverse, 0.0), 1)
        g_hi, g_mid = _split(((shape - 1) - rate * inverse) * (2 * r * inverse))
        by_std += _dot(g_hi, tl.trans(r_hi_mid), _dot(g_mid, tl.trans(r_hi_mid)))
        one, other = _halves(_dot(tl.trans(g_hi), hi_mid, _dot(tl.trans(g_mid), hi_mid)), BLOCK_M, K)
        share = by_a + ((layer * tl.num_programs(0) + block) * R + q[None, :]) * m + columns[:, None]
        tl.store(share, one + other, (q < R)[None, :] & (columns < m)[:, None])
    one, other = _halves(by_std, BLOCK_N, K)
    here = by_b + layer * n * R + rows[:, None] * R + q[None, :]
    tl.store(here, scale * (one + other), inside & (q < R)[None, :])
    tl.store(losses + layer * n + rows, total, rows < n)


# -------------------- operands


class _Group(NamedTuple):
    """Layers of one shape, done in one launch."""

    indices: list[int]
    scale: float
    offsets: Float[Tensor, " L"]
    floors: Float[Tensor, " L"]


def _groups(
    b: Sequence[Tensor], a: Sequence[Tensor], variances: Sequence[Variance], planes: int, slots: int
) -> Iterator[_Group]:
    """Layers by shape and scale, in chunks whose `planes` of operands and shares of `slots` gradients stay small."""

    def kind(i: int) -> tuple[Any, ...]:
        return (*b[i].shape, a[i].shape[1], variances[i].scale)

    device = b[0].device
    for key, same in itertools.groupby(sorted(range(len(b)), key=kind), kind):
        layers, (height, rank, columns, scale) = list(same), key
        shares = triton.cdiv(height, _tile(_width(rank))["BLOCK_N"]) * slots * rank * columns * 4
        size = max(1, _CHUNK_BYTES // ((height + columns) * _width(rank) * 2 * planes + shares))
        for start in range(0, len(layers), size):
            chunk = layers[start : start + size]
            offsets = [variances[i].offset for i in chunk]
            floors = [variances[i].floor ** 2 for i in chunk]
            yield _Group(chunk, scale, _constant(offsets, device), _constant(floors, device))


_constants: dict[tuple[Any, ...], Tensor] = {}


def _constant(values: list[float], device: torch.device) -> Float[Tensor, " L"]:
    """A tensor that is copied to the device once, so that a captured graph copies nothing from the host."""
    key = (*values, device)
    if key not in _constants:
        _constants[key] = torch.tensor(values, dtype=torch.float32).to(device)
    return _constants[key]


def _width(rank: int) -> int:
    """K, the inner size of the products: two factors side by side, a power of two that the tensor cores take."""
    return max(16, triton.next_power_of_2(2 * rank))


class _Side(NamedTuple):
    """The B or the A factors of a group, and how their memory is walked: by rows of B, by columns of A."""

    factors: list[list[Tensor]]  # of each layer: mean and std factor of phi, then of theta
    is_b: bool
    rows: int  # of the operand: all O, all I, or the part of O that a subset visits
    total: int
    rank: int
    scale: float
    starts: Int[Tensor, " L"]
    stride: int = 1

    def operand(self, planes: int) -> Tensor:
        """[L, planes, rows, K] bfloat16."""
        layers, width, block = len(self.factors), _width(self.rank), 64
        out = self.starts.new_empty((layers, planes, self.rows, width), dtype=torch.bfloat16)
        row_step, rank_step = (self.rank, 1) if self.is_b else (1, self.total)
        _prepare[(triton.cdiv(self.rows, block), layers)](
            _addresses(self.factors), out, self.starts, self.stride, self.rows, self.total, row_step, rank_step,
            scale=self.scale, PLANES=planes, IS_B=self.is_b, R=self.rank, K=width, BLOCK=block,
        )  # fmt: skip
        return out


_address_tables: dict[tuple[int, ...], Tensor] = {}
_MOST_TABLES = 256


def _addresses(factors: list[list[Tensor]]) -> Int[Tensor, "L 4"]:
    """Where the factors are, as a tensor that is copied to the device once: a captured graph copies nothing."""
    key = tuple(f.data_ptr() for four in factors for f in four)
    if key not in _address_tables:
        if len(_address_tables) >= _MOST_TABLES:
            _address_tables.clear()
        table = torch.tensor(key, dtype=torch.int64).reshape(len(factors), 4)
        _address_tables[key] = table.to(factors[0][0].device)
    return _address_tables[key]


def _tile(width: int) -> dict[str, int]:
    """Rows and columns of a tile, warps and stages: what kept registers below the limit with few spills."""
    return {"BLOCK_N": 64, "BLOCK_M": 64 if width == 16 else 32, "num_warps": 4, "num_stages": 2 if width == 16 else 1}


# -------------------- KL(task | shared)


def task_kl(
    task: Sequence[Factors],
    shared: Sequence[Factors],
    variances: Sequence[Variance],
    stride: int = 1,
    key: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """`eager.task_kl` by fused kernels; gradients are formed with the value and scaled in backward."""
    reason = _unsupported(task[0].mean_b, variances)
    if reason:
        fallbacks["task_kl"] = reason
        return eager.task_kl(task, shared, variances, stride, key)
    flat = [factor for factors in (*task, *shared) for factor in factors]
    return _TaskKL.apply(list(variances), stride, key, *flat)


def _unsupported(factor: Tensor, variances: Sequence[Variance]) -> str:
    if any(variance.form != "square" for variance in variances):
        return "std_form=log_std has no Triton kernel"
    if factor.dtype != torch.float32:
        return f"factors are {factor.dtype}, the kernel is for float32"
    return f"rank {factor.shape[1]} is above {MOST_RANK}" if factor.shape[1] > MOST_RANK else ""


class _TaskKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, variances: list[Variance], stride: int, key: Tensor | None, *flat: Tensor) -> Tensor:
        layers = len(variances)
        factors = [x.detach().contiguous() for x in flat]
        sides = [
            [[factors[4 * i + n] for n in (part, part + 2)] + [factors[4 * (layers + i) + n] for n in (part, part + 2)]
             for i in range(layers)]
            for part in (0, 1)
        ]  # fmt: skip
        wanted = [any(ctx.needs_input_grad[3 : 3 + 4 * layers]), any(ctx.needs_input_grad[3 + 4 * layers :])]
        total = torch.zeros((), dtype=torch.float64, device=flat[0].device)
        gradients: list[Tensor | None] = [None] * len(flat)
        ctx.stacks = []
        for group in _groups([b[0] for b in sides[0]], [a[0] for a in sides[1]], variances, _PLANES, 2 * sum(wanted)):
            b, a = _sides(sides, group, stride, key)
            loss, by_b, by_a = _kl_of_group(b, a, group, wanted, float(stride))
            total += loss
            ctx.stacks += [by_b, by_a] if any(wanted) else []
            owners = [side * layers for side in (0, 1) if wanted[side]]
            for (at, layer), (slot, owner) in itertools.product(enumerate(group.indices), enumerate(owners)):
                for part in (0, 1):
                    gradients[4 * (owner + layer) + 2 * part] = by_b[at, 2 * slot + part]
                    gradients[4 * (owner + layer) + 2 * part + 1] = by_a[at, 2 * slot + part]
        ctx.gradients = gradients
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.stacks:
            torch._foreach_mul_(ctx.stacks, upstream.float())
        return (None, None, None, *ctx.gradients)


def _sides(sides: list[list[list[Tensor]]], group: _Group, stride: int, key: Tensor | None) -> tuple[_Side, _Side]:
    """The operands of a group; with a stride, B's is a subset of its rows from a start that the key draws."""
    b, a = ([side[i] for i in group.indices] for side in sides)
    (rows, rank), columns = b[0][0].shape, a[0][0].shape[1]
    zeros = torch.zeros(len(b), dtype=torch.int64, device=b[0][0].device)
    starts = zeros
    if stride > 1:
        assert key is not None
        layers = _constant([float(i) for i in group.indices], key.device).long()
        starts = eager.first_row(key, layers, stride)
    return (
        _Side(b, True, -(-rows // stride), rows, rank, group.scale, starts, stride),
        _Side(a, False, columns, columns, rank, 1.0, zeros),
    )


def _kl_of_group(
    b: _Side, a: _Side, group: _Group, wanted: list[bool], weight: float
) -> tuple[Tensor, Float[Tensor, "L k O R"], Float[Tensor, "L k R I"]]:
    """The summed KL of a group, and the gradients of phi's and of theta's mean and std factors, where wanted."""
    tile, slots = _tile(_width(b.rank)), 2 * sum(wanted)
    blocks = triton.cdiv(b.rows, tile["BLOCK_N"])
    losses = b.starts.new_empty((len(b.factors), b.rows), dtype=torch.float32)
    by_b = losses.new_empty((len(b.factors), slots, b.total, b.rank))
    if b.stride > 1:  # rows that are not visited
        by_b.zero_()
    shares = losses.new_empty((len(b.factors), blocks, slots, a.rank, a.total))
    _kl_pass[(blocks, len(b.factors))](
        b.operand(_PLANES), a.operand(_PLANES), by_b, shares, losses, group.offsets, group.floors, b.starts, b.stride,
        b.rows, a.rows, b.total, weight=weight, scale=b.scale, R=b.rank, K=_width(b.rank),
        TASK=wanted[0], SHARED=wanted[1], **tile,
    )  # fmt: skip
    return losses.double().sum(), by_b, shares.sum(1)


# -------------------- -log p(theta), Gamma part


def precision_penalty(
    std_b: Sequence[Tensor], std_a: Sequence[Tensor], variances: Sequence[Variance], shape: float, rate: float
) -> Float[Tensor, ""]:
    """`eager.precision_penalty` by a fused kernel; gradients are formed with the value and scaled in backward."""
    reason = _unsupported(std_b[0], variances)
    if reason:
        fallbacks["precision_penalty"] = reason
        return eager.precision_penalty(std_b, std_a, variances, shape, rate)
    return _Penalty.apply(list(variances), shape, rate, *std_b, *std_a)


class _Penalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, variances: list[Variance], shape: float, rate: float, *flat: Tensor) -> Tensor:
        layers = len(variances)
        sides = [[[x.detach().contiguous()] * 4 for x in half] for half in (flat[:layers], flat[layers:])]
        entries = sum(b.shape[0] * a.shape[1] for b, a in zip(flat[:layers], flat[layers:], strict=True))
        constant = math.lgamma(shape) - shape * math.log(rate)
        total = torch.full((), entries * constant, dtype=torch.float64, device=flat[0].device)
        gradients: list[Tensor] = list(flat)
        ctx.stacks = []
        for group in _groups(flat[:layers], flat[layers:], variances, _PAIRS, 1):
            b, a = _sides(sides, group, 1, None)
            loss, by_b, by_a = _penalty_of_group(b, a, group, shape, rate)
            total += loss
            ctx.stacks += [by_b, by_a]
            for at, layer in enumerate(group.indices):
                gradients[layer], gradients[layers + layer] = by_b[at], by_a[at]
        ctx.gradients = gradients
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        torch._foreach_mul_(ctx.stacks, upstream.float())
        return (None, None, None, *ctx.gradients)


def _penalty_of_group(
    b: _Side, a: _Side, group: _Group, shape: float, rate: float
) -> tuple[Tensor, Float[Tensor, "L O R"], Float[Tensor, "L R I"]]:
    """The summed penalty of a group but its constant, and the gradients of theta's std factors."""
    tile, count = _tile(_width(b.rank)), len(b.factors)
    blocks = triton.cdiv(b.rows, tile["BLOCK_N"])
    losses = b.starts.new_empty((count, b.rows), dtype=torch.float32)
    by_b, shares = losses.new_empty((count, b.rows, b.rank)), losses.new_empty((count, blocks, a.rank, a.rows))
    _penalty_pass[(blocks, count)](
        b.operand(_PAIRS), a.operand(_PAIRS), by_b, shares, losses, group.offsets, group.floors,
        b.rows, a.rows, scale=b.scale, shape=shape, rate=rate, R=b.rank, K=_width(b.rank), **tile,
    )  # fmt: skip
    return losses.double().sum(), by_b, shares.sum(1)
