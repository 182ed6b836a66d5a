"""The work of `abmll train`."""

from collections.abc import Sequence
from pathlib import Path

from abmll.cli.console import err_console, out_console
from abmll.cli.progress import ProgressDisplay
from abmll.cli.work.plan import show_plan
from abmll.config import RunConfig
from abmll.process.timer import Timer
from abmll.process.world import join_world, leave_world
from abmll.runs.overrides import check_run
from abmll.runs.roles import load_run_tasks, without_leaks
from abmll.runs.target import Target
from abmll.systems.build import build_episodes, build_system, check_tasks, load_base


def meta_train_run(
    config: RunConfig, out: Path | None, *, dry_run: bool, strict: bool, allow_change: Sequence[str]
) -> None:
    """Check a configuration and its tasks, then show the plan, or train to the end and write the adapter."""
    folder = out or Path("runs") / config.name
    check_run(config, folder)
    tasks = load_run_tasks(config)
    check_tasks(config, tasks.train, tasks.unseen + tasks.validation)
    tasks = without_leaks(config, tasks)
    check_tasks(config, tasks.train, tasks.unseen + tasks.validation)
    build_episodes(config, tasks.train)
    if dry_run:
        show_plan(config, [config], tasks)
        return
    world = join_world()
    target = Target(
        config.name, config, folder, tasks.train, (), tasks.validation, strict=strict, allow_change=allow_change
    )
    with ProgressDisplay(err_console) as display, target.run.locked(world):
        display({"event": "plan", "units": target.units(), "done": 0})
        display({"event": "loading", "model": config.model.source or config.model.shape})
        system = build_system(config, load_base(config.model))
        final = target.meta_train(system, display, world, Timer())
    leave_world()
    if world.is_main:
        out_console.print(f"Trained: step {final}. Adapter: {folder / 'adapter'}. Next: abmll adapt {folder} TASKS")
