"""From a configuration to the plain objects that everything else takes."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from abmll import kernels
from abmll.adapters.attach import StdOptions, attach, detach
from abmll.config import ModelConfig, RunConfig, check
from abmll.errors import AbmllError
from abmll.kernels.check import LEAST_TRUSTED, refuse_wrong
from abmll.likelihood import ChoiceLikelihood
from abmll.methods import method_class
from abmll.methods.base import Method, Settings
from abmll.methods.core.local import of_choices
from abmll.methods.fitted import Fitted
from abmll.models import LanguageModel, count_parameters, load_model, load_skeleton, random_model
from abmll.models.frozen import pack
from abmll.models.load import choose_device, choose_dtype, load_sharded, random_sharded
from abmll.models.pretrained import COMMIT
from abmll.models.shapes import SHAPES
from abmll.models.sharded import Spreading, fits_whole
from abmll.process.passes import passes_of
from abmll.process.world import World
from abmll.prompts.encode import Encoder
from abmll.systems.plans import method_settings, resolve
from abmll.systems.posteriors.base import Parts, Posterior
from abmll.systems.posteriors.build import build_posterior
from abmll.systems.system import System
from abmll.training.batcher import Batcher
from abmll.training.graphs import Graphs
from abmll.training.optimizers import GroupOptimizer, Optimizers


def load_base(config: ModelConfig, world: World | None = None) -> LanguageModel:
    """The base model of a configuration.

    Args:
        config: names it.
        world: processes that train together, over which `model.shards` spreads its layers; all of them load it at the
            same time. None: this process holds the whole base.

    Raises:
        AbmllError: the model cannot be had, or not be spread over these processes.
    """
    if world is not None and (shards := shards_of(config, world)) > 1:
        return _load_spread(config, Spreading(world, shards))
    if config.shape is not None:
        if config.quantisation is not None:
            raise AbmllError(
                f"model.quantisation={config.quantisation}: a folder or hub id can be packed, not {config.shape}"
            )
        return random_model(config.shape, dtype=config.dtype, device=config.device, attention=config.attention)
    assert config.source is not None, "a configuration has one of the two"
    return load_model(
        config.source,
        dtype=config.dtype,
        device=config.device,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        attention=config.attention,
        quantisation=config.quantisation,
    )


def shards_of(config: ModelConfig, world: World) -> int:
    """Into how many parts the base model is spread over processes; 1: each holds all of it.

    Raises:
        AbmllError: there are not as many processes, or their number is no multiple; says how to start them.

    >>> shards_of(ModelConfig(shape="tiny-llama"), World())
    1
    """
    if config.shards == "auto":
        if world.size == 1 or config.quantisation is not None:
            return 1
        device = choose_device(config.device)
        size = count_parameters(load_skeleton(config.source, shape=config.shape, revision=config.revision))
        return 1 if fits_whole(size * choose_dtype(config.dtype, device).itemsize, device, world) else world.size
    if world.size % config.shards:
        raise AbmllError(
            f"model.shards={config.shards}: {world.size} process{'es' if world.size > 1 else ''} cannot hold the base "
            f"in so many parts; start as many with `torchrun --nproc-per-node {config.shards} -m abmll ...`, or a "
            "multiple of it; model.shards=1 holds the whole base in each process"
        )
    return config.shards


def _load_spread(config: ModelConfig, spreading: Spreading) -> LanguageModel:
    if config.device == "cpu" and torch.cuda.is_available():
        raise AbmllError(
            f"model.shards={spreading.shards} with model.device=cpu: processes meet on the CUDA devices that are here; "
            "use model.device=auto, or hide them (CUDA_VISIBLE_DEVICES=)"
        )
    if config.shape is not None:
        return random_sharded(config.shape, spreading, dtype=config.dtype, attention=config.attention)
    assert config.source is not None, "a configuration has one of the two"
    return load_sharded(
        config.source,
        spreading,
        dtype=config.dtype,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        attention=config.attention,
    )


def build_system(
    config: RunConfig | Mapping[str, Any] | str, base: LanguageModel, settings: Settings | None = None
) -> System:
    """Put adapters on a base model, with a method over them: a system that can be trained, adapted and asked.

    Args:
        config: the name of a method, which takes its defaults; or sections as a recipe has them, without `model`; or a
            whole configuration.
        base: of `load_model`; its layers hold the adapters until `System.close`.
        settings: of the method, where they are resolved already.

    Raises:
        AbmllError: a setting is unknown, or does not fit the method or the model.

    >>> base = random_model("tiny-llama", device="cpu")
    >>> system = build_system({"method": {"name": "abmll", "inner_steps": 3}, "adapter": {"rank": 4}}, base)
    >>> system.method.settings.inner_steps, system.method.adapters.has_std
    (3, True)
    """
    config = configuration_for(config, base)
    settings = settings or resolve(config).settings
    adapters = attach(
        base.model,
        config.adapter.targets,
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        std=_std_options(settings) if method_class(config.method.name).has_std else None,
        seed=config.training.seed,
    )
    text = config.likelihood
    likelihood = ChoiceLikelihood(base.model, text.decided, text.temperature, text.learn_temperature)
    method = method_class(config.method.name)(adapters, likelihood.nll, settings, likelihood.log_temperature)
    if isinstance(method, Fitted):
        method.local = lambda batch: of_choices(likelihood.scores(batch).log_probabilities, batch.answers)
    kernels.use(config.engine.kernels)
    _compare_kernels(config.adapter.rank, base, has_std=adapters.has_std)
    spread = passes_of(base.model) is not None
    if spread:
        try:
            _check_spread(config, method)
        except AbmllError:
            detach(base.model, adapters)
            raise
    pack(base.model, False if spread else config.engine.packed)
    graphs = Graphs(base.device, capture=config.engine.capture and not spread, most=config.engine.captured)
    if spread:
        graphs.fallbacks["every step"] = NOT_CAPTURED
    batcher, training = build_batcher(config, base), Optimizers.of(method)
    goes_on = settings.inner_optimizer_state == "persistent"
    adapting = GroupOptimizer(method.task()) if goes_on else training.inner
    system = System(base, method, likelihood, batcher, config.adapter.alpha, graphs, adapting, training, config)
    system.posterior = _posterior_of(system)
    return system


def _compare_kernels(rank: int, base: LanguageModel, *, has_std: bool) -> None:
    """Refuse kernels that the compiler of this machine gets wrong: it did so at small ranks (`kernels.check`)."""
    if rank < LEAST_TRUSTED and base.device.type == "cuda" and kernels.backend_for(base.device) == "triton":
        refuse_wrong(rank, base.device, base.dtype, kernels.OPS if has_std else ("mean_output",))


NOT_CAPTURED = "model.shards spreads the base, and how many passes a step takes part in depends on other processes"
"""Why no step is captured as a graph; told in the journal."""


def _check_spread(config: RunConfig, method: Method) -> None:
    """Refuse what a base that is spread over processes cannot do."""
    if config.engine.packed is True:
        raise AbmllError("engine.packed=true with model.shards: no process has a whole weight to keep copies of")
    if method.through_steps:
        raise AbmllError(
            f"method.name={config.method.name} with these settings takes gradients of gradients, for which the layers "
            "of a base in parts (model.shards) are not gathered; use its first-order form, or model.shards=1"
        )


def _posterior_of(system: System) -> Posterior | None:
    parts = Parts(system.method, system.likelihood, system.batcher, system.graphs, system.adapting)
    chosen = system.config.posterior
    return build_posterior(chosen.name, chosen.preset, chosen.settings(), parts)


def configuration_for(config: RunConfig | Mapping[str, Any] | str, base: LanguageModel) -> RunConfig:
    """A whole configuration of what `build_system` takes, which names the base model as it was loaded.

    Raises:
        AbmllError: a section or a value is wrong; names it.
    """
    if isinstance(config, RunConfig):
        return config
    sections = {"method": {"name": config}} if isinstance(config, str) else dict(config)
    if "model" in sections:
        raise AbmllError("build_system: the section `model` is of no use here, as the base model is loaded already")
    return check(RunConfig, {"model": _model_section(base), **sections}, "build_system")


def _model_section(base: LanguageModel) -> dict[str, Any]:
    attention = str(getattr(base.model.config, "_attn_implementation", "sdpa"))
    packed = [bits for bits in ("4bit", "8bit") if getattr(base.model, f"is_loaded_in_{bits}", False)]
    dtype = str(base.dtype).removeprefix("torch.")
    return {
        "shape" if base.name in SHAPES else "source": base.name,
        "dtype": dtype if dtype in ("float32", "bfloat16", "float16") else "auto",
        "revision": base.revision if COMMIT.fullmatch(base.revision or "") else None,
        "attention": attention if attention == "eager" else "sdpa",
        "quantisation": packed[0] if packed else None,
    }


def renew(system: System, config: RunConfig) -> bool:
    """Make a system begin anew with another seed, other rates and schedules; captured steps are kept.

    Returns:
        False, and nothing is changed, if the configuration differs in what a captured step has in it.
    """
    settings, method = method_settings(config), system.method
    if _captured_part(config, settings) != _captured_part(system.config, method.settings):
        return False
    system.config, method.settings = config, settings
    method.adapters.reset(config.training.seed)
    method.reset_learned()
    with torch.no_grad():
        system.likelihood.log_temperature.fill_(math.log(config.likelihood.temperature))
    for optimizer, groups in (
        (system.training.inner, method.task()),
        (system.training.outer, method.shared()),
        (system.adapting, method.task()),
    ):
        optimizer.take_rates(groups)
    system.batcher, system.posterior = replace(system.batcher, examples=()), _posterior_of(system)
    system.batcher.encoder.truncated.clear()
    return True


_RATES = {
    *("inner_lr", "outer_lr", "std_lr", "outer_std_lr", "temperature_lr", "rate_lr"),
    *("outer_schedule", "inner_schedule", "warmup", "inner_steps", "episodes"),
}
"""Settings of methods that no captured step has in it."""


def _captured_part(config: RunConfig, settings: Settings) -> dict[str, Any]:
    """What steps, once captured, cannot change."""
    sections = {"model", "adapter", "likelihood", "engine"}
    values = {**config.model_dump(mode="json", include=sections), "micro_batch": config.training.micro_batch}
    return {**values, "method": config.method.name, "settings": settings.model_dump(exclude=_RATES)}


def build_batcher(config: RunConfig, base: LanguageModel) -> Batcher:
    """The encoder and padding of a configuration."""
    text = config.likelihood
    encoder = Encoder(
        base.tokenizer,
        text.decided,
        text.normalisation,
        text.template,
        text.max_tokens,
        limit=getattr(base.model.config, "max_position_embeddings", None),
        premise=text.premise,
    )
    encoder.cut = text.cut
    buckets = base.device.type == "cuda" and config.engine.capture and passes_of(base.model) is None
    least = config.engine.least_width
    micro_batch = config.training.micro_batch
    batcher = Batcher(encoder, base.device, micro_batch, text.share_prefix, buckets, least, text.share_labels)
    return replace(batcher, pieces=text.pieces)


def _std_options(settings: Settings) -> StdOptions:
    """The settings of stds that adapters are built with."""
    given = settings.model_dump(include={"std_form", "std_init", "std_relative", "std_floor"})
    return StdOptions(**{name.removeprefix("std_"): value for name, value in given.items()})
