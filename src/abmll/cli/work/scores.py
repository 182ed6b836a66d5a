"""The work of `abmll score`, and the end of `abmll adapt` without --save: scores of predictions files as a table."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from abmll.cli.console import out_console, say
from abmll.metrics.not_finite import END, read_not_finite
from abmll.metrics.predictions import read_predictions
from abmll.scoring.registered import score_with

POSTERIOR = "NLL posterior"
COLUMNS = ("system", "task", "draw", "examples", "n", "accuracy", POSTERIOR, "NLL", "Brier", "ECE (choices)")


def print_scores(files: list[Path], metrics: Sequence[str] = ()) -> None:
    """Read predictions files, and those that say that there are none, and print a line of scores for each.

    Those of registered metrics come last. The primary score is left out where no file has it, and a line says how to
    get it.
    """
    rows = [_row(file, metrics) for file in files]
    has_posterior = any(row.get(POSTERIOR) for row in rows)
    columns = [name for name in (*COLUMNS, *metrics) if has_posterior or name != POSTERIOR]
    table = Table(*columns)
    for row in rows:
        table.add_row(*(row.get(name, "") for name in columns))
    out_console.print(table)
    if not has_posterior and not all(file.name.endswith(END) for file in files):
        say(
            "NLL is of the probabilities as they are stated. At the temperature that suits a task, which is the "
            "primary score, it needs examples that were held out: predict with adaptation.folds=5."
        )


def _row(file: Path, metrics: Sequence[str]) -> dict[str, str]:
    """The cells of a file by their column; those that it has no value for are missing or empty."""
    broken = file.name.endswith(END)
    predictions = read_not_finite(file).asked if broken else read_predictions(file)
    counts = (str(predictions.draw), str(predictions.examples_consumed), str(len(predictions.rows)))
    head = dict(zip(COLUMNS, (predictions.system, predictions.task, *counts), strict=False))
    if broken:
        return {**head, "accuracy": "not finite", "NLL": "not finite"}
    scores = score_with(predictions, metrics)
    values = (scores.nll_posterior, scores.nll, scores.brier, scores.ece, *scores.more.values())
    numbers = ["" if value is None else f"{value:.3f}" for value in values]
    return {**head, **dict(zip((*COLUMNS[5:], *metrics), (f"{100 * scores.accuracy:.1f}", *numbers), strict=True))}
