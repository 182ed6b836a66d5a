"""A base model whose layers are spread over processes by FSDP2, for bases that no single device holds.

Of each layer a process keeps one of N equal shares, and gathers the rest right before it computes the layer.
Embeddings, the last norm and the output layer are whole in every process: each pass begins and ends with them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

from abmll.adapters.attach import SpreadWeight, features
from abmll.adapters.base_weights import sampled_entries
from abmll.errors import AbmllError
from abmll.models.frozen import FrozenLinear
from abmll.models.language_model import fingerprinted_entries
from abmll.process.passes import Passes, pass_together
from abmll.process.world import RankGroup, World


@dataclass(frozen=True)
class Spreading:
    """Over which processes a base model is spread.

    Attributes:
        world: all of them; every `shards` neighbours hold the model once.
        shards: parts that it is spread in.

    >>> Spreading(World(rank=3, size=4), 2).replicas
    2
    """

    world: World
    shards: int

    @property
    def replicas(self) -> int:
        """How many times the model is held."""
        return self.world.size // self.shards

    def distributed_config(self) -> DistributedConfig:
        """What transformers reads files by: each process takes its own shares, and no more."""
        return DistributedConfig(fsdp_size=self.shards, dp_replicate_size=self.replicas)

    def spread(self, layer: nn.Module) -> None:
        """Keep this process's share of a layer that is whole on its device; the rest is freed."""
        fully_shard(layer, mesh=self._mesh(), reshard_after_forward=True)

    def spread_model(self, model: PreTrainedModel) -> None:
        """Keep this process's share of every layer of a model that is whole on its device, or has some spread already.

        Raises:
            AbmllError: transformers does not say what the layers of this model are.
        """
        for layer in layers_of(model):
            if not isinstance(layer, FSDPModule):
                self.spread(layer)
        whole = {p for p in model.parameters() if not isinstance(p, DTensor)}
        fully_shard(model, mesh=self._mesh(), reshard_after_forward=False, ignored_params=whole)

    def _mesh(self) -> Any:
        """Made once: every mesh makes groups of processes."""
        key = self.world.size, self.shards
        if key not in _meshes:
            shape, names = (self.replicas, self.shards), ("dp_replicate", "fsdp")  # peft knows the last one
            _meshes[key] = init_device_mesh(_device_type(), shape, mesh_dim_names=names)
        mesh = _meshes[key]
        return mesh if self.replicas > 1 else mesh["fsdp"]


_meshes: dict[tuple[int, int], Any] = {}


def _device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that are spread, in the order in which the model runs them: by transformers' plan for FSDP.

    Raises:
        AbmllError: that names none.

    >>> from abmll.models.skeleton import load_skeleton
    >>> len(layers_of(load_skeleton(None, shape="tiny-llama")))
    2
    """
    lists = [name.removesuffix(".*") for name in (model.fsdp_plan or {}) if name.endswith(".*")]
    modules = dict(model.named_modules())
    layers = [layer for name in lists for layer in modules.get(name, nn.ModuleList()).children()]
    if not layers:
        raise AbmllError(
            f"model.shards: {type(model).__name__} has no layers that transformers' plan spreads over processes; use "
            "model.shards=1"
        )
    return layers


def gather_ends(model: PreTrainedModel) -> None:
    """Let what is no layer stay whole once it is gathered, and its linear layers be as `freeze` makes the others."""
    layers = {id(layer) for layer in layers_of(model)}
    for module in model.modules():
        if not isinstance(module, FSDPModule) or id(module) in layers:
            continue
        module.set_reshard_after_forward(False, recurse=False)
        module.set_reshard_after_backward(False, recurse=False)
        if isinstance(module, nn.Linear) and not isinstance(module, FrozenLinear):
            kind = type(module)
            module.__class__ = type(kind.__name__, (FSDPModule, FrozenLinear), dict(kind.__dict__))


@torch.no_grad()
def join_passes(model: PreTrainedModel, spreading: Spreading) -> dict[str, Tensor]:
    """Make the first pass, by which FSDP2 finds the root, and let later ones be in step over processes.

    Returns:
        Of each parameter that is spread, the entries that `model_fingerprint` goes by.

    Raises:
        AbmllError: another process died, or the model does not run its layers one after the other.
    """
    group = spreading.world.group_of(spreading.shards)
    passes = Passes(layers_of(model), group)
    pass_together(model, passes)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    passes.forward(lambda: model(input_ids=ids, use_cache=False).logits)
    _note_weights(model, group)
    names = [name for name, weight in sorted(model.named_parameters()) if isinstance(weight, DTensor)]
    weights = [model.get_parameter(name) for name in names]
    values = _entries(weights, [fingerprinted_entries(weight) for weight in weights], group)
    return dict(zip(names, values, strict=True))


def _note_weights(model: nn.Module, group: RankGroup) -> None:
    """Keep of each linear layer that is spread what adapters ask its weights: a sample, and their std."""
    linear: list[Any] = [m for m in model.modules() if isinstance(m, nn.Linear) and isinstance(m.weight, DTensor)]
    entries = [sampled_entries(features(module)) for module in linear]
    places = [rows * module.in_features + columns for module, (rows, columns) in zip(linear, entries, strict=True)]
    weights = [module.weight for module in linear]
    samples = _entries(weights, places, group)
    sums = torch.stack([_sums(weight.to_local()) for weight in weights])
    group.add_up(sums)
    for module, sample, (total, squares) in zip(linear, samples, sums.tolist(), strict=True):
        count = module.weight.numel()
        variance = (squares - total * total / count) / (count - 1)
        module.spread_weight = SpreadWeight(sample, max(0.0, variance) ** 0.5)


def _sums(part: Tensor) -> Tensor:
    """Sum and sum of squares, as float64 on the CPU."""
    numbers = part.double()
    return torch.stack([numbers.sum(), numbers.square_().sum()]).cpu()


def _entries(weights: Sequence[Any], places: Sequence[Tensor], group: RankGroup) -> list[Tensor]:
    """Entries of parameters, each at places of its flattened form, as float32 on the CPU: the same on every rank."""
    found = [_own_entries(weight, places_of, group) for weight, places_of in zip(weights, places, strict=True)]
    together = torch.cat(found)  # where one rank has the number, and the others zeros
    group.add_up(together)
    return list(together.split([len(part) for part in found]))


def _own_entries(weight: Any, places: Tensor, group: RankGroup) -> Tensor:
    own = weight.to_local()
    width = weight[0].numel() if weight.dim() > 1 else 1
    first = -(-weight.shape[0] // group.size) * group.rank * width  # FSDP deals out rows as torch.chunk does
    here = (places >= first) & (places < first + own.numel())
    values = torch.zeros(len(places), dtype=torch.float32)
    values[here] = own.reshape(-1)[(places[here] - first).to(own.device)].to("cpu", torch.float32)
    return values


def own_parts(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters by name, of spread ones this process's share."""
    for name, weight in model.named_parameters():
        yield name, weight.to_local() if isinstance(weight, DTensor) else weight


def fits_whole(size: int, device: torch.device, world: World) -> bool:
    """Whether weights of so many bytes leave a third of every process's device to activations and adapters.

    On CPUs, where processes share one memory, they are taken to fit.
    """
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info()
    return all(world.each(int(size <= free * 2 // 3)))


def is_in_world() -> bool:
    """Whether there are processes to spread a model over."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
