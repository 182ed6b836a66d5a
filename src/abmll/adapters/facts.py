"""What an adapter is besides its numbers: layers, constants, method, likelihood, base model."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_serializer
from torch import Tensor

from abmll.kernels import StdForm

FORMAT = 1
"""Of the metadata and tensors in abmll.safetensors; a change that an older version would misread raises it."""
SAMPLE = "base_sample"
Slot = Literal["shared", "task"]
Width = Annotated[int, Field(ge=1, le=1 << 24)]
Positive = Annotated[float, Field(gt=0)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LayerFacts(_Facts):
    """One adapted layer: its sizes, and the std that u = 0 gives (None where no stds are held)."""

    out_features: Width
    in_features: Width
    std_init: Positive | None = None


class BaseFacts(_Facts):
    """The base model that an adapter belongs to; the hashes are those of `LanguageModel`."""

    name: str
    revision: str | None = None
    dtype: str = "float32"
    fingerprint: str = ""
    architecture: str = ""
    tokenizer_hash: str = ""


class LikelihoodFacts(_Facts):
    """How choices were read from the model in training; `temperature` as it was learned, if it was.

    `premise` is written only where there is one: early versions do not know it.
    """

    kind: Literal["cloze", "letter", "channel"] = "cloze"
    normalisation: str = "token"
    template: str = "plain"
    temperature: Positive = 1.0
    premise: str | None = None

    @model_serializer(mode="wrap")
    def _as_early_versions_read_it(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name != "premise" or value is not None}


class AdapterFacts(_Facts):
    """Everything about an adapter but its tensors.

    Attributes:
        format: of the file.
        written_by: library and version.
        slot: `shared` (theta, of a run) or `task` (phi, adapted to a task).
        rank, alpha: R and alpha; the scale s is alpha / rank.
        std_form: `square` or `log_std`; None: the method holds no stds.
        std_floor: the std that none goes below.
        transposed: GPT-2's layers.
        layers: module path -> its facts, in the model's order, which numbers the noise.
        method, settings: the system that made it, every setting included.
        learned: what the method learned besides factors, such as rates, by name; left out of the file where there is
            nothing.
        likelihood: how it reads choices.
        base: the model it belongs to.
    """

    format: Literal[1] = 1
    written_by: str = ""
    slot: Slot = "shared"
    rank: Annotated[int, Field(ge=1, le=1 << 16)]
    alpha: Positive
    std_form: StdForm | None = None
    std_floor: Positive | None = None
    transposed: bool = False
    layers: dict[str, LayerFacts] = Field(min_length=1)
    method: str = ""
    settings: dict[str, Any] = {}
    learned: dict[str, tuple[float, ...]] = {}
    likelihood: LikelihoodFacts = LikelihoodFacts()
    base: BaseFacts

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: Any) -> dict[str, Any]:
        """What nobody learned is not written: a version that knows no such thing reads the file, too."""
        values: dict[str, Any] = handler(self)
        return values if self.learned else {name: value for name, value in values.items() if name != "learned"}

    @property
    def has_std(self) -> bool:
        """Whether stds belong to it."""
        return self.std_form is not None

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of every factor, by `layer.factor`."""
        factors = ("mean", "std") if self.has_std else ("mean",)
        sizes = {}
        for path, layer in self.layers.items():
            for part in factors:
                sizes[f"{path}.{part}_b"] = (layer.out_features, self.rank)
                sizes[f"{path}.{part}_a"] = (self.rank, layer.in_features)
        return sizes


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter apart from any model: what is written, and what comes back.

    Attributes:
        facts: everything but tensors.
        tensors: `layer.factor` -> float32 factor, on the CPU.
        base_sample: evenly spaced weights of up to eight of the base model's adapted layers.
    """

    facts: AdapterFacts
    tensors: dict[str, Tensor]
    base_sample: Float[Tensor, "L W"]

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values()) + self.base_sample.nbytes

    @property
    def moves_nothing(self) -> bool:
        """Whether every mean is zero, as before any training."""
        return not any(t.any() for name, t in self.tensors.items() if name.endswith("mean_b"))

    def equals(self, other: "StoredAdapter") -> bool:
        """Whether facts and tensors are the same, bit for bit."""
        mine, theirs = self.all_tensors(), other.all_tensors()
        same = mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        return same and self.facts == other.facts

    def all_tensors(self) -> dict[str, Tensor]:
        """Factors and base sample."""
        return {**self.tensors, SAMPLE: self.base_sample}


def digest(facts: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over the facts as they are written and the tensors.

    >>> digest("{}", {"x": torch.zeros(1)})[:8]
    'a8e615e6'
    """
    hashed = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"\n{name} {tuple(tensor.shape)} ".encode())
        hashed.update(tensor.contiguous().numpy().tobytes())
    return hashed.hexdigest()
