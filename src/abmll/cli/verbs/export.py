"""`abmll export`: a run's adapter, or a saved task's, for other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from abmll.adapters.facts import StoredAdapter
from abmll.cli.lazy import command_app
from abmll.cli.verbs.adapt import RunArgument
from abmll.config import RunConfig
from abmll.errors import AbmllError
from abmll.everyday.adapt import layout_of
from abmll.everyday.labelled import read_unlabelled
from abmll.everyday.saved import SavedTask, read_task
from abmll.everyday.session import read_shared, settings_of
from abmll.everyday.shipped import find_run
from abmll.exporting import check_size, export_calibrated, export_mean, export_merged, merged_bytes
from abmll.exporting.calibrated import spread_questions
from abmll.exporting.place import describe_bytes
from abmll.question import Question
from abmll.runs.card import About, about_run
from abmll.runs.overrides import OWN_ROWS
from abmll.systems.adapters import use_adapter
from abmll.systems.build import System, build_system, load_base, tasks_of
from abmll.tables.layouts import Layout

app = command_app()
console = Console()
err_console = Console(stderr=True)


@dataclass(frozen=True)
class _Wanted:
    """What is exported, from where, and where to."""

    run: Path
    out: Path
    task: SavedTask | None
    config: RunConfig
    stored: StoredAdapter
    about: About
    yes: bool


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
    calibrated: Annotated[bool, typer.Option("--calibrated", help="The mean, and the temperature it needs.")] = False,
    questions: Annotated[
        Path | None, typer.Option(help="With --calibrated: a file of questions. Default: the run's training tasks.")
    ] = None,
    count: Annotated[int, typer.Option(help="With --calibrated: most training questions to use.", min=1)] = 200,
    force: Annotated[bool, typer.Option("--force", help="Merge even if the dtype swallows the update.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="More than 1 GB is meant.")] = False,
) -> None:
    """Export a run's adapter: the mean as a LoRA, a merged model, one posterior draw, or a calibrated mean.

    Whatever is written is read again and compared before the folder gets its name. docs/adapters-and-exports.md says
    how vLLM and llama.cpp take each of them.

    Examples: `abmll export runs/mine -o lora`, `abmll export runs/mine -o model --merge --draw 0`,
    `abmll export runs/mine -o served --calibrated --questions my.jsonl`
    """
    _check_options(task, merge, draw, calibrated, questions)
    folder = find_run(run, place=task is not None)
    saved = None if task is None else read_task(folder, task)
    asked = {name: why for name, why in OWN_ROWS.items() if name != "tasks"}  # --calibrated asks the training tasks
    config = settings_of(folder, overrides or [], saved, asked)
    stored = read_shared(folder) if saved is None else saved.adapter
    about = about_run(folder, stored.facts, None if saved is None else saved.details, task or "")
    wanted = _Wanted(folder, out, saved, config, stored, about, yes)
    try:
        if merge:
            _merge(wanted, draw, force)
        elif calibrated:
            _calibrate(wanted, questions, count)
        else:
            _announce(wanted, "the mean as a PEFT LoRA", stored.bytes)
            export_mean(stored, out, confirmed=yes, about=about)
    except OSError as error:
        raise AbmllError(f"{out}: cannot be written ({error.strerror or error}); nothing was kept") from error
    console.print(f"Written, read again and compared: {out}", highlight=False, soft_wrap=True)


def _check_options(task: str | None, merge: bool, draw: int | None, calibrated: bool, questions: Path | None) -> None:
    if merge and calibrated:
        raise AbmllError("--merge and --calibrated are two exports: choose one")
    if draw is not None and not merge:
        raise AbmllError(
            "--draw needs --merge: a draw's noise is full-rank, so a posterior draw is a whole model and never a LoRA"
        )
    if questions is not None and not calibrated:
        raise AbmllError("--questions is for --calibrated")
    if calibrated and task is not None and questions is None:
        raise AbmllError("--calibrated with --task needs --questions: rows like those that the task will be asked")


def _merge(wanted: _Wanted, draw: int | None, force: bool) -> None:
    m = wanted.config.model
    if m.quantisation is None:  # else `export_merged` says what to do
        size = merged_bytes(m.source, m.shape, m.revision, m.dtype, m.device)
        what = "a whole model with the mean merged in" if draw is None else f"a whole model of posterior draw {draw}"
        _announce(wanted, what, size)
    report = export_merged(
        _system(wanted), wanted.out, draw=draw, force=force, confirmed=wanted.yes, about=wanted.about
    )
    change = f"{report.largest_logit_change:.2g} of {report.logit_scale:.3g}"
    _say(f"Rounding: {report.rounding.describe()}")
    _say(
        f"Logits against the adapter on its base: largest change {change}, same top token for "
        f"{100 * report.top_token_agreement:.4g} % of {report.probes} random tokens"
    )


def _calibrate(wanted: _Wanted, file: Path | None, count: int) -> None:
    _announce(wanted, "the mean as a PEFT LoRA, and its temperature", wanted.stored.bytes)
    a = wanted.config.adaptation
    rows = _questions(wanted, file, count)
    options: dict[str, Any] = {"confirmed": wanted.yes, "about": wanted.about}
    options |= {"draws": a.samples, "batch_tokens": a.batch_tokens}
    found = export_calibrated(wanted.stored, _system(wanted), rows, wanted.out, **options)
    _say(f"Temperature {found.temperature:.4g}, from {found.questions} questions and {found.draws} posterior draws")
    for name, far in (("as it is", found.before), ("calibrated", found.after)):
        _say(
            f"The mean {name}, against the averaged draws: KL {far.mean_kl:.2g} nats, largest difference "
            f"{far.largest:.2g}, same answer {100 * far.same_answer:.4g} %"
        )


def _questions(wanted: _Wanted, file: Path | None, count: int) -> tuple[Question, ...]:
    if file is not None:
        task = wanted.task
        return read_unlabelled(file, layout_of(task) if task and "layout" in task.details else Layout())
    return spread_questions(tasks_of(wanted.config.tasks.train), count)


def _system(wanted: _Wanted) -> System:
    """The run's system with the stored adapter in both slots."""
    m = wanted.config.model
    err_console.print(f"loading {m.source or m.shape}", highlight=False)
    system = build_system(wanted.config, load_base(m))
    use_adapter(wanted.stored, system, wanted.run if wanted.task is None else wanted.task.folder)
    return system


def _announce(wanted: _Wanted, what: str, size: int) -> None:
    _say(f"Exporting {what}: {describe_bytes(size)} to {wanted.out}")
    check_size(size, wanted.out, wanted.yes)


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
