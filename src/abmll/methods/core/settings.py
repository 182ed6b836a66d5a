"""What can be set of the core method."""

from typing import Literal

from pydantic import Field

from abmll.methods.base import OptimizerName, Settings
from abmll.methods.core.gaussian import Covariance


class CoreSettings(Settings):
    """Settings of ABMLL in a core. There are no gradient steps on a task: `inner_lr` and the like have no effect.

    Attributes:
        start: what B, A and the prior's mean of R are before training: `lora`, LoRA's own start (B = 0, and the
            identity, so that R moves nothing until B has grown); or `singular`, the largest singular directions of the
            layer's weight, B = U S and A = V^T, with the mean at 0, as LoRA-XS has them (Balazy et al. 2024).
        core_std: standard deviation of every number of R under the prior that training starts from; with `singular` it
            is in units of the singular values.
        covariance: of a task's posterior: `full` over all cores, `blocks` of a layer each, or `factorised`.
        passes: Gauss-Newton passes over a task's rows.
        rows_at_once: the rows that a linearisation is made of: `all` of them, or a `batch`, so that a pass is one of an
            extended Kalman filter.
        fit_tokens: most padded tokens of a pass that rows' gradients are made by, or one question: memory does not grow
            with the number of rows then, and rows of near length and as many choices are together. The posterior is the
            same but for rounding; None: one pass of all rows.
        variances: V that EM learns: of `each` number, of each `layer`, or none (`frozen` at the start: a control).
        mean_rate: part of the way to a task's mean of R that the prior's mean goes.
        variance_rate: the same of V, on the way to the M step's value.
        precision_prior_shape: shape of the Gamma prior of 1 / V.
        precision_prior_rate: its rate.
        prior_tasks: training tasks that this prior is weighed against.
        outer_draws: draws of R at which B and A take their gradient; 0: at its mean.
        train_factors: False leaves B and A as they are.
        inner_optimizer_state: nothing goes on from task to task.
    """

    outer_optimizer: OptimizerName = "adamw"
    outer_lr: float = Field(1e-3, gt=0)
    inner_optimizer_state: Literal["fresh"] = "fresh"
    start: Literal["lora", "singular"] = "lora"
    core_std: float = Field(0.3, gt=0)
    covariance: Covariance = "full"
    passes: int = Field(2, ge=1)
    rows_at_once: Literal["all", "batch"] = "all"
    fit_tokens: int | None = Field(512, ge=1)
    variances: Literal["each", "layer", "frozen"] = "each"
    mean_rate: float = Field(0.1, ge=0, le=1)
    variance_rate: float = Field(0.1, gt=0, le=1)
    precision_prior_shape: float = Field(1.0, ge=1)
    precision_prior_rate: float = Field(0.01, ge=0)
    prior_tasks: float = Field(34.0, gt=0)
    outer_draws: int = Field(1, ge=0)
    train_factors: bool = True
