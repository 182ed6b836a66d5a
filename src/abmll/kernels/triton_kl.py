# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""KL(task | shared) and the Gamma prior on the GPU: all layers of one shape in one launch, nothing O x I in memory.

A tile of the three products it needs (the change of the means, the change of u and the shared u itself) is formed by
the tensor cores from float16 parts of float32 factors, x = hi + lo, 22 bits in two products, once powers of two for
each layer have brought the factors into float16's range. A gradient tile G, which has no such range, is contracted
where it stands from its own and the factors' two bfloat16 parts, both ways: with the columns' A factors into the
program's own rows of dB, and with the program's rows of B into its share of dA, which a sum over blocks of rows
completes. So a tile is visited once, there are no atomics, and the bits are the same every time.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, no_type_check

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from abmll.kernels import eager, fallbacks, refused, triton_entries
from abmll.kernels.factors import Factors, Variance
from abmll.kernels.triton_entries import FAST, log, reciprocal, twice_half_excess

MOST_RANK = 16  # a wider factor needs more registers than a thread has: `triton_entries` takes it
# Of a GPU's memory, for operands and shares of dA of one launch, and the most of it: a small launch leaves SMs idle.
_CHUNK, _MOST_BYTES = 1 / 50, 3 << 29

# An operand, [L, planes n K]. `halves`, float16, for the products, are three matrices of 2 K columns: the shared std
# factor, whose u + f may cancel, with all its bits as [lo hi hi mid], and the two halves of the means and of the stds
# as [lo hi], so that what is large is added last. What multiplies them from the side of B are [hi mid hi mid], [lo hi],
# [lo hi], then [0 0 lo hi], [hi lo], [hi lo]. `parts`, bfloat16, for the contractions, are [hi mid] of the shared std
# factor, of phi's mean factor and of its std factor, a matrix of K columns each, and of the means' two halves, 2 K.
_HALVES, _PARTS = 6, 5
_PIECES = tl.constexpr(16)  # of a factor's rows, in each of which the largest entry is looked for

# -------------------- device code


@triton.jit
@no_type_check
def _dot(a, b, out=None):
    if FAST:
        return tl.dot(a, b, out)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), out)


