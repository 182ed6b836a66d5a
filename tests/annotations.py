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
from jaxtyping import AbstractArray, TypeCheckError, _array_types, _import_hook, jaxtyped
from jaxtyping._storage import _shape_storage, pop_shape_memo, push_shape_memo

_CONF = BeartypeConf(violation_type=TypeCheckError)
_MARK = "__annotations_are_enforced__"
_GUARDED = "__beartype_func"
_INNER: dict[CodeType, tuple[Callable[..., Any], dict[str, Any]]] = {}
_PLANS: dict[type, "_Plan"] = {}
_BY_JAXTYPING = _array_types._MetaAbstractArray.__instancecheck__


def enforce(package: str) -> None:
    """From here on, modules of the package have their annotations enforced when they are imported."""
    jaxtyping.install_import_hook(package, "beartype.beartype")
    jaxtyping.jaxtyped = checked  # the name that the hook writes above each function
    _array_types._MetaAbstractArray.__instancecheck__ = _is_instance
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
        push_shape_memo({})  # what `with jaxtyped("context")` does, of which three parts in four are its own calls
        try:
            return fn(*args, **kwargs)
        finally:
            pop_shape_memo()

    return scoped


class _Plan:
    """What one annotation asks of an array.

    Attributes:
        simple: whether its shape is made of names, lengths and axes of any length alone.
        front, back: (position, name or length) of the axes before and after `*name` or `...`; there is none without.
        rank: how many axes those are, and the ones of any length.
        rest: None without `*name` or `...`; else the position where it begins, and its name, which is None for `...`.
        allowed: types of array and of number that jaxtyping let pass.
    """

    def __init__(self, annotation: Any) -> None:
        dims = [_axis(dim) for dim in getattr(annotation, "dims", ())]
        start = getattr(annotation, "index_variadic", None)
        self.simple = hasattr(annotation, "dims") and _OTHER not in dims
        self.rank = len(dims) - (start is not None)
        self.rest = None if start is None else (start, dims[start])
        end = len(dims) if start is None else start
        self.front = [(i, dim) for i, dim in enumerate(dims[:end]) if dim is not None]
        self.back = [(i - len(dims), dim) for i, dim in enumerate(dims) if i > end and dim is not None]
        self.allowed: set[tuple[type, Any]] = set()


_OTHER = object()


def _axis(dim: Any) -> Any:
    """A name, a length, None for an axis of any length; `_OTHER` for what jaxtyping itself has to look at."""
    if dim is _array_types._anonymous_dim or dim is _array_types._anonymous_variadic_dim:
        return None
    named = isinstance(dim, (_array_types._NamedDim, _array_types._NamedVariadicDim))
    if named and not dim.broadcastable and not dim.treepath:
        return dim.name
    if isinstance(dim, _array_types._FixedDim) and not dim.broadcastable:
        return dim.size
    return _OTHER


def _is_instance(annotation: Any, value: Any) -> bool:
    """jaxtyping's check, whose answer is known sooner where an array is as it should be, as nearly all are.

    Lengths by name are compared and kept as there. What is of another type or shape, or has not been met before, is
    jaxtyping's to judge: a refusal is always its own.
    """
    plan = _PLANS.get(annotation)
    if plan is None:
        plan = _PLANS[annotation] = _Plan(annotation)
    if not plan.simple:
        return _BY_JAXTYPING(annotation, value)
    kind = type(value), getattr(value, "dtype", None)
    if kind in plan.allowed and _fits(plan, value.shape):
        return True
    found = _BY_JAXTYPING(annotation, value)
    if found:
        plan.allowed.add(kind)
    return found


def _fits(plan: _Plan, shape: tuple[int, ...]) -> bool:
    """Whether a shape is as planned and as the lengths that are known by now; these gain its own if it is."""
    if len(shape) != plan.rank and (plan.rest is None or len(shape) < plan.rank):
        return False
    stack = getattr(_shape_storage, "memo_stack", None)
    lengths, shapes = stack[-1][:2] if stack else ({}, {})
    new = []
    for axes in (plan.front, plan.back):
        for i, axis in axes:
            length = shape[i]
            known = axis if type(axis) is int else lengths.get(axis)
            if known is None:
                lengths[axis] = length
                new.append(axis)
            elif known != length:
                break
        else:
            continue
        break
    else:
        if plan.rest is None or plan.rest[1] is None:
            return True
        start, name = plan.rest
        rest = shape[start : len(shape) - plan.rank + start]
        if shapes.setdefault(name, (False, rest)) == (False, rest):
            return True
    for axis in new:
        del lengths[axis]
    return False
