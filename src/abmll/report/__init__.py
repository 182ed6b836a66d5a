"""The report: a folder of predictions -> tables, figures and one page. Needs no model.

>>> from pathlib import Path
>>> summary = write_report(Path("runs/quickstart"))  # doctest: +SKIP
>>> rich.print(render_terminal(summary))  # doctest: +SKIP
"""

from pathlib import Path
from typing import Any

from rich.console import RenderableType

from abmll.files import write_bytes, write_json, write_text
from abmll.report.figures import pictures
from abmll.report.folder import collect
from abmll.report.page import page
from abmll.report.results import summarise
from abmll.report.tables import TerminalReport, markdown_report

__all__ = ["collect", "render_terminal", "summarise", "write_report"]


def write_report(folder: Path) -> dict[str, Any]:
    """Write `results.json`, `table.md`, `figures/*.png` and `report.html` into a comparison folder.

    Every file is whole or as it was. What has not been run yet is named in the report, not an error.

    Returns:
        The summary, as in `results.json` (see `abmll.report.results.summarise`).

    Raises:
        AbmllError: there is nothing to report, or a file is damaged; names it.

    >>> write_report(Path("runs/quickstart"))["systems"]["abmll"]["accuracy"]  # doctest: +SKIP
    0.48
    """
    summary = summarise(collect(folder))
    made = pictures(summary)
    write_json(folder / "results.json", summary)
    write_text(folder / "table.md", markdown_report(summary))
    for picture in made:
        write_bytes(folder / "figures" / f"{picture.name}.png", picture.png())
    write_text(folder / "report.html", page(summary, made))
    return summary


def render_terminal(summary: dict[str, Any]) -> RenderableType:
    """The tables and what a reader must know, to be printed on a `rich` console of any width from 80 columns."""
    return TerminalReport(summary)
