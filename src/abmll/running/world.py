"""The only file that knows torch.distributed: ranks share a meta-batch by task."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class World:
    """This process among `size` equal ones.

    >>> World().is_main, list(World(rank=1, size=2).share(5))
    (True, [1, 3])
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The positions of a meta-batch that this rank runs."""
        return range(self.rank, count, self.size)

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Add up tensors over ranks, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()


def join_world() -> World:
    """The world that torchrun (or `accelerate launch`) started, or a world of one.

    Uses nccl on CUDA and gloo elsewhere; each rank takes the GPU of its local rank.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return World()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def leave_world() -> None:
    """Undo `join_world`."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
