"""`abmll compare`: several systems, trained, adapted, scored and reported."""

from abmll.cli.arguments import DryRunOption, OverridesArgument, RecipeArgument, ResultsOption, StrictOption
from abmll.cli.lazy import command_app
from abmll.config import CompareConfig, load_config

app = command_app()


@app.command()
def compare(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    out: ResultsOption = None,
    dry_run: DryRunOption = False,
    strict: StrictOption = False,
) -> None:
    """Train, adapt and score several systems, and report. Only what is missing is run.

    Leaves table.md, results.json, figures/ and report.html in the results' folder, and a run directory per system and
    seed.

    Example: `abmll compare quickstart training.iterations=60 -o runs/longer`
    """
    config = load_config(CompareConfig, recipe, overrides or [])

    from abmll.cli.work.compare import compare_systems  # after the arguments

    compare_systems(config, out, dry_run=dry_run, strict=strict)
