"""Scores of predictions files as a table."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from abmll.metrics.not_finite import END, read_not_finite
from abmll.metrics.predictions import read_predictions
from abmll.metrics.registered import score_with
from abmll.metrics.scores import Scores

console = Console()


def print_scores(files: list[Path], metrics: Sequence[str] = ()) -> None:
    """Read predictions files, and those that say that there are none, and print a line of scores for each.

    Those of registered metrics come last.
    """
    columns = ("system", "task", "draw", "examples", "n", "accuracy", "NLL", "Brier", "ECE (choices)", "scaled NLL")
    table = Table(*columns, *metrics)
    for file in files:
        broken = file.name.endswith(END)
        found = read_not_finite(file).asked if broken else read_predictions(file)
        numbers = ("not finite", "not finite") if broken else _numbers(score_with(found, metrics))
        places = (str(found.draw), str(found.examples_consumed), str(len(found.rows)))
        table.add_row(found.system, found.task, *places, *numbers)
    console.print(table)


def _numbers(found: Scores) -> tuple[str, ...]:
    own = (f"{100 * found.accuracy:.1f}", f"{found.nll:.3f}", f"{found.brier:.3f}", f"{found.ece:.3f}")
    return (*own, *("" if value is None else f"{value:.3f}" for value in (found.nll_scaled, *found.more.values())))
