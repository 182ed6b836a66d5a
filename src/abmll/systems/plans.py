"""What follows from a configuration, worked out once, as plain values: a method's settings, and the plans of training,
adaptation and prediction.

What trains, evaluates, answers and reports takes these, and resolves nothing again.
"""

from dataclasses import dataclass, replace
from typing import Literal

from abmll.config import MethodConfig, RunConfig
from abmll.errors import AbmllError
from abmll.kernels import check_usable
from abmll.methods import method_class, resolve_settings
from abmll.methods.base import Schedule, Settings
from abmll.methods.fitted import Fitted
from abmll.models.load import choose_device
from abmll.prompts.encode import check_kind
from abmll.question import Question, Task
from abmll.systems.posteriors.settings import PosteriorSettings, resolve_posterior
from abmll.tasks.episodes import Episodes
from abmll.training.train import TrainingPlan


@dataclass(frozen=True, slots=True)
class AdaptationPlan:
    """How an unseen task is adapted to: the same examples and steps for every system.

    `examples`: how many train rows are drawn; None takes all of them. `schedule`: how the rates fall over the steps;
    `linear` and `cosine` to 0 after the last one.
    """

    examples: int | None = 20
    steps: int = 10
    batch_size: int = 2
    seed: int = 0
    schedule: Schedule = "constant"


@dataclass(frozen=True, slots=True)
class PredictionPlan:
    """How a posterior becomes probabilities.

    Attributes:
        sampler: `weight` (the model as written) or `activation`; `mean` uses the mean weights.
        samples: draws whose probabilities are averaged.
        batch_tokens: most padded tokens of one forward pass.
    """

    sampler: Literal["mean", "weight", "activation"] = "weight"
    samples: int = 10
    batch_tokens: int = 4096


@dataclass(frozen=True)
class ResolvedRun:
    """A run's configuration, and what follows from it.

    Attributes:
        name: of the system.
        seed: of the training.
        config: as it was given.
        pinned: the same with every setting of its method by name: what a later version's defaults cannot change.
        settings: of the method: its defaults, its preset, and what was given.
        training: how long it trains and how often it saves; no iterations where there is nothing to train.
        adaptation: how unseen tasks are adapted to.
        prediction: how their probabilities are made.
        rows: names of the rows that it makes in a table: its own and, where predictions draw weights, that of its mean
            weights.
        pools_precision: a number of its posterior's prior is learned over the training tasks.
    """

    name: str
    seed: int
    config: RunConfig
    pinned: RunConfig
    settings: Settings
    training: TrainingPlan
    adaptation: AdaptationPlan
    prediction: PredictionPlan
    rows: tuple[str, ...]
    pools_precision: bool

    @property
    def shows_examples(self) -> bool:
        """Whether examples stand in front of each question that is answered: they teach without any step."""
        return self.config.adaptation.in_context or getattr(self.settings, "demonstrations", 0) > 0

    def scored(self, task: Task) -> tuple[Question, ...]:
        """The test questions of a task that are scored: all, or the first so many."""
        return task.test[: self.config.adaptation.test_questions]

    def episodes_of(self, tasks: tuple[Task, ...]) -> Episodes:
        """The data order of training on these tasks: the same batches for every system that takes them by task.

        Raises:
            AbmllError: the tasks are too few or too small.
        """
        return Episodes(
            tasks,
            self.settings.episodes,
            batches=self.settings.inner_steps + 1,
            batch_size=self.settings.batch_size,
            seed=self.seed,
            proportional=self.config.tasks.sampling == "proportional",
            demonstrations=getattr(self.settings, "demonstrations", 0),
        )

    def check_machine(self) -> None:
        """Refuse kernels that this machine cannot use.

        Raises:
            AbmllError: names the field and its value; says what to do.
        """
        check_usable(self.config.engine.kernels, choose_device(self.config.model.device))


def resolve(config: RunConfig) -> ResolvedRun:
    """Work out everything that follows from a configuration alone.

    Raises:
        AbmllError: settings are unknown or impossible, alone or together; names the field and its value.

    >>> run = resolve(RunConfig.model_validate({"model": {"shape": "tiny-llama"}, "method": {"name": "reptile"}}))
    >>> run.training.iterations, run.settings.outer_lr, run.rows
    (100, 0.22, ('run',))
    """
    settings = method_settings(config)
    _check_answering(config, settings)
    posterior = _posterior_settings(config)
    draws = method_class(config.method.name).has_std or getattr(settings, "dropout", 0.0) > 0
    draws = (draws or config.posterior.name != "none") and config.adaptation.sampler != "mean"
    return ResolvedRun(
        name=config.name,
        seed=config.training.seed,
        config=config,
        pinned=_pinned(config, settings),
        settings=settings,
        training=_training_plan(config),
        adaptation=adaptation_plan(config),
        prediction=prediction_plan(config),
        rows=(config.name, f"{config.name}_mean") if draws else (config.name,),
        pools_precision=getattr(posterior, "precision", None) == "pooled" and config.adaptation.steps > 0,
    )


def method_settings(config: RunConfig) -> Settings:
    """The method's settings, checked.

    Raises:
        AbmllError: unknown or impossible settings, alone or together.
    """
    settings = resolve_settings(config.method.name, config.method.preset, config.method.settings())
    sampler = getattr(settings, "training_sampler", None)
    if getattr(settings, "std_form", "square") == "log_std" and sampler == "activation":
        raise AbmllError(
            "method.std_form=log_std has no low-rank variance, so method.training_sampler=activation cannot draw "
            "from it; use method.training_sampler=weight"
        )
    if sampler == "activation" and not config.likelihood.share_prefix:
        raise AbmllError(
            "method.training_sampler=activation with likelihood.share_prefix=false would draw a prompt's noise once "
            "per choice; use method.training_sampler=weight"
        )
    return settings


