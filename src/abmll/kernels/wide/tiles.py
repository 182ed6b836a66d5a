# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton kernels of the activation sampler at wide ranks: what stands between its products.

Here the variances of a layer are made, O x I of them, and V = x^2 var^T is one product of the size of the base layer's,
where pairs of rank R + 1 (`triton_lowrank`) would be 2,145 columns at rank 64, half as many as the inputs of a layer.
Float32 numbers go through memory as bfloat16 parts, which torch multiplies; the variances are positive, so that the
sum of the products loses nothing.
"""

from typing import no_type_check

import triton
import triton.language as tl

from abmll.kernels.triton_lowrank import coordinates, noise
from abmll.kernels.triton_parts import columns, dot, flip, rows, split

TINY = tl.constexpr(1.1754943508222875e-38)  # as in eager: keeps the slope of sqrt at 0 finite
_VARYING = ["place_stride", "row_tokens", "group_tokens", "layer", "tokens", "first", "part"]


@triton.jit
@no_type_check
def _r(std_b, a, scale, offset):
    """r = s B' A' + f, where it may cancel: from all parts."""
    return scale * dot(std_b, a, 3, 3) + offset


@triton.jit
@no_type_check
def variances(
    std_b, std_a, out, height, width, scale, offset, floor,
    RANK: tl.constexpr, RP: tl.constexpr, PARTS: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """r^2 + eps^2 of BO outputs and BI inputs: float32, or [hi, mid] in bfloat16, a matrix each."""
    o, i, r = (
        tl.program_id(0) * BO + tl.arange(0, BO),
        tl.program_id(1) * BI + tl.arange(0, BI),
        tl.arange(0, RP),
    )
    b = split(rows(std_b, o, o < height, r, r < RANK, RANK))
    a = flip(split(columns(std_a, r, r < RANK, i, i < width, width)))
    value = _r(b, a, scale, offset)
    value = value * value + floor * floor
    at, ok = o.to(tl.int64)[:, None] * width + i[None, :], (o < height)[:, None] & (i < width)[None, :]
    if PARTS == 2:
        hi, mid, _ = split(value)
        tl.store(out + at, hi, mask=ok)
        tl.store(out + at + height.to(tl.int64) * width, mid, mask=ok)
    else:
        tl.store(out + at, value, mask=ok)


@triton.jit
@no_type_check
def squares(x, out, count, BLOCK: tl.constexpr):
    """x^2 as bfloat16 parts [hi, hi, lo]: two neighbouring planes for one product, all three for another."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32)
    hi, lo, _ = split(value * value)
    tl.store(out + at, hi, mask=at < count)
    tl.store(out + at + count.to(tl.int64), hi, mask=at < count)
    tl.store(out + at + 2 * count.to(tl.int64), lo, mask=at < count)


