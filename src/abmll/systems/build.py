"""From a configuration to the plain objects that everything else takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from abmll import kernels
from abmll.adapters.attach import attach, detach
from abmll.config import ModelConfig, RunConfig, TaskSource
from abmll.errors import AbmllError
from abmll.likelihood import ChoiceLikelihood
from abmll.methods import method_class, resolve_settings
from abmll.methods.base import Method, Settings
from abmll.metrics.predictions import Prediction
from abmll.models import LanguageModel, load_model
from abmll.models.frozen import pack
from abmll.prompts.encode import Encoder
from abmll.question import Question, Task
from abmll.systems.predict import AdaptationPlan, PredictionPlan, adapt, predict
from abmll.tasks.episodes import Episodes
from abmll.tasks.sources import load_tasks
from abmll.training.batcher import Batcher
from abmll.training.graphs import Graphs
from abmll.training.optimizers import GroupOptimizer, Optimizers
from abmll.training.train import TrainingPlan


@dataclass
class System:
    """One system on one base model: what training, adaptation and prediction take.

    Attributes:
        adapting: steps of adaptation; those of training, unless their moments go on from task to task.
        training: steps of meta-training.
        config: what it was built from, or renewed to.
    """

    language_model: LanguageModel
    method: Method
    likelihood: ChoiceLikelihood
    batcher: Batcher
    alpha: float
    graphs: Graphs
    adapting: GroupOptimizer
    training: Optimizers
    config: RunConfig

    def adapt(self, task: Task, plan: AdaptationPlan, draw: int) -> tuple[Question, ...]:
        """Make phi from theta and adapt it to a task; returns the examples that were used."""
        return adapt(self.method, self.batcher, task, plan, draw, self.adapting, self.graphs)

    def predict(
        self, questions: Sequence[Question], plan: PredictionPlan, place: tuple[int | str, ...]
    ) -> tuple[Prediction, ...]:
        """Choice probabilities under phi; `place` names the draws' noise."""
        return predict(self.method, self.likelihood, self.batcher, questions, plan, place, self.graphs)

    def renew(self, config: RunConfig) -> bool:
        """Begin anew with another seed, other rates and schedules; captured steps are kept.

        Returns:
            False, and nothing is changed, if the configuration differs in what a captured step has in it.
        """
        settings, method = method_settings(config), self.method
        if _captured_part(config, settings) != _captured_part(self.config, method.settings):
            return False
        self.config, method.settings = config, settings
        method.adapters.reset(config.training.seed)
        with torch.no_grad():
            self.likelihood.log_temperature.fill_(math.log(config.likelihood.temperature))
        for optimizer, groups in (
            (self.training.inner, method.task()),
            (self.training.outer, method.shared()),
            (self.adapting, method.task()),
        ):
            optimizer.take_rates(groups)
        self.batcher.encoder.truncated.clear()
        return True

    def close(self) -> None:
        """Take the adapters off the base model, and give the memory of captured steps back."""
        detach(self.language_model.model, self.method.adapters)
        self.graphs.close()


def load_base(config: ModelConfig) -> LanguageModel:
    """The base model of a configuration."""
    return load_model(
        config.source,
        shape=config.shape,
        dtype=config.dtype,
        device=config.device,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        attention=config.attention,
        quantisation=config.quantisation,
    )


def build_system(config: RunConfig, base: LanguageModel, settings: Settings | None = None) -> System:
    """Adapters on the base model, the method over them, and the likelihood; `settings` if they are resolved already.

    Raises:
        AbmllError: a setting does not fit the method or the model.
    """
    settings = settings or method_settings(config)
    adapters = attach(
        base.model,
        config.adapter.targets,
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        with_std=method_class(config.method.name).has_std,
        seed=config.training.seed,
        **_std_options(settings),
    )
    text = config.likelihood
    likelihood = ChoiceLikelihood(base.model, text.kind, text.temperature, text.learn_temperature)
    method = method_class(config.method.name)(adapters, likelihood.nll, settings, likelihood.log_temperature)
    kernels.use(config.engine.kernels)
    pack(base.model, config.engine.packed)
    graphs = Graphs(base.device, capture=config.engine.capture, most=config.engine.captured)
    batcher, training = build_batcher(config, base), Optimizers.of(method)
    goes_on = settings.inner_optimizer_state == "persistent"
    adapting = GroupOptimizer(method.task()) if goes_on else training.inner
    return System(base, method, likelihood, batcher, config.adapter.alpha, graphs, adapting, training, config)


