"""MAML (Finn et al. 2017) and MAML-en-LLM (Sinha et al. 2024) on LoRA: second order, through the inner steps."""

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from abmll.methods.base import OptimizerName, Terms
from abmll.methods.first_order import FirstOrder, FirstOrderSettings
from abmll.prompts.batches import ChoiceBatch


class MAMLSettings(FirstOrderSettings):
    """Settings of MAML.

    Attributes:
        second_order: the outer gradient goes through the inner steps; false: first-order MAML.
    """

    second_order: bool = True
    inner_optimizer: OptimizerName = "sgd"  # published: SGD, which has an exact derivative
    inner_lr: float = Field(0.1, gt=0)  # unknown on LoRA, and not searched; published on images: .01 to .4


class MAMLenLLMSettings(MAMLSettings):
    """Settings of MAML-en-LLM.

    Attributes:
        demonstrations: k, at most so many other rows of the episode stand with their answers in front of each question.
        moments: of AdamW: inner and outer steps have their own, or `shared`, as published: the outer step goes on from
            those that a task's inner steps left, with their counter, and the next task's inner steps from the outer's.
    """

    demonstrations: int = Field(16, ge=0)  # of MetaICL, whose format it takes
    inner_optimizer: OptimizerName = "adamw"
    inner_lr: float = Field(1.2e-3, gt=0)  # unknown: no code, and no number in the paper's abstract; first-order MAML's
    moments: Literal["separate", "shared"] = "separate"

    @model_validator(mode="after")
    def _one_rule(self) -> "MAMLenLLMSettings":
        rules = (self.inner_optimizer, self.outer_optimizer, self.inner_optimizer_state)
        if self.moments == "shared" and rules != ("adamw", "adamw", "persistent"):
            raise ValueError(
                "method.moments=shared needs one rule on both sides whose moments go on from task to task: give "
                "method.inner_optimizer=adamw, method.outer_optimizer=adamw and method.inner_optimizer_state=persistent"
            )
        return self


class Unrolled(FirstOrder):
    """theta takes the query batch's gradient through the inner steps."""

    settings_class: ClassVar = MAMLSettings
    settings: MAMLSettings

    @property
    def through_steps(self) -> bool:  # type: ignore[override]
        """Whether it does, or takes them for constants."""
        return self.settings.second_order

    def outer_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> Terms:
        """The query NLL's gradient by theta, from which phi was made."""
        terms = self.query_gradient(query, key)
        if self.inner_taken is not None:
            self.inner_taken.carry_back()
        self.adapters.add_task_gradients()
        return terms


@final
class MAML(Unrolled):
    r"""MAML: $\nabla_\theta L_Q(\phi(\theta))$ with $\phi = \theta - \alpha \sum_k \nabla L_k(\phi_k)$, exactly.

    By the chain rule $v_k = (I - \alpha H_k) v_{k+1}$ from $v_K = \nabla L_Q(\phi_K)$ back to $v_0$, where $H_k$ is the
    Hessian of step k's loss at $\phi_k$. With `inner_optimizer: adamw` steps are divided by second moments that are
    taken for constants.

    >>> from abmll.methods import resolve_settings
    >>> resolve_settings("maml").inner_optimizer
    'sgd'
    """


@final
class MAMLenLLM(Unrolled):
    """MAML on MetaICL's prompts: support and query rows stand behind other labelled rows of their task.

    Inner and outer steps have AdamW moments of their own, unless `moments: shared`, which the preset `as-published` has
    (with an outer step after each task, as all that goes on from task to task). Rates and numbers of steps are unknown.
    """

    settings_class: ClassVar = MAMLenLLMSettings
    presets: ClassVar = {
        "default": {},
        "as-published": {"moments": "shared", "inner_optimizer_state": "persistent"},  # of losses of another scale
    }
    settings: MAMLenLLMSettings

    @property
    def demonstrations(self) -> int:  # type: ignore[override]
        """k."""
        return self.settings.demonstrations

    @property
    def shares_moments(self) -> bool:  # type: ignore[override]
        """Whether the outer step goes on from the inner steps' moments."""
        return self.settings.moments == "shared"
