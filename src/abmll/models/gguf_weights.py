"""Dequantising: every tensor of a GGUF model straight into one safetensors file, in the dtype that will be used.

Threads take pieces of 262,144 weights each, small enough for a processor's cache and large enough that NumPy works
without Python's lock; whatever the size of the model, each has a few megabytes in memory.
"""

import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.quants import dequantize
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer, is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from abmll.errors import AbmllError
from abmll.models.gguf_header import GGUFHeader, StoredTensor, write_keys
from abmll.process.threads import default_threads

PIECE = 1 << 18
"""Weights that are dequantised at a time; a whole number of blocks of every kind."""
PIECES = 16
"""Pieces of a unit of work."""
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
"""The dtypes of safetensors."""
Tell = Callable[[int, int], None]
"""Hears of how many weights are done, out of how many."""


@dataclass(frozen=True)
class Destination:
    """Where a tensor goes.

    Attributes:
        tensor: as it is stored.
        name: of the model's parameter.
        shape: of it.
        plain: it is the stored tensor, weight by weight; else transformers' processor of the architecture turns it.
    """

    tensor: StoredTensor
    name: str
    shape: tuple[int, ...]
    plain: bool


@dataclass(frozen=True, eq=False)
class GGUFModel:
    """A GGUF model without its weights, and how they become those of the model.

    Attributes:
        skeleton: the model on the meta device.
        destinations: of its tensors.
        processor: transformers' own, of the architecture.
    """

    skeleton: PreTrainedModel
    destinations: tuple[Destination, ...]
    processor: Any

    @property
    def weights(self) -> int:
        """Number of weights that are written."""
        return sum(prod(to.shape) for to in self.destinations)


def is_direct(header: GGUFHeader) -> bool:
    """Whether each parameter of this architecture is made of one tensor; others are left to transformers' reader."""
    kind = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
    several = kind.perform_fallback_tensor_mapping is not TensorProcessor.perform_fallback_tensor_mapping
    return not several and not is_gguf_arch_supported(header.architecture)


def plan_weights(header: GGUFHeader) -> GGUFModel | None:
    """Work out where each tensor goes; nothing of the weights is read.

    Returns:
        None if the model keeps some weights in float32 whatever its dtype, which is left to transformers' reader.

    Raises:
        AbmllError: the model has a parameter that no tensor is of.
        Exception: whatever transformers raises for an architecture or a configuration that it does not know.
    """
    config = read_config(header)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if skeleton._keep_in_fp32_modules or skeleton._keep_in_fp32_modules_strict:
        return None
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config.to_dict())
    destinations = tuple(_destinations(header, skeleton, processor))
    _check_all_there(header, skeleton, destinations)
    return GGUFModel(skeleton, destinations, processor)


def read_config(header: GGUFHeader) -> Any:
    """The configuration, by transformers' reader of a file that has the keys alone."""
    with _file_of(write_keys(header, arrays=False, tensors=True)) as file:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    config.name_or_path = ""  # not the temporary folder
    return config


def read_tokenizer(header: GGUFHeader) -> PreTrainedTokenizerBase:
    """The tokenizer, by transformers' own converter.

    `AutoTokenizer` alone would read the configuration again by the package `gguf`, 5 seconds for 150,000 tokens.
    """
    with _file_of(write_keys(header, arrays=True, tensors=False)) as vocabulary:
        architecture, description, settings = get_gguf_tokenizer(str(vocabulary))
    rules, more = convert_gguf_tokenizer(architecture, description)
    with _file_of(write_keys(header, arrays=False, tensors=True)) as file:
        options: dict[str, Any] = {**settings, **more, "tokenizer_object": rules, "gguf_file": file.name}
        return AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False, **options)


