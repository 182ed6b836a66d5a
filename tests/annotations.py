"""The annotations of `abmll` enforced at each call, at a cost that 9,000 tests can pay.

jaxtyping's import hook puts `jaxtyping.jaxtyped` on every function. That binds the arguments by `inspect.signature` and
checks them twice, most of the time of a test that calls small functions often. Only a function whose annotations have
shapes needs anything of it: that one name means one length in all of them. The others are checked by beartype alone.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from functools import partial, wraps
from importlib.machinery import SourceFileLoader
from types import CodeType, FunctionType
from typing import Any
from unittest.mock import patch

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, _import_hook, jaxtyped

_CONF = BeartypeConf(violation_type=TypeCheckError)
_MARK = "__annotations_are_enforced__"
_GUARDED = "__beartype_func"
_INNER: dict[CodeType, tuple[Callable[..., Any], dict[str, Any]]] = {}


def enforce(package: str) -> None:
    """From here on, modules of the package have their annotations enforced when they are imported."""
    jaxtyping.install_import_hook(package, "beartype.beartype")
    jaxtyping.jaxtyped = checked  # the name that the hook writes above each function
    loader: Any = _import_hook._JaxtypingLoader
    loader.get_code = _code_by_its_own_name
    loader.exec_module = SourceFileLoader.exec_module


def _code_by_its_own_name(loader: Any, name: str) -> CodeType | None:
    """The code of a module of the package: its bytecode is named after the checker, and that of no other module.

    jaxtyping's loader keeps to that name while the module is executed. What that imports, 3,000 modules of PEFT,
    scikit-learn, SciPy and sympy, is not found under it: each process compiled them again, for 11 CPU seconds.
    """
    own = partial(_import_hook._optimized_cache_from_source, loader._typechecker.get_hash())
    with patch("importlib._bootstrap_external.cache_from_source", own):
        return SourceFileLoader.get_code(loader, name)


def checked(fn: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """A function, or a class of fields, that checks what its annotations say; in place of `jaxtyping.jaxtyped`."""
    if fn is None:
        return partial(checked, typechecker=typechecker)
    if inspect.isclass(fn):
        if dataclasses.is_dataclass(fn) and not hasattr(fn.__init__, _MARK):  # not what a decorator put in its place
            fn.__init__ = checked(fn.__init__, typechecker=typechecker)
        return fn
    if not inspect.isfunction(fn) or getattr(fn, "__no_type_check__", False):
        return jaxtyped(fn, typechecker=typechecker)
    made = _checked(fn, typechecker)
    setattr(made, _MARK, True)
    return made


def _checked(fn: Callable[..., Any], typechecker: Callable[..., Any]) -> Callable[..., Any]:
    shapes = list(_shapes(_hints(fn)))
    if inspect.isgeneratorfunction(fn) or any("{" in shape for shape in shapes):
        return jaxtyped(fn, typechecker=typechecker)  # it needs the values of arguments
    return _in_one_scope(_by_beartype(fn)) if shapes else _by_beartype(fn)


def _by_beartype(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What beartype makes of a function: once, also of an inner one, which each call of the outer one makes again.

    beartype writes and compiles checks, a millisecond each time, and names the function that they stand before in a
    default argument: with another one there, the checks are those of another call's function.
    """
    if "<locals>" not in fn.__qualname__ or not isinstance(fn, FunctionType):
        return beartype(fn, conf=_CONF)
    first, annotations = _INNER.get(fn.__code__, (None, None))
    if first is None or annotations != fn.__annotations__:
        first = beartype(fn, conf=_CONF)
        _INNER[fn.__code__] = first, fn.__annotations__
        return first
    if not isinstance(first, FunctionType) or _GUARDED not in (first.__kwdefaults__ or {}):
        return beartype(fn, conf=_CONF)  # nothing to check, or another beartype
    again = FunctionType(first.__code__, first.__globals__, first.__name__, first.__defaults__, first.__closure__)
    again.__kwdefaults__ = first.__kwdefaults__ | {_GUARDED: fn}
    return wraps(fn)(again)


def _hints(fn: Callable[..., Any]) -> list[Any]:
    """What names stand for, where that is known by now; beartype looks the others up at the first call."""
    try:
        return list(typing.get_type_hints(fn, include_extras=True).values())
    except NameError:
        return list(inspect.get_annotations(fn).values())


def _shapes(hints: Any) -> Iterator[str]:
    """The texts of the shapes in annotations, however deep."""
    for hint in hints:
        if inspect.isclass(hint) and issubclass(hint, AbstractArray):
            yield hint.dim_str
        yield from _shapes(typing.get_args(hint) if not isinstance(hint, (list, tuple)) else hint)


def _in_one_scope(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Lengths of one call of `fn` are compared to each other, and to no other call's."""

    @wraps(fn)
    def scoped(*args: Any, **kwargs: Any) -> Any:
        with jaxtyped("context"):
            return fn(*args, **kwargs)

    return scoped
