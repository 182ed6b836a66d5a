"""The op table: the only place that decides which implementation of an op runs.

`eager` is always there and defines what is right. `triton` is its fused twin, used for CUDA tensors where Triton can
be imported; an op that Triton cannot do for some arguments hands over to eager and says why in `fallbacks`.
"""

import importlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from abmll.errors import unknown_name
from abmll.kernels import eager
from abmll.kernels.factors import Factors, StdForm, Variance

__all__ = ["Backend", "Factors", "StdForm", "Variance", "backend_for", "fallbacks", "op", "use"]

Backend = Literal["auto", "eager", "triton"]

_TRITON = {
    "task_kl": "abmll.kernels.triton_kl",
    "precision_penalty": "abmll.kernels.triton_kl",
    "mean_output": "abmll.kernels.triton_output",
    "activation_output": "abmll.kernels.triton_output",
    "weight_output": "abmll.kernels.triton_output",
}
OPS = ("task_kl", "precision_penalty", "mean_output", "activation_output", "weight_output")

fallbacks: dict[str, str] = {}
"""op -> why its last call that wanted Triton ran in eager."""

_chosen: list[str] = ["auto"]


def use(backend: str) -> None:
    """Choose the implementation of every op: `auto` is Triton on CUDA and eager elsewhere.

    `triton` on the CPU needs Triton's interpreter (TRITON_INTERPRET=1 before the first import).

    Raises:
        AbmllError: no such backend.
    """
    if backend not in get_args(Backend):
        raise unknown_name("kernel backend", backend, get_args(Backend))
    _chosen[0] = backend


def backend_for(device: torch.device) -> Literal["eager", "triton"]:
    """What `op` gives for tensors on a device."""
    if _chosen[0] == "auto":
        return "triton" if device.type == "cuda" and triton_error() is None else "eager"
    return "triton" if _chosen[0] == "triton" else "eager"


def triton_error() -> str | None:
    """Why Triton cannot be used here, or None."""
    try:
        importlib.import_module("triton")
    except ImportError as error:  # optional: CPU and MPS builds of torch come without it
        return str(error)
    return None


def op(name: str, device: torch.device) -> Callable[..., Any]:
    """The implementation of an op for tensors on a device.

    Raises:
        AbmllError: no such op; the message lists them.

    >>> op("task_kl", torch.device("cpu")).__module__
    'abmll.kernels.eager'
    """
    if name not in OPS:
        raise unknown_name("op", name, OPS)
    if name in _TRITON and backend_for(device) == "triton":
        return getattr(importlib.import_module(_TRITON[name]), name)
    return getattr(eager, name)
