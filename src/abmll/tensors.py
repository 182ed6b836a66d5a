"""Safetensors files from anywhere, checked before their data is used.

safetensors itself refuses truncated and overlapping files. It does not refuse a name that is given twice (the last one
wins), NaN, a name or shape that nobody asked for, or a header of 90 MB. The functions here do.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from abmll.errors import AbmllError
from abmll.files import strict_json

MOST_HEADER = 8 << 20
"""Bytes of a header: a hundred thousand tensors fit, a million do not."""
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_SHOWN = 3


class Entry(NamedTuple):
    """One tensor as a header announces it."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: texts by name, and the tensors that its data holds."""

    metadata: dict[str, str]
    entries: dict[str, Entry]


def read_header(path: Path) -> Header:
    """The header of a safetensors file; no tensor is read, and data that the file does not hold is refused.

    Raises:
        AbmllError: the file is missing, or is not one well-formed safetensors file; says why.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise AbmllError(f"{path}: no file; a folder, a pipe or a device")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MOST_HEADER, size - 8):
                raise AbmllError(f"{path}: no safetensors file: its header would take {length:,} of {size:,} bytes")
            text = file.read(length)
    except OSError as error:
        raise AbmllError(f"{path}: cannot be read ({error.strerror})") from error
    return _parse(path, text, size - 8 - length)


def read_tensors(
    path: Path, expected: Mapping[str, tuple[int, ...]] | None = None, dtypes: Iterable[str] = ("F32",)
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Args:
        path: the file.
        expected: name -> shape of every tensor that must be there, and no other; None takes any.
        dtypes: safetensors' names of the dtypes that are taken.

    Raises:
        AbmllError: the file is damaged, or holds other tensors than expected, or a number that is not finite; names the
            file and the first tensors that are wrong.
    """
    entries = read_header(path).entries
    if expected is not None:
        check_names(path, entries, expected)
        other = [name for name, shape in expected.items() if entries[name].shape != shape]
        wrong = [f"{name} is {list(entries[name].shape)}, not {list(expected[name])}" for name in other]
        if wrong:
            raise AbmllError(f"{path}: wrong shapes: {_some(wrong)}")
    strange = [f"{name} is {entry.dtype}" for name, entry in entries.items() if entry.dtype not in set(dtypes)]
    if strange:
        raise AbmllError(f"{path}: wrong dtypes: {_some(strange)}; expected {' or '.join(dtypes)}")
    try:
        tensors: dict[str, Tensor] = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise AbmllError(f"{path}: cannot be read ({error})") from error
    _check_finite(path, tensors)
    return tensors


def check_names(path: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    """Refuse names that are missing or too many.

    Raises:
        AbmllError: names the file and the first of them.
    """
    there, wanted = set(found), set(expected)
    faults = []
    if missing := sorted(wanted - there):
        faults.append(f"{len(missing)} missing: {_some(missing)}")
    if extra := sorted(there - wanted):
        faults.append(f"{len(extra)} unexpected: {_some(extra)}")
    if faults:
        raise AbmllError(f"{path}: not the tensors of this adapter: {'; '.join(faults)}")


def _parse(path: Path, text: bytes, data: int) -> Header:
    """The header's JSON as values, checked against the `data` bytes that follow it."""
    try:
        raw = strict_json(text)
        if not isinstance(raw, dict):
            raise ValueError("it is no object")
        metadata = raw.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("its metadata is not a table of texts")
        spans = {name: _span(name, entry) for name, entry in raw.items()}
        _check_spans([span for _, span in spans.values()], data)
    except ValueError as error:
        raise AbmllError(f"{path}: no safetensors file: {' '.join(str(error).split())[:300]}") from error
    return Header(metadata, {name: entry for name, (entry, _) in spans.items()})


def _span(name: str, entry: Any) -> tuple[Entry, tuple[int, int]]:
    """One tensor's dtype and shape, and the bytes it says it takes."""
    label = repr(name[:80])
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{label} has no dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise ValueError(f"{label} has the dtype {str(dtype)[:20]!r}")
    if not (_naturals(shape) and len(shape) <= 8 and _naturals(span) and len(span) == 2):
        raise ValueError(f"{label} has an impossible shape or place")
    if span[1] - span[0] != math.prod(shape) * _SIZES[dtype]:
        raise ValueError(f"{label}: {span[1] - span[0]:,} bytes cannot hold {dtype} {str(shape)[:80]}")
    return Entry(dtype, tuple(shape)), (span[0], span[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _check_spans(spans: list[tuple[int, int]], data: int) -> None:
    """Tensors must fill the data one after the other, without gap or overlap."""
    place = 0
    for begin, end in sorted(spans):
        if begin != place:
            raise ValueError("its tensors overlap, or leave gaps")
        place = end
    if place != data:
        raise ValueError(f"its tensors take {place:,} bytes, the file holds {data:,}")


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if bad:
        raise AbmllError(f"{path}: NaN or infinity in {_some(bad)}")


def _some(things: list[str]) -> str:
    return ", ".join(thing[:160] for thing in things[:_SHOWN]) + (" ..." if len(things) > _SHOWN else "")


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; of the same values always the same bytes, which safetensors' own order of metadata is not.

    >>> one = to_bytes({"a": torch.ones(2)}, {"x": "1", "y": "2"})
    >>> one == to_bytes({"a": torch.ones(2)}, {"y": "2", "x": "1"})
    True
    """
    data: bytes = save(dict(tensors), metadata=dict(metadata))
    begin = 8 + int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8:begin]), "__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(dict(sorted(header.items())), separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[begin:]


def portable(tensor: Tensor) -> Tensor:
    """A tensor as it is written: float32, contiguous, on the CPU; a view where it is that already."""
    return tensor.detach().to("cpu", torch.float32).contiguous()
