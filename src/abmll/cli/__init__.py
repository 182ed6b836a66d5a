"""The command line. Each command is a module by its name, imported when it is called."""

import logging
import sys

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from abmll.cli.lazy import LazyGroup, add_placeholders
from abmll.errors import AbmllError
from abmll.files import explain_failure
from abmll.process.stopping import Stopped, listening

COMMANDS = {
    "train": "Meta-train one system, going on from its last checkpoint if it was stopped.",
    "adapt": "Adapt a trained system: to your own labelled rows with --save, or to unseen tasks to score it.",
    "predict": "Predict rows: your own columns, in their order, then prediction, confidence, probabilities and spread.",
    "score": "Score predictions files; no model is needed.",
    "compare": "Train, adapt and score several systems, and report. Only what is missing is run.",
    "report": "Make the tables, figures and page of a comparison again, from its files; no model is needed.",
    "export": "Export a run's adapter: the mean as a LoRA, a merged model, one posterior draw, or a calibrated mean.",
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
    help="""LoRA adapters that generalise: meta-train over many tasks, adapt to an unseen one with 20 examples and 10
    gradient steps, and get answers whose confidence can be believed.

    Start with `abmll compare recipes/quickstart.yaml`. Any value of a recipe can be set on the command line:
    `abmll train my.yaml method.inner_steps=3 model.device=cuda`.""",
)
add_placeholders(app, COMMANDS)
err_console = Console(stderr=True)


def main() -> None:
    """Run the command line.

    Exit codes: 2 for a user's mistake, said in one message; 1 where the file system fails, in one message too; 128 +
    the signal's number for a stop.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err_console)])
    logging.getLogger("abmll").setLevel(logging.INFO)
    try:
        with listening():
            app(standalone_mode=True)
    except AbmllError as error:
        _complain(str(error))
        sys.exit(2)
    except OSError as error:
        told = explain_failure(error)
        if told is None:
            raise
        _complain(f"{told}; the same command goes on from what is on disk")
        sys.exit(1)
    except Stopped as stopped:
        what = "the same command goes on from there" if stopped.saved else "the same command does what is missing"
        err_console.print(f"{stopped}; {what}", highlight=False, soft_wrap=True)
        sys.exit(stopped.exit_code)


def _complain(text: str) -> None:
    err_console.print(Text.assemble(("error:", "bold red"), f" {text}"), soft_wrap=True)
