# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton kernels of the low-rank forward pass: means, and the activation sampler's noise (docs/method.md, section 3).

With Bext = [s B', f] and Aext = [A' ; 1], r = Bext Aext, and the variance of an output is a sum over pairs k <= l of
rank R + 1, with no O x I matrix:

    V[t, o] = sum_kl outer[o, kl] F[t, kl]        F[t, kl] = sum_i inner[kl, i] x[t, i]^2
    outer = w Bext_k Bext_l (+ eps^2 at the last pair), w = 1 where k = l, else 2        inner = Aext_k Aext_l

Pair j = l (l + 1) / 2 + k, so the last is that of the constants; pairs come in BLOCKS blocks of JP columns, filled up
with zeros. Per token, z = [h | F] with h = x A^T in RP columns is all that the other kernels need of x; z and its
gradient are kept as P bfloat16 parts (`triton_parts`): three are float32, two do for results that are cast to 16 bits.
JP = 0 leaves the noise out.

Every program owns what it writes; what several programs sum, each writes to a slice of its own (`..._parts`).
"""

from typing import no_type_check

import triton
import triton.language as tl

from abmll.kernels.triton_noise import key_words, normal_tile
from abmll.kernels.triton_parts import columns, dot, flip, rows, split

_TINY = tl.constexpr(1.1754943508222875e-38)  # as in eager: keeps the slope of sqrt at 0 finite
_VARYING = ["place_stride", "row_tokens", "group_tokens", "layer", "tokens"]  # no new compilation for these


@triton.jit
@no_type_check
def coordinates(z, t, t_ok, tokens, first, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr):
    """The P parts of COLUMNS columns of z (or dz), from column `first`, for some tokens."""
    at = z + t.to(tl.int64)[:, None] * WIDTH + first + tl.arange(0, COLUMNS)[None, :]
    plane = tokens.to(tl.int64) * WIDTH
    ok = t_ok[:, None]
    hi, mid = tl.load(at, mask=ok, other=0.0), tl.load(at + plane, mask=ok, other=0.0)
    return hi, mid, tl.load(at + 2 * plane, mask=ok, other=0.0) if P == 3 else mid


@triton.jit(do_not_specialize=["count", "slices"])
@no_type_check
def collect(
    parts, out, count, slices,
    WIDTH: tl.constexpr, RANK: tl.constexpr, RP: tl.constexpr, PAIRS: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """z or dz: the sum over float32 slices of `count` numbers each, to the P bfloat16 slices of `out`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = at % WIDTH
    used = (at < count) & ((column < RANK) | ((column >= RP) & (column < RP + PAIRS)))
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for first in range(0, slices, 16):
        for more in tl.static_range(16):  # all of these loads are under way at once
            total += tl.load(parts + at, mask=used & (at < tl.where(first + more < slices, count, 0)), other=0.0)
            parts += count
    first, second, third = split(total)
    tl.store(out + at, first, mask=at < count)
    tl.store(out + count + at, second, mask=at < count)
    if P == 3:
        tl.store(out + 2 * count + at, third, mask=at < count)


# -------------------- pairs of rank R + 1


