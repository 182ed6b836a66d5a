"""Commands that are imported when they are called, so that `abmll --help` imports none of them."""

import atexit
import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from abmll.cli.console import quieten_libraries
from abmll.process.threads import set_thread_defaults


def command_app() -> typer.Typer:
    """What a module of one command declares it with: `app = command_app()`, then `@app.command()`."""
    return typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import the work of a command without garbage collection.

    What modules make stays until the process ends: collections in between look through all of it, again and again, and
    free nothing. That was a quarter of the time of importing torch and transformers. Afterwards it is looked through no
    more.

    >>> with quick_imports():
    ...     import abmll.cli.console
    """
    known, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
            atexit.register(gc.unfreeze)  # what is left is taken down in order, else nanobind reports leaks
        if collects:
            gc.enable()


class LazyGroup(TyperGroup):
    """A group whose commands are placeholders with a line of help; `abmll.cli.verbs.NAME.app` is what is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, placeholder, rest = super().resolve_command(ctx, args)
        if name is None or placeholder is None:
            return name, placeholder, rest
        quieten_libraries()
        set_thread_defaults()
        with quick_imports():
            return name, typer.main.get_command(import_module(f"abmll.cli.verbs.{name}").app), rest


def add_placeholders(app: typer.Typer, commands: Mapping[str, str]) -> None:
    """Name commands, each with the first line of its help, in the order in which they are listed."""
    for name, line in commands.items():
        app.command(name, help=line)(_placeholder)


def _placeholder() -> None:
    """Never called: `LazyGroup` puts the command in its place."""
