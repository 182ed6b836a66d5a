"""LiFT (Kim & Hospedales 2025): a hierarchy of LoRAs, theta above those of all tasks, by Langevin-Gibbs steps."""

from collections.abc import Sequence
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from abmll.kernels.noise import derived_key, normal
from abmll.methods.base import Group, Terms
from abmll.methods.means import MeansOnly, MeansSettings
from abmll.prompts.batches import ChoiceBatch


class LiFTSettings(MeansSettings):
    """Settings of LiFT. There is no public code: all numbers are unknown on LoRA, and none was searched.

    Attributes:
        task_std: std of a task's factors around theta's.
        shared_std: std of theta's factors around 0.
        task_rows: labelled rows that a task's likelihood counts, whatever the size of a batch.
        noise: multiplies the noise of all steps: 1 is Langevin's, 0 descends.
    """

    task_std: float = Field(1e-2, gt=0)
    shared_std: float = Field(1.0, gt=0)
    task_rows: float = Field(12.0, gt=0)  # those of an episode; an adaptation has 20
    noise: float = Field(1.0, ge=0)
    inner_optimizer: Literal["sgd"] = "sgd"  # a Langevin step is one of SGD, and noise that goes by its rate
    outer_optimizer: Literal["sgd"] = "sgd"
    inner_schedule: Literal["constant"] = "constant"
    outer_schedule: Literal["constant"] = "constant"
    inner_lr: float = Field(1e-5, gt=0)  # of sigma^2 / 10
    outer_lr: float = Field(1e-6, gt=0)  # below sigma^2 over the number of tasks: above 4 times that theta falls apart


@final
class LiFT(MeansOnly):
    r"""$\phi_i \sim N(\theta, \sigma^2)$, $\theta \sim N(0, \beta^2)$: samples of both, by Langevin steps in turn.

    A visit to task i goes on from its own last $\phi_i$, with steps at the inner rate $\eta$

    $$ \phi_i \leftarrow \phi_i + \tfrac\eta2 \bigl( (\theta - \phi_i) / \sigma^2 + \nabla \log p(D_i \mid \phi_i)
       \bigr) + \sqrt\eta \, z, $$

    and then one of theta at the outer rate, by all M tasks that were visited so far:

    $$ \theta \leftarrow \theta + \tfrac\eta2 \bigl( {\textstyle\sum_i} (\phi_i - \theta) / \sigma^2 - \theta / \beta^2
       \bigr) + \sqrt\eta \, z. $$

    The paper keeps the sum's terms as they were when their task was visited; here each is of theta as it is. An unseen
    task begins at theta and takes the same steps, so that phi is a sample; `posterior.name: ensemble` makes more.

    >>> from abmll.methods import resolve_settings
    >>> resolve_settings("lift").task_std
    0.01
    """

    settings_class: ClassVar = LiFTSettings
    settings: LiFTSettings
    keeps_tasks: bool = True

    def shared(self) -> list[Group]:
        """theta's mean factors (and the learned temperature)."""
        return [self.mean_group("shared"), *self.temperature_groups()]

    def inner_loss(self, batch: ChoiceBatch, key: Int[Tensor, ""]) -> Terms:
        """Half of -log p(D_i | phi_i) - log p(phi_i | theta), and what has the noise for its gradient."""
        s, plain = self.settings, super().inner_loss(batch, key)
        phi, theta = self.adapters.parameters("task"), self.adapters.parameters("shared")
        distance = torch.stack([(p - t.detach()).square().sum() for p, t in zip(phi, theta, strict=True)]).sum()
        losses = [0.5 * s.task_rows * loss for loss in plain.losses] + [distance / (4 * s.task_std**2)]
        if s.noise:
            noise = self._noise(key, phi, s.inner_lr)
            losses.append(-torch.stack([(p * z).sum() for p, z in zip(phi, noise, strict=True)]).sum())
        return Terms(tuple(losses), plain.nll)

    def outer_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> None:
        """Minus theta's Langevin step, over the outer rate."""
        s, theta, kept = self.settings, self.adapters.parameters("shared"), self.task_weights
        noise = self._noise(key, theta, s.outer_lr)
        for parameter, total, z in zip(theta, kept.total(theta), noise, strict=True):
            value = parameter.detach()
            pull = (total - kept.count * value) / s.task_std**2 - value / s.shared_std**2
            parameter.grad = -0.5 * pull - z

    def _noise(self, key: Int[Tensor, ""], like: Sequence[Tensor], rate: float) -> list[Tensor]:
        """Standard normal over the root of the rate, for each factor."""
        key, size = derived_key(key, "langevin"), self.settings.noise / rate**0.5
        drawn = [normal(key, p.shape[1], torch.arange(p.shape[0], device=p.device), i) for i, p in enumerate(like)]
        return [size * z.to(p) for z, p in zip(drawn, like, strict=True)]
