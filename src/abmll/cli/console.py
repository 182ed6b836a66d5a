"""What every command prints with, and how a command ends: results to one console, all else to the other."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from abmll.errors import AbmllError, harmless
from abmll.files import explain_failure
from abmll.process.stopping import Stopped

out_console, err_console = Console(), Console(stderr=True)


def say(text: str) -> None:
    """Print a line of the result, as it stands but for what a terminal would obey."""
    out_console.print(harmless(text), markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a line about the work, on standard error."""
    err_console.print(harmless(text), markup=False, highlight=False, soft_wrap=True)


def set_up_logging() -> None:
    """What our modules log is shown from `INFO` on, what libraries log from `WARNING` on."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err_console)])
    logging.getLogger("abmll").setLevel(logging.INFO)


def quieten_libraries() -> None:
    """No advice and no progress bars of transformers, unless the environment asks for them.

    They are read when transformers is imported, which is later.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the process with one message instead of a traceback.

    Exit codes: 2 for a user's mistake; 1 where the file system fails; 128 + the signal's number for a stop.
    """
    try:
        yield
    except AbmllError as error:
        _complain(str(error))
        sys.exit(2)
    except OSError as error:
        reason = explain_failure(error)
        if reason is None:
            raise
        _complain(f"{reason}; the same command goes on from what is on disk")
        sys.exit(1)
    except Stopped as stopped:
        what = "the same command goes on from there" if stopped.saved else "the same command does what is missing"
        err_console.print(f"{stopped}; {what}", highlight=False, soft_wrap=True)
        sys.exit(stopped.exit_code)


def _complain(text: str) -> None:
    err_console.print(Text.assemble(("error:", "bold red"), f" {text}"), soft_wrap=True)
