"""Stored adapters taken from a model's adapted layers, and put on a model again."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from abmll.adapters.attach import StdOptions, attach, features
from abmll.adapters.base_weights import sample_base
from abmll.adapters.facts import AdapterFacts, BaseFacts, LayerFacts, LikelihoodFacts, Slot, StoredAdapter
from abmll.adapters.gaussian import LowRankGaussian
from abmll.adapters.layer import AdapterSet
from abmll.adapters.peft import is_transposed
from abmll.errors import AbmllError
from abmll.kernels import Variance
from abmll.tensors import portable


@dataclass(frozen=True)
class Maker:
    """What made an adapter: a method by its name and settings, with what it learned besides factors; and a library."""

    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    library: str = ""
    learned: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def take_adapter(
    adapters: AdapterSet,
    slot: Slot,
    *,
    alpha: float,
    base: BaseFacts,
    maker: Maker | None = None,
    likelihood: LikelihoodFacts | None = None,
) -> StoredAdapter:
    """A copy of one slot with everything it needs to be used again.

    Args:
        adapters: the adapted layers.
        slot: theta or phi.
        alpha: of the run.
        base: the model that they are on.
        maker: the method that made them.
        likelihood: how choices are read.
    """
    maker = Maker() if maker is None else maker
    first = next(iter(adapters.layers.values())).shared
    facts = AdapterFacts(
        written_by=maker.library,
        slot=slot,
        rank=first.rank,
        alpha=alpha,
        std_form=first.variance.form if adapters.has_std else None,
        std_floor=first.variance.floor if adapters.has_std else None,
        transposed=is_transposed(adapters),
        layers={path: _layer_facts(getattr(layer, slot)) for path, layer in adapters.layers.items()},
        method=maker.method,
        settings=dict(maker.settings),
        learned=dict(maker.learned),
        likelihood=likelihood or LikelihoodFacts(),
        base=base,
    )
    tensors = {name: portable(tensor).clone() for name, tensor in adapters.state_dict(slot).items()}
    return StoredAdapter(facts, tensors, sample_base(adapters))


def _layer_facts(gaussian: LowRankGaussian) -> LayerFacts:
    offset = gaussian.variance.offset if gaussian.has_std else None
    return LayerFacts(out_features=gaussian.out_features, in_features=gaussian.in_features, std_init=offset)


def attach_stored(model: nn.Module, stored: StoredAdapter) -> AdapterSet:
    """Put a stored adapter on a model: shared and task slot both hold it.

    Raises:
        AbmllError: the model has not the layers that it is for.
    """
    facts = stored.facts
    have = {path: module for path, module in model.named_modules() if path in facts.layers}
    check_layers(facts, {path: features(module) for path, module in have.items() if hasattr(module, "weight")})
    paths = "|".join(map(re.escape, facts.layers))  # as a pattern: whole paths, and never another's end
    adapters = attach(model, paths, rank=facts.rank, alpha=facts.alpha, std=StdOptions() if facts.has_std else None)
    install(stored, adapters)
    return adapters


def install(stored: StoredAdapter, adapters: AdapterSet, slots: tuple[Slot, ...] = ("shared", "task")) -> None:
    """Copy a stored adapter, and its constants, into adapters that are attached.

    Raises:
        AbmllError: they are for other layers, of another rank or scale, or one has stds and the other has not.
    """
    facts = stored.facts
    check_layers(facts, {path: (x.task.out_features, x.task.in_features) for path, x in adapters.layers.items()})
    first = next(iter(adapters.layers.values())).task
    for what, mine, theirs in (
        ("rank", first.rank, facts.rank),
        ("scale alpha / rank", first.variance.scale, facts.alpha / facts.rank),
        ("having stds", adapters.has_std, facts.has_std),
    ):
        if mine != theirs:
            raise AbmllError(f"the stored adapter does not fit: its {what} is {theirs}, here it is {mine}")
    for slot in slots:
        adapters.load_state_dict(slot, stored.tensors)
        for path, layer in adapters.layers.items():
            getattr(layer, slot).variance = _variance(facts, path)


def _variance(facts: AdapterFacts, path: str) -> Variance:
    offset, floor = facts.layers[path].std_init or 1.0, facts.std_floor or 1.0
    return Variance(facts.std_form or "square", offset, floor, facts.alpha / facts.rank)


def check_layers(facts: AdapterFacts, have: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a model whose layers are not those of the adapter.

    Raises:
        AbmllError: names the first layers that are missing, too many or of another size.
    """
    want = {path: (layer.out_features, layer.in_features) for path, layer in facts.layers.items()}
    if missing := [path for path in want if path not in have]:
        raise AbmllError(
            f"the base model has no layer {missing[0]} ({len(missing)} of the adapter's layers are missing)"
        )
    if extra := [path for path in have if path not in want]:
        raise AbmllError(f"the adapter is not for {extra[0]} ({len(extra)} layers too many are adapted here)")
    if other := [path for path in want if want[path] != have[path]]:
        mine, theirs = (f"{table[other[0]][0]} x {table[other[0]][1]}" for table in (have, want))
        raise AbmllError(f"{other[0]} is {mine}, the adapter's is {theirs}")
