"""`abmll doctor --batch FILE`: where a batch stopped being finite."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from abmll.running.replay import replay_batch


def doctor(
    batch: Annotated[
        Path, typer.Option("--batch", help="The batch.json that training saved, or its folder.", show_default=False)
    ],
) -> None:
    """Replay a batch whose loss or gradient was not finite, and name the first term, layer and factor that is not.

    Example: `abmll doctor --batch runs/mine/non-finite/step-000012-position-0/batch.json`
    """
    show_batch(batch)


def show_batch(batch: Path) -> None:
    """Replay a batch and print what was found."""
    Console().print(str(replay_batch(batch)), highlight=False, markup=False, soft_wrap=True)
