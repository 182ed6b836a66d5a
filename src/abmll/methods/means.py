"""What every system without stds shares: inner steps on the means, by plain NLL."""

from typing import ClassVar

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from abmll.methods.base import Group, Method, Settings, Terms
from abmll.prompts.batches import ChoiceBatch

PAPER_CONSTANT = 2.06e-9
"""e^-20: the paper's prior variance of the means, and what it adds to the products that stds are made from."""


class MeansSettings(Settings):
    """What can be set of a method without stds: controls that could explain a gain without Bayes.

    Attributes:
        mean_prior_weight: weight of -log N(mean_phi; 0, mean_prior_variance), averaged over the adapted weights, in
            every inner step: L2 on the product s B A.
        mean_prior_variance: variance of that Gaussian.
        dropout: share of each adapted layer's inputs that its means do not see, in training and, for as many masks as
            there are samples, in predictions (MC dropout, Gal & Ghahramani 2016).
    """

    mean_prior_weight: float = Field(0.0, ge=0)
    mean_prior_variance: float = Field(PAPER_CONSTANT, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class MeansOnly(Method):
    """Inner steps on the means, by plain NLL."""

    settings_class: ClassVar[type[Settings]] = MeansSettings
    settings: MeansSettings

    @property
    def dropout(self) -> float:  # type: ignore[override]
        """The share of inputs that is dropped."""
        return self.settings.dropout

    def task(self) -> list[Group]:
        """The task's mean factors."""
        return [self.mean_group("task")]

    def begin_task(self, *, first: bool = True) -> None:
        """phi <- theta."""
        self.adapters.begin_task()

    def inner_loss(self, batch: ChoiceBatch, key: Int[Tensor, ""]) -> Terms:
        """Mean NLL of the batch, and the prior of the means if it has a weight."""
        s, adapters = self.settings, self.adapters
        with adapters.dropping(s.dropout, key.reshape(1)):
            nll = self.nll(batch)
        if not s.mean_prior_weight:
            return Terms((nll,), nll)
        penalty = adapters.mean_penalty(s.mean_prior_variance, "task") / adapters.entries
        return Terms((nll, s.mean_prior_weight * penalty.float()), nll)
