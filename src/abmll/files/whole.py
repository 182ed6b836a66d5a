"""Files and folders that are whole or absent: written beside, flushed to disk, then renamed."""

import errno
import glob
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from abmll.errors import AbmllError

PART, OLD = ".abmll-part", ".abmll-old"
"""Ends of the names of what is being written, and of what is being replaced: `tidy` removes whatever has them, so no
file of anybody else may."""


_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A file opened for reading; never one that somebody must write to first, or that has no end.

    Raises:
        AbmllError: it is missing, a folder, a pipe, a socket or a device, or cannot be read.
    """
    try:
        check_regular(path)
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, AbmllError):
            raise
        raise AbmllError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    with file:
        yield file


def check_regular(path: Path) -> None:
    """Refuse what is there and no file (nor a folder, about which others say more).

    Raises:
        AbmllError: it is a pipe, a socket or a device, from which nothing is read.
        OSError, ValueError: it is missing, or no path.
    """
    kind = _KINDS.get(stat.S_IFMT(path.stat().st_mode))
    if kind:
        raise AbmllError(f"{path}: {kind}, which is not read; put what it gives into a file, and give that")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: a reader sees the old file or the new one, never a part.

    Raises:
        OSError: the disk is full, the folder cannot be written, ...; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    part = Path(name)
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside that names no file (a write to an open one that finds the disk full) names this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_WAY = (*NO_ROOM, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR)


def explain_failure(error: OSError) -> str | None:
    """What an error of the file system means for the user; None if it is of another kind.

    >>> explain_failure(OSError(errno.ENOSPC, "No space left on device", "runs/mine/state.json"))
    'runs/mine/state.json: No space left on device. Make room'
    """
    if error.errno not in NO_WAY:
        return None
    advice = {errno.EROFS: "Write to another place", errno.EIO: "The disk or its connection fails: look at it"}
    advice |= dict.fromkeys(NO_ROOM, "Make room")
    return f"{error.filename or 'a file'}: {error.strerror}. {advice.get(error.errno, 'Look at the place given')}"


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; if that fails, what was written of it is taken away again.

    Raises:
        OSError: the disk is full, ...
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("ab", buffering=0) as file:
        end, left = file.tell(), memoryview(f"{line}\n".encode())
        try:
            while left:
                left = left[file.write(left) :]
        except BaseException:
            file.truncate(end)
            raise


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


@contextmanager
def folder_beside(folder: Path) -> Iterator[Path]:
    """A new empty folder beside `folder`, which takes its place, whole, when the block ends without an error.

    Everything in it is flushed to disk first. Between two renames the old folder is called `.NAME.abmll-old`; `recover`
    puts it back if the process ended just there.

    Raises:
        OSError: the disk is full, the place cannot be written, ...; `folder` is then as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    _remove_abandoned(folder)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=PART))
    try:
        yield beside
        _sync_tree(beside)
        beside.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        _swap(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder that at no moment is there in part: it loses its name first. `tidy` removes what a kill leaves.

    Raises:
        OSError: it cannot be removed.
    """
    nameless = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}{PART}")
    folder.rename(nameless)
    shutil.rmtree(nameless)


@contextmanager
def file_beside(path: Path) -> Iterator[Path]:
    """A new empty file beside `path`, to be written in any way; it takes the place of `path` when the block ends.

    Raises:
        OSError: the disk is full, the folder cannot be written, ...; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def recover(folder: Path) -> None:
    """Undo a replacement of `folder` that was stopped between its two renames."""
    old = _old(folder)
    if not folder.exists() and old.is_dir():
        old.rename(folder)


def tidy(folder: Path, *, deep: bool = True) -> list[Path]:
    """Remove what processes that died in the middle of a write left below `folder`, and undo their half replacements.

    Only for who has `folder` for himself: what others are writing looks just the same.

    Args:
        folder: where to look.
        deep: in the folders below it, too.

    Returns:
        What was removed or put back.
    """
    found, below = [], "**/" if deep else ""
    for part in sorted(folder.glob(f"{below}.*{PART}")):
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
        found.append(part)
    for old in sorted(folder.glob(f"{below}.*{OLD}")):
        if old.is_dir():
            recover(replaced_by(old))
            shutil.rmtree(old, ignore_errors=True)
            found.append(old)
    return found


def replaced_by(old: Path) -> Path:
    """The folder that an old one has made room for.

    >>> replaced_by(Path("runs/.mine.abmll-old")).as_posix()
    'runs/mine'
    """
    return old.with_name(old.name.removeprefix(".").removesuffix(OLD))


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{OLD}")


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
    for part in folder.parent.glob(f".{glob.escape(folder.name)}.*{PART}"):
        if part.is_dir() and time.time() - part.stat().st_mtime > ABANDONED:
            shutil.rmtree(part, ignore_errors=True)
