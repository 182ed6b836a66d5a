"""The report as one HTML file: no script, nothing from a network, light and dark, readable on a telephone."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from abmll.report.figures import Picture, chips
from abmll.report.tables import cost_table, difference_table, score_table, task_table
from abmll.report.theme import css
from abmll.report.words import definitions, difference_note, footnotes, lede

Summary = dict[str, Any]


def page(summary: Summary, pictures: Sequence[Picture]) -> str:
    """The whole document. Every name and note in it is escaped; only the SVG made here is put in as it is.

    >>> page(summary, pictures(summary)).startswith("<!DOCTYPE html>")  # doctest: +SKIP
    True
    """
    template = (files("abmll.report") / "page.html.j2").read_text(encoding="utf-8")
    notes = footnotes(summary)
    sprite, uses = chips(summary)
    return (
        Environment(autoescape=True, undefined=StrictUndefined)
        .from_string(template)
        .render(
            summary=summary,
            css=css(),
            sprite=sprite,
            chips=uses,
            lede=lede(summary),
            footnotes=notes[1:] if summary["note"] else notes,
            scores=score_table(summary),
            differences=difference_table(summary),
            difference_note=difference_note(summary),
            pictures=[_shown(picture) for picture in pictures],
            tasks=[task_table(summary, metric) for metric in ("accuracy", "gain", "ece")],
            costs=cost_table(summary),
            definitions=definitions(summary),
            environment=[(key, _plain(value)) for key, value in summary["environment"].items()],
        )
    )


def _shown(picture: Picture) -> dict[str, Any]:
    titles = [panel.title for panel in picture.panels]
    return {
        "name": picture.name,
        "title": picture.title,
        "caption": picture.caption,
        "legend": bool(picture.legend),
        "panels": list(zip(titles, picture.svgs(), strict=True)),
    }


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)
