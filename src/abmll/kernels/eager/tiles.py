"""Matrices of a layer's size are walked through in tiles, so that none of them ever lies in memory."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_TILE_ENTRIES = 1 << 16  # 256 KiB of float32 per temporary: a few of them stay in a core's cache
_TILE_ENTRIES_CUDA = 1 << 22  # a tile is some forty launches there, whatever its size


def row_blocks(rows: int, columns: int, device: torch.device | None = None, entries: int | None = None) -> list[slice]:
    """Cut the rows of an O x I matrix into tiles of about `entries`; None: 2^16 entries, or 2^22 on a GPU.

    >>> len(row_blocks(576, 576)), row_blocks(3, 5)
    (6, [slice(0, 3, None)])
    """
    if entries is None:
        entries = _TILE_ENTRIES_CUDA if device is not None and device.type == "cuda" else _TILE_ENTRIES
    height = max(1, min(rows, entries // columns))
    return [slice(first, min(first + height, rows)) for first in range(0, rows, height)]


def contract(
    gradients: Sequence[Tensor | None],
    tile: Float[Tensor, "o I"],
    b: Float[Tensor, "O R"],
    a: Float[Tensor, "R I"],
    rows: slice,
    scale: float,
) -> None:
    """Chain rule through scale * B A for one block of rows: dB += s G A^T, dA += s B^T G."""
    gradient_b, gradient_a = gradients
    assert gradient_b is not None
    assert gradient_a is not None
    gradient_b[rows] += scale * (tile @ a.T)
    gradient_a += scale * (b[rows].T @ tile)
