"""What a GGUF file says of itself: its keys and where its tensors are, read once (ggml-org/ggml, docs/gguf.md).

The reader of the package `gguf` makes a NumPy view of every token and merge: 5 seconds for a vocabulary of 150,000,
each time; transformers calls it four times in one loading. This one takes a third of a second.
"""

import struct
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from abmll.errors import AbmllError
from abmll.models.gguf_parts import MAGIC, GGUFParts, JoinedBytes

VERSIONS = (2, 3)
MOST_STRING, MOST_COUNT = 1 << 27, 1 << 26
"""Bytes of a text, and number of things, from which on a header is damaged."""
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a GGUF file.

    Attributes:
        name: llama.cpp's.
        shape: in the order of torch: the fastest last.
        kind: how its numbers are packed.
        file: that it is in.
        offset: of its first byte there.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    file: JoinedBytes
    offset: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Bytes that it takes in the file."""
        return self.bytes_of(self.elements)

    def bytes_of(self, elements: int) -> int:
        """Bytes that so many of its weights, whole blocks of them, take in the file."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return elements // block * size


@dataclass(frozen=True)
class GGUFHeader:
    """The keys and tensors of a GGUF model.

    Attributes:
        values: key -> value; a list where the file has an array.
        raw: key -> the bytes of key, type and value, as they stand in the file.
        tensors: of all parts.
    """

    values: dict[str, Any]
    raw: dict[str, bytes]
    tensors: tuple[StoredTensor, ...]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.values["general.architecture"])


def read_header(parts: GGUFParts) -> GGUFHeader:
    """Read what the files of a model say of themselves, and check that all their bytes are there.

    Raises:
        AbmllError: one is no GGUF file, damaged, cut off, missing, or in another place than its own; names it.
    """
    headers = [_read_one(file) for file in parts.files]
    if parts.split:
        _check_split(parts, headers)
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise AbmllError(f"{parts.paths[0]}: damaged: a tensor is there twice; get it again")
    if "general.architecture" not in headers[0].values:
        raise AbmllError(f"{parts.paths[0]}: damaged: its header names no architecture; get it again")
    return GGUFHeader(headers[0].values, headers[0].raw, tensors)


def _read_one(file: JoinedBytes) -> GGUFHeader:
    path = file.paths[0]
    try:
        with file.stream() as stream:
            header = _parse(stream, file)
    except AbmllError:
        raise
    except OSError as error:
        raise AbmllError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # damaged bytes are wrong anywhere, in any way
        raise AbmllError(
            f"{path}: cannot be read as a GGUF model: its header is damaged or cut off ({error})"
        ) from error
    _check_size(file, header)
    return header


def _parse(stream: BufferedReader, file: JoinedBytes) -> GGUFHeader:
    if (magic := stream.read(len(MAGIC))) != MAGIC:
        raise AbmllError(f"{file.paths[0]}: not a GGUF file (it starts with {magic!r}); download it again")
    reader = _Reader(stream)
    version, tensors, keys = reader.take("IQQ")
    if version not in VERSIONS:
        raise AbmllError(f"{file.paths[0]}: GGUF of version {version}; versions {VERSIONS} are read")
    values, raw = {}, {}
    for _ in range(_counted(keys)):
        reader.begin()
        name = reader.text()
        values[name] = reader.value(GGUFValueType(reader.take("I")[0]))
        raw[name] = reader.taken()
    stored = [_take_tensor(reader) for _ in range(_counted(tensors))]
    alignment = _alignment(values)
    start = -(-reader.position // alignment) * alignment
    placed = tuple(StoredTensor(name, shape, kind, file, start + offset) for name, shape, kind, offset in stored)
    return GGUFHeader(values, raw, placed)


def _take_tensor(reader: "_Reader") -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name = reader.text()
    (axes,) = reader.take("I")
    if axes > 8:
        raise ValueError(f"{name} has {axes} axes")
    shape = tuple(reversed(reader.take(f"{axes}Q")))
    kind, offset = reader.take("IQ")
    return name, shape, GGMLQuantizationType(kind), offset


class _Reader:
    """Numbers and texts from a stream; what was read since `begin` can be had again."""

    def __init__(self, stream: BufferedReader) -> None:
        self._stream, self.position, self._taken = stream, len(MAGIC), bytearray()

    def begin(self) -> None:
        self._taken = bytearray()

    def taken(self) -> bytes:
        return bytes(self._taken)

    def bytes_(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) != count:
            raise EOFError("it ends too early")
        self.position += count
        self._taken += data
        return data

    def take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self.bytes_(struct.calcsize(f"<{form}")))

    def text(self) -> str:
        (length,) = self.take("Q")
        if length > MOST_STRING:
            raise ValueError(f"a text of {length:,} bytes")
        return self.bytes_(length).decode("utf-8", errors="replace")

    def value(self, kind: GGUFValueType) -> Any:
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])[0]
        if kind == GGUFValueType.STRING:
            return self.text()
        of, count = self.take("IQ")
        of, count = GGUFValueType(of), _counted(count)
        if of == GGUFValueType.ARRAY:
            raise ValueError("an array of arrays")
        if of in _SCALARS:
            return list(self.take(f"{count}{_SCALARS[of]}"))
        return [self.value(of) for _ in range(count)]


