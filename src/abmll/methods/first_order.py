"""First-order MAML: the gradient of the query batch at phi is applied to theta (Finn et al. 2017, section 5.2)."""

from collections.abc import Sequence
from typing import ClassVar, final

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from abmll.methods.base import Group, OptimizerName, Terms, backward_by_share
from abmll.methods.means import MeansOnly, MeansSettings
from abmll.prompts.batches import ChoiceBatch


class _FOMAMLSettings(MeansSettings):
    # By the validation tasks of experiments/unseen, where theta does best to move little: 9e-4 was worse on all seeds.
    inner_lr: float = Field(1.2e-3, gt=0)
    outer_optimizer: OptimizerName = "adamw"
    outer_lr: float = Field(3.7e-5, gt=0)


@final
class FOMAML(MeansOnly):
    """Means only; the query batch's gradient at phi moves theta."""

    settings_class: ClassVar = _FOMAMLSettings
    uses_query: bool = True

    def shared(self) -> list[Group]:
        """theta's mean factors (and the learned temperature)."""
        return [self.mean_group("shared"), *self.temperature_groups()]

    def outer_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> Terms:
        """The query NLL's gradient at phi, on theta's factors."""
        terms = backward_by_share(query, lambda batch: self.inner_loss(batch, key))
        self.adapters.add_task_gradients()
        return terms
