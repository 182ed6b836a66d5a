"""Two ranks of one job as two forks, which meet through gloo."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from abmll.process import world as worlds
from abmll.process.stopping import Stopped, listening
from abmll.process.world import World, join_world
from tests.survival.children import Child, in_child


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_ranks(work: Callable[[World], object], folder: Path, size: int = 2, patience: float = 60.0) -> list[Child]:
    """Run a function on every rank; a stop ends a rank with the exit code of the command line."""
    port = free_port()

    def rank(number: int) -> Callable[[], None]:
        def run() -> None:
            os.environ.update(WORLD_SIZE=str(size), RANK=str(number), LOCAL_RANK=str(number))
            worlds.PATIENCE = timedelta(seconds=patience)
            dist.init_process_group(
                "gloo",
                init_method=f"tcp://127.0.0.1:{port}",
                rank=number,
                world_size=size,
                timeout=worlds.PATIENCE,
            )
            with listening():
                try:
                    work(join_world())
                except Stopped as stopped:
                    print(stopped)
                    raise SystemExit(stopped.exit_code) from None

        return run

    return [in_child(rank(number), folder / f"rank-{number}.txt") for number in range(size)]