def _check_answering(config: RunConfig, settings: Settings) -> None:
    """Refuse settings that cannot adapt or answer together."""
    a, text = config.adaptation, config.likelihood
    if a.sampler == "activation" and method_class(config.method.name).has_std:
        if getattr(settings, "std_form", "square") == "log_std":
            raise AbmllError(
                "adaptation.sampler=activation cannot draw from method.std_form=log_std (it has no low-rank variance); "
                "use adaptation.sampler=weight"
            )
        if not text.share_prefix:
            raise AbmllError(
                "adaptation.sampler=activation with likelihood.share_prefix=false would draw a prompt's noise once per "
                "choice; use adaptation.sampler=weight"
            )
    shown = getattr(settings, "demonstrations", 0)
    if a.in_context and shown:
        raise AbmllError(
            f"adaptation.in_context with method.demonstrations={shown} would show the examples twice; leave "
            "adaptation.in_context out, as a method with demonstrations shows all examples that fit"
        )
    if (a.in_context or shown) and text.template == "chat":
        raise AbmllError(
            f"{'adaptation.in_context' if a.in_context else 'method.demonstrations'} puts examples before the prompt, "
            "which likelihood.template=chat has no place for; use likelihood.template=plain, or a template of your own"
        )
    if text.kind != "auto":
        check_kind(text.kind, text.template, text.premise)
    if text.kind == "channel":
        _check_channel(config)
    if text.premise is not None and (a.in_context or shown):
        raise AbmllError(
            f"{'adaptation.in_context' if a.in_context else 'method.demonstrations'} with likelihood.premise: the "
            "examples stand in the question's context, which the premise takes away, and would have to stand before "
            "the premise too; use likelihood.premise=null"
        )


def _check_channel(config: RunConfig) -> None:
    """Refuse what takes the loss for that of the choices among each other, or T for a part of it."""
    if config.likelihood.learn_temperature:
        raise AbmllError(
            "likelihood.kind=channel with likelihood.learn_temperature: its loss is that of the question's text, in "
            "which the temperature has no part; use likelihood.learn_temperature=false"
        )
    fits = {
        "method.name": issubclass(method_class(config.method.name), Fitted),
        "posterior.name": config.posterior.name == "laplace",
    }
    for field in (field for field, does in fits.items() if does):
        name = getattr(config, field.removesuffix(".name")).name
        raise AbmllError(
            f"{field}={name} fits a Gaussian to the probabilities of the choices, but likelihood.kind=channel learns "
            "those of the question's text; use likelihood.kind=cloze or letter"
        )


def _posterior_settings(config: RunConfig) -> PosteriorSettings | None:
    """Those of the posterior, if there is one. Refuses one that is unknown, or of a phi that is one already."""
    chosen = config.posterior
    settings = resolve_posterior(chosen.name, chosen.settings(), chosen.preset)
    if settings is not None and method_class(config.method.name).has_std:
        raise AbmllError(
            f"posterior.name={chosen.name} is made of a phi without stds, but method.name="
            f"{config.method.name} holds stds, which answers draw by; leave one of the two out"
        )
    return settings


def _pinned(config: RunConfig, settings: Settings) -> RunConfig:
    method = {**config.method.model_dump(mode="json"), **settings.model_dump(mode="json")}
    return config.model_copy(update={"method": MethodConfig(**method)})


def _training_plan(config: RunConfig) -> TrainingPlan:
    """How long and how often; without iterations where there is nothing to train."""
    t = config.training
    trains = method_class(config.method.name).moves_weights or config.likelihood.learn_temperature
    return TrainingPlan(
        iterations=t.iterations if trains else 0,
        seed=t.seed,
        meta_batch=t.meta_batch,
        checkpoint_every=t.checkpoint_every,
        log_stds_every=t.log_stds_every,
        validate_every=t.validate_every,
        patience=t.patience,
        on_non_finite=t.on_non_finite,
        most_skipped=t.most_skipped,
    )


def adaptation_plan(config: RunConfig) -> AdaptationPlan:
    """How unseen tasks are adapted to, from a configuration."""
    a = config.adaptation
    return AdaptationPlan(a.examples, a.steps, a.batch_size, a.seed, a.schedule)


def prediction_plan(config: RunConfig) -> PredictionPlan:
    """How probabilities are made, from a configuration."""
    a = config.adaptation
    return PredictionPlan(a.sampler, 1 if a.sampler == "mean" else a.samples, a.batch_tokens)


def plan_for(rows: int, usual: AdaptationPlan, steps: int | None = None) -> AdaptationPlan:
    """How so many rows are adapted to, all of them as examples.

    Args:
        rows: labelled rows.
        usual: batch size, seed, and the steps that are taken at least.
        steps: exactly so many instead; None: `steps_for`.
    """
    return replace(usual, examples=rows, steps=steps_for(rows, usual) if steps is None else steps)


def steps_for(rows: int, usual: AdaptationPlan) -> int:
    """Gradient steps for so many rows: the run's own number, or as many more as one pass over the rows takes.

    >>> steps_for(20, AdaptationPlan()), steps_for(51, AdaptationPlan())
    (10, 26)
    """
    return max(usual.steps, -(-rows // usual.batch_size))
