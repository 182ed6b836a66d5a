"""`abmll bases`: base models that own rows can be adapted to without training, and the command for each."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Column, Table

from abmll.cli.console import out_console, say
from abmll.cli.lazy import command_app
from abmll.errors import unknown_name
from abmll.everyday.bases import Base, known_bases

app = command_app()


@app.command()
def bases(
    name: Annotated[str | None, typer.Argument(help="Only this one.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same facts as JSON.")] = False,
) -> None:
    """List base models known to work well for your own rows: size, licence, languages, what was measured, the command.

    Any other base works too: an id of the hub, a folder of safetensors, a GGUF file or a part of one, in the place of
    the name. Example: `abmll adapt qwen2.5-coder-1.5b my.csv --save mytask`
    """
    known = known_bases()
    chosen = [base for base in known if name is None or base.name.lower() == name.lower()]
    if not chosen:
        raise unknown_name("base", str(name), [base.name for base in known])
    if as_json:
        print(json.dumps([{**asdict(base), "command": base.command} for base in chosen], indent=2))
        return
    _show(chosen)


def _show(bases: Sequence[Base]) -> None:
    """A table, and below it of each base what was measured, on which file, and the command."""
    table = Table(Column("name", no_wrap=True), "parameters", "GB", "licence", "likelihood", "languages")
    for base in bases:
        size = f"{base.gigabytes:g}"
        table.add_row(base.name, base.parameters, size, base.licence, base.likelihood, base.languages)
    out_console.print(table)
    for base in bases:
        say(f"\n{base.name}: {base.source}")
        if base.sha256 is not None:
            say(f"  SHA-256 of the file: {base.sha256}")
        say(f"  measured: {base.measured}")
        say(f"  {base.command}")
