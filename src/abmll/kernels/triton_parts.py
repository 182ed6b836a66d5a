# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Products of float32 tiles on bfloat16 tensor cores inside a Triton kernel: to float32's accuracy, or to 16 bits.

A float32 number is the sum of three bfloat16 ones (8 bits each), exactly. A product of two tiles is the sum of the
products of their parts, of which those below 2^-24 of the largest are left out. Tensor cores multiply bfloat16 at twice
the rate of TF32 in half the shared memory, and bfloat16 activations need no splitting at all.
"""

from typing import no_type_check

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
@no_type_check
def rows(pointer, row, row_ok, column, column_ok, width):
    """A tile of a row-major matrix, 0 outside."""
    at = pointer + row.to(tl.int64)[:, None] * width + column[None, :]
    return tl.load(at, mask=row_ok[:, None] & column_ok[None, :], other=0.0)


@triton.jit
@no_type_check
def columns(pointer, row, row_ok, column, column_ok, width):
    """The transpose of `rows`."""
    at = pointer + row[None, :] * width + column[:, None]
    return tl.load(at, mask=row_ok[None, :] & column_ok[:, None], other=0.0)


@triton.jit
@no_type_check
def split(tile):
    """The three parts of a tile, each the nearest to what is left, by integers: cheaper than a conversion.

    Of a bfloat16 tile the first part is all; of its square, and of float16, the first two.
    """
    if tile.dtype == tl.bfloat16:
        return tile, tile, tile
    rest = tile.to(tl.float32)
    first, rest = _leading(rest)
    second, rest = _leading(rest)
    third, _ = _leading(rest)
    return first, second, third


@triton.jit
@no_type_check
def _leading(rest):
    bits = (rest.to(tl.uint32, bitcast=True) + 0x8000) & 0xFFFF0000
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True), rest - bits.to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def flip(parts):
    """The parts of the transposed tile."""
    return tl.trans(parts[0]), tl.trans(parts[1]), tl.trans(parts[2])


@triton.jit
@no_type_check
def dot(a, b, A: tl.constexpr, B: tl.constexpr):
    """a b from the first A and B parts of two tiles; products below the last part of either are left out, and the
    smallest come first.
    """
    MOST: tl.constexpr = max(A, B)
    total = tl.full((a[0].shape[0], b[0].shape[1]), 0.0, tl.float32)
    if A > 2:
        total = _add_product(a[2], b[0], total)
    if B > 2:
        total = _add_product(a[0], b[2], total)
    if A > 1 and B > 1 and MOST > 2:
        total = _add_product(a[1], b[1], total)
    if A > 1:
        total = _add_product(a[1], b[0], total)
    if B > 1:
        total = _add_product(a[0], b[1], total)
    return _add_product(a[0], b[0], total)


@triton.jit
@no_type_check
def _add_product(a, b, total):
    if INTERPRETED:  # the interpreter cannot multiply bfloat16
        return total + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, total)
