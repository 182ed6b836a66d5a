"""What every system without stds shares: inner steps on the means, by plain NLL."""

from typing import final

from jaxtyping import Int
from torch import Tensor

from abmll.methods.base import Group, Method, Terms
from abmll.tasks.batches import ChoiceBatch


class MeansOnly(Method):
    """Inner steps on the means, by plain NLL."""

    @final
    def task(self) -> list[Group]:
        """The task's mean factors."""
        return [self.mean_group("task")]

    @final
    def begin_task(self, *, first: bool = True) -> None:
        """phi <- theta."""
        self.adapters.begin_task()

    @final
    def inner_loss(self, batch: ChoiceBatch, key: Int[Tensor, ""]) -> Terms:
        """Mean NLL of the batch."""
        nll = self.nll(batch)
        return Terms((nll,), nll)
