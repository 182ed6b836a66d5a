"""`abmll adapt`: a trained run on unseen tasks, scored; or on a user's own labelled rows, saved under a name."""

from pathlib import Path
from typing import Annotated

import typer

from abmll.cli.arguments import AskOption, LabelsOption, OverridesArgument, RunArgument, TextOption
from abmll.cli.lazy import command_app, quick_imports
from abmll.config import parse_overrides
from abmll.errors import AbmllError

app = command_app()


@app.command()
def adapt(
    run: RunArgument,
    tasks: Annotated[
        str | None,
        typer.Argument(
            help="Labelled rows (.csv, .tsv, .xlsx, .jsonl, .parquet), a folder of tasks or builtin:NAME. "
            "Default: the run's unseen tasks."
        ),
    ] = None,
    overrides: OverridesArgument = None,
    save: Annotated[str | None, typer.Option(help="Adapt to your own rows, and keep the result by this name.")] = None,
    labels: LabelsOption = None,
    text: TextOption = "text",
    label: Annotated[str, typer.Option(help="Plain classification: column of the labels.")] = "label",
    ask: AskOption = None,
    hold_back: Annotated[
        int, typer.Option(help="Rows kept out of adapting, for `abmll predict --abstain-below-risk`.", min=0)
    ] = 0,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not check whether adapting is worth it.")] = False,
    in_prompt: Annotated[
        bool,
        typer.Option("--in-prompt", help="Adapt nothing: your rows stand as examples in every prompt (base models)."),
    ] = False,
    vectors: Annotated[
        str | None,
        typer.Option(help="Sentence encoder, folder or hub id, to compare with; needs sentence-transformers."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="In the place of a saved task of this name.")] = False,
    step: Annotated[int | None, typer.Option(help="Without --save: checkpoint to adapt from.")] = None,
) -> None:
    """Adapt a trained system: to your own labelled rows with --save, or to unseen tasks to score it.

    With --save, all rows but those held back are adapted to, and the result is kept in the run directory for
    `abmll predict --task NAME`. Rows have the columns question, choices, answer, or text and label. It ends with a
    check, by parts of the rows that are left out in turn, whether adapting is worth it. docs/everyday.md has more.

    Without, each task is adapted to on `adaptation.examples` of its train rows, and its test rows are predicted and
    scored.

    A base model, on which nothing was trained, gets a LoRA from zero; whether letters or texts are read as its answers
    is decided by your rows, by what the base itself makes of them.

    Examples: `abmll adapt qwen2.5-coder-1.5b my.csv --save mytask`, `abmll adapt runs/mine builtin:occupations`
    """
    if tasks is not None and "=" in tasks and not Path(tasks).exists():  # TASKS was left out
        overrides = [tasks, *(overrides or [])]
        tasks = None
    values = parse_overrides(overrides or [])

    with quick_imports():
        from abmll.everyday.labelled import check_tasks_to_score, read_own_rows  # after the arguments

    if in_prompt and (save is None or "steps" in values.get("adaptation", {})):
        raise AbmllError("--in-prompt needs --save, and takes no adaptation.steps: nothing is adapted")
    if save is None:
        check_tasks_to_score(tasks)

        with quick_imports():
            from abmll.cli.work.score_unseen import score_unseen  # after the arguments

        score_unseen(run, tasks, values, step)
        return
    if tasks is None or step is not None:
        raise AbmllError(
            "--save needs a file of labelled rows" if tasks is None else "--step is for runs without --save"
        )
    labelled = read_own_rows(tasks, labels, text, label, ask)
    if vectors is not None and labelled.layout.labels is None:
        raise AbmllError(f"--vectors {vectors}: is for texts and labels; these are questions with choices of their own")

    with quick_imports():
        from abmll.cli.work.adapt import SaveRequest, adapt_to_rows  # after the arguments

    request = SaveRequest(
        save, Path(tasks).name, hold_back, check=not no_check, replace=replace, vectors=vectors, in_prompt=in_prompt
    )
    adapt_to_rows(run, labelled, values, request)
