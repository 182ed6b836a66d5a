"""The systems without an outer gradient of a loss: pretrained, regular LoRA, structured LoRA, Reptile.

What theta takes is a displacement towards phi; only the batches, the moments and the size of the step differ.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from abmll.methods.base import Group, Schedule
from abmll.methods.means import MeansOnly, MeansSettings
from abmll.prompts.batches import ChoiceBatch


class Displacement(MeansOnly):
    """theta takes outer_lr * (phi - theta); A and B are interpolated separately."""

    @final
    def shared(self) -> list[Group]:
        """theta's mean factors (and the learned temperature)."""
        return [self.mean_group("shared"), *self.temperature_groups()]

    @final
    def outer_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> None:
        """theta - phi."""
        self.adapters.add_displacement()


class StructuredSettings(MeansSettings):
    """Settings of what is trained as one long run: its moments go on from task to task."""

    inner_optimizer_state: Literal["fresh", "persistent"] = "persistent"


class _LoRASettings(StructuredSettings):
    episodes: Literal["by_task", "mixed"] = "mixed"


@final
class LoRA(Displacement):
    """Regular LoRA: mixed batches, one optimizer for the whole run, theta follows every step."""

    settings_class: ClassVar = _LoRASettings


@final
class StructuredLoRA(Displacement):
    """Structured LoRA: LoRA, with its one optimizer for the whole run, on batches that come from one task at a time.

    The paper's baseline is LoRA as it is, on structured data. With `inner_optimizer_state: fresh` each task begins
    without moments, as Reptile's do; what docs/evidence.md reports of it was measured so.
    """

    settings_class: ClassVar = StructuredSettings


class _ReptileSettings(MeansSettings):
    # Both by the validation tasks of experiments/unseen; at 2.5e-3 and .59 two of four runs fell apart.
    inner_lr: float = Field(1.4e-3, gt=0)
    outer_lr: float = Field(0.22, gt=0)
    outer_schedule: Schedule = "linear"


@final
class Reptile(Displacement):
    """Reptile (Nichol et al. 2018): theta moves a part of the way to phi, a part annealed to 0."""

    settings_class: ClassVar = _ReptileSettings


class _PretrainedSettings(MeansSettings):
    inner_lr: float = Field(1.6e-3, gt=0)  # of adaptation; by the validation tasks of experiments/unseen


@final
class Pretrained(MeansOnly):
    """The base model: meta-training moves nothing (but a learned temperature); adaptation is as everywhere."""

    settings_class: ClassVar = _PretrainedSettings
    moves_weights: ClassVar[bool] = False

    def shared(self) -> list[Group]:
        """Only the learned temperature, if there is one."""
        return self.temperature_groups()

    def outer_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> None:
        """None: theta takes nothing from phi."""
