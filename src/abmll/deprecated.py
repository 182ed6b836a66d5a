"""Arguments under their earlier names: they work until the next minor version, and say what takes their place."""

import functools
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def earlier_arguments(
    names: Collection[str], instead: str, translate: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Let a function take keywords that it had before.

    Args:
        names: the earlier keywords.
        instead: what to write now, for the warning.
        translate: from those that were given to arguments of today.

    >>> @earlier_arguments(("colour",), "shade=", lambda given: {"shade": given["colour"]})
    ... def paint(shade: str) -> str:
    ...     return shade
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     paint(colour="red")
    'red'
    >>> print(caught[0].message)
    paint(colour=) is deprecated: use shade=
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            given = {name: options.pop(name) for name in names if name in options}
            if given:
                old = ", ".join(f"{name}=" for name in given)
                text = f"{function.__name__}({old}) is deprecated: use {instead}"
                warnings.warn(text, DeprecationWarning, stacklevel=2)
                options |= translate(given)
            return function(*args, **options)

        return call

    return decorate
