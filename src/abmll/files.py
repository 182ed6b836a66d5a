"""Files that are whole or absent: written beside, flushed to disk, then renamed."""

import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from abmll.errors import AbmllError, NonFiniteError

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


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for a JSON value.

    Raises:
        NonFiniteError: a number in it is NaN or infinite, which JSON has not; names the file and the entry.
    """
    refuse_non_finite(path, value)
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def refuse_non_finite(path: Path, value: Any) -> None:
    """Refuse a JSON value that holds NaN or an infinity.

    Raises:
        NonFiniteError: names the file and the first such entry.

    >>> refuse_non_finite(Path("scores.json"), {"abmll": [{"nll": float("nan")}]})
    Traceback (most recent call last):
    ...
    abmll.errors.NonFiniteError: scores.json: abmll.0.nll is nan, not a finite number; nothing was written
    """
    for entry, number in _numbers(value, ""):
        if not math.isfinite(number):
            name = entry or "its value"
            raise NonFiniteError(f"{path}: {name} is {number}, not a finite number; nothing was written")


def _numbers(value: Any, entry: str) -> Iterator[tuple[str, float]]:
    """Every float in a JSON value, with the names and places that lead to it."""
    if isinstance(value, float):
        yield entry, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(part, f"{entry}.{key}" if entry else str(key))


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


SEAL = "sha256"


def seal(text: str) -> str:
    """SHA-256 of a text, in hexadecimal: kept beside it, it tells whether the text is still the same."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_sealed_json(path: Path, value: dict[str, Any], of: str | None = None) -> None:
    """`write_json` of an object, with a SHA-256 as its last entry: of everything else in it, and of what it belongs to.

    Args:
        path: the file.
        value: the object.
        of: what the file belongs to, which is not written; None: the file's name. So a whole file in the place of
            another one is noticed.
    """
    refuse_non_finite(path, value)
    write_json(path, {**value, SEAL: _seals(path, value, of)[0]})


def read_sealed_json(path: Path, of: str | None = None, advice: str = "delete it") -> dict[str, Any]:
    """The inverse of `write_sealed_json`; a file without a seal, from an earlier version, is taken as it is.

    Raises:
        AbmllError: it is missing, no JSON object, or not what was written; ends in `advice`.
    """
    return read_and_tell_seal(path, of, advice)[0]


def read_and_tell_seal(path: Path, of: str | None = None, advice: str = "delete it") -> tuple[dict[str, Any], bool]:
    """As `read_sealed_json`; and whether the file has a seal at all.

    A SHA-256 of the content alone, as earlier versions wrote, is a seal too.
    """
    try:
        check_regular(path)
        value = json.loads(path.read_bytes())
    except AbmllError:
        raise
    except OSError as error:
        raise AbmllError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise AbmllError(f"{path}: cannot be read ({str(error)[:80]}); the file is damaged, {advice}") from error
    if not isinstance(value, dict):
        raise AbmllError(f"{path}: expected an object, found {type(value).__name__}; {advice}")
    expected = value.pop(SEAL, None)
    if expected is None and not _is_unsealed(path, value, of):
        raise AbmllError(f"{path}: damaged (its SHA-256 has another name); {advice}")
    if expected is not None and expected not in _seals(path, value, of):
        raise AbmllError(
            f"{path}: damaged or edited (its SHA-256 is not the one it was written with), or it belongs elsewhere; "
            f"{advice}"
        )
    return value, expected is not None


def _is_unsealed(path: Path, value: dict[str, Any], of: str | None) -> bool:
    """Whether a file without a seal never had one: no entry is the seal of the others."""
    texts = {name: entry for name, entry in value.items() if isinstance(entry, str) and len(entry) == 64}
    return not any(
        entry in _seals(path, {other: part for other, part in value.items() if other != name}, of)
        for name, entry in texts.items()
    )


def _seals(path: Path, value: dict[str, Any], of: str | None) -> tuple[str, ...]:
    """The seal of an object, and that of earlier versions."""
    try:
        content = json.dumps(value, sort_keys=True, allow_nan=False)
        return seal(f"{of or path.name}\n{content}"), seal(content)
    except ValueError:  # NaN, an infinity or half of a surrogate pair, none of which was ever written
        return ()


def without_home(path: str) -> str:
    """A path below the home folder as `~/...`, anything else as it is: results are shared, user names are not.

    The path may stand after the name of a source of tasks and a colon.

    >>> without_home(str(Path.home() / "models" / "mine")), without_home("org/name")
    ('~/models/mine', 'org/name')
    >>> without_home(f"sqlite:{Path.home() / 'quiz.db'}")
    'sqlite:~/quiz.db'
    """
    name, colon, rest = path.partition(":")
    if colon and name.isidentifier() and len(name) > 1:  # one letter is a drive
        return f"{name}:{without_home(rest)}"
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


def tidy(folder: Path) -> list[Path]:
    """Remove what processes that died in the middle of a write left below `folder`, and undo their half replacements.

    Only for who has `folder` for himself: what others are writing looks just the same.

    Returns:
        What was removed or put back.
    """
    found = []
    for part in sorted(folder.rglob(f".*{PART}")):
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
        found.append(part)
    for old in sorted(folder.rglob(f".*{OLD}")):
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