@triton.jit(do_not_specialize=_VARYING)
@no_type_check
def finish(
    y0, z, mean_b, spreads, more, y, kept, keys, questions, places, place_stride, row_tokens, group_tokens, layer,
    tokens, height, first, part, scale,
    RANK: tl.constexpr, RP: tl.constexpr, P: tl.constexpr, PARTS: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """y = y0 + s h B^T + sqrt(V) z, cast once, for BT tokens of one group and BO of `part` outputs from `first` on.

    V is the sum of the products that made it; it is kept for backward.
    """
    group, inside = tl.program_id(2), tl.program_id(1) * BT + tl.arange(0, BT)
    t, t_ok, r = group * group_tokens + inside, inside < group_tokens, tl.arange(0, RP)
    local = tl.program_id(0) * BO + tl.arange(0, BO)
    o, o_ok = first + local, local < part
    ok = t_ok[:, None] & o_ok[None, :]
    here = t.to(tl.int64)[:, None] * part + local[None, :]
    spread = tl.load(spreads + here, mask=ok, other=0.0)
    if PARTS == 2:
        plane = tokens.to(tl.int64) * part
        spread += tl.load(spreads + here + plane, mask=ok, other=0.0) + tl.load(more + here, mask=ok, other=0.0)
    b = split(rows(mean_b, o, o_ok, r, r < RANK, RANK))
    total = scale * dot(coordinates(z, t, t_ok, tokens, 0, RP, RP, P), flip(b), P, P)
    begin = first + tl.program_id(0) * BO
    e = noise(begin, t, t_ok, keys, group, questions, places, place_stride, row_tokens, layer, P, BT, BO)
    total += tl.sqrt(spread + TINY) * e
    at = t.to(tl.int64)[:, None] * height + o[None, :]
    total += tl.load(y0 + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=ok)
    tl.store(kept + at, spread, mask=ok)


@triton.jit(do_not_specialize=_VARYING)
@no_type_check
def pull(
    g, kept, out, keys, questions, places, place_stride, row_tokens, group_tokens, layer, tokens, height,
    P: tl.constexpr, PARTS: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """dV of BT tokens of one group and BO outputs: float32, or bfloat16 parts [hi, mid, hi]."""
    group, inside = tl.program_id(2), tl.program_id(1) * BT + tl.arange(0, BT)
    t, t_ok = group * group_tokens + inside, inside < group_tokens
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    at, ok = t.to(tl.int64)[:, None] * height + o[None, :], t_ok[:, None] & (o < height)[None, :]
    begin = tl.program_id(0) * BO
    e = noise(begin, t, t_ok, keys, group, questions, places, place_stride, row_tokens, layer, P, BT, BO)
    down = 0.5 * tl.load(g + at, mask=ok, other=0.0).to(tl.float32) * e
    down *= tl.rsqrt(tl.load(kept + at, mask=ok, other=1.0) + TINY)
    if PARTS == 2:
        hi, mid, _ = split(down)
        plane = tokens.to(tl.int64) * height
        tl.store(out + at, hi, mask=ok)
        tl.store(out + at + plane, mid, mask=ok)
        tl.store(out + at + 2 * plane, hi, mask=ok)
    else:
        tl.store(out + at, down, mask=ok)


@triton.jit(do_not_specialize=["tokens"])
@no_type_check
def input_backward(
    x, dz, mean_a, by_square, dx, tokens, width,
    RANK: tl.constexpr, RP: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """dx = dh A + 2 x (dV var) of BT tokens and BI inputs."""
    i, t, r = (
        tl.program_id(0) * BI + tl.arange(0, BI),
        tl.program_id(1) * BT + tl.arange(0, BT),
        tl.arange(0, RP),
    )
    a = flip(split(columns(mean_a, r, r < RANK, i, i < width, width)))
    total = dot(coordinates(dz, t, t < tokens, tokens, 0, RP, RP, P), a, P, P)
    tile = rows(x, t, t < tokens, i, i < width, width).to(tl.float32)
    total += 2.0 * tile * rows(by_square, t, t < tokens, i, i < width, width).to(tl.float32)
    at, ok = t.to(tl.int64)[:, None] * width + i[None, :], (t < tokens)[:, None] & (i < width)[None, :]
    tl.store(dx + at, total.to(dx.dtype.element_ty), mask=ok)


@triton.jit
@no_type_check
def contract(
    by_variance, std_b, std_a, b_parts, a_parts, height, width, chunk, scale, offset,
    RANK: tl.constexpr, RP: tl.constexpr, P: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """The chain rule from the variances of BO outputs and one chunk of inputs: the chunk's share of dB' to
    b_parts[chunk, output, R], that of the outputs of dA' to a_parts[output tile, R, input].
    """
    o, r = tl.program_id(0) * BO + tl.arange(0, BO), tl.arange(0, RP)
    o_ok, r_ok = o < height, r < RANK
    b = split(rows(std_b, o, o_ok, r, r_ok, RANK))
    db = tl.full((BO, RP), 0.0, tl.float32)
    a_part = a_parts + tl.program_id(0).to(tl.int64) * RANK * width
    start = tl.program_id(1) * chunk
    for first in range(start, min(start + chunk, width), BI):
        i = first + tl.arange(0, BI)
        i_ok = i < width
        a = split(columns(std_a, r, r_ok, i, i_ok, width))
        down = 2.0 * scale * _r(b, flip(a), scale, offset) * rows(by_variance, o, o_ok, i, i_ok, width)
        parts = split(down)
        db += dot(parts, a, P, P)
        share = dot(flip(parts), b, P, P)
        tl.store(a_part + r[None, :] * width + i[:, None], share, mask=r_ok[None, :] & i_ok[:, None])
    b_part = b_parts + tl.program_id(1).to(tl.int64) * height * RANK
    tl.store(b_part + o[:, None] * RANK + r[None, :], db, mask=o_ok[:, None] & r_ok[None, :])
