"""First-order MAML: the gradient of the query batch at phi is applied to theta (Finn et al. 2017, section 5.2)."""

from collections.abc import Sequence
from typing import ClassVar, final

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from abmll.methods.base import Group, OptimizerName, Terms, backward_by_share
from abmll.methods.means import MeansOnly, MeansSettings
from abmll.prompts.batches import ChoiceBatch


class FirstOrderSettings(MeansSettings):
    """Settings of methods that descend the query batch's loss at phi."""

    # By the validation tasks of experiments/unseen, where theta does best to move little: 9e-4 was worse on all seeds.
    inner_lr: float = Field(1.2e-3, gt=0)
    outer_optimizer: OptimizerName = "adamw"
    outer_lr: float = Field(3.7e-5, gt=0)


class FirstOrder(MeansOnly):
    """Means only; theta takes the query batch's gradient at phi."""

    settings_class: ClassVar = FirstOrderSettings
    uses_query: bool = True

    def shared(self) -> list[Group]:
        """theta's mean factors (and the learned temperature)."""
        return [self.mean_group("shared"), *self.temperature_groups()]

    def outer_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> Terms:
        """The query NLL's gradient at phi, on theta's factors."""
        terms = self.query_gradient(query, key)
        self.adapters.add_task_gradients()
        return terms

    @final
    def query_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> Terms:
        """Leave the query NLL's gradient on phi."""
        return backward_by_share(query, lambda batch: self.inner_loss(batch, key))


@final
class FOMAML(FirstOrder):
    """Means only; the query batch's gradient at phi moves theta."""
