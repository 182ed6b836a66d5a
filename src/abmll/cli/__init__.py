"""The command line. Each command is a module of `cli/verbs` by its name, imported when it is called."""

import importlib.metadata
from typing import Annotated

import typer

from abmll.cli.console import exit_codes, say, set_up_logging
from abmll.cli.lazy import LazyGroup, add_placeholders
from abmll.process.stopping import listening

COMMANDS = {
    "train": "Meta-train one system, going on from its last checkpoint if it was stopped.",
    "adapt": "Adapt a trained system: to your own labelled rows with --save, or to unseen tasks to score it.",
    "bases": "List base models known to work well for your own rows: size, licence, languages, what was measured, the "
    "command.",
    "predict": "Predict rows: your own columns, in their order, then prediction, confidence, probabilities and spread.",
    "serve": "Serve saved tasks over HTTP: POST rows, get probabilities, confidence, and what is promised of them.",
    "page": "Show what a saved task says as one HTML file: bars beside the base's, and a slider for errors allowed.",
    "watch": "Tell when new labelled answers say that a saved task's promise fails.",
    "score": "Score predictions files; no model is needed.",
    "compare": "Train, adapt and score several systems, and report. Only what is missing is run.",
    "report": "Make the tables, figures and page of a comparison again, from its files; no model is needed.",
    "export": "Export a run's adapter: the mean as a LoRA, a merged model, one posterior draw, or a calibrated mean.",
    "push": "Push a run to the Hugging Face hub: its adapter and the saved tasks that are named.",
    "tasks": "List tasks, show their rows, check them for leaks and imbalance, pin those of the hub.",
    "doctor": "Tell versions, devices, which kernels run, why and whether right, free memory, the hub, and what to do.",
}
app = typer.Typer(
    name="abmll",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="""LoRA adapters that generalise: meta-train over many tasks, adapt to an unseen one with 20 examples and 10
    gradient steps, and get answers whose confidence can be believed.

    Start with `abmll compare quickstart`. Any value of a recipe can be set on the command line:
    `abmll train my.yaml method.inner_steps=3 model.device=cuda`.""",
)
add_placeholders(app, COMMANDS)


def _show_version(asked: bool) -> bool:
    if asked:
        try:
            say(f"abmll {importlib.metadata.version('abmll')}")
        except importlib.metadata.PackageNotFoundError:
            say("abmll, from a checkout that is not installed; `abmll doctor` tells its commit")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that belong to no command."""


def main() -> None:
    """Run the command line; see `abmll.cli.console.exit_codes` for how it ends."""
    set_up_logging()
    with exit_codes(), listening():
        app(standalone_mode=True)
