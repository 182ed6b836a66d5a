"""The base model's linear layers, frozen: their products go by the op table."""

from typing import Any, Literal

from torch import Tensor, nn

from abmll.kernels import op
from abmll.kernels.onednn import Packed

MOST_PACKED = 2 << 30
"""Bytes that copies of weights may take where nobody asked for them: enough for models of 250 million weights."""


class FrozenLinear(nn.Linear):
    """A linear layer of a base model: the same weights under the same names, multiplied as is fastest for frozen ones.

    Attributes:
        packed: copies of the weight for CPUs, made as they are needed; None for none. No part of the state.
    """

    packed: Packed | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b."""
        return op("frozen_linear", x.device)(x, self.weight, self.bias, self.packed)


def freeze(model: nn.Module) -> None:
    """Freeze every parameter and, in place, let plain linear layers go by the op table; others stay as they are.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 2))
    >>> freeze(model)
    >>> type(model[0]).__name__, model[0].weight.requires_grad
    ('FrozenLinear', False)
    """
    model.eval().requires_grad_(False)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FrozenLinear  # keeps ties, hooks and names, as torch's fully_shard does


def pack(model: nn.Module, when: bool | Literal["auto"]) -> bool:
    """Let the frozen linear layers keep copies of their weights for CPUs, or drop those that there are.

    Args:
        model: whose layers `freeze` has replaced; other layers take no part.
        when: `auto` lets them if the copies of all take at most `MOST_PACKED` bytes.

    Returns:
        Whether copies are kept, where the op table has a use for them.
    """
    packs = packed_bytes(model) <= MOST_PACKED if when == "auto" else when
    for module in model.modules():
        if isinstance(module, FrozenLinear) and (module.packed is not None) != packs:
            module.packed = Packed() if packs else None
    return packs


def packed_bytes(model: nn.Module) -> int:
    """Bytes of two copies of the weights of every linear layer.

    >>> packed_bytes(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    48
    """
    weights: list[Any] = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(2 * 4 * weight.numel() for weight in weights)
