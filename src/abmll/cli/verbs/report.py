"""`abmll report`: tables, figures and page of a comparison, from its files."""

from pathlib import Path
from typing import Annotated

import typer

from abmll.cli.arguments import existing
from abmll.cli.lazy import command_app, quick_imports

app = command_app()


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder of `abmll compare`.", show_default=False, callback=existing)],
) -> None:
    """Make the tables, figures and page of a comparison again, from its files; no model is needed."""
    with quick_imports():
        from abmll.cli.work.report import show_report  # after the arguments

    show_report(folder)
