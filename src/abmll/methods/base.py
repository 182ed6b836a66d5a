"""The contract of a method: which parameters move, what crosses from the task's to the shared weights, and by which
batches. A method never sees files, ranks, tokenizers or optimizers; the loop never sees a layer.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from abmll.adapters.layer import AdapterSet
from abmll.methods.task_weights import TaskWeights
from abmll.prompts.batches import ChoiceBatch

OptimizerName = Literal["adamw", "sgd"]
Schedule = Literal["constant", "linear", "cosine"]
NLL = Callable[[ChoiceBatch], Tensor]


class Terms(NamedTuple):
    """What one step descends, and its unweighted parts for the journal; all scalars.

    Attributes:
        losses: what is descended, as weighted terms.
        nll: mean NLL.
        task_kl: KL as sum or mean, before its weight.
    """

    losses: tuple[Float[Tensor, ""], ...]
    nll: Float[Tensor, ""]
    task_kl: Float[Tensor, ""] | None = None

    @property
    def total(self) -> Float[Tensor, ""]:
        """The sum of the losses."""
        return torch.stack([loss.reshape(()) for loss in self.losses]).sum()

    def backward(self, share: float = 1.0, parameters: Sequence[Tensor] = ()) -> None:
        """Gradients of `share` times the sum, added to .grad.

        Args:
            share: the factor.
            parameters: all that the losses after the first depend on. Their gradients are then added all at once, where
                autograd would start a kernel for each parameter.
        """
        shares = [torch.full_like(loss, share) for loss in self.losses]
        if not parameters or len(self.losses) == 1:
            torch.autograd.backward(self.losses, shares)
            return
        torch.autograd.backward(self.losses[:1], shares[:1])
        more = torch.autograd.grad(self.losses[1:], parameters, shares[1:], allow_unused=True)
        add_gradients(parameters, more)


def add_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to .grad, all in one go; None adds nothing."""
    into, added = [], []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and parameter.grad is not None:
            into.append(parameter.grad)
            added.append(gradient)
        elif gradient is not None:
            parameter.grad = gradient
    if into:
        torch._foreach_add_(tuple(into), tuple(added))


class Group(NamedTuple):
    """Parameters that one optimizer rule moves.

    Attributes:
        name, parameters, optimizer: as above.
        lr: rate of all of them.
        float64_state: step them on float64 copies.
        log_rates: of each parameter the logarithm of what `lr` is multiplied by: rates that theta owns. They are read
            when steps begin.
    """

    name: str
    parameters: list[nn.Parameter]
    optimizer: OptimizerName
    lr: float
    float64_state: bool = False
    log_rates: nn.Parameter | None = None


MOST_RATE = 3e37
"""AdamW's first step multiplies a rate by ten, and float32 ends at 3.4e38."""


class Settings(BaseModel):
    """What a user can set of every method (docs/method.md, sections 2 and 4); each method has defaults of its own.

    Attributes:
        episodes: all batches of a meta-iteration come from one task, or each row from any task.
        inner_optimizer_state: new moments for each task, or moments that go on from step to step of the whole run: then
            the tasks of a meta-batch follow each other, each with an outer step of its own. Adapting to an unseen task
            begins with new ones in either case.
        inner_optimizer: rule of the inner steps.
        inner_lr: its rate for the means.
        inner_steps: gradient steps before the outer one; a method without a query batch takes one more.
        batch_size: questions in each batch.
        outer_optimizer: rule of the outer step for the means.
        outer_lr: e, its rate; with `sgd` on theta - phi the part of the way to phi that theta goes, as in Reptile.
        outer_schedule: how outer rates change over training, after warm-up.
        inner_schedule: the same for inner rates; adaptation uses the unscheduled rate.
        warmup: meta-iterations over which scheduled rates rise linearly.
        temperature_lr: outer AdamW rate of the likelihood's log-temperature, where it is learned.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    episodes: Literal["by_task", "mixed"] = "by_task"
    inner_optimizer_state: Literal["fresh", "persistent"] = "fresh"
    inner_optimizer: OptimizerName = "adamw"
    inner_lr: float = Field(3e-4, gt=0)  # LoRA's; Reptile, FOMAML and `pretrained` want more, see there
    inner_steps: int = Field(5, ge=0)
    batch_size: int = Field(2, ge=1)
    outer_optimizer: OptimizerName = "sgd"
    outer_lr: float = Field(1.0, gt=0)
    outer_schedule: Schedule = "constant"
    inner_schedule: Schedule = "constant"
    warmup: int = Field(0, ge=0)
    temperature_lr: float = Field(1e-2, gt=0)

    @field_validator("*")
    @classmethod
    def _rates_are_float32(cls, value: Any, field: Any) -> Any:
        if field.field_name.endswith("_lr") and value > MOST_RATE:
            raise ValueError(f"a rate above {MOST_RATE:g} is no number of float32's to step by")
        return value


class InnerSteps(Protocol):
    """The inner steps that made phi, for outer gradients that go through them."""

    @property
    def support(self) -> list[ChoiceBatch]:
        """The batches of all steps."""

    def carry_back(self) -> list[Tensor]:
        """Turn the gradient by phi, in its .grad, into that by what phi was before the first step.

        What the steps depend on besides (other factors of phi, theta, the learned temperature) has its part of the
        gradient added to its .grad.

        Returns:
            For each parameter of `Method.task` the gradient by the logarithm of its rate.
        """

    def curvature(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The Hessian of the mean loss of all steps' batches at phi, by what `Method.task` moves, times these."""

    def add_mixed(self, vectors: Sequence[Tensor]) -> None:
        """Add to .grad of what the steps depend on besides: the derivative by it of the loss's gradient times these.

        The loss is that of `curvature`. What is no such thing (theta, where the loss holds it fixed) gets nothing.
        """


