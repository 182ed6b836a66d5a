"""`abmll watch`: whether new labelled answers say that a saved task's promise fails."""

from pathlib import Path
from typing import Annotated

import typer

from abmll.cli.arguments import OverridesArgument, RunArgument, existing
from abmll.cli.console import note, say
from abmll.cli.lazy import command_app
from abmll.config import parse_overrides
from abmll.metrics.abstention import check_share

app = command_app()


@app.command()
def watch(
    run: RunArgument,
    answers: Annotated[
        Path,
        typer.Argument(
            help="Labelled rows: what `abmll predict --abstain-below-risk` wrote, with labels; or rows to be answered.",
            show_default=False,
            callback=existing,
        ),
    ],
    task: Annotated[str, typer.Option(help="The saved task.")],
    overrides: OverridesArgument = None,
    abstain_below_risk: Annotated[
        float | None, typer.Option(help="Share of wrong answers that was promised; needed the first time.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of the labels. Default: that of the task.")] = None,
    prefix: Annotated[str, typer.Option(help="What stands before the names of `abmll predict`'s columns.")] = "",
    restart: Annotated[bool, typer.Option("--restart", help="Forget what was counted before.")] = False,
) -> None:
    """Tell when new labelled answers say that a saved task's promise fails.

    Label some of the rows that were answered, chosen without regard to whether they look right, and give the table,
    again and again as it grows: rows count once. At most 5 % of the tasks that keep their promise have an alarm,
    however often one looks. Exit code 3 on an alarm, else 0. What was counted is in watch/TASK of the run.

    Example: `abmll watch runs/mine sure.csv --task mytask --abstain-below-risk 0.1`
    """
    if abstain_below_risk is not None:
        check_share("--abstain-below-risk", abstain_below_risk)
    values = parse_overrides(overrides or [])

    from abmll.watching import WatchOptions, watch_task  # after the arguments

    watched = watch_task(run, task, answers, WatchOptions(abstain_below_risk, label, prefix, restart, values))
    for remark in watched.remarks():
        note(f"note: {remark}")
    say(watched.describe())
    if watched.fails:
        raise typer.Exit(3)
