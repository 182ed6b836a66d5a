"""What --dry-run prints."""

from collections.abc import Sequence

from abmll.cli.console import out_console, say
from abmll.config import RunConfig
from abmll.runs.estimate import describe, estimate
from abmll.runs.roles import RunTasks
from abmll.systems.plans import ResolvedRun


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
