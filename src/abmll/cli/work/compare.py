"""The work of `abmll compare`."""

from functools import partial
from pathlib import Path

from abmll.cli.console import err_console
from abmll.cli.progress import ProgressDisplay
from abmll.cli.work.plan import show_plan
from abmll.cli.work.report import show_report
from abmll.config import CompareConfig
from abmll.process.world import join_world, leave_world
from abmll.runs.compare import run_comparison
from abmll.runs.prepare import comparison_runs
from abmll.systems.build import load_base


def compare_systems(config: CompareConfig, out: Path | None, *, dry_run: bool, strict: bool) -> None:
    """Show the plan of a comparison, or make whatever is missing of it and report."""
    if dry_run:
        runs = [run for run in comparison_runs(config) if run.seed == config.seeds[0]]
        show_plan(config, runs, runs[0].tasks)
        return
    folder, world = out or Path("runs") / config.name, join_world()
    with ProgressDisplay(err_console) as display:
        run_comparison(config, folder, partial(load_base, config.model), display, world, strict=strict)
    leave_world()
    if world.is_main:
        show_report(folder)
