"""`abmll train`: meta-train one system."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from abmll.cli.arguments import DryRun, Out, Overrides, Recipe, Strict, show_plan
from abmll.cli.lazy import command_app
from abmll.cli.progress import ProgressDisplay
from abmll.config import RunConfig, load_config
from abmll.process.timer import Timer
from abmll.process.world import join_world, leave_world
from abmll.runs.overrides import check_run
from abmll.runs.roles import load_run_tasks, without_leaks
from abmll.runs.target import Target
from abmll.systems.build import build_episodes, build_system, check_tasks, load_base

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
    check_run(config, folder)
    tasks = load_run_tasks(config)
    check_tasks(config, tasks.train, tasks.unseen + tasks.validation)
    tasks = without_leaks(config, tasks)
    check_tasks(config, tasks.train, tasks.unseen + tasks.validation)
    build_episodes(config, tasks.train)
    if dry_run:
        show_plan(out_console, config, [config], tasks)
        return
    world = join_world()
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
