"""`abmll report`: tables, figures and page of a comparison, from its files."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from abmll.cli.lazy import command_app
from abmll.report import render_terminal, write_report

app = command_app()


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder of `abmll compare`.", show_default=False)],
) -> None:
    """Make the tables, figures and page of a comparison again, from its files; no model is needed."""
    show_report(Console(), folder)


def show_report(console: Console, folder: Path) -> None:
    """Write the report of a comparison and print its tables."""
    console.print(render_terminal(write_report(folder)))
    console.print(f"\nReport: {folder / 'report.html'}", highlight=False, soft_wrap=True)
