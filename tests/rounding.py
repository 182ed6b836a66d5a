"""Another processor, imitated: results that processors round differently are off by some last places.

Processors with other instruction sets sum a matrix product in another order and approximate an exponential by another
polynomial. What a test allows must be above that, with room: `pytest --rounding 10` runs the tests with ten times the
error of one processor, and a test that fails then is brittle. On the tiny model an error of 1 moves log-probabilities
by 1.6e-6 and gradients by 3.4e-7 in the mean square; AVX2, SSE 4.1 and the other code paths of MKL are .5 to 1.4e-6 and
1.4 to 2.6e-7 away from AVX-512 (AMD EPYC, torch 2.13.0).

Sums, products, quotients and square roots of single numbers are IEEE 754's, the same everywhere, and stay. The error is
a function of the result's bits and, in a sum, of its place, so that the same operation on the same numbers gives the
same again: what is promised bit for bit (going on after a stop, the same noise) still holds, and is tested. Nothing is
changed in processes that a test starts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SUMS = _names("""
    mm addmm bmm baddbmm mv addmv dot addbmm convolution _linear_pointwise sum mean cumsum index_add scatter_add
    norm linalg_vector_norm _foreach_norm
""")
"""Summed in an order of the processor's own: off by last places of the sum of the absolute values."""
ROWS = _names("""
    _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data logsumexp var std native_layer_norm
    native_layer_norm_backward _fused_rms_norm _fused_rms_norm_backward embedding_dense_backward
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math
    _scaled_dot_product_flash_attention_for_cpu_backward
""")
"""Several numbers in one: off by last places of the largest in the row."""
SINGLES = _names("""
    exp expm1 log log1p sin cos tanh tanh_backward sigmoid silu silu_backward gelu gelu_backward erf lgamma pow
    rsqrt addcmul addcdiv lerp _foreach_addcmul _foreach_addcdiv _foreach_lerp normal uniform
""")
"""Functions that are approximated, and products that may be added in one go: off by their own last places."""
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


class OtherRounding(TorchDispatchMode):
    """Inside, results of torch on the CPU are off by up to `size` half units in the last place.

    Half-precision numbers are rounded results of float32, where errors rarely change a bit: of them `size` in twenty
    are off by one unit.

    Args:
        size: 1: as much as one processor.
        seed: which of all the possible errors.
    """

    def __init__(self, size: float, seed: int = 0) -> None:
        super().__init__()
        self.size, self.seed = size, seed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__.removesuffix("_"), kwargs or {}  # in place is the same
        if name not in SUMS | ROWS | SINGLES:
            return func(*args, **kwargs)
        sums = _absolute_sums(func, args, kwargs) if name in SUMS else None
        out = func(*args, **kwargs)
        for index, result in enumerate(_numbers(args[0] if out is None else out)):
            scale = _scale(result, name in ROWS) if sums is None else sums[index]
            self._shake(result, scale, anywhere=name in SINGLES)
        return out

    def _shake(self, result: Tensor, scale: Tensor, anywhere: bool) -> None:
        error, unit = _hashed(result, self.seed, anywhere), torch.finfo(result.dtype).eps
        if result.itemsize == 2:
            changed = (error.abs() > 1 - self.size / 20) * error.sign() * unit * result
        else:
            changed = error * (0.5 * self.size * unit) * scale
        result.add_(changed.to(result.dtype).nan_to_num_(0.0, 0.0, 0.0).masked_fill_(~result.isfinite(), 0.0))


def _numbers(values: Any) -> list[Tensor]:
    """The tensors whose results are changed."""
    tensors = (value for value in tree_leaves(values) if isinstance(value, Tensor))
    return [t for t in tensors if t.dtype in _BITS and t.device.type == "cpu" and t.layout == torch.strided]


def _absolute_sums(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The sums of the absolute values; 0 where a sum is the same in any order: of whole numbers, or of one product."""

    def of(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        only = lambda value: change(value) if isinstance(value, Tensor) and _numbers(value) else value  # noqa: E731
        return _numbers(func(*tree_map(only, args), **tree_map(only, kwargs)))

    sums = of(torch.abs)
    if all(bool((tensor == tensor.round()).all()) for tensor in _numbers((args, kwargs))):
        return [torch.zeros_like(total) for total in sums]
    if func.overloadpacket.__name__ in ("mm", "bmm"):
        counts = of(lambda tensor: tensor.ne(0).to(tensor.dtype))
        return [total.masked_fill_(count <= 1, 0.0) for total, count in zip(sums, counts, strict=True)]
    return sums


def _scale(result: Tensor, by_row: bool) -> Tensor:
    """What an error is relative to; 0 where a function's value is exact: exp(0), log(1)."""
    size = result.abs().masked_fill_(~result.isfinite(), 0.0)
    if by_row:
        return size.amax(-1, keepdim=True) if size.ndim and size.shape[-1] else size
    return size.masked_fill_(size == 1.0, 0.0)


def _hashed(tensor: Tensor, seed: int, anywhere: bool) -> Tensor:
    """A number in [-1, 1] of each entry's bits and, unless it is the same `anywhere`, its place."""
    bits = tensor.detach().contiguous().view(_BITS[tensor.dtype]).long()
    place = 0 if anywhere else torch.arange(tensor.numel()).view(tensor.shape)
    mixed = (bits ^ (bits >> 32)) * 0x9E3779B1 + place * 0x85EBCA6B + seed * 0xC2B2AE35
    for factor in (0x2C1B3C6D, 0x297A2D39):
        mixed = ((mixed ^ (mixed >> 15)) * factor) & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 15)) & 0xFFFF).double() / 32767.5 - 1
