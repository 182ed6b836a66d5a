# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""`noise.normal` inside a Triton kernel: the same counters, the same words, the same draws to float rounding."""

from typing import no_type_check

import triton
import triton.language as tl

from abmll.kernels.triton_parts import INTERPRETED

_MULTIPLIER_A, _MULTIPLIER_B = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
_WEYL_A, _WEYL_B = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)


@triton.jit
@no_type_check
def key_words(key):
    """The two 32-bit words of an int64 key, low word first."""
    return key.to(tl.uint32), (key >> 32).to(tl.uint32)


@triton.jit
@no_type_check
def normal_tile(first, row, layer, question, low, high, ROWS: tl.constexpr, COLUMNS: tl.constexpr, P: tl.constexpr):
    """[ROWS, COLUMNS] standard normal draws: columns `first` (a multiple of 4) and on of `noise.normal`.

    `row` and `question` are uint32 vectors of ROWS entries; `layer` and the key words `low`, `high` are scalars. A
    counter gives four neighbouring columns, which a thread holds side by side: interleaving them moves nothing. With
    P = 2, for results that are cast to 16 bits, logarithm and circle are the chip's own: within 1e-6, but for a radius
    below 1e-3.
    """
    block = (first // 4 + tl.arange(0, COLUMNS // 4)).to(tl.uint32)
    words = _philox(block[None, :], row[:, None], layer.to(tl.uint32), question[:, None], low, high)
    a, b = _box_muller(words[0], words[1], P)
    c, d = _box_muller(words[2], words[3], P)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [ROWS, COLUMNS])


@triton.jit
@no_type_check
def _multiply(word, factor):
    """High and low word of a 32-bit word times a constant: one wide multiplication."""
    product = tl.mul(word.to(tl.uint64), factor, sanitize_overflow=False)
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
@no_type_check
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of counters and key words that broadcast together (`noise.philox`)."""
    for _ in tl.static_range(10):
        high_a, low_a = _multiply(c0, _MULTIPLIER_A)
        high_b, low_b = _multiply(c2, _MULTIPLIER_B)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0 = tl.add(k0, _WEYL_A, sanitize_overflow=False)
        k1 = tl.add(k1, _WEYL_B, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
@no_type_check
def _uniform(word):
    """`noise._uniform`: the word as a signed number, its negative half mirrored, scaled to [0, 1)."""
    signed = word.to(tl.int32, bitcast=True)
    return tl.where(signed < 0, ~signed, signed).to(tl.float32) * 4.6566127342e-10


@triton.jit
@no_type_check
def _box_muller(first, second, P: tl.constexpr):
    """Two normal draws of two uniform words: radius times cosine and sine."""
    if P == 2 and not INTERPRETED:
        # sqrt(-2 ln u), and half a turn taken off and given back by the sign: the chip is exact within half a turn
        radius = -tl.sqrt(-1.3862943611 * _unary("lg2", tl.maximum(_uniform(first), 1e-7)))
        angle = 6.283185307179586 * _uniform(second) - 3.141592653589793
        return radius * _unary("cos", angle), radius * _unary("sin", angle)
    radius = tl.sqrt(-2.0 * _log(tl.maximum(_uniform(first), 1e-7)))
    cosine, sine = _of_turn(_uniform(second))
    return radius * cosine, radius * sine


@triton.jit
@no_type_check
def _unary(NAME: tl.constexpr, x):
    return tl.inline_asm_elementwise(NAME + ".approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
@no_type_check
def _log(u):
    """ln u to one unit in the last place for normal u: u = 2^e m with m in [2/3, 4/3), and a polynomial in m - 1.

    The library's own also takes care of 0, infinity and subnormal numbers, which do not come here.
    """
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F2AAAAB) & -0x800000
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    s = f * f
    even = ((-0.130310059 * s - 0.121483512) * s - 0.166846126) * s - 0.249996200
    odd = (0.140869141 * s + 0.139814854) * s + 0.200120345
    tail = ((odd * f + even) * f + 0.333331972) * f - 0.5
    return exponent.to(tl.float32) * 8.26295829e-08 + (tail * s + f)  # ln 2 / 2^23


@triton.jit
@no_type_check
def _of_turn(u):
    """cos and sin of 2 pi u, u in [0, 1]: the nearest quarter turn is taken off exactly, polynomials do the rest.

    Within 1e-7. CUDA's own pair would cost a slow path for large angles; the chip's approximate pair has 1e-6.
    """
    shifted = u * 4.0 + 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which stands in the low bits
    quarter = shifted.to(tl.int32, bitcast=True)
    angle = 6.283185307179586 * (u - 0.25 * (shifted - 12582912.0))  # in [-pi/4, pi/4]
    square = angle * angle
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * angle + angle
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = cosine * square * square - 0.5 * square + 1.0
    odd = (quarter & 1) != 0
    x, y = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where(((quarter + 1) & 2) != 0, -x, x), tl.where((quarter & 2) != 0, -y, y)
