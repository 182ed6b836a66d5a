"""Many small files as few: a machine may give back only so many, each only so large."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from abmll.errors import AbmllError
from abmll.files import write_bytes

LARGEST = 15 * 2**20
"""Bytes of a bundle."""


class Bundles:
    """`results-1.tar`, `results-2.tar`, ... in a folder; whole after each file that is added.

    Args:
        folder: where they are.
        largest: bytes after which another one is begun.
    """

    def __init__(self, folder: Path, largest: int = LARGEST) -> None:
        self.folder, self.largest = folder, largest

    def add(self, name: str, data: bytes) -> None:
        """Add a file, or replace one of that name."""
        bundle = next((p for p in self.paths() if name in read_bundle(p)), None) or self._with_room(len(data))
        files = read_bundle(bundle) if bundle.exists() else {}
        write_bytes(bundle, _as_tar({**files, name: data}))

    def names(self) -> set[str]:
        """Names of all the files."""
        return {name for path in self.paths() for name in read_bundle(path)}

    def paths(self) -> list[Path]:
        """The bundles that are there."""
        return sorted(self.folder.glob("results-*.tar"), key=lambda p: int(p.stem.removeprefix("results-")))

    def _with_room(self, size: int) -> Path:
        last = self.paths()[-1:]
        if last and last[0].stat().st_size + size + 2048 <= self.largest:
            return last[0]
        return self.folder / f"results-{len(self.paths()) + 1}.tar"


def read_bundle(path: Path) -> dict[str, bytes]:
    """Names and contents of a bundle's files.

    Raises:
        AbmllError: it is damaged, or holds something else than plain files with plain names.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
            if strange := [m.name for m in members if not m.isfile() or Path(m.name).name != m.name]:
                raise AbmllError(f"{path}: {strange[0]!r} is no plain file with a plain name")
            return {m.name: data.read() for m in members if (data := archive.extractfile(m)) is not None}
    except (OSError, tarfile.TarError) as error:
        raise AbmllError(f"{path}: cannot be read ({error})") from error


def unpack(bundles: list[Path], folder: Path) -> list[str]:
    """Write the files of bundles into a folder; a file that is there already is replaced. Returns their names."""
    names = []
    for bundle in bundles:
        for name, data in read_bundle(bundle).items():
            write_bytes(folder / name, data)
            names.append(name)
    return names


def _as_tar(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()
