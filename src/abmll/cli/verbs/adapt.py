"""`abmll adapt`: a trained run on unseen tasks, scored; or on a user's own labelled rows, kept under a name."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

from abmll.cli.lazy import command_app
from abmll.cli.progress import ProgressDisplay, duration
from abmll.cli.scores import print_scores
from abmll.config import RunConfig, TaskSource, load_config
from abmll.errors import AbmllError
from abmll.everyday.adapt import Adapted, adapt_and_save
from abmll.everyday.check import FEWEST, check_worth, estimate_seconds
from abmll.everyday.labelled import Labelled, read_labelled, remarks
from abmll.everyday.saved import check_free, write_details
from abmll.everyday.session import Session, open_run
from abmll.everyday.shipped import find_run
from abmll.metrics.worth import Worth, WorthRow
from abmll.process.stopping import Stopped
from abmll.process.timer import Timer
from abmll.runs.evaluate_run import evaluate_once
from abmll.runs.overrides import check_settings, check_trained
from abmll.runs.resolved import prepare_run, resolve
from abmll.runs.roles import RunTasks, check_roles, tasks_to_score
from abmll.systems.build import build_system, load_base
from abmll.tables.layouts import Layout, parse_labels
from abmll.tasks.sources import load_tasks
from abmll.training.checkpoints import RunDirectory
from abmll.training.resume import restore_theta

app = command_app()
console, err_console = Console(), Console(stderr=True)

RunArgument = Annotated[
    str, typer.Argument(help="A run directory of `abmll train`, or smollm2, which comes along.", show_default=False)
]
Labels = Annotated[
    str | None, typer.Option(help="Plain classification: the labels, between commas (or a JSON list).", metavar="A,B,C")
]
Text = Annotated[str, typer.Option(help="Plain classification: column of the texts.")]
Ask = Annotated[str | None, typer.Option(help="Plain classification: what the model is asked about each text.")]


@dataclass(frozen=True)
class _Wanted:
    """What is to be saved, and how."""

    name: str
    hold_back: int
    check: bool
    replace: bool


@app.command()
def adapt(
    run: RunArgument,
    tasks: Annotated[
        str | None,
        typer.Argument(
            help="Labelled rows (.csv, .tsv, .jsonl, .parquet), a folder of tasks or builtin:NAME. "
            "Default: the run's unseen tasks."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values to set, as section.key=value.", metavar="[SECTION.KEY=VALUE]...")
    ] = None,
    save: Annotated[str | None, typer.Option(help="Adapt to your own rows, and keep the result by this name.")] = None,
    labels: Labels = None,
    text: Text = "text",
    label: Annotated[str, typer.Option(help="Plain classification: column of the labels.")] = "label",
    ask: Ask = None,
    hold_back: Annotated[
        int, typer.Option(help="Rows kept out of adapting, for `abmll predict --abstain-below-risk`.", min=0)
    ] = 0,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not check whether adapting is worth it.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="In the place of a saved task of this name.")] = False,
    step: Annotated[int | None, typer.Option(help="Without --save: checkpoint to adapt from.")] = None,
) -> None:
    """Adapt a trained system: to your own labelled rows with --save, or to unseen tasks to score it.

    With --save, all rows but those held back are adapted to, and the result is kept in the run directory for
    `abmll predict --task NAME`. Rows have the columns question, choices, answer, or text and label. It ends with a
    check, by parts of the rows that are left out in turn, whether adapting is worth it. docs/everyday.md has more.

    Without, each task is adapted to on `adaptation.examples` of its train rows, and its test rows are predicted and
    scored.

    Examples: `abmll adapt smollm2 my.csv --save mytask`, `abmll adapt runs/mine builtin:occupations`
    """
    if tasks is not None and "=" in tasks and not Path(tasks).exists():  # TASKS was left out
        overrides = [tasks, *(overrides or [])]
        tasks = None
    if save is None:
        _score_unseen(find_run(run), tasks, overrides or [], step)
        return
    if tasks is None or step is not None:
        raise AbmllError(
            "--save needs a file of labelled rows" if tasks is None else "--step is for runs without --save"
        )
    wanted = Layout(None if labels is None else parse_labels(labels), text, label, ask)
    labelled = _labelled(tasks, wanted)
    folder = find_run(run)
    check_free(folder, save, replace=replace)
    _save(folder, tasks, labelled, overrides or [], _Wanted(save, hold_back, not no_check, replace))


def _labelled(source: str, wanted: Layout) -> Labelled:
    """The labelled rows of a file, or the train rows of one task of another source."""
    if Path(source).is_file():
        return read_labelled(Path(source), wanted)
    found = load_tasks(source)
    if len(found) != 1:
        raise AbmllError(f"{source}: {len(found)} tasks, --save takes one: give a file, or builtin:NAME")
    if wanted.labels is not None:
        raise AbmllError(f"{source}: --labels is for a file of texts and labels; this is a task of questions")
    if not found[0].train:
        raise AbmllError(f"{source}: has no labelled rows to adapt to")
    if found[0].test:
        _note(f"{source}: its {len(found[0].test)} test rows are left alone")
    return Labelled(Layout(), found[0].train)


def _save(folder: Path, source: str, labelled: Labelled, overrides: list[str], wanted: _Wanted) -> None:
    for remark in remarks(labelled):
        _note(f"note: {remark}")
    err_console.print(f"loading the model of {folder}", highlight=False)
    session, _ = open_run(folder, overrides)
    count = len(labelled.rows) - wanted.hold_back
    _note(f"adapting to {count} rows: {session.plan(max(1, count)).steps} steps")
    name = Path(source).name
    done = adapt_and_save(session, wanted.name, labelled, held=wanted.hold_back, source=name, replace=wanted.replace)
    cut = len(session.system.batcher.encoder.truncated)
    if cut:
        _note(
            f"note: {cut} rows are longer than likelihood.max_tokens={session.config.likelihood.max_tokens}: the start "
            "of their text was cut. Set it higher to keep more"
        )
    aside = f", {len(done.held)} held back" if done.held else ""
    kinds = f"; labels: {', '.join(labelled.layout.labels)}" if labelled.layout.labels else ""
    _say(f"Saved: {folder / 'tasks' / wanted.name} ({len(done.used.rows)} rows adapted to{aside}{kinds})")
    if wanted.check:
        _check(session, wanted.name, done)
    _say(f"\nNext: abmll predict {folder} --task {wanted.name} ROWS.csv -o OUT.csv")


def _check(session: Session, name: str, done: Adapted) -> None:
    rows = len(done.used.rows)
    if rows < FEWEST:
        _say(f"\nIs it worth it on this task? {rows} rows cannot tell: {FEWEST} is the fewest, 20 or more are better.")
        return
    seconds = estimate_seconds(session, done.used, done.step_seconds, done.answer_seconds)
    _note(
        f"Is it worth it on this task? A check will take about {duration(seconds)}. The task is saved already: Ctrl-C "
        "stops the check alone, and --no-check leaves it out"
    )
    with ProgressDisplay(err_console) as display:
        told = {"said": 0}

        def tell(folds: int, of: int) -> None:
            if not told["said"]:
                display({"event": "plan", "units": of, "done": 0})
            display({"event": "counted", "what": "check", "units": folds - told["said"]})
            told["said"] = folds

        try:
            found = check_worth(session, done.used, tell)
        except Stopped as stopped:
            _note("the check was stopped; the task is saved")
            if stopped.signal != signal.SIGINT:
                raise
            return
    _show(found)
    write_details(session.folder, name, {**done.details, "check": found.to_dict()}, before=done.details)


def _show(found: Worth) -> None:
    groups = f" in {found.clusters} groups" if found.clusters < found.n else ""
    table = RichTable(
        "",
        "Accuracy %",
        "95 %",
        "NLL",
        "95 % ",
        title=f"Is it worth it on this task? {found.n} labelled "
        f"rows{groups}, {found.folds} parts, each answered by what was fitted to the others",
        title_justify="left",
    )
    for row in found.rows:
        table.add_row(*_cells(row))
    console.print()
    console.print(table)
    for line in found.text:
        _say(line)


def _cells(row: WorthRow) -> tuple[str, ...]:
    if row.accuracy is None or row.accuracy_interval is None or row.nll is None or row.nll_interval is None:
        return row.name, "not finite", "", "not finite", ""
    (low, high), (least, most) = row.accuracy_interval, row.nll_interval
    shares = f"{100 * row.accuracy:.1f}", f"{100 * low:.0f} to {100 * high:.0f}"
    return row.name, *shares, f"{row.nll:.3f}", f"{least:.3f} to {most:.3f}"


def _score_unseen(run: Path, tasks: str | None, overrides: list[str], step: int | None) -> None:
    """Adapt to unseen tasks from a checkpoint, predict their test rows, print scores."""
    if tasks is not None and Path(tasks).is_file():
        raise AbmllError(f"{tasks}: one file of rows; --save NAME adapts to it, and keeps the result")
    config = load_config(RunConfig, run / "config.yaml", overrides)
    check_trained(load_config(RunConfig, run / "config.yaml"), config, run)
    resolved = resolve(config)
    check_settings(resolved)
    roles = tasks_to_score(config, TaskSource(source=tasks) if tasks else None)
    if not roles.unseen:
        raise AbmllError(f"{run} names no unseen tasks: give a folder, a file or builtin:NAME")
    if bare := [task.name for task in roles.unseen if not task.test]:
        raise AbmllError(f"{', '.join(bare)}: no test rows to score; `--save NAME` keeps a task adapted to its rows")
    check_roles(RunTasks((), (), roles.unseen), config.adaptation.examples)
    compared = (run.parent.parent / "comparison.json").is_file()  # its predictions are results there
    folders = (run / "adapted", run / "adapted" / "mean") if compared else None
    prepared = prepare_run(resolved, RunTasks(roles.train, (), roles.unseen), run, predictions=folders)
    checkpoint = _chosen(prepared.directory, step)
    with ProgressDisplay(err_console) as display:
        display({"event": "loading", "model": config.model.source or config.model.shape})
        system = build_system(config, load_base(config.model), resolved.settings)
        restore_theta(system.method, prepared.directory, checkpoint)
        files = evaluate_once(prepared, system, checkpoint, display, Timer())
    print_scores(files)


def _chosen(run: RunDirectory, step: int | None) -> int:
    """The checkpoint to adapt from: that of `step`, or else of the best by validation, or else the latest."""
    found = run.latest(step)
    if found is None and step is None:
        raise AbmllError(
            f"{run.path}: has no checkpoints to score tasks from; `abmll adapt {run.path} ROWS --save NAME` adapts to "
            "labelled rows, and needs its adapter/ alone"
        )
    if found is None or (step is not None and found.step != step):
        raise AbmllError(f"{run.path}: no checkpoint of step {step}; there are {run.steps() or 'none'}")
    return found.step if step is not None else int(found.state.get("best_step", 0)) or found.step


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def _note(text: str) -> None:
    err_console.print(text, highlight=False, soft_wrap=True, markup=False)
