"""Meta-SGD (Li et al. 2017), first order: the rates of the inner steps are learned with the weights they start from."""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from abmll.methods.base import Group, Terms
from abmll.methods.first_order import FirstOrder, FirstOrderSettings
from abmll.prompts.batches import ChoiceBatch


class MetaSGDSettings(FirstOrderSettings):
    """Settings of Meta-SGD; `inner_lr` is the rate that all of them start from.

    Attributes:
        second_order: the outer gradient goes through the inner steps, as published.
        rate_lr: outer AdamW rate of the logarithms of the rates.
    """

    second_order: bool = False
    rate_lr: float = Field(1e-2, gt=0)  # a rate can change e-fold in 100 meta-iterations; not searched


@final
class MetaSGD(FirstOrder):
    r"""First-order MAML whose inner steps have a learned rate for each factor of each layer.

    With $\phi = \theta - \sum_k \alpha \circ u_k$, where the directions $u_k$ of the inner optimizer are taken as
    constants, the gradient of the query loss is

    $$ \partial L_Q / \partial \log \alpha_i = \langle \partial L_Q / \partial \phi_i, \, \phi_i - \theta_i \rangle $$

    for the rate $\alpha_i$ of factor $i$, and as in first-order MAML for $\theta$. With `second_order`, directions
    depend on where they are taken: each step's part is multiplied by the gradient by phi after that step. Meta-SGD as
    published has a rate for each number, where here the numbers of a tensor share one. The rates belong to theta:
    checkpoints and stored adapters keep them.

    >>> from abmll.methods import resolve_settings
    >>> resolve_settings("meta-sgd").rate_lr
    0.01
    """

    settings_class: ClassVar = MetaSGDSettings
    settings: MetaSGDSettings

    @property
    def through_steps(self) -> bool:  # type: ignore[override]
        """Whether directions depend on theta and on the rates of earlier steps."""
        return self.settings.second_order

    @property
    def learned_start(self) -> dict[str, Float[Tensor, " numbers"]]:
        """log_rates: of each factor of phi, the logarithm of what `inner_lr` is multiplied by."""
        return {"log_rates": torch.zeros(len(self.adapters.parameters("task", "mean")))}

    def shared(self) -> list[Group]:
        """theta's mean factors and rates (and the learned temperature)."""
        rates = Group("rates", [self.learned["log_rates"]], "adamw", self.settings.rate_lr)
        return [self.mean_group("shared"), rates, *self.temperature_groups()]

    def task(self) -> list[Group]:
        """The task's mean factors, each with its own rate."""
        return [self.mean_group("task")._replace(log_rates=self.learned["log_rates"])]

    def outer_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> Terms:
        """The query NLL's gradient at phi: on theta's factors, and on the rates by way of phi - theta."""
        terms = self.query_gradient(query, key)
        if self.inner_taken is None:
            self.learned["log_rates"].grad = self._rate_gradient()
        else:
            self.learned["log_rates"].grad = torch.stack(self.inner_taken.carry_back())
        self.adapters.add_task_gradients()
        return terms

    @torch.no_grad()
    def _rate_gradient(self) -> Float[Tensor, " numbers"]:
        pairs = zip(self.adapters.parameters("task", "mean"), self.adapters.parameters("shared", "mean"), strict=True)
        parts = [
            torch.zeros((), device=phi.device) if phi.grad is None else (phi.grad * (phi - theta)).sum()
            for phi, theta in pairs
        ]
        return torch.stack(parts)
