"""`abmll compare`: several systems, trained, adapted, scored and reported."""

from pathlib import Path

from rich.console import Console

from abmll.cli.arguments import DryRun, Out, Overrides, Recipe, Strict, show_plan
from abmll.cli.lazy import command_app
from abmll.cli.progress import ProgressDisplay
from abmll.cli.verbs.report import show_report
from abmll.config import CompareConfig, load_config
from abmll.process.world import join_world, leave_world
from abmll.runs.compare import comparison_runs, run_comparison
from abmll.systems.build import load_base

app = command_app()
out_console, err_console = Console(), Console(stderr=True)


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
        runs = [run for run in comparison_runs(config) if run.seed == config.seeds[0]]
        show_plan(out_console, config, runs, runs[0].tasks)
        return
    folder, world = out or Path("runs") / config.name, join_world()
    with ProgressDisplay(err_console) as display:
        run_comparison(config, folder, lambda: load_base(config.model), display, world, strict=strict)
    leave_world()
    if world.is_main:
        show_report(out_console, folder)
