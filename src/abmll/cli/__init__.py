"""The command line: train | adapt | score | compare | report | export | tasks."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text
from transformers.utils import logging as transformers_logging

from abmll.cli.export import export
from abmll.cli.progress import ProgressDisplay
from abmll.cli.tasks import tasks_app
from abmll.config import CompareConfig, RunConfig, TaskSource, load_config
from abmll.errors import AbmllError
from abmll.metrics.predictions import read_predictions
from abmll.metrics.scores import score as score_predictions
from abmll.report import render_terminal, write_report
from abmll.running.build import build_system, load_base, tasks_of
from abmll.running.compare import run_comparison
from abmll.running.estimate import describe, estimate
from abmll.running.roles import load_run_tasks, without_leaks
from abmll.running.target import Target, Timer
from abmll.running.train import restore_theta
from abmll.running.world import join_world, leave_world

app = typer.Typer(
    name="abmll",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""LoRA adapters that generalise: meta-train over many tasks, adapt to an unseen one with 20 examples and 10
    gradient steps, and get answers whose confidence can be believed.

    Start with `abmll compare recipes/quickstart.yaml`. Any value of a recipe can be set on the command line:
    `abmll train my.yaml method.inner_steps=3 model.device=cuda`.""",
)
out_console, err_console = Console(), Console(stderr=True)

app.command()(export)
app.add_typer(tasks_app, name="tasks")

Recipe = Annotated[Path, typer.Argument(help="A run configuration (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Values to set, as section.key=value.", metavar="[SECTION.KEY=VALUE]...")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for results. Default: runs/NAME.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the resolved configuration, steps and memory, and stop.")]


@app.command()
def train(recipe: Recipe, overrides: Overrides = None, out: Out = None, dry_run: DryRun = False) -> None:
    """Meta-train one system, going on from its last checkpoint if it was stopped.

    Leaves a run directory: config.yaml, journal.jsonl, checkpoints/ and adapter/ (a stock PEFT LoRA of the mean).
    Under torchrun, ranks share the tasks of a meta-batch.

    Example: `abmll train recipes/train.yaml training.iterations=200 -o runs/mine`
    """
    config = load_config(RunConfig, recipe, overrides or [])
    if dry_run:
        _show(config, [config])
        return
    tasks = without_leaks(config, load_run_tasks(config))
    folder, world = out or Path("runs") / config.name, join_world()
    target = Target(config.name, config, folder, tasks.train, (), tasks.validation)
    with ProgressDisplay(err_console) as display:
        display({"event": "plan", "units": target.units(), "done": 0})
        display({"event": "loading", "model": config.model.source or config.model.shape})
        system = build_system(config, load_base(config.model))
        final = target.meta_train(system, display, world, Timer())
    leave_world()
    if world.is_main:
        out_console.print(f"Trained: step {final}. Adapter: {folder / 'adapter'}. Next: abmll adapt {folder} TASKS")


@app.command()
def adapt(
    run: Annotated[Path, typer.Argument(help="A run directory of `abmll train`.", show_default=False)],
    tasks: Annotated[
        str | None, typer.Argument(help="A folder, a file or builtin:NAME. Default: the run's unseen tasks.")
    ] = None,
    overrides: Overrides = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint to adapt from. Default: the latest.")] = None,
) -> None:
    """Adapt a trained system to unseen tasks, predict their test rows, and show the scores.

    Each task is adapted to on `adaptation.examples` of its train rows. Predictions are kept in the run directory.

    Example: `abmll adapt runs/quickstart/abmll/seed-0 builtin:occupations adaptation.samples=4`
    """
    config = load_config(RunConfig, run / "config.yaml", overrides or [])
    unseen = tasks_of(TaskSource(source=tasks) if tasks else config.tasks.unseen)
    if not unseen:
        raise AbmllError(f"{run} names no unseen tasks: give a folder, a file or builtin:NAME")
    target = Target(config.name, config, run, tasks_of(config.tasks.train), unseen)
    found = target.run.latest(step)
    if found is None or (step is not None and found.step != step):
        raise AbmllError(f"{run}: no checkpoint of step {step}; there are {target.run.steps() or 'none'}")
    with ProgressDisplay(err_console) as display:
        display({"event": "loading", "model": config.model.source or config.model.shape})
        system = build_system(config, load_base(config.model))
        restore_theta(system.method, target.run, found.step)
        files = target.predict_at(system, found.step, display, Timer())
    _print_scores(files)


@app.command()
def score(
    predictions: Annotated[list[Path], typer.Argument(help="Predictions files, or folders of them.")],
) -> None:
    """Score predictions files; no model is needed.

    Example: `abmll score runs/quickstart/abmll/seed-0/predictions`
    """
    files = [file for path in predictions for file in (sorted(path.rglob("*.jsonl")) if path.is_dir() else [path])]
    if not files:
        raise AbmllError(f"no predictions (*.jsonl) in {', '.join(map(str, predictions))}")
    _print_scores(files)


@app.command()
def compare(recipe: Recipe, overrides: Overrides = None, out: Out = None, dry_run: DryRun = False) -> None:
    """Train, adapt and score several systems, and report. Only what is missing is run.

    Leaves table.md, results.json, figures/ and report.html in the results' folder, and a run directory per system and
    seed.

    Example: `abmll compare recipes/quickstart.yaml training.iterations=60 -o runs/longer`
    """
    config = load_config(CompareConfig, recipe, overrides or [])
    if dry_run:
        _show(config, [config.run(name, seed) for name in config.systems for seed in config.seeds[:1]])
        return
    folder, world = out or Path("runs") / config.name, join_world()
    with ProgressDisplay(err_console) as display:
        run_comparison(config, folder, lambda: load_base(config.model), display, world)
    leave_world()
    if world.is_main:
        _report(folder)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder of `abmll compare`.", show_default=False)],
) -> None:
    """Make the tables, figures and page of a comparison again, from its files; no model is needed."""
    _report(folder)


