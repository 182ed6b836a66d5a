# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton kernels of the `weight` sampler: one matrix std * E for all tokens of a draw, its entries made where they are
used and never kept.

A tile of W = s B A + std * E costs about 60 instructions an entry, most of them for E, so a tile is used for as many
tokens at once as registers hold. Being formed in float32 beside std * E, the mean comes along for nothing.
"""

from typing import no_type_check

import triton
import triton.language as tl

from abmll.kernels.triton_noise import key_words, normal_tile
from abmll.kernels.triton_parts import columns, dot, flip, rows, split

_CALL = ["layer", "group_tokens"]  # these vary: no new compilation for them


@triton.jit
@no_type_check
def _noise_tile(keys, group, layer, first, o, P: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr):
    """E of BO outputs and BI inputs: entry (o, i) as in `eager.std_and_noise`."""
    low, high = key_words(tl.load(keys + group))
    return normal_tile(first, o.to(tl.uint32), layer, (o * 0).to(tl.uint32), low, high, BO, BI, P)


@triton.jit
@no_type_check
def _std_and_slope(u, offset, floor, LOG: tl.constexpr):
    """std(u) and d std / d u (`Variance.of`, `Variance.slope`)."""
    if LOG:
        power = offset * tl.exp(u)
        inverse = tl.rsqrt(power * power + floor * floor)
        return (power * power + floor * floor) * inverse, power * power * inverse
    r = u + offset
    inverse = tl.rsqrt(r * r + floor * floor)
    return (r * r + floor * floor) * inverse, r * inverse


@triton.jit
@no_type_check
def _weight_tile(
    b, std_b, mean_a, std_a, keys, group, layer, first, o, width, scale, offset, floor,
    RANK: tl.constexpr, RP: tl.constexpr, P: tl.constexpr, LOG: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Parts of W for BO outputs, whose rows of B and B' come in parts, and BI inputs."""
    i, r = first + tl.arange(0, BI), tl.arange(0, RP)
    a = flip(split(columns(mean_a, r, r < RANK, i, i < width, width)))
    a_std = flip(split(columns(std_a, r, r < RANK, i, i < width, width)))
    std, _ = _std_and_slope(scale * dot(std_b, a_std, P, P), offset, floor, LOG)
    return split(scale * dot(b, a, P, P) + std * _noise_tile(keys, group, layer, first, o, P, BO, BI))


