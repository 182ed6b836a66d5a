"""The work of `abmll compare`."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

from abmll.cli.console import err_console, note, say
from abmll.cli.progress import ProgressDisplay
from abmll.cli.work.plan import show_plan
from abmll.cli.work.report import show_report
from abmll.config import CompareConfig
from abmll.files import tidy
from abmll.process.lock import locked_folder
from abmll.process.world import join_world, leave_world
from abmll.runs.compare import run_comparison, select_targets
from abmll.runs.evaluate_run import is_complete
from abmll.runs.prepare import comparison_runs
from abmll.systems.build import load_base


def compare_systems(
    config: CompareConfig, out: Path | None, *, only: Collection[str], dry_run: bool, strict: bool
) -> None:
    """Show the plan of a comparison, or make whatever is missing of it and report."""
    folder = out or Path("runs") / config.name
    if dry_run:
        _show_targets(config, folder, only)
        return
    world = join_world()
    with ProgressDisplay(err_console) as display:
        run_comparison(config, folder, partial(load_base, config.model), display, world, only=only, strict=strict)
    leave_world()
    if not world.is_main:
        return
    if only:
        note(f"{folder}: {', '.join(only)}: is there. The command without --only makes the rest and the report")
        return
    _report(folder)


def _show_targets(config: CompareConfig, folder: Path, only: Collection[str]) -> None:
    runs = comparison_runs(config, folder)
    chosen = select_targets(runs, only)
    show_plan(config, [run for run in runs if run.seed == config.seeds[0]], runs[0].tasks)
    there = {run.target: is_complete(run) for run in chosen}
    say(f"\ntargets in {folder}: {len(there)}, of which {sum(there.values())} are there")
    for target, done in there.items():
        say(f"{target}{'  (is there)' if done else ''}")


def _report(folder: Path) -> None:
    with locked_folder(folder, wait=True, deep=False):
        tidy(folder / "figures")  # what a process left that was killed as it wrote them
        show_report(folder)
