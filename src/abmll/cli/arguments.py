"""What commands that take a recipe share: their arguments, and what --dry-run prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from abmll.config import RunConfig
from abmll.runs.estimate import describe, estimate
from abmll.runs.resolved import ResolvedRun
from abmll.runs.roles import RunTasks

Recipe = Annotated[Path, typer.Argument(help="A run configuration (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Values to set, as section.key=value.", metavar="[SECTION.KEY=VALUE]...")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for results. Default: runs/NAME.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything but the model's weights, show the resolved configuration, steps and memory, and stop.",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse to go back behind a damaged checkpoint.")]


def show_plan(console: Console, config: RunConfig, runs: Sequence[ResolvedRun], tasks: RunTasks) -> None:
    """What --dry-run prints of a configuration whose tasks have been checked."""
    console.print(config.to_yaml().rstrip(), highlight=False, markup=False, soft_wrap=True)
    for role in ("train", "validation", "unseen"):
        found, source = getattr(tasks, role), getattr(config.tasks, role)
        rows = sum(len(task.train) + len(task.test) for task in found)
        name = source.source if source else "none"
        console.print(f"\n{role} tasks, {name}: {len(found)} with {rows:,} rows", highlight=False, soft_wrap=True)
    for run in runs:
        settings = ", ".join(f"{name}={value}" for name, value in run.settings.model_dump(mode="json").items())
        console.print(f"\n{run.config.method.name} ({run.name})", highlight=False)
        console.print(f"{settings}\n{describe(estimate(run))}", highlight=False, markup=False, soft_wrap=True)
