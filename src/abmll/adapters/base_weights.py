"""A base model's own weights, as the adapter's files and exports need them: sampled, dequantised, told apart."""

import torch
from jaxtyping import Float, Int
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from abmll.adapters.attach import features
from abmll.adapters.facts import StoredAdapter
from abmll.adapters.layer import AdapterSet

SAMPLED_LAYERS, SAMPLED_WEIGHTS = 8, 256


@torch.no_grad()
def sample_base(adapters: AdapterSet) -> Float[Tensor, "L W"]:
    """256 evenly spaced weights of each of up to eight evenly spaced adapted layers; NaN-free, dequantised.

    A layer whose weights cannot be read as numbers gives a row of zeros.
    """
    layers = list(adapters.layers.values())
    chosen = [layers[i * (len(layers) - 1) // max(1, SAMPLED_LAYERS - 1)] for i in range(SAMPLED_LAYERS)]
    return torch.stack([_sample(layer.base) for layer in chosen])


def _sample(base: nn.Module) -> Float[Tensor, " W"]:
    if (spread := getattr(base, "spread_weight", None)) is not None:
        return spread.sample
    rows, columns = sampled_entries(features(base))
    weight = dense_weight(base)
    if weight is None:
        return torch.zeros(SAMPLED_WEIGHTS)
    where = (columns, rows) if type(base).__name__ == "Conv1D" else (rows, columns)
    return weight[tuple(index.to(weight.device) for index in where)].to("cpu", torch.float32)


def sampled_entries(size: tuple[int, int]) -> tuple[Int[Tensor, " W"], Int[Tensor, " W"]]:
    """Rows and columns of the sampled weights of a layer with so many output and input features."""
    out_features, in_features = size
    entry = torch.arange(SAMPLED_WEIGHTS) * (out_features * in_features - 1) // (SAMPLED_WEIGHTS - 1)
    return entry // in_features, entry % in_features


def dense_weight(base: nn.Module) -> Tensor | None:
    """A layer's weights as numbers, dequantised if need be; None if this packing cannot be dequantised here."""
    weight = base.weight
    if isinstance(weight, Tensor) and not is_quantised(base):
        return weight
    try:
        weight = dequantize_module_weight(base)
    except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError):
        return None
    return weight if weight.is_floating_point() and weight.dim() == 2 else None


def is_quantised(base: nn.Module) -> bool:
    """Whether a layer's weights are packed, as bitsandbytes does, and cannot be written to."""
    weight = base.weight
    if not isinstance(weight, Tensor) or type(weight) not in (nn.Parameter, Tensor) or not weight.is_floating_point():
        return True
    return tuple(weight.shape) not in (features(base), features(base)[::-1])


def base_distance(stored: StoredAdapter, adapters: AdapterSet) -> float | None:
    """Root mean square difference of the sampled base weights, relative to them; None if none can be compared."""
    theirs, mine = stored.base_sample.double(), sample_base(adapters).double()
    if theirs.shape != mine.shape:
        return None
    both = theirs.any(1) & mine.any(1)
    if not bool(both.any()):
        return None
    return float((theirs[both] - mine[both]).norm() / theirs[both].norm())