def write_weights(model: GGUFModel, path: Path, dtype: torch.dtype, tell: Tell = lambda done, of: None) -> None:
    """Write every weight into a safetensors file.

    Args:
        model: of `plan_weights`.
        path: of the file, in a folder that nobody else looks into yet.
        dtype: of the weights.
        tell: hears of progress.

    Raises:
        AbmllError: a tensor's kind is unknown.
        OSError: the disk is full, ...
    """
    offsets = _write_frame(model.destinations, path, dtype)
    units = [unit for to in model.destinations for unit in _units(to)]
    units.sort(key=lambda unit: unit[1] is None, reverse=True)  # whole tensors first, as they take longest
    done, total = 0, model.weights
    with ThreadPoolExecutor(default_threads()) as pool:
        work = [
            pool.submit(_write_unit, model.processor, path, dtype, offsets[to.name], to, part) for to, part in units
        ]
        try:
            for future in as_completed(work):
                done += future.result()
                tell(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _file_of(data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="abmll-") as folder:
        file = Path(folder) / "keys.gguf"
        file.write_bytes(data)
        yield file


def _destinations(header: GGUFHeader, skeleton: PreTrainedModel, processor: Any) -> Iterator[Destination]:
    names = _names(skeleton, processor)
    shapes = {name: tuple(weight.shape) for name, weight in skeleton.state_dict().items()}
    for tensor in header.tensors:
        zeros = np.broadcast_to(np.float32(0), tensor.shape)  # takes no memory
        result = processor.process(weights=zeros, name=tensor.name, tensor_key_mapping=names, parsed_parameters={})
        name = names.get(result.name)
        if name is None or name not in shapes:
            continue  # what llama.cpp computes beforehand, as rotary frequencies
        if tuple(result.weights.shape) != shapes[name]:
            raise AbmllError(
                f"{tensor.file.paths[0]}: {tensor.name} has the shape {tuple(result.weights.shape)}, its model needs "
                f"{shapes[name]}; the file is damaged, or of another architecture than it says"
            )
        yield Destination(tensor, name, shapes[name], plain=result.weights is zeros)


@dataclass(frozen=True)
class _Whole:
    """A model as transformers' map of names asks it, without the modules inside it.

    The map makes a table of all names that gguf knows for each of 300 modules inside a model: 5 of the 15 CPU seconds
    that a model of 500 million weights takes. They add names only where the file is of a part of the model.
    """

    model: PreTrainedModel

    @property
    def config(self) -> Any:
        return self.model.config

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def named_children(self) -> tuple[()]:
        return ()


def _names(skeleton: PreTrainedModel, processor: Any) -> dict[str, str]:
    """Names of tensors in the file -> of the model's."""
    found: dict[str, str] = get_gguf_hf_weights_map(_Whole(skeleton), processor)
    return get_gguf_hf_weights_map(skeleton, processor) if _needed(skeleton) - set(found.values()) else found


def _needed(skeleton: PreTrainedModel) -> set[str]:
    """The tensors that a file has to have."""
    tied = set(skeleton.all_tied_weights_keys) if skeleton.config.tie_word_embeddings else set()
    return set(skeleton.state_dict()) - tied


def _check_all_there(header: GGUFHeader, skeleton: PreTrainedModel, found: Sequence[Destination]) -> None:
    missing = sorted(_needed(skeleton) - {to.name for to in found})
    if missing:
        file = header.tensors[0].file.paths[0] if header.tensors else "the file"
        raise AbmllError(f"{file}: {len(missing)} weights are not in its files, the first is {missing[0]}")


def _write_frame(destinations: Sequence[Destination], path: Path, dtype: torch.dtype) -> dict[str, int]:
    """The header of a safetensors file and room for its tensors; where each begins in the file."""
    sizes = {to.name: prod(to.shape) * dtype.itemsize for to in destinations}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins, end = dict[str, int](), 0
    for to in destinations:
        begins[to.name], end = end, end + sizes[to.name]
        entries[to.name] = {"dtype": NAMES[dtype], "shape": list(to.shape), "data_offsets": [begins[to.name], end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        first = file.tell()
        if hasattr(os, "posix_fallocate") and end:
            with contextlib.suppress(OSError):  # a file system without it: a full disk is then heard of later
                os.posix_fallocate(file.fileno(), first, end)
        file.truncate(first + end)
    return {name: first + begin for name, begin in begins.items()}


def _units(to: Destination) -> Iterator[tuple[Destination, range | None]]:
    if not to.plain:
        yield to, None
        return
    size = PIECE * PIECES
    for begin in range(0, to.tensor.elements, size):
        yield to, range(begin, min(begin + size, to.tensor.elements))


def _write_unit(
    processor: Any, path: Path, dtype: torch.dtype, offset: int, to: Destination, part: range | None
) -> int:
    """Dequantise a part of a tensor, or all of it, and write it where it belongs; gives the number of weights."""
    with path.open("r+b", buffering=0) as file:
        if part is None:
            weights = dequantised(to.tensor, range(to.tensor.elements)).reshape(to.tensor.shape)
            turned = processor.process(weights=weights, name=to.tensor.name, parsed_parameters={})
            _write_at(file, offset, turned.weights, dtype)
            return prod(to.shape)
        for begin in range(part.start, part.stop, PIECE):
            piece = range(begin, min(begin + PIECE, part.stop))
            _write_at(file, offset + begin * dtype.itemsize, dequantised(to.tensor, piece), dtype)
    return len(part)


def dequantised(tensor: StoredTensor, part: range) -> np.ndarray:
    """Some of a tensor's weights in float32, flat: what `gguf.dequantize` makes of their bytes.

    Raises:
        AbmllError: `gguf` does not know their kind.
    """
    raw = tensor.file.read(tensor.offset + tensor.bytes_of(part.start), tensor.bytes_of(len(part)))
    flat = np.frombuffer(raw, dtype=np.uint8)[None]  # one row, so that `gguf` takes it as a whole
    try:
        with np.errstate(all="ignore"):  # weights that are not finite are refused when the model is loaded
            return np.asarray(dequantize(flat, tensor.kind)).reshape(-1)
    except NotImplementedError as error:
        raise AbmllError(
            f"{tensor.file.paths[0]}: {tensor.name} is packed as {tensor.kind.name}, which cannot be read; take "
            "another quantisation of the model"
        ) from error


def _write_at(file: Any, offset: int, weights: np.ndarray, dtype: torch.dtype) -> None:
    converted = torch.from_numpy(np.ascontiguousarray(weights)).to(dtype).reshape(-1)
    left = converted.view(torch.uint8).numpy().data  # numpy has no bfloat16
    file.seek(offset)
    while left:
        left = left[file.write(left) :]