@triton.jit
@no_type_check
def _pair(block, RANK: tl.constexpr, JP: tl.constexpr):
    """k and l of the pairs of a block; l > R beyond the last one."""
    j = block * JP + tl.arange(0, JP)
    upper = j * 0
    for start in tl.static_range(1, RANK + 2):
        upper += (j >= start * (start + 1) // 2).to(tl.int32)
    return j - upper * (upper + 1) // 2, upper


@triton.jit
@no_type_check
def _used(block, RANK: tl.constexpr, JP: tl.constexpr):
    """Which columns of a block hold a pair."""
    return (block * JP + tl.arange(0, JP) < (RANK + 1) * (RANK + 2) // 2)[None, :]


@triton.jit
@no_type_check
def _selections(block, RANK: tl.constexpr, EP: tl.constexpr, JP: tl.constexpr):
    """[EP, JP] matrices of 0 and 1: multiplying by them is an exact gather of columns k, or l."""
    lower, upper = _pair(block, RANK, JP)
    r = tl.arange(0, EP)[:, None]
    return split((lower[None, :] == r).to(tl.float32)), split((upper[None, :] == r).to(tl.float32))


@triton.jit
@no_type_check
def _sides(extended, block, RANK: tl.constexpr, EP: tl.constexpr, JP: tl.constexpr, P: tl.constexpr):
    """Columns k and l of n rows of Bext or Aext^T for each pair of a block, [n, JP]."""
    parts = split(extended)
    is_lower, is_upper = _selections(block, RANK, EP, JP)
    return dot(parts, is_lower, P, 1), dot(parts, is_upper, P, 1)


@triton.jit
@no_type_check
def _to_factor(by_pair, first, second, block, RANK: tl.constexpr, EP: tl.constexpr, JP: tl.constexpr, P: tl.constexpr):
    """Chain rule from products of sides, [n, JP], back to the rows that both sides come from, [n, EP]."""
    is_lower, is_upper = _selections(block, RANK, EP, JP)
    return dot(split(by_pair * second), flip(is_lower), P, 1) + dot(split(by_pair * first), flip(is_upper), P, 1)


@triton.jit
@no_type_check
def _twice(block, RANK: tl.constexpr, JP: tl.constexpr):
    """w of each pair: those with k < l stand for two terms of the sum."""
    lower, upper = _pair(block, RANK, JP)
    return tl.where(lower == upper, 1.0, 2.0)[None, :]


@triton.jit
@no_type_check
def _outer_sides(
    std_b, o, o_ok, block, scale, offset, RANK: tl.constexpr, EP: tl.constexpr, JP: tl.constexpr, P: tl.constexpr
):
    """Bext_k and Bext_l of each pair, [outputs, JP]."""
    r = tl.arange(0, EP)
    entries = rows(std_b, o, o_ok, r, r < RANK, RANK)
    return _sides(tl.where((r == RANK)[None, :], offset, scale * entries), block, RANK, EP, JP, P)


@triton.jit
@no_type_check
def _outer(
    std_b, o, o_ok, block, scale, offset, floor, RANK: tl.constexpr, EP: tl.constexpr, JP: tl.constexpr, P: tl.constexpr
):
    """Parts of the coefficients of F in V, [outputs, JP]."""
    first, second = _outer_sides(std_b, o, o_ok, block, scale, offset, RANK, EP, JP, P)
    last = block * JP + tl.arange(0, JP) == (RANK + 1) * (RANK + 2) // 2 - 1
    return split(_twice(block, RANK, JP) * first * second + tl.where(last, floor * floor, 0.0)[None, :])


@triton.jit
@no_type_check
def _inner_sides(std_a, i, i_ok, width, block, RANK: tl.constexpr, EP: tl.constexpr, JP: tl.constexpr, P: tl.constexpr):
    """Aext_k and Aext_l of each pair, [inputs, JP]."""
    r = tl.arange(0, EP)
    entries = columns(std_a, r, r < RANK, i, i_ok, width)
    return _sides(tl.where((r == RANK)[None, :], 1.0, entries), block, RANK, EP, JP, P)


@triton.jit
@no_type_check
def _inner(std_a, i, i_ok, width, block, RANK: tl.constexpr, EP: tl.constexpr, JP: tl.constexpr, P: tl.constexpr):
    """Parts of the coefficients of x^2 in F, [inputs, JP]."""
    first, second = _inner_sides(std_a, i, i_ok, width, block, RANK, EP, JP, P)
    return split(first * second)


# -------------------- x to z


@triton.jit(do_not_specialize=["tokens"])
@no_type_check
def project(
    x, mean_a, std_a, parts, tokens, width, chunk,
    RANK: tl.constexpr, RP: tl.constexpr, EP: tl.constexpr, JP: tl.constexpr, BLOCKS: tl.constexpr,
    X: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """z of BT tokens, h and one block of F, summed over one chunk of inputs, to parts[chunk, token]. Reads x once."""
    t, r, block = tl.program_id(0) * BT + tl.arange(0, BT), tl.arange(0, RP), tl.program_id(2)
    start = tl.program_id(1) * chunk
    h = tl.full((BT, RP), 0.0, tl.float32)
    if JP:
        pairs = tl.full((BT, JP), 0.0, tl.float32)
    for first in range(start, min(start + chunk, width), BI):
        i = first + tl.arange(0, BI)
        tile = rows(x, t, t < tokens, i, i < width, width)
        h += dot(split(tile), split(columns(mean_a, r, r < RANK, i, i < width, width)), X, P)
        if JP:
            tile = tile.to(tl.float32)
            inner = _inner(std_a, i, i < width, width, block, RANK, EP, JP, P)
            pairs += dot(split(tile * tile), inner, min(X + 1, P), P)
    row = parts + (tl.program_id(1) * tokens + t).to(tl.int64)[:, None] * (RP + BLOCKS * JP)
    tl.store(row + r[None, :], h, mask=(t < tl.where(block == 0, tokens, 0))[:, None] & (r < RANK)[None, :])
    if JP:
        used = (t < tokens)[:, None] & _used(block, RANK, JP)
        tl.store(row + RP + block * JP + tl.arange(0, JP)[None, :], pairs, mask=used)


@triton.jit(do_not_specialize=["tokens"])
@no_type_check
def project_backward(
    x, dz, mean_a, std_a, dx, a_parts, tokens, width, chunk, first_block,
    RANK: tl.constexpr, RP: tl.constexpr, EP: tl.constexpr, JP: tl.constexpr, BLOCKS: tl.constexpr,
    X: tl.constexpr, P: tl.constexpr, NEED_X: tl.constexpr, NEED_A: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Of BI inputs and one chunk of tokens: dx (NEED_X, for block 0 only), and the chunk's and block's share of dA and
    dA' to a_parts[chunk, block, 0 or 1, R, input].

    dx = dh A + 2 x (dF inner), dA = dh^T x, dinner = dF^T x^2. Reads x once.
    """
    i, r = tl.program_id(0) * BI + tl.arange(0, BI), tl.arange(0, RP)
    i_ok, block = i < width, first_block + tl.program_id(2)
    a = split(columns(mean_a, r, r < RANK, i, i_ok, width))  # A^T, as are the gradients here: tall tiles
    da = tl.full((BI, RP), 0.0, tl.float32)
    if JP:
        inner = _inner(std_a, i, i_ok, width, block, RANK, EP, JP, P)
        dinner = tl.full((BI, JP), 0.0, tl.float32)
    start = tl.program_id(1) * chunk
    for first in range(start, min(start + chunk, tokens), BT):
        t = first + tl.arange(0, BT)
        t_ok = t < tokens
        tile = rows(x, t, t_ok, i, i_ok, width)
        dh = coordinates(dz, t, t_ok, tokens, 0, RP, RP + BLOCKS * JP, P)
        if NEED_A:
            da += dot(flip(split(tile)), dh, X, P)
        if NEED_X:
            down = dot(dh, flip(a), P, P)
        if JP:
            tile = tile.to(tl.float32)
            dpairs = coordinates(dz, t, t_ok, tokens, RP + block * JP, JP, RP + BLOCKS * JP, P)
            if NEED_A:
                dinner += dot(flip(split(tile * tile)), dpairs, min(X + 1, P), P)
            if NEED_X:
                by_square = dot(dpairs, flip(inner), P, P)
                for other in tl.static_range(1, BLOCKS):
                    dpairs = coordinates(dz, t, t_ok, tokens, RP + other * JP, JP, RP + BLOCKS * JP, P)
                    by_square += dot(dpairs, flip(_inner(std_a, i, i_ok, width, other, RANK, EP, JP, P)), P, P)
                down += 2.0 * tile * by_square
        if NEED_X:
            at, ok = t.to(tl.int64)[:, None] * width + i[None, :], t_ok[:, None] & i_ok[None, :]
            tl.store(dx + at, down.to(dx.dtype.element_ty), mask=ok)
    if NEED_A:
        part = a_parts + (tl.program_id(1) * BLOCKS + block).to(tl.int64) * 2 * RANK * width
        da = tl.where(block == 0, da, 0.0)
        tl.store(part + r[None, :] * width + i[:, None], da, mask=(r < RANK)[None, :] & i_ok[:, None])
        if JP:
            sides = _inner_sides(std_a, i, i_ok, width, block, RANK, EP, JP, P)
            q = tl.arange(0, EP)[None, :]
            da = _to_factor(dinner, sides[0], sides[1], block, RANK, EP, JP, P)
            tl.store(part + (RANK + q) * width + i[:, None], da, mask=(q < RANK) & i_ok[:, None])


# -------------------- z to y


@triton.jit
@no_type_check
def _spread(
    total, z, t, t_ok, tokens, floor, RANK: tl.constexpr, RP: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr
):
    """V, given its sum over the pairs, and whether it lies at its clamp eps^2 sum x^2; a NaN stays a NaN."""
    last = coordinates(z, t, t_ok, tokens, RP + (RANK + 1) * (RANK + 2) // 2 - 1, 1, WIDTH, P)
    third = last[2].to(tl.float32) if P == 3 else 0.0
    lowest = floor * floor * (last[0].to(tl.float32) + (last[1].to(tl.float32) + third))
    return tl.where(total < lowest, lowest, total), total < lowest


@triton.jit
@no_type_check
def noise(
    first, t, t_ok, keys, group, questions, places, place_stride, row_tokens, layer,
    P: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """z of BT tokens and BO outputs: keyed by (question, place of the token) as in `eager.activation_noise`."""
    low, high = key_words(tl.load(keys + group))
    row = t // row_tokens
    question = tl.load(questions + row, mask=t_ok, other=0).to(tl.uint32)
    place = tl.load(places + row * place_stride + t % row_tokens, mask=t_ok, other=0).to(tl.uint32)
    return normal_tile(first, place, layer, question, low, high, BT, BO, P)


@triton.jit(do_not_specialize=_VARYING)
@no_type_check
def output(
    y0, z, mean_b, std_b, y, keys, questions, places, place_stride, row_tokens,
    group_tokens, layer, tokens, height, scale, offset, floor,
    RANK: tl.constexpr, RP: tl.constexpr, EP: tl.constexpr, JP: tl.constexpr, BLOCKS: tl.constexpr,
    P: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """y = y0 + s h B^T + sqrt(V) z, cast once, for BT tokens of one group and BO outputs."""
    group, inside = tl.program_id(2), tl.program_id(1) * BT + tl.arange(0, BT)
    t, t_ok, r = group * group_tokens + inside, inside < group_tokens, tl.arange(0, RP)
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    o_ok = o < height
    b = split(rows(mean_b, o, o_ok, r, r < RANK, RANK))
    total = scale * dot(coordinates(z, t, t_ok, tokens, 0, RP, RP + BLOCKS * JP, P), flip(b), P, P)
    if JP:
        spread = tl.full((BT, BO), 0.0, tl.float32)
        for block in tl.static_range(BLOCKS):
            pairs = coordinates(z, t, t_ok, tokens, RP + block * JP, JP, RP + BLOCKS * JP, P)
            spread += dot(pairs, flip(_outer(std_b, o, o_ok, block, scale, offset, floor, RANK, EP, JP, P)), P, P)
        spread, _ = _spread(spread, z, t, t_ok, tokens, floor, RANK, RP, RP + BLOCKS * JP, P)
        first = tl.program_id(0) * BO
        e = noise(first, t, t_ok, keys, group, questions, places, place_stride, row_tokens, layer, P, BT, BO)
        total += tl.sqrt(spread + _TINY) * e
    at, ok = t.to(tl.int64)[:, None] * height + o[None, :], t_ok[:, None] & o_ok[None, :]
    total += tl.load(y0 + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=_VARYING)
@no_type_check
def output_backward(
    g, z, mean_b, std_b, z_parts, b_parts, keys, questions, places, place_stride, row_tokens,
    group_tokens, layer, tokens, height, chunk, scale, offset, floor,
    RANK: tl.constexpr, RP: tl.constexpr, EP: tl.constexpr, JP: tl.constexpr, BLOCKS: tl.constexpr,
    G: tl.constexpr, P: tl.constexpr, NEED_Z: tl.constexpr, NEED_B: tl.constexpr, BT: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Of BO outputs, one chunk of a group's tokens and one block of pairs: the outputs' share of dz to
    z_parts[output tile, token], and the chunk's and block's of dB and dB' to b_parts[.., 0 or 1, output, R].
    """
    group, block = tl.program_id(2) // BLOCKS, tl.program_id(2) % BLOCKS
    o, r = tl.program_id(0) * BO + tl.arange(0, BO), tl.arange(0, RP)
    o_ok = o < height
    b = split(rows(mean_b, o, o_ok, r, r < RANK, RANK))
    db = tl.full((BO, RP), 0.0, tl.float32)
    if JP:
        outer = _outer(std_b, o, o_ok, block, scale, offset, floor, RANK, EP, JP, P)
        by_pair = tl.full((BO, JP), 0.0, tl.float32)
    start = tl.program_id(1) * chunk
    for first in range(start, min(start + chunk, group_tokens), BT):
        inside = first + tl.arange(0, BT)
        t, t_ok = group * group_tokens + inside, inside < group_tokens
        down = rows(g, t, t_ok, o, o_ok, height)
        row = z_parts + (tl.program_id(0) * tokens + t).to(tl.int64)[:, None] * (RP + BLOCKS * JP)
        if NEED_B:
            db += dot(flip(split(down)), coordinates(z, t, t_ok, tokens, 0, RP, RP + BLOCKS * JP, P), G, P)
        if NEED_Z:
            first_ok = inside < tl.where(block == 0, group_tokens, 0)
            tl.store(row + r[None, :], scale * dot(split(down), b, G, P), mask=first_ok[:, None] & (r < RANK)[None, :])
        if JP:
            column = tl.program_id(0) * BO
            e = noise(column, t, t_ok, keys, group, questions, places, place_stride, row_tokens, layer, P, BT, BO)
            pull = 0.5 * down.to(tl.float32) * e
            pairs = coordinates(z, t, t_ok, tokens, RP + block * JP, JP, RP + BLOCKS * JP, P)
            spread = dot(pairs, flip(outer), P, P)
            for more in tl.static_range(1, BLOCKS):
                other = (block + more) % BLOCKS
                theirs = coordinates(z, t, t_ok, tokens, RP + other * JP, JP, RP + BLOCKS * JP, P)
                spread += dot(theirs, flip(_outer(std_b, o, o_ok, other, scale, offset, floor, RANK, EP, JP, P)), P, P)
            spread, clamped = _spread(spread, z, t, t_ok, tokens, floor, RANK, RP, RP + BLOCKS * JP, P)
            dspread = split(tl.where(clamped, 0.0, pull * tl.rsqrt(spread + _TINY)))
            if NEED_B:
                by_pair += dot(flip(dspread), pairs, P, P)
            if NEED_Z:
                dpairs = dot(dspread, outer, P, P)
                used = t_ok[:, None] & _used(block, RANK, JP)
                tl.store(row + RP + block * JP + tl.arange(0, JP)[None, :], dpairs, mask=used)
    if NEED_B:
        part = b_parts + (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * 2 * height * RANK
        db = tl.where(block == 0, scale * db, 0.0)
        tl.store(part + o[:, None] * RANK + r[None, :], db, mask=o_ok[:, None] & (r < RANK)[None, :])
        if JP:
            sides = _outer_sides(std_b, o, o_ok, block, scale, offset, RANK, EP, JP, P)
            q = tl.arange(0, EP)[None, :]
            db = scale * _to_factor(by_pair * _twice(block, RANK, JP), sides[0], sides[1], block, RANK, EP, JP, P)
            tl.store(part + (height + o)[:, None] * RANK + q, db, mask=o_ok[:, None] & (q < RANK))
