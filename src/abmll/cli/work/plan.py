"""What --dry-run prints."""

from collections.abc import Collection, Sequence
from pathlib import Path

from abmll.cli.console import out_console, say
from abmll.config import CompareConfig, RunConfig
from abmll.runs.compare import select_targets
from abmll.runs.estimate import describe, estimate
from abmll.runs.evaluate_run import is_complete
from abmll.runs.prepare import comparison_runs
from abmll.runs.roles import RunTasks
from abmll.systems.plans import ResolvedRun


def show_targets(config: CompareConfig, folder: Path, only: Collection[str]) -> None:
    """Print the plan of a comparison, and its targets: which are made, and which are there."""
    runs = comparison_runs(config, folder)
    chosen = select_targets(runs, only)
    show_plan(config, [run for run in runs if run.seed == config.seeds[0]], runs[0].tasks)
    there = {run.target: is_complete(run) for run in chosen}
    say(f"\ntargets in {folder}: {len(there)}, of which {sum(there.values())} are there")
    for target, done in there.items():
        say(f"{target}{'  (is there)' if done else ''}")


def show_plan(config: RunConfig, runs: Sequence[ResolvedRun], tasks: RunTasks) -> None:
    """Print a configuration whose tasks have been checked, what is in them, and each run's settings and cost."""
    say(config.to_yaml().rstrip())
    for role in ("train", "validation", "unseen"):
        tasks_of_role, source = getattr(tasks, role), getattr(config.tasks, role)
        rows = sum(len(task.train) + len(task.test) for task in tasks_of_role)
        name = source.source if source else "none"
        say(f"\n{role} tasks, {name}: {len(tasks_of_role)} with {rows:,} rows")
    for run in runs:
        settings = ", ".join(f"{name}={value}" for name, value in run.settings.model_dump(mode="json").items())
        out_console.print(f"\n{run.config.method.name} ({run.name})", highlight=False)
        say(f"{settings}\n{describe(estimate(run))}")
