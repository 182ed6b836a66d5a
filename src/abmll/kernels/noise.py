"""Counter-based standard normal noise: a pure function of (key, counter), with no generator and no state.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) followed by Box-Muller, bit
for bit what Triton's `tl.randn4x` computes from the same counters up to the rounding of log and cos. So noise
needs no place in a checkpoint, a backward pass can make it again, and batch or rank layout cannot change it.
"""

import hashlib
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIER_A, _MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57
_WEYL_A, _WEYL_B = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10

Key = int | Int[Tensor, "..."]


def noise_key(*parts: int | str) -> int:
    """A 64-bit key from any names and counters, the same on every platform and Python version.

    >>> noise_key("weight", 0, 17) == noise_key("weight", 0, 17) != noise_key("weight", 0, 18)
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def key_tensor(*keys: int, device: torch.device | str | None = None) -> Int[Tensor, " S"]:
    """64-bit keys as an int64 tensor, one for each posterior draw: the form in which forward passes take them.

    The bits are those of the unsigned key, so keys from 2^63 up are negative here. Being device memory, they can be
    rewritten between two replays of a captured CUDA graph.

    >>> key_tensor(1, 2**64 - 1)
    tensor([ 1, -1])
    """
    signed = [key - (1 << 64) if key >> 63 else key for key in keys]
    return torch.tensor(signed, dtype=torch.int64).to(device, non_blocking=True)


def derived_key(key: Int[Tensor, "*keys"], *parts: int | str) -> Int[Tensor, "*keys"]:
    """Another key for each name, from a key on the device: what a captured graph makes of the key of its replay.

    >>> int(derived_key(key_tensor(7)[0], "rows") ^ derived_key(key_tensor(9)[0], "rows"))
    14
    """
    return key ^ int(key_tensor(noise_key(*parts))[0])


def philox(key: Key, *counters: Int[Tensor, "..."]) -> tuple[Int[Tensor, "..."], ...]:
    """Philox4x32-10 on four 32-bit counter words.

    Args:
        key: 64 bits; the low word is Philox's first key word. Either a number, or an int64 tensor of those bits that
            broadcasts with the counters.
        counters: four int64 tensors that broadcast together, each word in [0, 2^32).

    Returns:
        Four int64 tensors of uniform 32-bit words.
    """
    if isinstance(key, Tensor) and key.dim() == 0 and key.device.type == "cpu":
        key = int(key)  # nothing to wait for, and numbers cost no operations
    c0, c1, c2, c3 = counters  # not yet broadcast: most words of the first two rounds depend on one counter alone
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(_ROUNDS):
        # int64 wraps, but bits 0..63 are right; what the product leaves in bits 32..63 of c1 and c3, `_mixed` cuts
        product_a, product_b = c0 * _MULTIPLIER_A, c2 * _MULTIPLIER_B
        c0, c2 = _mixed(product_b, c1, k0), _mixed(product_a, c3, k1)
        c1, c3 = product_b, product_a
        k0, k1 = (k0 + _WEYL_A) & _MASK, (k1 + _WEYL_B) & _MASK
    return torch.broadcast_tensors(c0, c1 & _MASK, c2, c3 & _MASK)


def _mixed(product: Tensor, word: Tensor, key: int | Tensor) -> Tensor:
    """The high half of a 64-bit product, another word and a key word, exclusively ored."""
    mixed = (product >> 32) ^ word
    mixed = mixed.bitwise_xor_(key) if isinstance(key, int) else mixed ^ key
    return mixed.bitwise_and_(_MASK)


def normal(
    key: Key,
    width: int,
    rows: Int[Tensor, "*rows"],
    layer: int,
    question: Int[Tensor, "*rows"] | int = 0,
) -> Float[Tensor, "*rows {width}"]:
    """Standard normal draws, float32, one row of `width` per counter.

    Entry i of a row comes from word i % 4 of the counter (i // 4, row, layer, question).

    Args:
        key: 64 bits from `noise_key`, or an int64 tensor of such bits that broadcasts with `rows`.
        width: number of draws per row.
        rows: int64 counters, e.g. output rows of a weight or token positions.
        layer: number of the adapted layer.
        question: 32-bit question keys that broadcast with `rows` (activation noise), or 0 (weight noise).

    >>> normal(7, 5, torch.arange(2), layer=0).shape
    torch.Size([2, 5])
    """
    column = torch.arange((width + 3) // 4, device=rows.device)
    question = question if isinstance(question, Tensor) else torch.full_like(column[:1], question)[0]
    key = key[..., None] if isinstance(key, Tensor) else key
    words = philox(key, column, rows[..., None], torch.full_like(column, layer), question[..., None])
    uniforms = [_uniform(word) for word in words]
    out = torch.empty(*uniforms[0].shape, 4, device=column.device)
    _box_muller(uniforms[0], uniforms[1], out[..., :2])
    _box_muller(uniforms[2], uniforms[3], out[..., 2:])
    return out.flatten(-2)[..., :width]


def kept(keys: Int[Tensor, " S"], layers: int, width: int, rate: float) -> Float[Tensor, "S {layers} {width}"]:
    """Dropout masks: 0 with probability `rate`, else 1 / (1 - rate); one for each key and layer.

    >>> kept(key_tensor(7), layers=2, width=5, rate=0.5).unique().tolist()
    [0.0, 2.0]
    """
    column = torch.arange((width + 3) // 4, device=keys.device)
    layer = torch.arange(layers, device=keys.device)[:, None]
    words = philox(derived_key(keys, "dropout")[:, None, None], column, layer, layer, layer)
    uniforms = torch.stack([_uniform(word) for word in words], dim=-1).flatten(-2)[..., :width]
    return (uniforms >= rate).float() / (1 - rate)


def _uniform(word: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Triton's map of a 32-bit word to [0, 1): the word as a signed number, its negative half mirrored."""
    signed = word.to(torch.int32)
    return (signed >> 31).bitwise_xor_(signed).float().mul_(4.6566127342e-10)


def _box_muller(
    first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"], out: Float[Tensor, "*shape 2"]
) -> None:
    """Two normals of two uniforms, which are used up, into `out`."""
    radius = first.clamp_min_(1e-7).log_().mul_(-2.0).sqrt_()
    angle = second.mul_(2.0 * math.pi)
    torch.mul(radius, angle.cos(), out=out[..., 0])
    torch.mul(radius, angle.sin_(), out=out[..., 1])
