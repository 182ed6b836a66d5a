"""The work of `abmll report`, and the end of `abmll compare`."""

from pathlib import Path

from abmll.cli.console import out_console, say
from abmll.report import render_terminal, write_report


def show_report(folder: Path) -> None:
    """Write the report of a comparison and print its tables."""
    out_console.print(render_terminal(write_report(folder)))
    say(f"\nReport: {folder / 'report.html'}")