@triton.jit(do_not_specialize=_CALL)
@no_type_check
def weight_forward(
    x, y0, y, mean_b, mean_a, std_b, std_a, keys, layer, group_tokens, height, width, scale, offset, floor,
    RANK: tl.constexpr, RP: tl.constexpr, P: tl.constexpr, LOG: tl.constexpr, X: tl.constexpr,
    BT: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """y = y0 + x W^T, cast once, for BT tokens of one group and BO outputs."""
    group, inside = tl.program_id(2), tl.program_id(1) * BT + tl.arange(0, BT)
    t, t_ok, r = group * group_tokens + inside, inside < group_tokens, tl.arange(0, RP)
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    o_ok = o < height
    b = split(rows(mean_b, o, o_ok, r, r < RANK, RANK))
    b_std = split(rows(std_b, o, o_ok, r, r < RANK, RANK))
    total = tl.full((BT, BO), 0.0, tl.float32)
    for first in range(0, width, BI):
        i = first + tl.arange(0, BI)
        tile = split(rows(x, t, t_ok, i, i < width, width))
        w = _weight_tile(
            b, b_std, mean_a, std_a, keys, group, layer, first, o, width, scale, offset, floor, RANK, RP, P, LOG, BO, BI
        )
        total += dot(tile, flip(w), X, P)
    at, ok = t.to(tl.int64)[:, None] * height + o[None, :], t_ok[:, None] & o_ok[None, :]
    total += tl.load(y0 + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["layer"])
@no_type_check
def weight_matrix(
    w, mean_b, mean_a, std_b, std_a, keys, layer, height, width, scale, offset, floor,
    RANK: tl.constexpr, RP: tl.constexpr, P: tl.constexpr, LOG: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """The first part of W, its nearest bfloat16, of BO outputs and BI inputs, to w[group]."""
    group, o = tl.program_id(2), tl.program_id(0) * BO + tl.arange(0, BO)
    first, r, o_ok = tl.program_id(1) * BI, tl.arange(0, RP), o < height
    b = split(rows(mean_b, o, o_ok, r, r < RANK, RANK))
    b_std = split(rows(std_b, o, o_ok, r, r < RANK, RANK))
    parts = _weight_tile(
        b, b_std, mean_a, std_a, keys, group, layer, first, o, width, scale, offset, floor, RANK, RP, P, LOG, BO, BI
    )
    i = first + tl.arange(0, BI)
    at = (group.to(tl.int64) * height + o)[:, None] * width + i[None, :]
    tl.store(w + at, parts[0], mask=o_ok[:, None] & (i < width)[None, :])


@triton.jit(do_not_specialize=_CALL)
@no_type_check
def weight_input_backward(
    g, dx, mean_b, mean_a, std_b, std_a, keys, layer, group_tokens, height, width, scale, offset, floor,
    RANK: tl.constexpr, RP: tl.constexpr, P: tl.constexpr, LOG: tl.constexpr, G: tl.constexpr,
    BT: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """dx = g W for BT tokens of one group and BI inputs."""
    group, inside = tl.program_id(2), tl.program_id(1) * BT + tl.arange(0, BT)
    t, t_ok, r = group * group_tokens + inside, inside < group_tokens, tl.arange(0, RP)
    first = tl.program_id(0) * BI
    i = first + tl.arange(0, BI)
    total = tl.full((BT, BI), 0.0, tl.float32)
    for start in range(0, height, BO):
        o = start + tl.arange(0, BO)
        o_ok = o < height
        tile = split(rows(g, t, t_ok, o, o_ok, height))
        b = split(rows(mean_b, o, o_ok, r, r < RANK, RANK))
        b_std = split(rows(std_b, o, o_ok, r, r < RANK, RANK))
        w = _weight_tile(
            b, b_std, mean_a, std_a, keys, group, layer, first, o, width, scale, offset, floor, RANK, RP, P, LOG, BO, BI
        )
        total += dot(tile, w, G, P)
    at, ok = t.to(tl.int64)[:, None] * width + i[None, :], t_ok[:, None] & (i < width)[None, :]
    tl.store(dx + at, total.to(dx.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=_CALL)
@no_type_check
def weight_factor_backward(
    x, g, mean_b, mean_a, std_b, std_a, b_parts, a_parts, keys, layer, group_tokens, height, width, chunk,
    scale, offset, floor,
    RANK: tl.constexpr, RP: tl.constexpr, P: tl.constexpr, LOG: tl.constexpr, X: tl.constexpr, G: tl.constexpr,
    BT: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Of BO outputs, a chunk of inputs and one group of tokens: the share of dB and dB' in
    b_parts[chunk, 0 or 1, output, R] and of dA and dA' in a_parts[output tile, 0 or 1, R, input].

    With D = g^T x: dB = s D A^T, dA = s B^T D, and the same for the stds with D * E * d std / d u in D's place.
    """
    group, o, r = tl.program_id(2), tl.program_id(0) * BO + tl.arange(0, BO), tl.arange(0, RP)
    o_ok, r_ok = o < height, r < RANK
    b = split(rows(mean_b, o, o_ok, r, r_ok, RANK))
    b_std = split(rows(std_b, o, o_ok, r, r_ok, RANK))
    db = tl.full((BO, RP), 0.0, tl.float32)
    db_std = tl.full((BO, RP), 0.0, tl.float32)
    a_part = a_parts + (group * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * 2 * RANK * width
    start = tl.program_id(1) * chunk
    for first in range(start, min(start + chunk, width), BI):
        i = first + tl.arange(0, BI)
        i_ok = i < width
        down = _outer_product(g, x, group, group_tokens, o, o_ok, i, i_ok, height, width, X, G, BT, BO, BI)
        parts = split(down)
        a = split(columns(mean_a, r, r_ok, i, i_ok, width))
        db += dot(parts, a, P, P)
        a_at, a_ok = r[None, :] * width + i[:, None], r_ok[None, :] & i_ok[:, None]
        tl.store(a_part + a_at, scale * dot(flip(parts), b, P, P), mask=a_ok)
        a_std = split(columns(std_a, r, r_ok, i, i_ok, width))
        _, slope = _std_and_slope(scale * dot(b_std, flip(a_std), P, P), offset, floor, LOG)
        parts = split(down * slope * _noise_tile(keys, group, layer, first, o, P, BO, BI))
        db_std += dot(parts, a_std, P, P)
        tl.store(a_part + RANK * width + a_at, scale * dot(flip(parts), b_std, P, P), mask=a_ok)
    b_part = b_parts + (group * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * 2 * height * RANK
    b_at, b_ok = o[:, None] * RANK + r[None, :], o_ok[:, None] & r_ok[None, :]
    tl.store(b_part + b_at, scale * db, mask=b_ok)
    tl.store(b_part + height * RANK + b_at, scale * db_std, mask=b_ok)


@triton.jit
@no_type_check
def _outer_product(
    g, x, group, group_tokens, o, o_ok, i, i_ok, height, width,
    X: tl.constexpr, G: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """g^T x over the tokens of a group."""
    total = tl.full((BO, BI), 0.0, tl.float32)
    for first in range(0, group_tokens, BT):
        inside = first + tl.arange(0, BT)
        t, t_ok = group * group_tokens + inside, inside < group_tokens
        down = split(rows(g, t, t_ok, o, o_ok, height))
        total += dot(flip(down), split(rows(x, t, t_ok, i, i_ok, width)), G, X)
    return total
