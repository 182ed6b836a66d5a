"""`abmll compare`: several systems, trained, adapted, scored and reported."""

from typing import Annotated

import typer

from abmll.cli.arguments import DryRunOption, OverridesArgument, RecipeArgument, ResultsOption, StrictOption
from abmll.cli.lazy import command_app
from abmll.config import CompareConfig, load_config

app = command_app()
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A target to make and no other, without the report: a system, or one seed of it. May be given again.",
        metavar="SYSTEM[.seed-N]",
        show_default=False,
    ),
]


@app.command()
def compare(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    out: ResultsOption = None,
    only: OnlyOption = None,
    dry_run: DryRunOption = False,
    strict: StrictOption = False,
) -> None:
    """Train, adapt and score several systems, and report. Only what is missing is run.

    Leaves table.md, results.json, figures/ and report.html in the results' folder, and a run directory per target: a
    system with a seed. Each has a lock of its own, so that several calls of the same command share the targets.

    Example: `abmll compare quickstart training.iterations=60 -o runs/longer`
    """
    config = load_config(CompareConfig, recipe, overrides or [])

    from abmll.cli.work.compare import compare_systems  # after the arguments

    compare_systems(config, out, only=only or (), dry_run=dry_run, strict=strict)
