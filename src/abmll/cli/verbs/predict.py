"""`abmll predict`: a user's rows, answered, with probabilities that can be acted on."""

from pathlib import Path
from typing import Annotated

import typer

from abmll.cli.arguments import AskOption, LabelsOption, OverridesArgument, RunArgument, TextOption, existing
from abmll.cli.lazy import command_app, quick_imports
from abmll.config import parse_overrides
from abmll.errors import AbmllError
from abmll.everyday.survey import columns_of, survey
from abmll.metrics.abstention import check_share
from abmll.tables.labels import label_text
from abmll.tables.layouts import Layout, parse_labels
from abmll.tables.read import RowFile
from abmll.tables.rows import BadRow

app = command_app()


@app.command()
def predict(
    run: RunArgument,
    rows: Annotated[
        Path,
        typer.Argument(
            help="Rows without labels: .csv, .tsv, .xlsx, .jsonl or .parquet.", show_default=False, callback=existing
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .csv, .tsv, .jsonl or .parquet.")],
    overrides: OverridesArgument = None,
    task: Annotated[str | None, typer.Option(help="A task saved by `abmll adapt --save`. Default: as trained.")] = None,
    labels: LabelsOption = None,
    text: TextOption = "text",
    ask: AskOption = None,
    prefix: Annotated[str, typer.Option(help="Put before the names of the columns that are added.")] = "",
    abstain_below_risk: Annotated[
        float | None,
        typer.Option(help="Answer only where at most this share is wrong, at 90 % confidence; needs rows held back."),
    ] = None,
    held_back: Annotated[
        Path | None, typer.Option(help="With --abstain-below-risk: labelled rows that nothing was fitted to.")
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(help="With --abstain-below-risk: prediction of the rows that are not answered, such as 'other'."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Probabilities as the model states them, without the task's temperature.")
    ] = False,
) -> None:
    """Predict rows: your own columns, in their order, then prediction, confidence, probabilities and spread.

    Columns added: prediction; confidence, its probability; p_LABEL for each label, or probabilities where rows have
    choices of their own; spread, the standard deviation of the confidence over posterior draws; information, how much
    the draws disagree (mutual information, nats). Probabilities are at the temperature that was learned with the task.
    The file is written whole, or not at all.

    Example: `abmll predict runs/mine --task mytask rows.csv -o out.csv`
    """
    _check_options(task, labels, abstain_below_risk, held_back, raw)
    _check_other(other, abstain_below_risk)
    existing(held_back)
    layout = Layout(None if labels is None else parse_labels(labels), text, ask=ask)
    values = parse_overrides(overrides or [])
    if task is not None:
        layout = columns_of(run, task) or _columns_or_why_not(run, task)
    surveyed = survey(RowFile(rows), layout, out, prefix=prefix, abstains=abstain_below_risk is not None)
    surveyed.other = other
    if out.exists() and out.resolve() == rows.resolve():
        raise AbmllError(f"{out}: is the file of rows itself; give another name")
    if held_back is not None:
        _check_held_back(held_back, layout)

    with quick_imports():
        from abmll.cli.work.predict import PredictRequest, predict_rows  # after the arguments

    predict_rows(run, values, PredictRequest(surveyed, task, abstain_below_risk, held_back, raw))


def _columns_or_why_not(run: str, task: str) -> Layout:
    with quick_imports():
        from abmll.cli.work.predict import saved_columns  # after the arguments

    return saved_columns(run, task)


def _check_held_back(file: Path, layout: Layout) -> None:
    with quick_imports():
        from abmll.everyday.labelled import read_labelled  # after the arguments

    read_labelled(file, layout, fixed=layout.labels is not None)


def _check_options(task: str | None, labels: str | None, risk: float | None, held_back: Path | None, raw: bool) -> None:
    if risk is not None:
        check_share("--abstain-below-risk", risk)
    if risk is not None and task is None:
        raise AbmllError("--abstain-below-risk needs --task: the promise is about a task that was adapted to")
    if held_back is not None and risk is None:
        raise AbmllError("--held-back is for --abstain-below-risk")
    if task is not None and labels is not None:
        raise AbmllError("--labels: the labels are those that the task was adapted with; leave it out")
    if raw and task is None:
        raise AbmllError("--raw is for --task: what was adapted to no task has no temperature")


def _check_other(other: str | None, risk: float | None) -> None:
    if other is None:
        return
    if risk is None:
        raise AbmllError("--other is for --abstain-below-risk: it names the rows that are not answered")
    try:
        label_text(other, "--other")
    except BadRow as error:
        raise AbmllError(str(error)) from None
