"""The files of a GGUF model: one, the parts of llama.cpp's split, or pieces of bytes that belong behind each other."""

import glob
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from abmll.errors import AbmllError
from abmll.files import open_regular

MAGIC = b"GGUF"
NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d+)-of-(?P<count>\d+)(?P<after>.*)", re.DOTALL)
"""`NAME-00001-of-00003.gguf`, as llama.cpp's split names its parts, and `part-00001-of-00018`."""
MOST_SHOWN = 5


@dataclass(frozen=True)
class GGUFParts:
    """The files that a GGUF model is stored in, in their order.

    Attributes:
        paths: one file or more.
        split: each is a GGUF file with a header of its own (llama.cpp's split); else their bytes make one GGUF file.
    """

    paths: tuple[Path, ...]
    split: bool = False

    @property
    def name(self) -> str:
        """The name of the first one, without its ending."""
        return self.paths[0].stem

    @property
    def files(self) -> tuple["JoinedBytes", ...]:
        """The GGUF files that they are: one, or one a part."""
        return tuple(JoinedBytes((path,)) for path in self.paths) if self.split else (JoinedBytes(self.paths),)


class JoinedBytes:
    """Files read as if they were one.

    Args:
        paths: in the order of their bytes.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.sizes = tuple(path.stat().st_size for path in paths)

    @property
    def size(self) -> int:
        """Number of bytes."""
        return sum(self.sizes)

    def read(self, offset: int, count: int) -> bytearray:
        """So many bytes from there on; fewer where the last file ends. Threads may call it at the same time."""
        out = bytearray()
        for path, size in zip(self.paths, self.sizes, strict=True):
            if offset < size and len(out) < count:
                with path.open("rb", buffering=0) as file:
                    file.seek(offset)
                    out += _read_all(file, min(count - len(out), size - offset))
            offset = max(0, offset - size)
        return out

    def stream(self) -> io.BufferedReader:
        """The bytes as a file that is read from its beginning."""
        return io.BufferedReader(_Stream(self), buffer_size=1 << 20)


class _Stream(io.RawIOBase):
    def __init__(self, joined: JoinedBytes) -> None:
        self._joined, self._offset = joined, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        found = self._joined.read(self._offset, len(buffer))
        buffer[: len(found)] = found
        self._offset += len(found)
        return len(found)


def _read_all(file: io.FileIO, count: int) -> bytes:
    blocks = []
    while count and (block := file.read(count)):
        blocks.append(block)
        count -= len(block)
    return b"".join(blocks)


def find_parts(source: str) -> GGUFParts | None:
    """The files on this machine that a source means, if it means GGUF files.

    Args:
        source: a file; one of several whose names end in `00001-of-00003` or the like, which brings the others; or a
            pattern (`data/part*.bin`), whose files are joined in the order of the numbers in their names.

    Returns:
        None if there is no such file, or it is of another kind.

    Raises:
        AbmllError: a part is missing, there twice, or not what its name says; names it.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if (found := NUMBERED.fullmatch(path.name)) is not None:
            return _of_numbered(path, found)
        return GGUFParts((path,)) if path.suffix == ".gguf" or begins_gguf(path) else None
    if glob.has_magic(source) and not path.exists():
        return _of_pattern(source, path)
    return None


def part_names(name: str) -> tuple[str, ...]:
    """The names of all parts of which this is one; itself if it names no part.

    >>> part_names("m-00002-of-00003.gguf")
    ('m-00001-of-00003.gguf', 'm-00002-of-00003.gguf', 'm-00003-of-00003.gguf')
    """
    found = NUMBERED.fullmatch(name)
    if found is None:
        return (name,)
    before, after, count = found["before"], found["after"], int(found["count"])
    width = len(found["number"])
    return tuple(f"{before}{number:0{width}d}-of-{found['count']}{after}" for number in range(1, count + 1))


def of_paths(paths: Sequence[Path]) -> GGUFParts:
    """Files in their order, each a GGUF file of llama.cpp's split, or pieces of one.

    Raises:
        AbmllError: the first one does not begin a GGUF file.
    """
    if not begins_gguf(paths[0]):
        raise AbmllError(
            f"{paths[0]}: not a GGUF file, nor the first part of one (it starts with {_first_bytes(paths[0])!r}); "
            "check the order of the parts, or get it again"
        )
    return GGUFParts(tuple(paths), split=len(paths) > 1 and begins_gguf(paths[1]))


def begins_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    return _first_bytes(path) == MAGIC


def _first_bytes(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(len(MAGIC))


def _of_numbered(path: Path, found: re.Match[str]) -> GGUFParts | None:
    if path.suffix == ".safetensors":
        return None  # transformers' own naming of shards
    if not 1 <= int(found["number"]) <= int(found["count"]):
        raise AbmllError(f"{path}: calls itself part {found['number']} of {found['count']}, which cannot be")
    paths = [path.with_name(name) for name in part_names(path.name)]
    if missing := [other.name for other in paths if not other.is_file()]:
        raise AbmllError(f"{path}: of its {len(paths)} parts {_shown(missing)} {_are(missing)} missing beside it")
    return of_paths(paths)


def _of_pattern(source: str, path: Path) -> GGUFParts:
    paths = sorted((Path(name) for name in glob.glob(str(path))), key=lambda p: _numbers_apart(p.name))  # noqa: PTH207
    paths = [found for found in paths if found.is_file()]
    if not paths:
        raise AbmllError(f"model {source!r}: no file has such a name; give the parts of a GGUF file")
    if (found := NUMBERED.fullmatch(paths[0].name)) is not None:
        names = {part.name for part in paths}
        if others := sorted(names - set(part_names(paths[0].name))):
            raise AbmllError(f"model {source!r}: {_shown(others)} {_are(others)} no part of {paths[0].name}'s file")
        return _of_numbered(paths[0], found) or of_paths(paths)
    _check_numbers(source, paths)
    return of_paths(paths)


def _numbers_apart(name: str) -> list[tuple[int, str]]:
    """What names are sorted by, so that part2 comes before part10."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def _check_numbers(source: str, paths: Sequence[Path]) -> None:
    """Refuse parts that are numbered with a gap: a part is missing there."""
    pieces = [re.split(r"(\d+)", path.name) for path in paths]
    if len({len(piece) for piece in pieces}) != 1:
        return
    differing = [place for place in range(len(pieces[0])) if len({piece[place] for piece in pieces}) > 1]
    if len(differing) != 1 or not pieces[0][differing[0]].isdecimal():
        return
    (place,) = differing
    there = [int(piece[place]) for piece in pieces]
    if twice := sorted({number for number in there if there.count(number) > 1}):
        raise AbmllError(f"model {source!r}: two files are called part {twice[0]}")
    if missing := sorted(set(range(min(1, *there), max(there))) - set(there)):
        width = len(pieces[0][place])
        names = ["".join([*pieces[0][:place], f"{number:0{width}d}", *pieces[0][place + 1 :]]) for number in missing]
        raise AbmllError(f"model {source!r}: {_shown(names)} {_are(names)} missing among the {len(paths)} parts")


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MOST_SHOWN} more" if len(listed) > MOST_SHOWN else ""
    return ", ".join(listed[:MOST_SHOWN]) + more


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
