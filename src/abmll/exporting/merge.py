"""Adding an update to the base weights, and what their dtype leaves of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.adapters.base_weights import is_quantised
from abmll.adapters.layer import AdaptedLinear, AdapterSet
from abmll.errors import AbmllError, NonFiniteError
from abmll.methods.noise import draw_key
from abmll.training.finite import dtype_advice

MOST_LOSS = 0.25
"""Relative error of the rounded update from which on it counts as swallowed."""


@dataclass(frozen=True)
class Rounding:
    """What is left of an update D once W0 + D is rounded to the weights' dtype, over all adapted weights.

    With R = round(W0 + D) - W0, what has to survive is P: the update itself, or of a posterior draw its noise alone,
    as a draw without noise is the mean.

    Attributes:
        dtype: of the weights.
        part: what P is: `update` or `noise`.
        changed: share of the weights with P other than 0 that rounding leaves changed.
        relative_error: norm of R - D over the norm of P.
        worst_layer: the layer where that is largest.
        worst_error: how large.
    """

    dtype: str
    part: str
    changed: float
    relative_error: float
    worst_layer: str
    worst_error: float

    @property
    def swallowed(self) -> bool:
        """Whether the dtype takes more than a quarter of it."""
        return self.relative_error > MOST_LOSS

    def describe(self) -> str:
        """In one sentence."""
        return (
            f"of the {self.part}, {self.dtype} keeps {100 * (1 - min(1.0, self.relative_error)):.3g} % (relative error "
            f"{self.relative_error:.2g}, worst {self.worst_error:.2g} in {self.worst_layer}); "
            f"{100 * self.changed:.3g} % of the weights change"
        )


@torch.no_grad()
def merge(adapters: AdapterSet, draw: int | None = None) -> Rounding:
    """Add phi's means, or one of its posterior draws, to the base weights in place; float32, rounded once.

    The adapters stay attached and still add their own part: detach them afterwards.

    Args:
        adapters: the task slot is merged.
        draw: number of the posterior draw; None for the means.

    Raises:
        AbmllError: a base layer is quantised, or there are no stds to draw by; nothing is changed then.
        NonFiniteError: a merged weight is NaN or infinite in the weights' dtype; names the layer.
    """
    check_mergeable(adapters)
    if draw is not None and not adapters.has_std:
        raise AbmllError("this system holds no stds, so there is nothing to draw: merge its mean")
    sums = {path: _merge_layer(path, layer, draw) for path, layer in adapters.layers.items()}
    errors = {path: _relative(lost, part) for path, (lost, part, _, _) in sums.items()}
    worst = max(errors, key=lambda path: errors[path])
    lost, part, touched, changed = (sum(column) for column in zip(*sums.values(), strict=True))
    dtype = str(_weight(next(iter(adapters.layers.values()))).dtype).removeprefix("torch.")
    what = "update" if draw is None else "noise"
    return Rounding(dtype, what, changed / touched if touched else 1.0, _relative(lost, part), worst, errors[worst])


def check_mergeable(adapters: AdapterSet) -> None:
    """Refuse base layers that are packed.

    Raises:
        AbmllError: says what to do instead.
    """
    packed = [path for path, layer in adapters.layers.items() if is_quantised(layer.base)]
    if packed:
        raise AbmllError(
            f"the base model is quantised ({packed[0]} holds {_weight(adapters.layers[packed[0]]).dtype}): an update "
            "merged into it would be rounded away. Merge into the model that it was made of "
            "(model.source=..., model.quantisation=null), or export the mean without --merge: PEFT loads it on "
            "the quantised model"
        )


def _merge_layer(path: str, layer: AdaptedLinear, draw: int | None) -> tuple[float, float, int, int]:
    """Merge one layer; squared norms of R - D and of P, counts of the weights where P is not 0, and that changed."""
    weight, mean = _weight(layer), layer.task.dense_mean()
    update = mean if draw is None else layer.task.dense_draw(draw_key(draw), layer.index)
    part = update if draw is None else update - mean
    if type(layer.base).__name__ == "Conv1D":
        update, part = update.T, part.T
    before = weight.to(torch.float32, copy=True)
    weight.copy_(before + update)
    if not bool(weight.isfinite().all()):
        dtype = str(weight.dtype).removeprefix("torch.")
        raise NonFiniteError(f"{path}: merged, it holds NaN or infinity; nothing was written; {dtype_advice(dtype)}")
    applied = weight.float() - before
    lost = float((applied - update).double().square().sum())
    touched = part != 0
    return lost, float(part.double().square().sum()), int(touched.sum()), int((touched & (applied != 0)).sum())


def _weight(layer: AdaptedLinear) -> Tensor:
    weight = layer.base.weight
    assert isinstance(weight, Tensor)
    return weight


def _relative(lost: float, part: float) -> float:
    """A norm over another; nothing can be lost of nothing."""
    return float((lost / part) ** 0.5) if part > 0 else 0.0
