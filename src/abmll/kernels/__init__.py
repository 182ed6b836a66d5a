"""The op table: the only place that decides which implementation of an op runs.

`eager` is always there and defines what is right; another backend adds its twins to the table under its own name.
"""

from collections.abc import Callable
from typing import Any

from abmll.errors import unknown_name
from abmll.kernels import eager
from abmll.kernels.factors import Factors, StdForm, Variance

__all__ = ["OPS", "Factors", "StdForm", "Variance", "op"]

OPS: dict[str, dict[str, Callable[..., Any]]] = {
    name: {"eager": getattr(eager, name)}
    for name in ("task_kl", "precision_penalty", "squared_norm", "weight_noise", "activation_noise")
}


def op(name: str, backend: str = "eager") -> Callable[..., Any]:
    """The implementation of an op.

    Raises:
        AbmllError: no such op or backend; the message lists them.

    >>> op("task_kl").__name__
    'task_kl'
    """
    if name not in OPS:
        raise unknown_name("op", name, OPS)
    if backend not in OPS[name]:
        raise unknown_name(f"backend of {name}", backend, OPS[name])
    return OPS[name][backend]
