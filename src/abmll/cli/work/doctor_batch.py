"""The work of `abmll doctor --batch`, which needs models, as the rest of `abmll doctor` does not."""

from pathlib import Path

from abmll.cli.console import say
from abmll.diagnosis.batch import replay_batch


def show_batch(batch: Path) -> None:
    """Replay a batch and print where it stopped being finite."""
    say(str(replay_batch(batch)))
