"""`abmll page`: what a saved task says, and what it can promise, as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from abmll.cli.arguments import OverridesArgument, RunArgument, existing
from abmll.cli.console import note, say
from abmll.cli.lazy import command_app, quick_imports
from abmll.config import parse_overrides
from abmll.errors import AbmllError
from abmll.files import write_text

app = command_app()
ENDS = (".html", ".htm")


@app.command()
def page(
    run: RunArgument,
    task: Annotated[str, typer.Option(help="A saved task.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .html.", show_default=False)],
    overrides: OverridesArgument = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="Questions to show, labelled or not. Default: rows of --examples.", callback=existing),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help="The labelled rows that the task was adapted to, for the base's prompt.", callback=existing),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Most questions.")] = 40,
) -> None:
    """Show what a saved task says as one HTML file: bars beside the base's, and a slider for errors allowed.

    For each question: what the base says, the base with the examples in its prompt, and the adapted answer, as stated
    and at its temperature. The file holds the questions and their answers, fetches nothing, and needs no server;
    `abmll serve` has the same page at /, where questions can be typed.

    Example: `abmll page runs/mine --task mytask --examples my.csv -o page.html`
    """
    if out.suffix.lower() not in ENDS:
        raise AbmllError(f"{out}: the page is written as .html")
    values = parse_overrides(overrides or [])

    with quick_imports():
        from abmll.showing.page import PageRequest, make_page  # after the arguments

    note(f"loading the model of {run}")
    text, count = make_page(PageRequest(run, task, rows, examples, most, values))
    write_text(out, text)
    say(f"Written: {out}, {count} questions")
