"""`abmll doctor --batch FILE`: where a batch stopped being finite."""

from pathlib import Path

from rich.console import Console

from abmll.diagnosis.batch import replay_batch


def show_batch(batch: Path) -> None:
    """Replay a batch and print what was found."""
    Console().print(str(replay_batch(batch)), highlight=False, markup=False, soft_wrap=True)
