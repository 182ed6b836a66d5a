"""`abmll train`: meta-train one system."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from abmll.cli.arguments import DryRun, Out, Overrides, Recipe, Strict, show_plan
from abmll.cli.lazy import command_app
from abmll.cli.progress import ProgressDisplay
from abmll.config import RunConfig, load_config
from abmll.process.world import join_world, leave_world
from abmll.runs.overrides import check_run
from abmll.runs.resolved import prepare_run, resolve
from abmll.runs.roles import check_roles, load_run_tasks, without_leaks
from abmll.runs.train_run import train_run
from abmll.systems.build import build_system, load_base
from abmll.systems.system import System

app = command_app()
out_console, err_console = Console(), Console(stderr=True)

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
    folder = out or Path("runs") / config.name
    resolved = resolve(config)
    check_run(resolved, folder)
    tasks = load_run_tasks(config)
    check_roles(tasks, config.adaptation.examples)
    tasks = without_leaks(tasks, config.tasks.leak_check)
    check_roles(tasks, config.adaptation.examples)
    run = prepare_run(resolved, replace(tasks, unseen=()), folder, strict=strict)
    if dry_run:
        show_plan(out_console, config, [resolved], tasks)
        return
    world = join_world()
    with ProgressDisplay(err_console) as display:

        def build() -> System:
            display({"event": "plan", "units": run.units(), "done": 0})
            display({"event": "loading", "model": config.model.source or config.model.shape})
            return build_system(config, load_base(config.model), resolved.settings)

        final = train_run(run, build, display, world, allow_change or ())
    leave_world()
    if world.is_main:
        out_console.print(f"Trained: step {final}. Adapter: {folder / 'adapter'}. Next: abmll adapt {folder} TASKS")
