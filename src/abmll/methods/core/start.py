"""Where the shared factors start, if not where LoRA's do."""

import torch
from jaxtyping import Float
from torch import Tensor

from abmll.adapters.base_weights import dense_weight
from abmll.adapters.layer import AdaptedLinear, AdapterSet
from abmll.errors import AbmllError

_MORE, _ITERATIONS, _SEED = 8, 8, 0
"""Of the randomised decomposition (Halko, Martinsson & Tropp 2011): spare directions, power iterations, its seed."""


@torch.no_grad()
def singular_start(adapters: AdapterSet) -> None:
    r"""Theta's means: $B = U S$ and $A = V^\top$ of each layer's weight, its R largest singular values.

    Signs are such that the largest entry of each row of A is positive.

    Raises:
        AbmllError: a layer's weights are in parts on several devices, or packed in a way that cannot be undone.
    """
    for path, layer in adapters.layers.items():
        b, a = largest(_weight(path, layer), layer.shared.rank)
        layer.shared.mean_b.copy_(b)
        layer.shared.mean_a.copy_(a)


def _weight(path: str, layer: AdaptedLinear) -> Float[Tensor, "O I"]:
    weight = None if getattr(layer.base, "spread_weight", None) is not None else dense_weight(layer.base)
    if weight is None:
        raise AbmllError(
            f"method.start=singular reads the base model's weights, and those of {path} are in parts on several "
            "devices or packed: use method.start=lora"
        )
    weight = weight.detach().float()
    return weight.T if type(layer.base).__name__ == "Conv1D" else weight


def largest(weight: Float[Tensor, "O I"], rank: int) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
    """U S and V^T; zeros where there are fewer directions than R."""
    found = min(rank, *weight.shape)
    with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
        torch.manual_seed(_SEED)
        u, s, v = torch.svd_lowrank(weight, q=min(found + _MORE, *weight.shape), niter=_ITERATIONS)
    b, a = (u * s)[:, :found], v.T[:found]
    sign = a.gather(1, a.abs().argmax(1, keepdim=True)).sign()
    more = rank - found
    pad = torch.nn.functional.pad
    return pad(b * sign.T, (0, more)), pad(a * sign, (0, 0, 0, more))
