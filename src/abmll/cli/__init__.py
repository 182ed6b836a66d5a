"""The command line: train | adapt | predict | score | compare | report | export | tasks."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text
from transformers.utils import logging as transformers_logging

from abmll.cli.adapt import adapt
from abmll.cli.doctor import doctor
from abmll.cli.export import export
from abmll.cli.predict import predict
from abmll.cli.progress import ProgressDisplay
from abmll.cli.scores import print_scores
from abmll.cli.tasks import tasks_app
from abmll.config import CompareConfig, RunConfig, load_config
from abmll.errors import AbmllError
from abmll.files import explain_failure
from abmll.report import render_terminal, write_report
from abmll.running.build import build_system, load_base, method_settings, tasks_of
from abmll.running.compare import run_comparison
from abmll.running.estimate import describe, estimate
from abmll.running.roles import load_run_tasks, without_leaks
from abmll.running.stopping import Stopped, listening
from abmll.running.target import Target
from abmll.running.timer import Timer
from abmll.running.tracking import check_trackers
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

app.command()(adapt)
app.command()(predict)
app.command()(export)
app.command()(doctor)
app.add_typer(tasks_app, name="tasks")

Recipe = Annotated[Path, typer.Argument(help="A run configuration (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Values to set, as section.key=value.", metavar="[SECTION.KEY=VALUE]...")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for results. Default: runs/NAME.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the resolved configuration, steps and memory, and stop.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse to go back behind a damaged checkpoint.")]
AllowChange = Annotated[
    list[str] | None,
    typer.Option("--allow-change", metavar="FIELD", help="Go on though this differs from the run's configuration."),
]


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    strict: Strict = False,
    allow_change: AllowChange = None,
) -> None:
    """Meta-train one system, going on from its last checkpoint if it was stopped.

    SIGINT (Ctrl-C), SIGTERM and SIGUSR1 save where it stands and leave with 128 + the signal's number (130, 143, 138).

    Leaves a run directory: config.yaml, journal.jsonl, checkpoints/ and adapter/ (a stock PEFT LoRA of the mean).
    Under torchrun, ranks share the tasks of a meta-batch.

    Example: `abmll train recipes/train.yaml training.iterations=200 -o runs/mine`
    """
    config = load_config(RunConfig, recipe, overrides or [])
    if dry_run:
        _show(config, [config])
        return
    check_trackers(config)
    tasks = without_leaks(config, load_run_tasks(config))
    folder, world = out or Path("runs") / config.name, join_world()
    allowed = allow_change or ()
    target = Target(config.name, config, folder, tasks.train, (), tasks.validation, strict=strict, allow_change=allowed)
    with ProgressDisplay(err_console) as display, target.run.locked(world):
        display({"event": "plan", "units": target.units(), "done": 0})
        display({"event": "loading", "model": config.model.source or config.model.shape})
        system = build_system(config, load_base(config.model))
        final = target.meta_train(system, display, world, Timer())
    leave_world()
    if world.is_main:
        out_console.print(f"Trained: step {final}. Adapter: {folder / 'adapter'}. Next: abmll adapt {folder} TASKS")


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
    print_scores(files)


@app.command()
def compare(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    strict: Strict = False,
) -> None:
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
        run_comparison(config, folder, lambda: load_base(config.model), display, world, strict=strict)
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
        settings = ", ".join(f"{name}={value}" for name, value in method_settings(run).model_dump(mode="json").items())
        out_console.print(f"\n{run.method.name} ({run.name})", highlight=False)
        out_console.print(f"{settings}\n{describe(estimate(run))}", highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line.

    Exit codes: 2 for a user's mistake, said in one message; 1 where the file system fails, in one message too; 128 +
    the signal's number for a stop.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err_console)])
    logging.getLogger("abmll").setLevel(logging.INFO)
    _quieten_libraries()
    try:
        with listening():
            app(standalone_mode=True)
    except AbmllError as error:
        _complain(str(error))
        sys.exit(2)
    except OSError as error:
        told = explain_failure(error)
        if told is None:
            raise
        _complain(f"{told}; the same command goes on from what is on disk")
        sys.exit(1)
    except Stopped as stopped:
        what = "the same command goes on from there" if stopped.saved else "the same command does what is missing"
        err_console.print(f"{stopped}; {what}", highlight=False, soft_wrap=True)
        sys.exit(stopped.exit_code)


def _complain(text: str) -> None:
    err_console.print(Text.assemble(("error:", "bold red"), f" {text}"), soft_wrap=True)


def _quieten_libraries() -> None:
    """Progress bars and advice of transformers are not ours to show."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
