"""`abmll compare`: several systems, trained, adapted, scored and reported."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from abmll.cli.arguments import DryRunOption, OverridesArgument, RecipeArgument, ResultsOption, StrictOption
from abmll.cli.lazy import command_app, quick_imports
from abmll.config import CompareConfig, load_config, parse_overrides
from abmll.errors import AbmllError

app = command_app()
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A target to make and no other, without the report: a system, or one seed of it. May be given again.",
        metavar="SYSTEM[.seed-N]",
        show_default=False,
    ),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Targets that are made at a time, each in a process of its own; GPUs go round, threads are shared. With a "
        "launcher: jobs that run at a time. Default: one process makes one after the other.",
        show_default=False,
    ),
]
LauncherOption = Annotated[
    Literal["slurm"] | None,
    typer.Option(
        help="Submit each target that is missing as a job of Slurm, by submitit, and return.", metavar="slurm"
    ),
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option(
        help="What the jobs ask for: partition, time (minutes), gpus_per_node, ... of submitit. May be given again.",
        metavar="NAME=VALUE",
        show_default=False,
    ),
]


@app.command()
def compare(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    out: ResultsOption = None,
    only: OnlyOption = None,
    processes: ProcessesOption = None,
    launcher: LauncherOption = None,
    slurm: SlurmOption = None,
    dry_run: DryRunOption = False,
    strict: StrictOption = False,
) -> None:
    """Train, adapt and score several systems, and report. Only what is missing is run.

    Leaves table.md, results.json, figures/ and report.html in the results' folder, and a run directory per target: a
    system with a seed. Each has a lock of its own, so that several calls of the same command share the targets; one
    that ends with all of them there makes the report.

    Example: `abmll compare quickstart training.iterations=60 -o runs/longer`
    """
    config = load_config(CompareConfig, recipe, overrides or [])
    asked = parse_overrides(slurm or [])
    if asked and launcher is None:
        raise AbmllError("--slurm says what jobs ask for, and --launcher slurm is not given")

    folder = out or Path("runs") / config.name
    if dry_run:
        with quick_imports():
            from abmll.cli.work.plan import show_targets  # after the arguments

        show_targets(config, folder, only or ())
        return

    with quick_imports():
        from abmll.cli.work.compare import Launch, compare_systems  # after the arguments

    compare_systems(config, folder, Launch(processes, launcher, asked), only=only or (), strict=strict)