@triton.jit
@no_type_check
def _halves(x, N: tl.constexpr, K: tl.constexpr):
    """The first and the last K / 2 columns of [N, K]."""
    return tl.split(tl.permute(tl.reshape(x, (N, 2, K // 2)), (0, 2, 1)))


@triton.jit
@no_type_check
def split_pair(x):
    """The nearest bfloat16 and that of the rest; in pairs, as a single conversion has an eighth of the rate."""
    if FAST:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 bits, more;
            .reg .f32 rest, other;
            cvt.rn.bf16x2.f32 $0, $3, $2;
            shl.b32 bits, $0, 16;
            and.b32 more, $0, 0xffff0000;
            mov.b32 rest, bits;
            mov.b32 other, more;
            sub.f32 rest, $2, rest;
            sub.f32 other, $3, other;
            cvt.rn.bf16x2.f32 $1, other, rest;
            }""",
            "=&r,=&r,f,f", [x], (tl.bfloat16, tl.bfloat16), True, 2,
        )  # fmt: skip
    bits = (x.to(tl.uint32, bitcast=True) + 0x8000) & 0xFFFF0000
    rest = (x - bits.to(tl.float32, bitcast=True)).to(tl.uint32, bitcast=True) + 0x8000
    return _top(bits), _top(rest)


@triton.jit
@no_type_check
def _top(bits):
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
@no_type_check
def _product(pair, flipped, theirs):
    """All products of the parts, the small ones first."""
    return _dot(pair, theirs, _dot(flipped, theirs))


@triton.jit
@no_type_check
def _contract(g_hi, g_mid, parts, K: tl.constexpr):
    """G X of one tile, from X's parts side by side; where X has K / 2 columns, they are left to add up.

    The caller adds tiles up, since tensor cores cut where they should round.
    """
    out = _dot(g_hi, parts, _dot(g_mid, parts))
    return _added_halves(out, out.shape[0], 2 * K) if parts.shape[1] == 2 * K else out


@triton.jit
@no_type_check
def _added_halves(x, N: tl.constexpr, K: tl.constexpr):
    one, other = _halves(x, N, K)
    return one + other


@triton.jit
@no_type_check
def _exponent(x):
    """floor(log2 x) of x >= 0; -127 of 0."""
    return (x.to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
@no_type_check
def power_of_2(exponent):
    """2^exponent, or the float32 nearest to it."""
    return ((tl.minimum(tl.maximum(exponent, -126), 127) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _find_largest(
    addresses, out, rows, row_step, rank_step, scale,
    IS_B: tl.constexpr, R: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest of |mean change|, |mean|, |std change| and |std| in a piece of the rows, out [L, 2, 4, _PIECES].

    What stands beside the change in an operand: B0 on the side of B, A on that of A.
    """
    piece, layer, k = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.arange(0, K // 2)
    step = tl.cdiv(rows, _PIECES)
    for part in tl.static_range(2):
        mine = tl.load(addresses + 4 * layer + part).to(tl.pointer_type(tl.float32))
        theirs = tl.load(addresses + 4 * layer + 2 + part).to(tl.pointer_type(tl.float32))
        change, whole = tl.zeros((BLOCK, K // 2), tl.float32), tl.zeros((BLOCK, K // 2), tl.float32)
        for start in range(0, step, BLOCK):
            row = start + tl.arange(0, BLOCK)
            source = piece * step + row
            used = ((row < step) & (source < rows))[:, None] & (k < R)[None, :]
            at = source.to(tl.int64)[:, None] * row_step + k[None, :] * rank_step
            task, shared = tl.load(mine + at, used, 0.0) * scale, tl.load(theirs + at, used, 0.0) * scale
            change = tl.maximum(change, tl.abs(task - shared))
            whole = tl.maximum(whole, tl.abs(shared if IS_B else task))
        here = out + (layer * 8 + 4 * (not IS_B) + 2 * part) * _PIECES + piece
        tl.store(here, tl.max(tl.max(change, 1), 0))
        tl.store(here + _PIECES, tl.max(tl.max(whole, 1), 0))


@triton.jit
@no_type_check
def _largest_exponents(largest, layer, PART: tl.constexpr):
    """Of B - B0, B0, A - A0 and A."""
    at = largest + (layer * 8 + 2 * PART) * _PIECES + tl.arange(0, _PIECES)
    b_change, b_0 = _exponent(tl.max(tl.load(at), 0)), _exponent(tl.max(tl.load(at + _PIECES), 0))
    a_change, a = _exponent(tl.max(tl.load(at + 4 * _PIECES), 0)), _exponent(tl.max(tl.load(at + 5 * _PIECES), 0))
    return b_change, b_0, a_change, a


@triton.jit
@no_type_check
def unit_of_means(largest, layer):
    """The exponent by which products of the mean factors are scaled, and those of B - B0's and B0's shares of it.

    The largest product of two entries becomes about 2^28, and each of them 2^14: an entry keeps 22 bits unless it is
    below 2^-16 of the largest, and then the absolute error that 22 bits leave there.
    """
    b_change, b_0, a_change, a = _largest_exponents(largest, layer, 0)
    unit = tl.minimum(tl.maximum(28 - tl.maximum(b_change + a, b_0 + a_change), -100), 120)
    return unit, (unit + a - b_change) >> 1, (unit + a_change - b_0) >> 1


@triton.jit
@no_type_check
def unit_of_stds(largest, offsets, floors, layer):
    """As `unit_of_means`, with B0's share where it meets A0 last; f keeps far from the ends of float32 when squared."""
    b_change, b_0, a_change, a = _largest_exponents(largest, layer, 1)
    a_0 = tl.maximum(a, a_change) + 1
    unit = 28 - tl.maximum(tl.maximum(b_change + a, b_0 + a_change), b_0 + a_0)
    init = tl.maximum(_exponent(tl.load(offsets + layer)), _exponent(tl.load(floors + layer)) >> 1)
    unit = tl.minimum(tl.maximum(tl.minimum(unit, 40 - init), -60), 90)
    return unit, (unit + a - b_change) >> 1, (unit + a_change - b_0) >> 1, (unit + a_0 - b_0) >> 1


@triton.jit
@no_type_check
def _store_halves(here, other, flipped, x, inside, IS_B: tl.constexpr):
    """The two float16 parts, `other` apart, and `flipped` on the other way round."""
    hi = x.to(tl.float16)
    lo = (x - hi.to(tl.float32)).to(tl.float16)
    tl.store(here, lo, inside)
    tl.store(here + other, hi, inside)
    if IS_B:
        tl.store(here + flipped, hi, inside)
        tl.store(here + flipped + other, lo, inside)


@triton.jit
@no_type_check
def _store_parts(here, x, is_first, inside):
    """[hi mid], where x has its columns twice."""
    hi, mid = split_pair(x)
    tl.store(here, tl.where(is_first, hi, mid), inside)


@triton.jit
@no_type_check
def _prepare(
    addresses, halves, parts, largest, offsets, floors, starts, stride, n, total, row_step, rank_step, scale,
    TASK: tl.constexpr, SHARED: tl.constexpr, CHANGES: tl.constexpr,
    IS_B: tl.constexpr, R: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The operand of one side from the factors at `addresses` [L, 4]: mean and std factor of phi, then of theta.

    Row j of the operand is row `starts + j stride` of the factors, zeros from `total` on. Differences come before
    products: B A - B0 A0 = [B - B0, B0] [A ; A - A0], and the B side carries the scale. Without CHANGES only the shared
    std factor is there; `parts` are made for the gradients wanted.
    """
    layer = tl.program_id(1).to(tl.int64)
    rows, k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, K)
    source = tl.load(starts + layer) + rows.to(tl.int64) * stride
    inside, rank, is_first = (rows < n)[:, None] & (k < K)[None, :], k % (K // 2), (k < K // 2)[None, :]
    used = (source < total)[:, None] & (rank < R)[None, :]
    at = source[:, None] * row_step + rank[None, :] * rank_step
    plane = n * K
    halves += layer * (12 if IS_B else 6) * plane
    parts += layer * 5 * plane
    here, wide = rows[:, None] * K + k[None, :], rows[:, None] * (2 * K) + k[None, :]
    theirs = tl.load(tl.load(addresses + 4 * layer + 3).to(tl.pointer_type(tl.float32)) + at, used, 0.0) * scale
    unit, first, second, last = unit_of_stds(largest, offsets, floors, layer)
    x = theirs * power_of_2(last if IS_B else unit - last)
    hi = x.to(tl.float16)
    rest = x - hi.to(tl.float32)
    mid = rest.to(tl.float16)
    lo = (rest - mid.to(tl.float32)).to(tl.float16)
    tl.store(halves + K + wide, tl.where(is_first, hi, mid), inside)
    if IS_B:
        tl.store(halves + wide, tl.where(is_first, hi, mid), inside)
        tl.store(halves + 6 * plane + wide, tl.zeros_like(hi), inside)
        tl.store(halves + 6 * plane + K + wide, tl.where(is_first, lo, hi), inside)
    else:
        tl.store(halves + wide, tl.where(is_first, lo, hi), inside)
    if SHARED:
        _store_parts(parts + here, theirs, is_first, inside)
    if CHANGES:
        mine = tl.load(tl.load(addresses + 4 * layer + 1).to(tl.pointer_type(tl.float32)) + at, used, 0.0) * scale
        mean = tl.load(tl.load(addresses + 4 * layer).to(tl.pointer_type(tl.float32)) + at, used, 0.0) * scale
        mean_0 = tl.load(tl.load(addresses + 4 * layer + 2).to(tl.pointer_type(tl.float32)) + at, used, 0.0) * scale
        mean_unit, mean_first, mean_second = unit_of_means(largest, layer)
        if IS_B:
            means = tl.where(is_first, mean - mean_0, mean_0)
            x = means * tl.where(is_first, power_of_2(mean_first), power_of_2(mean_second))
            y = tl.where(is_first, (mine - theirs) * power_of_2(first), theirs * power_of_2(second))
        else:
            means = tl.where(is_first, mean, mean - mean_0)
            x = means * tl.where(is_first, power_of_2(mean_unit - mean_first), power_of_2(mean_unit - mean_second))
            y = tl.where(is_first, mine * power_of_2(unit - first), (mine - theirs) * power_of_2(unit - second))
        _store_halves(halves + 2 * plane + wide, K, 6 * plane, x, inside, IS_B)
        _store_halves(halves + 4 * plane + wide, K, 6 * plane, y, inside, IS_B)
        if TASK:
            _store_parts(parts + 2 * plane + here, mine, is_first, inside)
        if TASK and not SHARED:
            _store_parts(parts + plane + here, mean, is_first, inside)
        if SHARED:
            hi, mid = split_pair(means)
            tl.store(parts + 3 * plane + wide, hi, inside)
            tl.store(parts + 3 * plane + K + wide, mid, inside)


@triton.jit
@no_type_check
def _kl_pass(
    left, left_parts, right, right_parts, by_b, by_a, losses, largest, offsets, floors, starts, stride, n, m, height,
    weight, scale,
    R: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    TASK: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """One block of rows of one layer against all columns: its loss, its rows of dB, and its share of dA.

    Rows and columns past n and m read as zeros, where KL and its gradients are 0. Where theta's gradients are wanted,
    the means' come from one contraction with [B - B0, B0] and [A ; A - A0], so that what is left of their sum keeps its
    digits. All stds, and differences of means, are in a unit of the layer's own, and so are both gradients.
    """
    layer, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    rows, q = block * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, K // 2)
    k, k_2 = tl.arange(0, K), tl.arange(0, 2 * K)
    inside = (rows < n)[:, None]
    plane = n * K
    wide = rows[:, None] * (2 * K) + k_2[None, :]
    mine = left + layer * 12 * plane + wide
    shared, shared_flipped = tl.load(mine, inside, 0.0), tl.load(mine + 6 * plane, inside, 0.0)
    means, means_flipped = tl.load(mine + 2 * plane, inside, 0.0), tl.load(mine + 8 * plane, inside, 0.0)
    stds, stds_flipped = tl.load(mine + 4 * plane, inside, 0.0), tl.load(mine + 10 * plane, inside, 0.0)
    mine = left_parts + layer * 5 * plane + rows[:, None] * K + k[None, :]
    if TASK:
        own_std = tl.load(mine + 2 * plane, inside, 0.0)
    if SHARED:
        shared_std = tl.load(mine, inside, 0.0)
        own_means = tl.load(left_parts + (layer * 5 + 3) * plane + wide, inside, 0.0)
    elif TASK:
        own_mean = tl.load(mine + plane, inside, 0.0)
    by_mean = tl.zeros((BLOCK_N, K), tl.float32)
    unit, _, _, _ = unit_of_stds(largest, offsets, floors, layer)
    mean_unit, _, _ = unit_of_means(largest, layer)
    to_unit, unit = power_of_2(unit - mean_unit), power_of_2(unit)
    offset, floor = tl.load(offsets + layer) * unit, tl.load(floors + layer) * unit * unit
    weight *= unit
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
        right_at = columns[None, :] * (2 * K) + k_2[:, None]
        theirs = right + layer * 6 * plane + right_at
        r_shared = tl.load(theirs, there, 0.0)
        r_means, r_stds = tl.load(theirs + 2 * plane, there, 0.0), tl.load(theirs + 4 * plane, there, 0.0)
        theirs = right_parts + layer * 5 * plane + columns[None, :] * K + k[:, None]

        mean_change = _product(means, means_flipped, r_means) * to_unit
        u_change = _product(stds, stds_flipped, r_stds)
        r = _product(shared, shared_flipped, r_shared) + offset
        r_task = r + u_change
        var_shared, var_task = r * r + floor, r_task * r_task + floor
        inverse_shared = reciprocal(var_shared)
        delta, pull = u_change * (r + r_task) * inverse_shared, mean_change * inverse_shared
        total += tl.sum(twice_half_excess(delta, var_task, inverse_shared) + pull * mean_change, 1)

        put = shares + q[None, :] * m + columns[:, None]
        to = (q < R)[None, :] & (columns < m)[:, None]
        if SHARED:
            g_hi, g_mid = split_pair(pull)
            r_own = tl.load(right_parts + (layer * 5 + 3) * plane + right_at, there, 0.0)
            by_mean += _contract(g_hi, g_mid, tl.trans(r_own), K)
            share = _contract(tl.trans(g_hi), tl.trans(g_mid), own_means, K)
            change_share, shared_share = _halves(share, BLOCK_M, K)
            if TASK:
                tl.store(put, weight * (change_share + shared_share), to)
            tl.store(put + 2 * TASK * size, -weight * shared_share, to)
            g_hi, g_mid = split_pair(-(delta + pull * mean_change) * (r * inverse_shared))
            r_own = tl.load(theirs, there, 0.0)
            by_shared_std += _contract(g_hi, g_mid, tl.trans(r_own), K)
            share = _contract(tl.trans(g_hi), tl.trans(g_mid), shared_std, K)
            tl.store(put + (2 * TASK + 1) * size, weight * _added_halves(share, BLOCK_M, K), to)
        elif TASK:
            g_hi, g_mid = split_pair(pull)
            r_own = tl.load(theirs + plane, there, 0.0)
            by_mean += _contract(g_hi, g_mid, tl.trans(r_own), K)
            share = _contract(tl.trans(g_hi), tl.trans(g_mid), own_mean, K)
            tl.store(put, weight * _added_halves(share, BLOCK_M, K), to)
        if TASK:
            g_hi, g_mid = split_pair(r_task * delta * reciprocal(var_task))
            r_own = tl.load(theirs + 2 * plane, there, 0.0)
            by_task_std += _contract(g_hi, g_mid, tl.trans(r_own), K)
            share = _contract(tl.trans(g_hi), tl.trans(g_mid), own_std, K)
            tl.store(put + size, weight * _added_halves(share, BLOCK_M, K), to)
    tl.store(losses + layer * n + rows, 0.5 * (weight / unit) * total, rows < n)
    source = tl.load(starts + layer) + rows.to(tl.int64) * stride
    to = ((rows < n) & (source < height))[:, None] & (q < R)[None, :]
    size, gain = height * R, weight * scale
    put = by_b + layer * slots * size + source[:, None] * R + q[None, :]
    if SHARED:
        first, second = _halves(by_mean, BLOCK_N, K)
        if TASK:
            tl.store(put, gain * first, to)
        tl.store(put + 2 * TASK * size, gain * (second - first), to)  # dB0 = -G A0^T, of G A^T and G (A - A0)^T
        tl.store(put + (2 * TASK + 1) * size, gain * _added_halves(by_shared_std, BLOCK_N, K), to)
    elif TASK:
        tl.store(put, gain * _added_halves(by_mean, BLOCK_N, K), to)
    if TASK:
        tl.store(put + size, gain * _added_halves(by_task_std, BLOCK_N, K), to)


@triton.jit
@no_type_check
def _penalty_pass(
    left, left_parts, right, right_parts, by_b, by_a, losses, largest, offsets, floors, n, m, scale, shape, rate,
    R: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """As `_kl_pass`, for (a0 - 1) log var + b0 / var of the shared stds."""
    layer, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    rows, q = block * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, K // 2)
    k, k_2 = tl.arange(0, K), tl.arange(0, 2 * K)
    inside = (rows < n)[:, None]
    plane = n * K
    mine = left + layer * 12 * plane + rows[:, None] * (2 * K) + k_2[None, :]
    shared, shared_flipped = tl.load(mine, inside, 0.0), tl.load(mine + 6 * plane, inside, 0.0)
    shared_std = tl.load(left_parts + layer * 5 * plane + rows[:, None] * K + k[None, :], inside, 0.0)
    unit, _, _, _ = unit_of_stds(largest, offsets, floors, layer)
    to_one = power_of_2(-unit)
    offset, floor = tl.load(offsets + layer), tl.load(floors + layer)
    by_std = tl.zeros((BLOCK_N, K), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, m, BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        there = (columns < m)[None, :]
        plane = m * K
        theirs = right + layer * 6 * plane + columns[None, :] * (2 * K) + k_2[:, None]
        r_shared = tl.load(theirs, there, 0.0)
        r_own = tl.load(right_parts + layer * 5 * plane + columns[None, :] * K + k[:, None], there, 0.0)
        r = _product(shared, shared_flipped, r_shared) * to_one + offset
        var = r * r + floor
        inverse = reciprocal(var)
        total += tl.sum(tl.where(there, (shape - 1) * log(var) + rate * inverse, 0.0), 1)
        g_hi, g_mid = split_pair(((shape - 1) - rate * inverse) * (2 * r * inverse))
        by_std += _contract(g_hi, g_mid, tl.trans(r_own), K)
        share = _contract(tl.trans(g_hi), tl.trans(g_mid), shared_std, K)
        put = by_a + ((layer * tl.num_programs(0) + block) * R + q[None, :]) * m + columns[:, None]
        tl.store(put, _added_halves(share, BLOCK_M, K), (q < R)[None, :] & (columns < m)[:, None])
    here = by_b + layer * n * R + rows[:, None] * R + q[None, :]
    tl.store(here, scale * _added_halves(by_std, BLOCK_N, K), inside & (q < R)[None, :])
    tl.store(losses + layer * n + rows, total, rows < n)


# -------------------- operands


class Group(NamedTuple):
    """Layers of one shape, done in one launch."""

    indices: list[int]
    scale: float
    offsets: Float[Tensor, " L"]
    floors: Float[Tensor, " L"]


def _groups(
    b: Sequence[Tensor],
    a: Sequence[Tensor],
    variances: Sequence[Variance],
    bytes_of: Callable[[int, int, int], int],
    stride: int = 1,
) -> Iterator[Group]:
    """Layers by shape and scale, in chunks of like size that stay small, by the bytes of rows, rank and columns."""

    def kind(i: int) -> tuple[Any, ...]:
        return (*b[i].shape, a[i].shape[1], variances[i].scale)

    device = b[0].device
    for key, same in itertools.groupby(sorted(range(len(b)), key=kind), kind):
        layers, (height, rank, columns, scale) = list(same), key
        most = max(1, _chunk_bytes(device) // bytes_of(-(-height // stride), rank, columns))
        for chunk in np.array_split(layers, triton.cdiv(len(layers), most)):
            offsets = [variances[i].offset for i in chunk]
            floors = [variances[i].floor ** 2 for i in chunk]
            yield Group(chunk.tolist(), scale, _constant(offsets, device), _constant(floors, device))


def _bytes_of(slots: int) -> Callable[[int, int, int], int]:
    """What a layer takes in a launch: operands and shares of `slots` gradients."""

    def bytes_of(rows: int, rank: int, columns: int) -> int:
        shares = triton.cdiv(rows, _tile(inner_width(rank), shared=slots > 2)["BLOCK_N"]) * slots * rank * columns * 4
        return operand_bytes(rows, rank, columns) + shares

    return bytes_of


def operand_bytes(rows: int, rank: int, columns: int) -> int:
    """What the operands of a layer take."""
    return (rows * (2 * _HALVES + _PARTS) + columns * (_HALVES + _PARTS)) * inner_width(rank) * 2


def _chunk_bytes(device: torch.device) -> int:
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 16 << 30
    return min(int(_CHUNK * total), _MOST_BYTES)


_constants: dict[tuple[Any, ...], Tensor] = {}


def _constant(values: list[float], device: torch.device) -> Float[Tensor, " L"]:
    """A tensor that is copied to the device once, so that a captured graph copies nothing from the host."""
    key = (*values, device)
    if key not in _constants:
        _constants[key] = torch.tensor(values, dtype=torch.float32).to(device)
    return _constants[key]


def inner_width(rank: int) -> int:
    """K, the inner size of the products: two factors side by side, a power of two that the tensor cores take."""
    return max(16, triton.next_power_of_2(2 * rank))


class Side(NamedTuple):
    """The B or the A factors of a group, and how their memory is walked: by rows of B, by columns of A."""

    factors: list[list[Tensor]]  # of each layer: mean and std factor of phi, then of theta
    is_b: bool
    rows: int  # of the operand: all O, all I, or the part of O that a subset visits
    total: int
    rank: int
    scale: float
    starts: Int[Tensor, " L"]
    stride: int = 1

    @property
    def steps(self) -> tuple[int, int]:
        return (self.rank, 1) if self.is_b else (1, self.total)

    def find_largest(self, largest: Float[Tensor, "L 2 4 pieces"]) -> None:
        _find_largest[(largest.shape[-1], len(self.factors))](
            _addresses(self.factors), largest, self.total, *self.steps, scale=self.scale,
            IS_B=self.is_b, R=self.rank, K=inner_width(self.rank), BLOCK=128,
        )  # fmt: skip

    def operand(
        self, largest: Float[Tensor, "L 2 4 pieces"], group: Group, wanted: list[bool], *, changes: bool
    ) -> tuple[Tensor, Tensor]:
        """Its halves, float16, and its parts, bfloat16, [L, planes * rows * K]."""
        layers, width, block = len(self.factors), inner_width(self.rank), 64
        size = self.rows * width
        halves = self.starts.new_empty((layers, (1 + self.is_b) * _HALVES * size), dtype=torch.float16)
        parts = self.starts.new_empty((layers, _PARTS * size), dtype=torch.bfloat16)
        _prepare[(triton.cdiv(self.rows, block), layers)](
            _addresses(self.factors), halves, parts, largest, group.offsets, group.floors, self.starts, self.stride,
            self.rows, self.total, *self.steps, scale=self.scale, TASK=wanted[0], SHARED=wanted[1], CHANGES=changes,
            IS_B=self.is_b, R=self.rank, K=width, BLOCK=block,
        )  # fmt: skip
        return halves, parts


_address_tables: dict[tuple[int, ...], Tensor] = {}
_captured_tables: dict[tuple[int, ...], Tensor] = {}  # kept: a replay reads them
_MOST_TABLES = 256


def _addresses(factors: list[list[Tensor]]) -> Int[Tensor, "L 4"]:
    """Where the factors are, as a tensor that is copied to the device once: a captured graph copies nothing."""
    key = tuple(f.data_ptr() for four in factors for f in four)
    if key not in _address_tables:
        if len(_address_tables) >= _MOST_TABLES:
            _address_tables.clear()
        table = torch.tensor(key, dtype=torch.int64).reshape(len(factors), 4)
        _address_tables[key] = table.to(factors[0][0].device)
    if _address_tables[key].is_cuda and torch.cuda.is_current_stream_capturing():
        _captured_tables[key] = _address_tables[key]
    return _address_tables[key]


def both_operands(b: Side, a: Side, group: Group, wanted: list[bool], *, changes: bool = True) -> tuple[Tensor, ...]:
    """Both sides' operands, and the largest entries that their scales come from."""
    largest = b.starts.new_empty((len(b.factors), 2, 4, int(_PIECES)), dtype=torch.float32)
    b.find_largest(largest)
    a.find_largest(largest)
    left, right = (side.operand(largest, group, wanted, changes=changes) for side in (b, a))
    return *left, *right, largest


def _tile(width: int, *, shared: bool) -> dict[str, int]:
    """Rows and columns of a tile, warps and stages: the fastest at 16; theta's gradients need more registers."""
    stages = (3 if shared else 2) if width == 16 else 1
    return {"BLOCK_N": 64, "BLOCK_M": 32 if shared or width > 16 else 64, "num_warps": 4, "num_stages": stages}


# -------------------- KL(task | shared)


def task_kl(
    task: Sequence[Factors],
    shared: Sequence[Factors],
    variances: Sequence[Variance],
    stride: int = 1,
    key: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """`eager.task_kl` by fused kernels; gradients are formed with the value and scaled in backward."""
    reason = unsupported("task_kl", task[0].mean_b, variances)
    if reason:
        fallbacks["task_kl"] = reason
        return eager.task_kl(task, shared, variances, stride, key)
    if max(f.mean_b.shape[1] for f in task) > MOST_RANK:
        return triton_entries.task_kl(task, shared, variances, stride, key)
    flat = [factor for factors in (*task, *shared) for factor in factors]
    return TaskKL.apply(Way(list(variances), _kl_of_group, _bytes_of), stride, key, *flat)


def unsupported(name: str, factor: Float[Tensor, "O R"], variances: Sequence[Variance]) -> str:
    """Why the kernels cannot do this call of an op, or ""."""
    if any(variance.form != "square" for variance in variances):
        return "std_form=log_std has no Triton kernel"
    if factor.dtype != torch.float32:
        return f"factors are {factor.dtype}, the kernel is for float32"
    return refused.get((name, factor.shape[1]), "")


class Way(NamedTuple):
    """How `TaskKL` is computed: the KL of a group of layers and its gradients, as `_kl_of_group` has them, and what a
    layer takes in memory, given the number of gradients."""

    variances: list[Variance]
    of_group: Callable[[Side, Side, Group, list[bool], float], tuple[Tensor, Tensor, Tensor]]
    bytes_of: Callable[[int], Callable[[int, int, int], int]]


class TaskKL(torch.autograd.Function):
    """The sum over groups of layers; gradients are formed with the value, and kept."""

    @staticmethod
    def forward(ctx: Any, way: Way, stride: int, key: Tensor | None, *flat: Tensor) -> Tensor:
        """The KL, float64."""
        variances, of_group, bytes_of = way
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
        of_layer = bytes_of(2 * sum(wanted))
        for group in _groups([b[0] for b in sides[0]], [a[0] for a in sides[1]], variances, of_layer, stride):
            b, a = _sides(sides, group, stride, key)
            loss, by_b, by_a = of_group(b, a, group, wanted, float(stride))
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
        """The gradients that are kept, scaled."""
        if ctx.stacks:
            torch._foreach_mul_(ctx.stacks, upstream.float())
        return (None, None, None, *ctx.gradients)


def _sides(sides: list[list[list[Tensor]]], group: Group, stride: int, key: Tensor | None) -> tuple[Side, Side]:
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
        Side(b, True, -(-rows // stride), rows, rank, group.scale, starts, stride),
        Side(a, False, columns, columns, rank, 1.0, zeros),
    )


def _kl_of_group(
    b: Side, a: Side, group: Group, wanted: list[bool], weight: float
) -> tuple[Tensor, Float[Tensor, "L k O R"], Float[Tensor, "L k R I"]]:
    """The summed KL of a group, and the gradients of phi's and of theta's mean and std factors, where wanted."""
    tile, slots = _tile(inner_width(b.rank), shared=wanted[1]), 2 * sum(wanted)
    blocks = triton.cdiv(b.rows, tile["BLOCK_N"])
    losses = b.starts.new_empty((len(b.factors), b.rows), dtype=torch.float32)
    by_b = losses.new_empty((len(b.factors), slots, b.total, b.rank))
    if b.stride > 1:  # rows that are not visited
        by_b.zero_()
    shares = losses.new_empty((len(b.factors), blocks, slots, a.rank, a.total))
    *operands, largest = both_operands(b, a, group, wanted)
    _kl_pass[(blocks, len(b.factors))](
        *operands, by_b, shares, losses, largest, group.offsets, group.floors, b.starts, b.stride,
        b.rows, a.rows, b.total, weight=weight, scale=b.scale, R=b.rank, K=inner_width(b.rank),
        TASK=wanted[0], SHARED=wanted[1], **tile,
    )  # fmt: skip
    return losses.double().sum(), by_b, shares.sum(1)


# -------------------- -log p(theta), Gamma part


def precision_penalty(
    std_b: Sequence[Tensor], std_a: Sequence[Tensor], variances: Sequence[Variance], shape: float, rate: float
) -> Float[Tensor, ""]:
    """`eager.precision_penalty` by a fused kernel; gradients are formed with the value and scaled in backward."""
    reason = unsupported("precision_penalty", std_b[0], variances)
    if reason:
        fallbacks["precision_penalty"] = reason
        return eager.precision_penalty(std_b, std_a, variances, shape, rate)
    if max(b.shape[1] for b in std_b) > MOST_RANK:
        return triton_entries.precision_penalty(std_b, std_a, variances, shape, rate)
    return _Penalty.apply(list(variances), shape, rate, *std_b, *std_a)


class _Penalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, variances: list[Variance], shape: float, rate: float, *flat: Tensor) -> Tensor:
        layers = len(variances)
        sides = [[[x.detach().contiguous()] * 4 for x in half] for half in (flat[:layers], flat[layers:])]
        entries = sum(b.shape[0] * a.shape[1] for b, a in zip(flat[:layers], flat[layers:], strict=True))
        constant = eager.gamma_constant(shape, rate)
        total = torch.full((), entries * constant, dtype=torch.float64, device=flat[0].device)
        gradients: list[Tensor] = list(flat)
        ctx.stacks = []
        for group in _groups(flat[:layers], flat[layers:], variances, _bytes_of(1)):
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
    b: Side, a: Side, group: Group, shape: float, rate: float
) -> tuple[Tensor, Float[Tensor, "L O R"], Float[Tensor, "L R I"]]:
    """The summed penalty of a group but its constant, and the gradients of theta's std factors."""
    tile, count = _tile(inner_width(b.rank), shared=False), len(b.factors)
    blocks = triton.cdiv(b.rows, tile["BLOCK_N"])
    losses = b.starts.new_empty((count, b.rows), dtype=torch.float32)
    by_b, shares = losses.new_empty((count, b.rows, b.rank)), losses.new_empty((count, blocks, a.rank, a.rows))
    *operands, largest = both_operands(b, a, group, [False, True], changes=False)
    _penalty_pass[(blocks, count)](
        *operands, by_b, shares, losses, largest, group.offsets, group.floors,
        b.rows, a.rows, scale=b.scale, shape=shape, rate=rate, R=b.rank, K=inner_width(b.rank), **tile,
    )  # fmt: skip
    return losses.double().sum(), by_b, shares.sum(1)
