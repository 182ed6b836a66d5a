"""What a run will take, before it is started: steps, examples, memory. No weight is loaded."""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from abmll.adapters.attach import features, find_targets
from abmll.methods import method_class
from abmll.methods.core.settings import CoreSettings
from abmll.models import count_parameters, load_skeleton
from abmll.models.load import choose_device, choose_dtype
from abmll.models.sharded import layers_of
from abmll.systems.plans import ResolvedRun


@dataclass(frozen=True)
class Estimate:
    """Counts that are exact, and a memory estimate that is not.

    Attributes:
        meta_iterations: of training.
        gradient_steps: inner and query batches of training.
        examples: questions that training consumes.
        base_parameters: of the base model.
        adapter_parameters: trained factors of one slot (theta or phi).
        shards: parts that the base's layers are spread in over processes.
        weight_bytes: base weights in the chosen dtype; in parts, those that one process holds, with the two layers that
            are gathered at a time.
        adapter_bytes: both slots, their gradients and optimizer moments, in float32.
        activation_bytes: a rough bound for one batch of questions, and of as many premises where there are any, of
            `likelihood.max_tokens` tokens: 20 values per token, layer and hidden unit, and three float32 copies of the
            logits of one token in four.
    """

    meta_iterations: int
    gradient_steps: int
    examples: int
    base_parameters: int
    adapter_parameters: int
    shards: int
    weight_bytes: int
    adapter_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        """All three."""
        return self.weight_bytes + self.adapter_bytes + self.activation_bytes


def estimate(run: ResolvedRun) -> Estimate:
    """Count what a run asks for.

    Raises:
        AbmllError: the model's configuration cannot be had, or no layer matches the targets.
    """
    config, settings, cls = run.config, run.settings, method_class(run.config.method.name)
    model = load_skeleton(config.model.source, shape=config.model.shape, revision=config.model.revision)
    size = [sum(features(layer)) for layer in find_targets(model, config.adapter.targets).values()]
    factors = sum(size) * config.adapter.rank * (2 if cls.has_std else 1)
    shards = 1 if config.model.shards == "auto" else config.model.shards  # how many would fit, the devices will say
    dtype = choose_dtype(config.model.dtype, choose_device(config.model.device))
    batches = run.training.iterations * config.training.meta_batch * (settings.inner_steps + 1)
    return Estimate(
        meta_iterations=run.training.iterations,
        gradient_steps=batches,
        examples=batches * settings.batch_size,
        base_parameters=count_parameters(model),
        adapter_parameters=factors,
        shards=shards,
        weight_bytes=_weight_bytes(model, dtype, config.model.quantisation, shards),
        adapter_bytes=factors * 4 * 2 * 4,
        activation_bytes=_activation_bytes(model.config, _most_tokens(run), dtype),
    )


def _most_tokens(run: ResolvedRun) -> int:
    """Of a pass that goes back, if all questions are as long as they may be."""
    config, settings = run.config, run.settings
    of_question = config.likelihood.max_tokens * (1 if config.likelihood.premise is None else 2)
    rows, limit = settings.batch_size, None
    if isinstance(settings, CoreSettings):  # whose rows are linearised together
        limit = settings.fit_tokens
        if settings.rows_at_once == "all":
            examples = config.adaptation.examples or 0  # of null, all of a task's, the number is not known here
            rows = max(examples, settings.batch_size * (settings.inner_steps + 1))
    tokens = min(rows, config.training.micro_batch or rows) * of_question
    return tokens if limit is None else min(tokens, max(limit, of_question))


def _weight_bytes(model: PreTrainedModel, dtype: torch.dtype, quantisation: str | None, shards: int) -> int:
    """Bytes of the weights; packed ones are those of linear layers but the output, NF4's with 4 bytes per 64.

    In shards a process holds its part of everything, all of what is no layer, and two whole layers while it computes.
    """
    if shards > 1:
        layers = [count_parameters(layer) for layer in layers_of(model)]
        ends = count_parameters(model) - sum(layers)
        return round((ends + (ends + sum(layers)) / shards + 2 * max(layers)) * dtype.itemsize)
    packed = sum(math.prod(features(x)) for x in find_targets(model, "all-linear").values()) if quantisation else 0
    each = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}.get(quantisation or "", 0.0)
    return (count_parameters(model) - packed) * dtype.itemsize + round(packed * each)


def _activation_bytes(shape: object, tokens: int, dtype: torch.dtype) -> int:
    layers, hidden = int(getattr(shape, "num_hidden_layers", 0)), int(getattr(shape, "hidden_size", 0))
    logits = tokens // 4 * int(getattr(shape, "vocab_size", 0)) * 4 * 3
    return tokens * layers * hidden * 20 * dtype.itemsize + logits


def describe(count: Estimate) -> str:
    """The estimate as a few lines of text."""
    gib = 2**30
    return "\n".join(
        [
            f"meta-iterations     {count.meta_iterations:,}",
            f"gradient steps      {count.gradient_steps:,} on {count.examples:,} examples",
            f"base parameters     {count.base_parameters:,}",
            f"adapter parameters  {count.adapter_parameters:,} shared, as many per task at work",
            *([f"base in parts       {count.shards}: what follows is of each process"] if count.shards > 1 else []),
            f"memory, about       {count.total_bytes / gib:.2f} GiB: weights {count.weight_bytes / gib:.2f}, adapters "
            f"with moments {count.adapter_bytes / gib:.2f}, activations up to {count.activation_bytes / gib:.2f}",
        ]
    )
