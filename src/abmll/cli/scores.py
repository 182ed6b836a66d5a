"""Scores of predictions files as a table."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from abmll.metrics.predictions import read_predictions
from abmll.metrics.registered import score_with

console = Console()


def print_scores(files: list[Path], metrics: Sequence[str] = ()) -> None:
    """Read predictions files and print a line of scores for each, those of registered metrics last."""
    columns = ("system", "task", "draw", "examples", "n", "accuracy", "NLL", "Brier", "ECE (choices)", "scaled NLL")
    table = Table(*columns, *metrics)
    for file in files:
        found = read_predictions(file)
        s = score_with(found, metrics)
        scaled = "" if s.nll_scaled is None else f"{s.nll_scaled:.3f}"
        numbers = (f"{100 * s.accuracy:.1f}", f"{s.nll:.3f}", f"{s.brier:.3f}", f"{s.ece:.3f}", scaled)
        more = ("" if value is None else f"{value:.3f}" for value in s.more.values())
        table.add_row(
            found.system, found.task, str(found.draw), str(found.examples_consumed), str(s.n), *numbers, *more
        )
    console.print(table)
