"""Scores of predictions files as a table."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from abmll.metrics.predictions import read_predictions
from abmll.metrics.scores import score

console = Console()


def print_scores(files: list[Path]) -> None:
    """Read predictions files and print a line of scores for each."""
    table = Table("system", "task", "draw", "examples", "n", "accuracy", "NLL", "Brier", "ECE (choices)", "scaled NLL")
    for file in files:
        found = read_predictions(file)
        s = score(found)
        scaled = "" if s.nll_scaled is None else f"{s.nll_scaled:.3f}"
        numbers = (f"{100 * s.accuracy:.1f}", f"{s.nll:.3f}", f"{s.brier:.3f}", f"{s.ece:.3f}", scaled)
        table.add_row(found.system, found.task, str(found.draw), str(found.examples_consumed), str(s.n), *numbers)
    console.print(table)
