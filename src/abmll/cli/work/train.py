"""The work of `abmll train`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from abmll.cli.console import err_console, out_console
from abmll.cli.progress import ProgressDisplay
from abmll.cli.work.plan import show_plan
from abmll.config import RunConfig
from abmll.process.world import join_world, leave_world
from abmll.runs.prepare import check_run, load_run_tasks, prepare_run
from abmll.runs.roles import check_roles, without_leaks
from abmll.runs.train_run import train_run
from abmll.systems.build import build_system, load_base
from abmll.systems.plans import resolve
from abmll.systems.system import System


def meta_train_run(
    config: RunConfig, out: Path | None, *, dry_run: bool, strict: bool, allow_change: Sequence[str]
) -> None:
    """Check a configuration and its tasks, then show the plan, or train to the end and write the adapter."""
    folder = out or Path("runs") / config.name
    resolved = resolve(config)
    check_run(resolved, folder)
    tasks = load_run_tasks(config)
    check_roles(tasks, config.adaptation.examples)
    tasks = without_leaks(tasks, config.tasks.leak_check)
    check_roles(tasks, config.adaptation.examples)
    run = prepare_run(resolved, replace(tasks, unseen=()), folder, strict=strict)
    if dry_run:
        show_plan(config, [resolved], tasks)
        return
    world = join_world()
    with ProgressDisplay(err_console) as display:

        def build() -> System:
            display({"event": "plan", "units": run.units(), "done": 0})
            display({"event": "loading", "model": config.model.source or config.model.shape})
            return build_system(config, load_base(config.model, world), resolved.settings)

        final = train_run(run, build, display, world, allow_change)
    leave_world()
    if world.is_main:
        out_console.print(f"Trained: step {final}. Adapter: {folder / 'adapter'}. Next: abmll adapt {folder} TASKS")
