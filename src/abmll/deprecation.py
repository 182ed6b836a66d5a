"""Names that changed: the old one works for one minor version, with a DeprecationWarning that says the new one."""

import functools
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar

Called = TypeVar("Called", bound=Callable[..., Any])
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Say that a name has changed.

    Args:
        old: as the caller wrote it.
        new: what to write instead.
        stacklevel: frames between here and the caller's line; 3 where a function of ours calls this one.
    """
    what = f"{old} is now {new}; the old name works for one minor version"
    warnings.warn(what, DeprecationWarning, stacklevel=stacklevel)


def renamed_keywords(new_names: Mapping[str, str]) -> Callable[[Called], Called]:
    """Decorator of a function, or of a class for its constructor, whose keywords changed: old ones are passed on.

    Args:
        new_names: old keyword -> new keyword.

    Returns:
        The decorator. What it decorates raises a TypeError where a call gives both names of one value.

    >>> @renamed_keywords({"place": "location"})
    ... def line_of(location: str) -> int:
    ...     return int(location.rsplit(":", 1)[1])
    >>> line_of("a.csv:3"), line_of(location="a.csv:4")
    (3, 4)
    """

    def decorate(called: Called) -> Called:
        if isinstance(called, type):
            called.__init__ = _constructor(called.__init__, called.__name__, new_names)  # type: ignore[misc]
            return called

        @functools.wraps(called)
        def call(*args: Any, **keywords: Any) -> Any:
            return called(*args, **_renamed(keywords, called.__name__, new_names))

        return call  # type: ignore[return-value]

    return decorate


def _constructor(init: Callable[..., None], name: str, new_names: Mapping[str, str]) -> Callable[..., None]:
    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **keywords: Any) -> None:
        init(self, *args, **_renamed(keywords, name, new_names))

    return __init__


def _renamed(keywords: dict[str, Any], name: str, new_names: Mapping[str, str]) -> dict[str, Any]:
    """The keywords of a call by their new names."""
    for old in new_names.keys() & keywords.keys():
        new = new_names[old]
        if new in keywords:
            raise TypeError(f"{name}() got {new}= and its old name {old}=; give {new}= alone")
        warn_renamed(f"{name}({old}=)", f"{name}({new}=)", stacklevel=4)
        keywords[new] = keywords.pop(old)
    return keywords


def earlier_arguments(
    names: Collection[str], instead: str, translate: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Let a function take keywords that it had before.

    Args:
        names: the earlier keywords.
        instead: the call to write now, for the warning.
        translate: from those that were given to keywords of today.

    Returns:
        The decorator. What it decorates raises a TypeError where a call gives a keyword of today beside earlier ones
        that stand for it.

    >>> @earlier_arguments(("colour",), "paint(shade=)", lambda given: {"shade": given["colour"]})
    ... def paint(shade: str) -> str:
    ...     return shade
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     paint(colour="red")
    'red'
    >>> print(caught[0].message)
    paint(colour=) is now paint(shade=); the old name works for one minor version
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            given = {name: options.pop(name) for name in names if name in options}
            if given:
                old, now = ", ".join(f"{name}=" for name in given), translate(given)
                if twice := sorted(now.keys() & options.keys()):
                    raise TypeError(
                        f"{function.__name__}() got {twice[0]}= and, by earlier names, {old}; give {twice[0]}= alone"
                    )
                warn_renamed(f"{function.__name__}({old})", instead)
                options |= now
            return function(*args, **options)

        return call

    return decorate
