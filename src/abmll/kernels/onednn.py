"""Products with frozen weights on CPUs, in float32, by oneDNN's kernels.

PyTorch multiplies float32 matrices by MKL, which takes no AVX-512 path on CPUs of other makers than Intel. oneDNN, in
the same build of PyTorch, does. It takes weights as they lie, transposed ones too; but where tokens are few it then
spends a third of its time on laying them out, so that copies in its own layout pay.
"""

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from abmll.kernels.eager.output import frozen_linear as plain_linear
from abmll.kernels.eager.output import weight_output as plain_weight_output
from abmll.kernels.factors import Factors, Variance

LEAST_WORK = 1 << 21
"""Multiplications from which on the kernel outweighs the 30 microseconds of Python that it takes to get there."""

_TOKENS = 64  # that copies are laid out for; they serve any number


class Packed:
    """Copies of a frozen weight in oneDNN's layout: one for x W^T, one for its gradient.

    Each is made when it is first needed, and anew when the weight has been written to or moved.
    """

    def __init__(self) -> None:
        self._copies: dict[bool, Tensor] = {}
        self._made_of: tuple[int, ...] = ()

    def get(self, weight: Float[Tensor, "O I"], transposed: bool) -> Tensor:
        """The copy of W or, transposed, of W^T."""
        state = (weight.data_ptr(), weight._version, *weight.shape)
        if state != self._made_of:
            self._copies, self._made_of = {}, state
        if transposed not in self._copies:
            plain = weight.t().contiguous() if transposed else weight
            self._copies[transposed] = torch.ops.mkldnn._reorder_linear_weight(plain, _TOKENS)
        return self._copies[transposed]

    def __deepcopy__(self, memo: object) -> "Packed":
        return Packed()

    def __reduce__(self) -> tuple[type["Packed"], tuple[()]]:
        return Packed, ()


def onednn_error() -> str | None:
    """Why oneDNN's products cannot be used here, or None."""
    return _error() if torch.backends.mkldnn.is_available() else "this build of PyTorch comes without oneDNN"


@functools.cache
def why_not() -> str | None:
    """Why `auto` does not use them here, or None: they cannot be used, or are no faster than what PyTorch does."""
    if (error := onednn_error()) is not None:
        return error
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "the CPU has no AVX-512"
    if not torch.backends.mkl.is_available():
        return "this build of PyTorch multiplies without MKL"
    return None if _maker_is_amd() else "MKL is as fast on CPUs that are not AMD's"


def frozen_linear(
    x: Float[Tensor, "*tokens I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None,
    packed: Packed | None = None,
) -> Float[Tensor, "*tokens O"]:
    """x W^T + b, differentiable in x. What is small or not plain float32, or wants a gradient of W or b, is eager's."""
    if (
        x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.numel() * weight.shape[0] < LEAST_WORK
        or not x.device.type == weight.device.type == "cpu"
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or weight.is_inference()
        or torch.is_autocast_enabled("cpu")
    ):
        return plain_linear(x, weight, bias)
    return _Product.apply(x, weight, bias, packed, False)


def weight_output(
    y0: Float[Tensor, "*tokens O"],
    x: Float[Tensor, "*tokens I"],
    factors: Factors,
    variance: Variance,
    keys: Int[Tensor, " S"],
    layer: int,
) -> Float[Tensor, "*tokens O"]:
    """Eager's `weight_output`, its tiles multiplied as frozen weights are."""
    return plain_weight_output(y0, x, factors, variance, keys, layer, product=_times)


def _times(x: Tensor, weight: Tensor) -> Tensor:
    return frozen_linear(x, weight, None)


class _Product(torch.autograd.Function):
    """x W^T + b or, transposed, x W. Its gradient is another one, so that there are derivatives of any order."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed | None, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.how = packed, transposed
        laid = packed.get(weight, transposed) if packed is not None else weight.t() if transposed else weight
        return _product(x, laid, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        packed, transposed = ctx.how
        return _Product.apply(upstream, weight, None, packed, not transposed), None, None, None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # What torch.compile makes of a linear layer on CPUs; the underscore is PyTorch's, hence the trial in `_error`.
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


@functools.cache
def _error() -> str | None:
    """Whether the operators are there and multiply, by trial."""
    x, weight, bias, packed = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.arange(4.0), Packed()
    wanted, back = x @ weight.t() + bias, torch.arange(8.0).view(2, 4)
    try:
        pairs = [
            (_product(x, weight, bias), wanted),
            (_product(x, packed.get(weight, False), bias), wanted),
            (_product(back, weight.t(), None), back @ weight),
            (_product(back, packed.get(weight, True), None), back @ weight),
        ]
    except (AttributeError, RuntimeError, TypeError) as error:
        return f"oneDNN's product cannot be called ({str(error).splitlines()[0]})"
    return None if all(torch.allclose(found, right) for found, right in pairs) else "oneDNN's product is wrong here"


@functools.cache
def _maker_is_amd() -> bool:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        told = platform.processor()
    return "AuthenticAMD" in told
