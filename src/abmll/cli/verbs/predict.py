"""`abmll predict`: a user's rows, answered, with probabilities that can be acted on."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table as RichTable

from abmll.cli.lazy import command_app
from abmll.cli.progress import ProgressDisplay
from abmll.cli.verbs.adapt import Ask, Labels, RunArgument, Text
from abmll.errors import AbmllError
from abmll.everyday.adapt import HeldBack, fresh_answers, layout_of, saved_answers
from abmll.everyday.labelled import read_labelled
from abmll.everyday.predict import Survey, Written, predict_table, survey
from abmll.everyday.saved import SavedTask, read_task
from abmll.everyday.session import Session, open_run
from abmll.everyday.shipped import find_run
from abmll.metrics.abstention import LEVEL, Covered, best, certify, check_share, rows_needed, thresholds
from abmll.tables.layouts import Layout, parse_labels
from abmll.tables.read import Table

app = command_app()
console, err_console = Console(), Console(stderr=True)
SHARES = (0.25, 0.5, 0.75, 1.0)


@app.command()
def predict(
    run: RunArgument,
    rows: Annotated[
        Path, typer.Argument(help="Rows without labels: .csv, .tsv, .jsonl or .parquet.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .csv, .tsv, .jsonl or .parquet.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values to set, as section.key=value.", metavar="[SECTION.KEY=VALUE]...")
    ] = None,
    task: Annotated[str | None, typer.Option(help="A task saved by `abmll adapt --save`. Default: as trained.")] = None,
    labels: Labels = None,
    text: Text = "text",
    ask: Ask = None,
    prefix: Annotated[str, typer.Option(help="Put before the names of the columns that are added.")] = "",
    abstain_below_risk: Annotated[
        float | None,
        typer.Option(help="Answer only where at most this share is wrong, at 90 % confidence; needs rows held back."),
    ] = None,
    held_back: Annotated[
        Path | None, typer.Option(help="With --abstain-below-risk: labelled rows that nothing was fitted to.")
    ] = None,
) -> None:
    """Predict rows: your own columns, in their order, then prediction, confidence, probabilities and spread.

    Columns added: prediction; confidence, its probability; p_LABEL for each label, or probabilities where rows have
    choices of their own; spread, the standard deviation of the confidence over posterior draws; information, how much
    the draws disagree (mutual information, nats). The file is written whole, or not at all.

    Example: `abmll predict runs/mine --task mytask rows.csv -o out.csv`
    """
    _check_options(task, labels, abstain_below_risk, held_back)
    folder, table = find_run(run), Table(rows)
    saved = None if task is None else read_task(folder, task)
    layout = _layout(saved, labels, text, ask)
    seen = survey(table, layout, out)
    if out.exists() and out.resolve() == rows.resolve():
        raise AbmllError(f"{out}: is the file of rows itself; give another name")
    err_console.print(f"{seen.rows:,} rows; loading the model of {folder}", highlight=False)
    session, saved = open_run(folder, overrides or [], task)
    choose = None
    if abstain_below_risk is not None and saved is not None:
        choose = _chooser(_held_back(session, saved, layout, held_back), abstain_below_risk)
    _told(_predict(session, table, layout, out, prefix, choose, seen), out, session)


def _check_options(task: str | None, labels: str | None, risk: float | None, held_back: Path | None) -> None:
    if risk is not None:
        check_share("--abstain-below-risk", risk)
        if task is None:
            raise AbmllError("--abstain-below-risk needs --task: the promise is about a task that was adapted to")
    if held_back is not None and risk is None:
        raise AbmllError("--held-back is for --abstain-below-risk")
    if task is not None and labels is not None:
        raise AbmllError("--labels: the labels are those that the task was adapted with; leave it out")


def _layout(saved: SavedTask | None, labels: str | None, text: str, ask: str | None) -> Layout:
    if saved is None:
        return Layout(None if labels is None else parse_labels(labels), text, ask=ask)
    return layout_of(saved)


def _predict(
    session: Session,
    table: Table,
    layout: Layout,
    out: Path,
    prefix: str,
    choose: Callable[[np.ndarray], Covered] | None,
    seen: Survey,
) -> Written:
    with ProgressDisplay(err_console) as display:
        display({"event": "plan", "units": seen.rows, "done": 0})

        def tell(rows: int) -> None:
            display({"event": "counted", "what": "rows answered", "units": rows})

        return predict_table(session, table, layout, out, prefix=prefix, choose=choose, tell=tell, seen=seen)


def _held_back(session: Session, saved: SavedTask, layout: Layout, file: Path | None) -> HeldBack:
    if file is not None:
        return fresh_answers(session, saved, read_labelled(file, layout, fixed=layout.labels is not None).rows)
    found = saved_answers(session, saved)
    return HeldBack(np.zeros(0), np.zeros(0, dtype=bool)) if found is None else found


def _chooser(held: HeldBack, risk: float) -> Callable[[np.ndarray], Covered]:
    """What chooses the threshold, once confidences of rows without labels are there.

    Raises:
        AbmllError: too few rows are held back, whatever they say.
    """
    need, have = rows_needed(risk), len(held.confidence)
    if have < need:
        _show_risk(held, risk)
        raise AbmllError(
            f"--abstain-below-risk {risk:g}: at {100 * LEVEL:.0f} % confidence it needs {need} labelled rows or more "
            f"(so many without an error) that were held back from adapting; here are {have}. "
            f"`abmll adapt --hold-back {need}` holds them back, --held-back FILE gives others. Nothing was written"
        )

    def choose(unlabelled: np.ndarray) -> Covered:
        tests = certify(held.confidence, held.correct, thresholds(unlabelled, have, risk), risk)
        found = best(tests)
        if found is None:
            _show_risk(held, risk)
            raise AbmllError(
                f"--abstain-below-risk {risk:g}: no threshold keeps the promise: {have} rows held back do not show an "
                f"error rate of at most {100 * risk:g} % anywhere. Hold more back, accept a higher risk, or predict "
                "without abstaining. Nothing was written"
            )
        return found

    return choose


def _show_risk(held: HeldBack, risk: float) -> None:
    """The risk-coverage estimate: how often the most confident answers are wrong. No promise is in it."""
    if not len(held.confidence):
        return
    table = RichTable(
        "answered %",
        "confidence from",
        "rows",
        "errors",
        "error %",
        "90 %",
        title="Risk and coverage on the rows held back (an estimate, not a promise)",
        title_justify="left",
    )
    order = np.sort(held.confidence)[::-1]
    cuts = sorted({float(order[max(1, round(share * len(order))) - 1]) for share in SHARES}, reverse=True)
    for found in certify(held.confidence, held.correct, cuts, risk):
        rate = "" if found.error_rate is None else f"{100 * found.error_rate:.1f}"
        ends = f"{100 * found.low:.0f} to {100 * found.high:.0f}"
        cells = (f"{100 * found.coverage:.0f}", f"{found.threshold:.3f}", str(found.answered), str(found.errors))
        table.add_row(*cells, rate, ends)
    err_console.print(table)


def _told(written: Written, out: Path, session: Session) -> None:
    if written.cut:
        _note(
            f"note: {written.cut:,} rows are longer than likelihood.max_tokens="
            f"{session.config.likelihood.max_tokens}: the start of their text was cut"
        )
    if (found := written.threshold) is not None:
        share = 100 * written.answered / written.rows
        _note(
            f"Answered: {written.answered:,} of {written.rows:,} rows ({share:.0f} %), those of confidence "
            f"{max(0.0, found.threshold):.3f} or more. Of the rows held back {found.answered} were, {found.errors} of "
            "them wrong"
        )
    console.print(f"Written: {out}, {written.rows:,} rows", highlight=False, soft_wrap=True, markup=False)


def _note(text: str) -> None:
    err_console.print(text, highlight=False, soft_wrap=True, markup=False)
