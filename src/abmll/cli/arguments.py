"""Arguments and options that several commands share. A file or a run that is not there is refused as they are read."""

from pathlib import Path
from typing import Annotated

import typer

from abmll.errors import AbmllError
from abmll.everyday.shipped import find_run
from abmll.files import check_regular
from abmll.hub.runs import run_reference


def existing(path: Path | None) -> Path | None:
    """A file or folder as it was given, if it is there: `typer.Argument(callback=existing)`.

    Raises:
        AbmllError: it is not, cannot be looked at, or is a device.
    """
    try:
        if path is not None:
            check_regular(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, AbmllError):
            raise
        raise AbmllError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return path


def all_existing(paths: list[Path]) -> list[Path]:
    """`existing` of each."""
    for path in paths:
        existing(path)
    return paths


def _existing_run(run: str) -> str:
    if run_reference(run) is None:  # what is on the hub is fetched once the other arguments are checked
        find_run(run, copy=False)
    return run


RecipeArgument = Annotated[
    Path,
    typer.Argument(
        help="A run configuration (YAML), or the name of one that comes with abmll: quickstart, ...", show_default=False
    ),
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Values to set, as section.key=value.", metavar="[SECTION.KEY=VALUE]...")
]
RunArgument = Annotated[
    str,
    typer.Argument(
        help="A base model (a name of `abmll bases`, an id of the hub, a folder, a GGUF file), a run directory of "
        "`abmll train`, smollm2, which comes along, or hf://owner/name@COMMIT, a run on the hub.",
        show_default=False,
        callback=_existing_run,
    ),
]
ResultsOption = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for results. Default: runs/NAME.")]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything but the model's weights, show the resolved configuration, steps and memory, and stop.",
    ),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Refuse to go back behind a damaged checkpoint.")]
LabelsOption = Annotated[
    str | None, typer.Option(help="Plain classification: the labels, between commas (or a JSON list).", metavar="A,B,C")
]
TextOption = Annotated[str, typer.Option(help="Plain classification: column of the texts.")]
AskOption = Annotated[str | None, typer.Option(help="Plain classification: what the model is asked about each text.")]
