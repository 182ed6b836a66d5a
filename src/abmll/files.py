"""Files that are whole or absent: written beside, flushed to disk, then renamed."""

import glob
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: a reader sees the old file or the new one, never a part.

    Raises:
        OSError: the disk is full, the folder cannot be written, ...; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())  # mkstemp makes it private, a result file should not be
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text, UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for a JSON value. NaN and infinities are refused: JSON has none (ValueError)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def without_home(path: str) -> str:
    """A path below the home folder as `~/...`, anything else as it is: results are shared, user names are not.

    >>> without_home(str(Path.home() / "models" / "mine")), without_home("org/name")
    ('~/models/mine', 'org/name')
    """
    try:
        home = Path.home()
        below = Path(path).relative_to(home)
    except (RuntimeError, ValueError):  # no home; not below it
        return path
    return path if home == Path(home.anchor) else (Path("~") / below).as_posix()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


ABANDONED = 24 * 3600.0
"""Seconds after which a half-written folder is no longer somebody's work."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows takes these for devices


def check_name(kind: str, name: str) -> str:
    """A name that becomes a folder: returned if it can be one on every system, and cannot leave its place.

    Raises:
        AbmllError: it is empty, too long, begins with a dot, holds a separator, or is a device's name on Windows.

    >>> check_name("task", "my-task.v2")
    'my-task.v2'
    """
    if not _NAME.fullmatch(name) or name.endswith(".") or is_device(name):
        raise AbmllError(
            f"{kind} name {name[:100]!r}: up to 80 of a-z, A-Z, 0-9, '-', '_' and '.', the first a letter or digit, "
            "the last no dot, and not a device's name such as CON"
        )
    return name


def is_device(name: str) -> bool:
    """Whether Windows takes a name, whatever its extension, for a device: a file of it cannot be written there.

    >>> is_device("NUL.jsonl"), is_device("nullable")
    (True, False)
    """
    return _DEVICES.fullmatch(name) is not None


@contextmanager
def folder_beside(folder: Path) -> Iterator[Path]:
    """A new empty folder beside `folder`, which takes its place, whole, when the block ends without an error.

    Everything in it is flushed to disk first. Between two renames the old folder is called `.NAME.old`; `recover` puts
    it back if the process ended just there.

    Raises:
        OSError: the disk is full, the place cannot be written, ...; `folder` is then as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    _remove_abandoned(folder)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        yield beside
        _sync_tree(beside)
        beside.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        _swap(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def recover(folder: Path) -> None:
    """Undo a replacement of `folder` that was stopped between its two renames."""
    old = _old(folder)
    if not folder.exists() and old.is_dir():
        old.rename(folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _swap(beside: Path, folder: Path) -> None:
    old = _old(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        beside.rename(folder)
    except BaseException:
        recover(folder)
        raise
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _remove_abandoned(folder: Path) -> None:
    for part in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):
        if part.is_dir() and time.time() - part.stat().st_mtime > ABANDONED:
            shutil.rmtree(part, ignore_errors=True)