def _alignment(values: dict[str, Any]) -> int:
    """Tensors begin at multiples of this."""
    found = values.get("general.alignment", 32)
    if not isinstance(found, int) or not 0 < found <= 1 << 20:
        raise ValueError(f"an alignment of {found!r}")
    return found


def _counted(count: int) -> int:
    if count > MOST_COUNT:
        raise ValueError(f"it speaks of {count:,} entries")
    return count


def _check_size(file: JoinedBytes, header: GGUFHeader) -> None:
    """Refuse files whose tensors end behind their last byte, or that go on far behind their last tensor."""
    end = max((tensor.offset + tensor.stored_bytes for tensor in header.tensors), default=0)
    several = len(file.paths) > 1
    if end > file.size:
        short = f"{end - file.size:,} of its {end:,} bytes are missing"
        if not several:
            raise AbmllError(
                f"{file.paths[0]}: cut off: {short}; get it again, or give all of its parts (a pattern, as 'part*.bin')"
            )
        raise AbmllError(f"{_names(file)}: {short}: {_odd_one(file)}a part is missing or cut off; get it again")
    if several and file.size - end > _alignment(header.values):
        raise AbmllError(
            f"{_names(file)}: {file.size - end:,} bytes more than the {end:,} of the model: one of these files is no "
            "part of it"
        )


def _odd_one(file: JoinedBytes) -> str:
    """Which part is shorter than the others, the last one left aside, which may be."""
    usual = max(file.sizes)
    short = [path.name for path, size in zip(file.paths[:-1], file.sizes[:-1], strict=True) if size < usual]
    return f"{short[0]} is shorter than the others, or " if len(short) == 1 else ""


def _names(file: JoinedBytes) -> str:
    return f"{file.paths[0]} ... {file.paths[-1].name} ({len(file.paths)} parts)"


def _check_split(parts: GGUFParts, headers: list[GGUFHeader]) -> None:
    """Check what each part says of its number, and of the number of parts and tensors."""
    for number, (path, header) in enumerate(zip(parts.paths, headers, strict=True)):
        own, count = (header.values.get(f"split.{key}") for key in ("no", "count"))
        if not isinstance(own, int) or not isinstance(count, int):
            raise AbmllError(f"{path}: not a part of a split GGUF file (it has no split.no and split.count)")
        if count != len(parts.paths):
            raise AbmllError(f"{path}: is one of {count} parts by its header, but here are {len(parts.paths)}")
        if own != number:
            raise AbmllError(
                f"{path}: is part {own + 1} by its header, but stands in the place of part {number + 1}; parts were "
                "renamed, or are of another file"
            )
    total, found = headers[0].values.get("split.tensors.count"), sum(len(header.tensors) for header in headers)
    if total is not None and total != found:
        raise AbmllError(f"{parts.paths[0]}: {total} tensors by its header, but its parts hold {found}; get them again")


def write_keys(header: GGUFHeader, *, arrays: bool, tensors: bool) -> bytes:
    """A GGUF file that says the same of a model, without its weights, for readers of configuration or vocabulary.

    Args:
        header: of the model.
        arrays: keep the arrays of texts and numbers of the vocabulary, which a configuration does not need.
        tensors: name the model's tensors, each of a single number 0.
    """
    keys = {name: raw for name, raw in header.raw.items() if name.split(".")[0] != "split"}
    if not arrays:
        vocabulary = [name for name in keys if name.startswith("tokenizer.") and isinstance(header.values[name], list)]
        keys = {name: raw for name, raw in keys.items() if name not in vocabulary}
        size = f"{header.architecture}.vocab_size"
        tokens = header.values.get("tokenizer.ggml.tokens")
        if tokens is not None and size not in keys:
            keys[size] = _text(size) + struct.pack("<II", GGUFValueType.UINT32, len(tokens))
    named = header.tensors if tensors else ()
    head = MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(named), len(keys)) + b"".join(keys.values())
    one = struct.pack("<IQIQ", 1, 1, GGMLQuantizationType.F32, 0)
    head += b"".join(_text(tensor.name) + one for tensor in named)
    alignment = _alignment(header.values)
    return head + bytes(-len(head) % alignment) + bytes(4)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