_RATES = {
    *("inner_lr", "outer_lr", "std_lr", "outer_std_lr", "temperature_lr"),
    *("outer_schedule", "inner_schedule", "warmup", "inner_steps", "episodes"),
}
"""Settings of methods that no captured step has in it."""


def _captured_part(config: RunConfig, settings: Settings) -> dict[str, Any]:
    """What steps, once captured, cannot change."""
    wanted = {"model", "adapter", "likelihood", "engine"}
    values = {**config.model_dump(mode="json", include=wanted), "micro_batch": config.training.micro_batch}
    return {**values, "method": config.method.name, "settings": settings.model_dump(exclude=_RATES)}


def build_batcher(config: RunConfig, base: LanguageModel) -> Batcher:
    """The encoder and padding of a configuration."""
    text = config.likelihood
    encoder = Encoder(
        base.tokenizer,
        text.kind,
        text.normalisation,
        text.template,
        text.max_tokens,
        limit=getattr(base.model.config, "max_position_embeddings", None),
    )
    buckets = base.device.type == "cuda" and config.engine.capture
    least = config.engine.least_width
    return Batcher(encoder, base.device, config.training.micro_batch, text.share_prefix, buckets, least)


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


def _std_options(settings: Settings) -> dict[str, Any]:
    """The settings of stds that adapters are built with; none for methods without."""
    return settings.model_dump(include={"std_form", "std_init", "std_relative", "std_floor"})


def tasks_of(source: TaskSource | None) -> tuple[Task, ...]:
    """The tasks that a configuration names; none for None."""
    if source is None:
        return ()
    return load_tasks(source.source, source.names, merge_choices=source.merge_choices, on_bad_row=source.on_bad_row)


def build_episodes(config: RunConfig, tasks: tuple[Task, ...], settings: Settings | None = None) -> Episodes:
    """The data order of a configuration: the same batches for every system that takes them by task."""
    settings = settings or method_settings(config)
    return Episodes(
        tasks,
        settings.episodes,
        batches=settings.inner_steps + 1,
        batch_size=settings.batch_size,
        seed=config.training.seed,
        proportional=config.tasks.sampling == "proportional",
    )


def iterations_of(config: RunConfig) -> int:
    """Meta-iterations of a run: none where there is nothing to train."""
    trains = method_class(config.method.name).moves_weights or config.likelihood.learn_temperature
    return config.training.iterations if trains else 0


def training_plan(config: RunConfig, snapshots: tuple[int, ...] = ()) -> TrainingPlan:
    """How long and how often, from a configuration."""
    t = config.training
    return TrainingPlan(
        iterations=iterations_of(config),
        seed=t.seed,
        meta_batch=t.meta_batch,
        checkpoint_every=t.checkpoint_every,
        snapshots=snapshots,
        log_stds_every=t.log_stds_every,
        validate_every=t.validate_every,
        patience=t.patience,
        on_non_finite=t.on_non_finite,
        most_skipped=t.most_skipped,
    )


def adaptation_plan(config: RunConfig) -> AdaptationPlan:
    """How unseen tasks are adapted to, from a configuration."""
    a = config.adaptation
    return AdaptationPlan(a.examples, a.steps, a.batch_size, a.seed)


def prediction_plan(config: RunConfig) -> PredictionPlan:
    """How probabilities are made, from a configuration."""
    a = config.adaptation
    return PredictionPlan(a.sampler, a.samples, a.batch_tokens)
