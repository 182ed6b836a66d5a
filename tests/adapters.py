"""Adapters that have left their start."""

import torch

from abmll.adapters.layer import AdapterSet

SLOTS = ("shared", "task")


@torch.no_grad()
def move(adapters: AdapterSet, slot: str = "task", size: float = 0.3, seed: int = 0) -> None:
    """Give every factor of a slot a random displacement."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapters.parameters(slot):
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))
