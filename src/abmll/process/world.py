"""The only file that knows torch.distributed: ranks share a meta-batch by task."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from abmll.errors import AbmllError

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for another one in a reduction: as long as the tasks of one meta-iteration may differ."""
LONG = timedelta(days=30)
"""How long ranks wait while one of them works alone: saves, or adapts and predicts. A dead one is noticed at once."""
_MOST_TEXT = 2000


class News(NamedTuple):
    """What one rank tells the others: a code, of which 0 says that nothing happened, and a text."""

    rank: int
    code: int
    text: str


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
        """Add up tensors over ranks, in place.

        Raises:
            AbmllError: another rank died, or did not answer in time.
        """
        if self.size > 1:
            self.meet()
            with naming_lost_ranks():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def meet(self, *, long: bool = False) -> None:
        """Follow the passes of other ranks through a base model that is spread over them, until all of them are here.

        Every reduction begins so. Ranks with a whole base each just meet in the reduction.

        Raises:
            AbmllError: another rank died, or did not answer in time.
        """
        if self.size > 1 and _Meeting.before is not None:
            _Meeting.before(long)

    def each(self, number: int) -> list[int]:
        """A number of every rank, by rank; ranks meet here.

        Raises:
            AbmllError: another rank died, or did not answer in time.

        >>> World().each(7)
        [7]
        """
        if self.size == 1:
            return [number]
        self.meet()
        return [row[0] for row in RankGroup(self.rank, self.size, _long_group()).exchange((number,))]

    def group_of(self, size: int) -> "RankGroup":
        """This rank among the `size` neighbours that share something; every rank makes its group at the same time."""
        first = self.rank - self.rank % size
        if size == self.size:
            return RankGroup(self.rank, size, _long_group())
        groups = [
            dist.new_group(list(range(start, start + size)), backend="gloo", timeout=LONG)
            for start in range(0, self.size, size)
        ]
        return RankGroup(self.rank - first, size, groups[first // size])

    def tell(self, code: int, text: str = "", *, long: bool = False) -> list[News]:
        """Tell the other ranks, and hear what they tell; ranks meet here. Empty if every code is 0.

        Args:
            code: 0 if there is nothing to tell.
            text: the first 2,000 bytes of it are told.
            long: wait for others as long as it takes (`LONG`), since they may be at work alone.

        Raises:
            AbmllError: another rank died, or did not answer in time.
        """
        if self.size == 1:
            return [News(0, code, text)] if code else []
        self.meet(long=long)
        group = _Groups.long if long else None
        device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
        with naming_lost_ranks():
            codes = torch.zeros(self.size, dtype=torch.int64, device=device)
            codes[self.rank] = code
            dist.all_reduce(codes, group=group)
            if not bool(codes.any()):
                return []
            texts = torch.zeros(self.size, _MOST_TEXT, dtype=torch.int32, device=device)
            mine = text.encode()[:_MOST_TEXT]
            texts[self.rank, : len(mine)] = torch.tensor(list(mine), dtype=torch.int32, device=device)
            dist.all_reduce(texts, group=group)
        rows = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in texts.tolist()]
        return [News(rank, code, rows[rank]) for rank, code in enumerate(codes.tolist()) if code]


@dataclass(frozen=True, slots=True)
class RankGroup:
    """Some ranks that tell each other numbers on the CPU, whatever their devices do.

    Attributes:
        rank: of this process among them.
        size: how many they are.
        group: torch's handle; None where this one is alone.

    >>> RankGroup().exchange((3, 4))
    [[3, 4]]
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def exchange(self, numbers: Sequence[int], long: bool = False) -> list[list[int]]:
        """What each of them tells, by rank.

        Args:
            numbers: of this one; every rank tells as many.
            long: wait as long as it takes, since others may be at work alone.

        Raises:
            AbmllError: another rank died, or did not answer in time.
        """
        if self.size == 1:
            return [list(numbers)]
        told = torch.zeros(self.size, len(numbers), dtype=torch.int64)
        told[self.rank] = torch.tensor(list(numbers))
        with naming_lost_ranks():
            dist.all_reduce(told, group=self.group, async_op=True).wait(LONG if long else PATIENCE)
        rows: list[list[int]] = told.tolist()
        return rows

    def add_up(self, tensor: Tensor) -> None:
        """Add a tensor of the CPU up over them, in place.

        Raises:
            AbmllError: another rank died, or did not answer in time.
        """
        if self.size == 1:
            return
        with naming_lost_ranks():
            dist.all_reduce(tensor, group=self.group, async_op=True).wait(PATIENCE)


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """torch says of a dead rank only that a connection closed."""
    try:
        yield
    except RuntimeError as error:
        first = (str(error).strip().splitlines() or ["no message"])[0][:300]
        raise AbmllError(
            f"another rank died, or did not answer in time ({first}). What it printed says why; the same command goes "
            "on from the last checkpoint"
        ) from error


class _Groups:
    """A second group over all ranks, on the CPU, with more patience than the first."""

    long: dist.ProcessGroup | None = None


class _Meeting:
    """What ranks that share a base model do before they meet: see `abmll.process.passes`."""

    before: Callable[[bool], None] | None = None
    is_broken: Callable[[], bool] | None = None


def set_before_meeting(before: Callable[[bool], None] | None, is_broken: Callable[[], bool] | None) -> None:
    """Have ranks call `before` ahead of every reduction, and give up meeting where `is_broken` says so."""
    _Meeting.before, _Meeting.is_broken = before, is_broken


def shares_passes() -> bool:
    """Whether ranks follow each other's passes while they wait."""
    return _Meeting.before is not None


def cannot_meet() -> bool:
    """Whether this rank broke off in the middle of a pass that others are in, who wait for it there."""
    return _Meeting.is_broken is not None and _Meeting.is_broken()


def _long_group() -> dist.ProcessGroup:
    assert _Groups.long is not None, "join_world made it"
    return _Groups.long


def join_world() -> World:
    """The world that torchrun (or `accelerate launch`) started, or a world of one.

    Uses nccl on CUDA and gloo elsewhere; each rank takes the GPU of its local rank.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return World()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    if _Groups.long is None:
        _Groups.long = dist.new_group(backend="gloo", timeout=LONG)
    return World(dist.get_rank(), dist.get_world_size())


def leave_world() -> None:
    """Undo `join_world`."""
    _Groups.long = None
    set_before_meeting(None, None)
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
