"""`abmll score`: scores of predictions files."""

from pathlib import Path
from typing import Annotated

import typer

from abmll.cli.arguments import all_existing
from abmll.cli.lazy import command_app, quick_imports
from abmll.errors import AbmllError
from abmll.metrics.not_finite import END

app = command_app()


@app.command()
def score(
    predictions: Annotated[
        list[Path], typer.Argument(help="Predictions files, or folders of them.", callback=all_existing)
    ],
    metric: Annotated[list[str] | None, typer.Option(help="A registered metric to show as well.")] = None,
) -> None:
    """Score predictions files; no model is needed.

    Example: `abmll score runs/quickstart/abmll/seed-0/predictions`
    """
    files = [file for path in predictions for file in (_files_in(path) if path.is_dir() else [path])]
    if not files:
        raise AbmllError(f"no predictions (*.jsonl) in {', '.join(map(str, predictions))}")

    with quick_imports():
        from abmll.cli.work.scores import print_scores  # after the arguments

    print_scores(files, metric or [])


def _files_in(folder: Path) -> list[Path]:
    """Predictions files, and what stands in the place of those that are not finite."""
    return sorted((*folder.rglob("*.jsonl"), *folder.rglob(f"*{END}")))
