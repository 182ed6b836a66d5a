"""Triton's interpreter without its own looking around, in which tests of kernels spent half of their time.

At each launch it wraps whatever is built in of `triton.language`, and again at each call of a device function (`tl.max`
and `tl.zeros` are some), where it finds nothing left to wrap. Here what is to be wrapped is looked up once, and wrapped
once a launch. What kernels compute is not touched.
"""

import inspect
from functools import cache
from types import FunctionType
from typing import Any

from triton.runtime import interpreter

_LAUNCH = interpreter.GridExecutor.__call__
_PATCH = interpreter._patch_lang
_NUMPY_TYPE = interpreter._get_np_dtype
_NUMPY_TYPES: dict[str, Any] = {}
_BUILTINS: dict[int, list[tuple[str, Any]]] = {}
_wrapped: set[tuple[int, ...]] = set()


def _launch(executor: Any, *arguments: Any, **options: Any) -> None:
    _wrapped.clear()
    _LAUNCH(executor, *arguments, **options)


def _patch_once(fn: FunctionType) -> Any:
    """A scope that is to be restored for the kernel itself, which comes first; None for its device functions."""
    languages = _languages(fn)
    if languages in _wrapped:
        return None
    _wrapped.add(languages)
    return _PATCH(fn)


@cache
def _languages(fn: FunctionType) -> tuple[int, ...]:
    """The modules of Triton's language that a function sees, by number."""
    seen = (value for value in fn.__globals__.values() if inspect.ismodule(value))
    return tuple(id(module) for module in seen if module in (interpreter.tl, interpreter.tl.core))


def _patch_builtins(where: Any, builder: Any, scope: Any) -> None:
    """Of a module or class: `inspect.getmembers` goes through all its names, and each launch asks for five."""
    if id(where) not in _BUILTINS:
        members = inspect.getmembers(where)
        _BUILTINS[id(where)] = [(name, member) for name, member in members if interpreter.tl.core.is_builtin(member)]
    for name, member in _BUILTINS[id(where)]:
        interpreter._patch_attr(where, name, member, builder, scope)


def _numpy_type(dtype: Any) -> Any:
    """Triton writes the table of all types again each time that it looks one up; types are told apart by name."""
    scalar = dtype.element_ty if isinstance(dtype, interpreter.tl.block_type) else dtype
    name = "" if isinstance(scalar, interpreter.tl.pointer_type) else scalar.name
    if name not in _NUMPY_TYPES:
        _NUMPY_TYPES[name] = _NUMPY_TYPE(dtype)
    return _NUMPY_TYPES[name]


interpreter.GridExecutor.__call__ = _launch
interpreter._get_np_dtype = _numpy_type
interpreter._patch_lang = _patch_once
interpreter._patch_builtin = _patch_builtins
