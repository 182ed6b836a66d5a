"""The work of `abmll score`, and the end of `abmll adapt` without --save: scores of predictions files as a table."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from abmll.cli.console import out_console
from abmll.metrics.not_finite import END, read_not_finite
from abmll.metrics.predictions import read_predictions
from abmll.metrics.registered import score_with
from abmll.metrics.scores import Scores


def print_scores(files: list[Path], metrics: Sequence[str] = ()) -> None:
    """Read predictions files, and those that say that there are none, and print a line of scores for each.

    Those of registered metrics come last.
    """
    columns = ("system", "task", "draw", "examples", "n", "accuracy", "NLL", "Brier", "ECE (choices)", "scaled NLL")
    table = Table(*columns, *metrics)
    for file in files:
        broken = file.name.endswith(END)
        predictions = read_not_finite(file).asked if broken else read_predictions(file)
        numbers = ("not finite", "not finite") if broken else _numbers(score_with(predictions, metrics))
        cell = (str(predictions.draw), str(predictions.examples_consumed), str(len(predictions.rows)))
        table.add_row(predictions.system, predictions.task, *cell, *numbers)
    out_console.print(table)


def _numbers(scores: Scores) -> tuple[str, ...]:
    own = (f"{100 * scores.accuracy:.1f}", f"{scores.nll:.3f}", f"{scores.brier:.3f}", f"{scores.ece:.3f}")
    return (*own, *("" if value is None else f"{value:.3f}" for value in (scores.nll_scaled, *scores.more.values())))
