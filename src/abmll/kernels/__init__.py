"""The op table: the only place that decides which implementation of an op runs.

`eager` is always there and defines what is right. `triton` is its fused twin, used for CUDA tensors where Triton can
be imported; an op that Triton cannot do for some arguments hands over to eager and says why in `fallbacks`. `onednn`
multiplies by frozen weights on CPUs where that is faster than PyTorch's own way.
"""

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, cast, get_args

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from abmll.errors import AbmllError, unknown_name
from abmll.kernels import eager, onednn
from abmll.kernels.eager import twice
from abmll.kernels.factors import Factors, StdForm, Variance

__all__ = [
    "Backend",
    "Factors",
    "StdForm",
    "Variance",
    "backend_for",
    "check_usable",
    "fallbacks",
    "implementation",
    "op",
    "prepare",
    "refused",
    "twice_differentiable",
    "use",
]

Backend = Literal["auto", "eager", "triton", "onednn"]

_FASTER = {
    ("triton", "task_kl"): "abmll.kernels.wide.divergence",
    ("triton", "precision_penalty"): "abmll.kernels.triton_kl",
    ("triton", "mean_output"): "abmll.kernels.triton_output",
    ("triton", "activation_output"): "abmll.kernels.wide.output",
    ("triton", "weight_output"): "abmll.kernels.triton_output",
    ("onednn", "frozen_linear"): "abmll.kernels.onednn",
    ("onednn", "weight_output"): "abmll.kernels.onednn",
}
OPS = ("task_kl", "precision_penalty", "mean_output", "activation_output", "weight_output", "frozen_linear")

fallbacks: dict[str, str] = {}
"""op -> why its last call that wanted Triton ran in eager."""

refused: dict[tuple[str, int], str] = {}
"""op and rank -> why Triton's is not used there: `check.refuse_wrong` found that it is wrong on this machine."""

_chosen: list[Backend] = ["auto"]
_twice = [False]


def use(backend: str) -> None:
    """Choose the implementation of every op: `auto` is Triton on CUDA, oneDNN on CPUs where it pays, else eager.

    `triton` on the CPU needs Triton's interpreter (TRITON_INTERPRET=1 before the first import). An op that the chosen
    one does not have is eager.

    Raises:
        AbmllError: no such backend, or oneDNN was asked for and cannot be used.
    """
    if backend not in get_args(Backend):
        raise unknown_name("kernel backend", backend, get_args(Backend))
    if backend == "onednn" and (error := onednn.onednn_error()) is not None:
        raise AbmllError(f"engine.kernels=onednn: {error}; use auto")
    _chosen[0] = cast(Backend, backend)


def check_usable(backend: str, device: torch.device) -> None:
    """Refuse a backend that cannot compute on a device.

    Raises:
        AbmllError: says why, and what to use.
    """
    reason = None
    if backend == "triton" and (missing := triton_error()) is not None:
        reason = f"Triton cannot be used here ({missing})"
    elif backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        reason = f"Triton computes on CUDA, not on {device.type} (but in its interpreter, TRITON_INTERPRET=1)"
    elif backend == "onednn" and device.type != "cpu":
        reason = f"oneDNN computes on the CPU, not on {device.type}"
    elif backend == "onednn":
        reason = onednn.onednn_error()
    if reason is not None:
        raise AbmllError(f"engine.kernels={backend}: {reason}; use engine.kernels=auto")


def backend_for(device: torch.device) -> Backend:
    """What `op` gives for tensors on a device, of the ops that it has."""
    if _chosen[0] != "auto":
        return _chosen[0]
    if device.type == "cuda":
        return "triton" if triton_error() is None else "eager"
    return "onednn" if device.type == "cpu" and onednn.why_not() is None else "eager"


def implementation(name: str, device: torch.device) -> Backend:
    """Which implementation `op` gives for an op and tensors on a device: what `backend_for` says where it has the op.

    >>> implementation("frozen_linear", torch.device("cuda"))
    'eager'
    """
    backend = backend_for(device)
    return backend if (backend, name) in _FASTER else "eager"


def triton_error() -> str | None:
    """Why Triton cannot be used here, or None."""
    try:
        importlib.import_module("triton")
    except ImportError as error:  # optional: CPU and MPS builds of torch come without it
        return str(error)
    return None


def prepare(device: torch.device) -> None:
    """Let Triton take its own fingerprint, .4 s once in a process before its first kernel, while a model is loaded."""
    if device.type == "cuda" and not _preparing:
        _preparing.append(threading.Thread(target=_fingerprint, name="triton", daemon=True))
        _preparing[0].start()


_preparing: list[threading.Thread] = []


def _fingerprint() -> None:
    with suppress(ImportError, AttributeError, OSError):  # no Triton, or one that keeps it elsewhere: it is only time
        importlib.import_module("triton.runtime.cache").triton_key()


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Ops and attention inside have gradients of gradients: no kernel of ours, nor a fused attention, has those."""
    before = _twice[0]
    _twice[0] = True
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _twice[0] = before


def op(name: str, device: torch.device) -> Callable[..., Any]:
    """The implementation of an op for tensors on a device.

    Raises:
        AbmllError: no such op; the message lists them.

    >>> op("task_kl", torch.device("cpu")).__module__
    'abmll.kernels.eager.divergence'
    """
    if name not in OPS:
        raise unknown_name("op", name, OPS)
    if _twice[0]:
        return getattr(twice, name, None) or getattr(eager, name)
    module = _FASTER.get((implementation(name, device), name))
    return getattr(eager if module is None else importlib.import_module(module), name)