def _report(folder: Path) -> None:
    summary = write_report(folder)
    out_console.print(render_terminal(summary))
    out_console.print(f"\nReport: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _show(config: RunConfig, runs: list[RunConfig]) -> None:
    """What --dry-run prints."""
    out_console.print(config.to_yaml().rstrip(), highlight=False, markup=False, soft_wrap=True)
    for source in (config.tasks.train, config.tasks.validation, config.tasks.unseen):
        tasks = tasks_of(source)
        rows = sum(len(t.train) + len(t.test) for t in tasks)
        name = source.source if source else "none"
        out_console.print(f"\ntasks {name}: {len(tasks)} with {rows:,} rows", highlight=False)
    for run in runs:
        out_console.print(f"\n{run.method.name} ({run.name})\n{describe(estimate(run))}", highlight=False)


def _print_scores(files: list[Path]) -> None:
    table = Table("system", "task", "draw", "examples", "n", "accuracy", "NLL", "Brier", "ECE (choices)", "scaled NLL")
    for file in files:
        found = read_predictions(file)
        s = score_predictions(found)
        scaled = "" if s.nll_scaled is None else f"{s.nll_scaled:.3f}"
        numbers = (f"{100 * s.accuracy:.1f}", f"{s.nll:.3f}", f"{s.brier:.3f}", f"{s.ece:.3f}", scaled)
        table.add_row(found.system, found.task, str(found.draw), str(found.examples_consumed), str(s.n), *numbers)
    out_console.print(table)


def main() -> None:
    """Run the command line; a user's mistake ends in one message and exit code 2, a stop in 130."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err_console)])
    logging.getLogger("abmll").setLevel(logging.INFO)
    _quieten_libraries()
    try:
        app(standalone_mode=True)
    except AbmllError as error:
        err_console.print(Text.assemble(("error:", "bold red"), f" {error}"), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err_console.print("stopped; the same command goes on from the last checkpoint")
        sys.exit(130)


def _quieten_libraries() -> None:
    """Progress bars and advice of transformers are not ours to show."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
