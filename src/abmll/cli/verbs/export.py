"""`abmll export`: a run's adapter, or a saved task's, for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from abmll.cli.arguments import RunArgument, existing
from abmll.cli.lazy import command_app, quick_imports
from abmll.config import parse_overrides
from abmll.errors import AbmllError

app = command_app()


@app.command()
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values to set, as model.dtype=bfloat16.", metavar="[SECTION.KEY=VALUE]..."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="A saved task's posterior instead of the shared weights.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="A whole model with the adapter merged into it.")] = False,
    draw: Annotated[int | None, typer.Option(help="With --merge: posterior draw of this number.", min=0)] = None,
    calibrated: Annotated[bool, typer.Option("--calibrated", help="The mean, and the temperatures it needs.")] = False,
    questions: Annotated[
        Path | None, typer.Option(help="With --calibrated: a file of questions. Default: the run's training tasks.")
    ] = None,
    count: Annotated[int, typer.Option(help="With --calibrated: most training questions to use.", min=1)] = 200,
    force: Annotated[bool, typer.Option("--force", help="Merge even if the dtype swallows the update.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="More than 1 GB is meant.")] = False,
) -> None:
    """Export a run's adapter: the mean as a LoRA, a merged model, one posterior draw, or a calibrated mean.

    With --calibrated, a saved task brings the temperature that was learned with it. Whatever is written is read again
    and compared before the folder gets its name. docs/adapters-and-exports.md says how vLLM and llama.cpp take each of
    them.

    Examples: `abmll export runs/mine -o lora`, `abmll export runs/mine -o model --merge --draw 0`,
    `abmll export runs/mine -o served --calibrated --questions my.jsonl`
    """
    _check_options(merge, draw, calibrated, questions)
    existing(questions)
    values = parse_overrides(overrides or [])
    if questions is not None:
        with quick_imports():
            from abmll.everyday.labelled import check_questions  # after the arguments

        check_questions(questions, run, task)

    with quick_imports():
        from abmll.cli.work.export import ExportOptions, export_adapter  # after the arguments

    options = ExportOptions(merge, draw, calibrated, questions, count, force, confirmed=yes)
    export_adapter(run, out, task, values, options)


def _check_options(merge: bool, draw: int | None, calibrated: bool, questions: Path | None) -> None:
    if merge and calibrated:
        raise AbmllError("--merge and --calibrated are two exports: choose one")
    if draw is not None and not merge:
        raise AbmllError(
            "--draw needs --merge: a draw's noise is full-rank, so a posterior draw is a whole model and never a LoRA"
        )
    if questions is not None and not calibrated:
        raise AbmllError("--questions is for --calibrated")
