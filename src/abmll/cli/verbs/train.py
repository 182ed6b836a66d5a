"""`abmll train`: meta-train one system."""

from typing import Annotated

import typer

from abmll.cli.arguments import DryRunOption, OverridesArgument, RecipeArgument, ResultsOption, StrictOption
from abmll.cli.lazy import command_app, quick_imports
from abmll.config import RunConfig, load_config

app = command_app()

AllowChangeOption = Annotated[
    list[str] | None,
    typer.Option("--allow-change", metavar="FIELD", help="Go on though this differs from the run's configuration."),
]


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    out: ResultsOption = None,
    dry_run: DryRunOption = False,
    strict: StrictOption = False,
    allow_change: AllowChangeOption = None,
) -> None:
    """Meta-train one system, going on from its last checkpoint if it was stopped.

    SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGUSR2 save where it stands and leave with 128 + the signal's number.

    Leaves a run directory: config.yaml, journal.jsonl, checkpoints/ and adapter/ (a stock PEFT LoRA of the mean).
    Under torchrun, ranks share the tasks of a meta-batch.

    Example: `abmll train builtin training.iterations=200 -o runs/mine`
    """
    config = load_config(RunConfig, recipe, overrides or [])

    with quick_imports():
        from abmll.cli.work.train import meta_train_run  # after the arguments

    meta_train_run(config, out, dry_run=dry_run, strict=strict, allow_change=allow_change or ())