class Method(abc.ABC):
    """A system of docs/method.md, section 4. Subclasses are final, and override nothing concrete.

    Args:
        adapters: the adapted layers, with theta and phi.
        nll: mean NLL of a batch under phi.
        settings: this method's settings, an instance of its `settings_class`.
        temperature: the likelihood's log-temperature; part of theta if it requires a gradient.

    Attributes:
        presets: named settings; "default" is there for every method.
        has_std: the adapters hold std factors.
        through_steps: the outer gradient goes through the inner steps, which are then in `inner_taken`.
        inner_taken: what made phi, while `outer_gradient` of such a method runs; None: steps are taken for constants.
        uses_query: the last batch of an episode is kept for the outer step.
        moves_weights: training changes theta's factors (not so for the pretrained model).
        keeps_phi: phi goes on from task to task.
        keeps_tasks: in training each task goes on from its own phi of the last visit, once `begin_task` was called.
        task_weights: what these are, with such a method; the visit that `outer_gradient` ends is in them.
        shares_moments: inner and outer steps go by the same moments of AdamW, one after the other.
        learned: what `learned_start` gives, as parameters; kept in checkpoints and in stored adapters.
        dropout: share of inputs that predictions drop, another one in each draw; for methods without stds.
        demonstrations: at most so many other rows of its task stand, with their answers, in front of each question of a
            training batch; a question that is answered, and one that is adapted to, has all rows adapted to that fit.
    """

    settings_class: ClassVar[type[Settings]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}
    has_std: ClassVar[bool] = False
    moves_weights: ClassVar[bool] = True
    through_steps: bool = False
    inner_taken: InnerSteps | None = None
    uses_query: bool = False
    keeps_phi: bool = False
    keeps_tasks: bool = False
    shares_moments: bool = False
    dropout: float = 0.0
    demonstrations: int = 0

    def __init__(
        self, adapters: AdapterSet, nll: NLL, settings: Settings, temperature: nn.Parameter | None = None
    ) -> None:
        self.adapters, self.nll, self.settings = adapters, nll, settings
        self.temperature = [temperature] if temperature is not None and temperature.requires_grad else []
        self.task_weights = TaskWeights()
        self.learned = {name: nn.Parameter(start.to(adapters.device)) for name, start in self.learned_start.items()}
        if self.factors_start is not None:
            self.factors_start(self.adapters)

    @property
    def learned_start(self) -> dict[str, Float[Tensor, " numbers"]]:
        """Name -> vector that training starts from, of what theta has besides factors; nothing by default."""
        return {}

    @property
    def factors_start(self) -> Callable[[AdapterSet], None] | None:
        """LoRA's start, unless a method says otherwise."""
        return None

    @torch.no_grad()
    def reset_learned(self) -> None:
        """What theta has besides factors, at its start again; and factors that do not start as LoRA's do."""
        for name, start in self.learned_start.items():
            self.learned[name].copy_(start)
        if self.factors_start is not None:
            self.factors_start(self.adapters)

    @abc.abstractmethod
    def shared(self) -> list[Group]:
        """theta: what the outer step moves."""

    @abc.abstractmethod
    def task(self) -> list[Group]:
        """phi: what the inner steps move."""

    @abc.abstractmethod
    def begin_task(self, *, first: bool = True) -> None:
        """Make phi, usually from theta. A method that `keeps_phi` does so only for the `first` task of a run."""

    @abc.abstractmethod
    def inner_loss(self, batch: ChoiceBatch, key: Int[Tensor, ""]) -> Terms:
        """What one inner step descends. `key` names the noise of the step.

        Theta takes no gradient from it, but while there is `inner_taken` to go back through.
        """

    @abc.abstractmethod
    def outer_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> Terms | None:
        """Leave .grad on theta; step nothing. `query` is empty unless `uses_query`."""

    def temperature_groups(self) -> list[Group]:
        """The learned log-temperature as a group of theta: the same rule for every method."""
        if not self.temperature:
            return []
        return [Group("temperature", self.temperature, "adamw", self.settings.temperature_lr)]

    def mean_group(self, slot: Literal["shared", "task"]) -> Group:
        """The mean factors of a slot under the settings' inner or outer rule."""
        s = self.settings
        parameters = self.adapters.parameters(slot, "mean")
        if slot == "task":
            return Group("mean", parameters, s.inner_optimizer, s.inner_lr)
        return Group("mean", parameters, s.outer_optimizer, s.outer_lr)


def backward_by_share(
    batches: Sequence[ChoiceBatch], loss: Callable[[ChoiceBatch], Terms], parameters: Sequence[Tensor] = ()
) -> Terms:
    """Gradient accumulation: backward through micro-batches, each weighted by its share of the questions.

    The gradients add up to those of one batch of all the questions. Returns the weighted terms, detached. `parameters`
    as in `Terms.backward`.
    """
    everything = sum(batch.questions for batch in batches)
    total = nll = kl = torch.zeros((), device=batches[0].input_ids.device)
    has_kl = False
    for batch in batches:
        terms, share = loss(batch), batch.questions / everything
        terms.backward(share, parameters)
        total, nll = total + terms.total.detach() * share, nll + terms.nll.detach() * share
        if terms.task_kl is not None:
            kl, has_kl = kl + terms.task_kl.detach() * share, True
    return Terms((total,), nll, kl if has_kl else None)
