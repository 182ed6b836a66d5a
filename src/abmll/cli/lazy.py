"""Commands that are imported when they are called, so that `abmll --help` imports none of them."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from abmll.cli.console import quieten_libraries
from abmll.process.threads import set_thread_defaults


def command_app() -> typer.Typer:
    """What a module of one command declares it with: `app = command_app()`, then `@app.command()`."""
    return typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


class LazyGroup(TyperGroup):
    """A group whose commands are placeholders with a line of help; `abmll.cli.verbs.NAME.app` is what is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, placeholder, rest = super().resolve_command(ctx, args)
        if name is None or placeholder is None:
            return name, placeholder, rest
        quieten_libraries()
        set_thread_defaults()
        return name, typer.main.get_command(import_module(f"abmll.cli.verbs.{name}").app), rest


def add_placeholders(app: typer.Typer, commands: Mapping[str, str]) -> None:
    """Name commands, each with the first line of its help, in the order in which they are listed."""
    for name, line in commands.items():
        app.command(name, help=line)(_placeholder)


def _placeholder() -> None:
    """Never called: `LazyGroup` puts the command in its place."""
