"""Registries: the names that a recipe can use, built in or added by a user's code or an installed package."""

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from abmll.errors import AbmllError, unknown_name

log = logging.getLogger(__name__)

T = TypeVar("T")
NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class Registry(Mapping[str, T]):
    """Things of one kind by name: built in, registered at run time, or brought by an installed package.

    A package declares a thing as an entry point of the registry's group. It is imported when the name is first asked
    for. One that fails then, or brings something else, is reported once and left out, and everything else works on.
    As a mapping, a registry holds what can be used; `lookup` says why something cannot.

    Args:
        kind: what the things are, in messages.
        group: of the entry points.
        builtin: the library's own.
        check: raises `AbmllError` for what is no such thing.
        guide: the page that says how one is added.
        reserved: further names that nobody may take.

    >>> shapes = Registry("shape", "abmll.shapes", {"circle": 0}, check=lambda name, thing: None, guide="A page")
    >>> shapes.register("square", 4)
    >>> list(shapes), shapes.lookup("square")
    (['circle', 'square'], 4)
    """

    def __init__(
        self,
        kind: str,
        group: str,
        builtin: Mapping[str, T],
        *,
        check: Callable[[str, T], None],
        guide: str,
        reserved: Collection[str] = (),
    ) -> None:
        self.kind, self.group, self.guide = kind, group, guide
        self._check, self._builtin, self._reserved = check, dict(builtin), {*builtin, *reserved}
        self._registered: dict[str, T] = {}
        self._entry_points: dict[str, list[EntryPoint]] | None = None
        self._failures: dict[str, str] = {}

    def register(self, name: str, thing: T) -> None:
        """Add a thing under a name that is not taken.

        The same definition may come again, as from a notebook's cell that is run twice: the later one counts.

        Raises:
            AbmllError: the name is taken or cannot be one, or the thing is not of the registry's kind.
        """
        if refusal := self._refusal(name):
            raise AbmllError(f"{self.kind} {name!r} {refusal}; choose another name")
        self._check(name, thing)
        mine = _definition(thing)
        others = [_definition(self._registered[name])] if name in self._registered else []
        others += [mine if point.value == mine else _package(point) for point in self._points().get(name, ())]
        for other in others:
            if other != mine:
                raise AbmllError(f"{self.kind} {name!r} is that of {other} already; choose another name")
        self._registered[name] = thing

    def lookup(self, name: str) -> T:
        """The thing of a name.

        Raises:
            AbmllError: there is none, with the nearest names; or its package cannot be used, with the reason.
        """
        if name in self._reserved - {*self._builtin}:
            raise AbmllError(f"{self.kind} {name!r} is abmll's own and is not named here")
        if name not in self.names():
            raise AbmllError(f"{unknown_name(self.kind, name, self.names())}. {self.guide} says how to add one")
        return self._resolve(name)

    def names(self) -> tuple[str, ...]:
        """Every name, those of packages that have not been imported yet included."""
        return tuple(dict.fromkeys((*self._builtin, *self._registered, *self._points())))

    def __getitem__(self, name: str) -> T:
        if name not in self.names():
            raise KeyError(name)
        reported = name in self._failures
        try:
            return self._resolve(name)
        except AbmllError as error:
            if not reported:
                log.warning("%s; it is left out", error)
            raise KeyError(name) from error

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in self.names() if name in self])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _resolve(self, name: str) -> T:
        """A name's thing, imported if need be; AbmllError where that fails, by the first attempt's reason."""
        for known in (self._builtin, self._registered):
            if name in known:
                return known[name]
        if name not in self._failures:
            try:
                return self._import(name)
            except Exception as error:  # whatever a stranger's package raises
                packages = " and ".join(_package(point) for point in self._points()[name])
                reason = error if isinstance(error, AbmllError) else f"{type(error).__name__}: {error}"
                self._failures[name] = f"{self.kind} {name!r} of {packages} cannot be used ({reason})"
        raise AbmllError(self._failures[name])

    def _import(self, name: str) -> T:
        points = self._points()[name]
        if len(points) > 1:
            raise AbmllError("the name is taken twice; uninstall one")
        thing = points[0].load()
        self._check(name, thing)
        self._registered[name] = thing
        return thing

    def _points(self) -> dict[str, list[EntryPoint]]:
        """The installed packages' entry points by name, read once."""
        if self._entry_points is None:
            self._entry_points = {}
            for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, point.value)):
                if refusal := self._refusal(point.name):
                    log.warning("%s %r of %s %s; it is left out", self.kind, point.name, _package(point), refusal)
                else:
                    self._entry_points.setdefault(point.name, []).append(point)
        return self._entry_points

    def _refusal(self, name: str) -> str:
        """Why a name cannot be taken; empty if it can."""
        if name in self._reserved:
            return "is abmll's own"
        return "" if NAME.fullmatch(name) else "is no name (a letter of a-z first, then a-z, 0-9, - and _; 64 at most)"


def _definition(thing: object) -> str:
    """Where a class or function is defined, in the form of an entry point's value."""
    return f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', repr(thing))}"


def _package(point: EntryPoint) -> str:
    """The distribution that brings an entry point, and what it points to."""
    return f"package {point.dist.name if point.dist else '?'} ({point.value})"
