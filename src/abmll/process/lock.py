"""One process at a time in a folder, by a lock that the system drops when its owner dies."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from abmll.errors import AbmllError
from abmll.files import read_sealed_json, tidy, write_sealed_json
from abmll.process.agreement import agree_on_failure
from abmll.process.world import World

log = logging.getLogger(__name__)

LOCK, OWNER = ".lock", ".owner.json"


class InUseError(AbmllError):
    """Another process has the folder."""


@contextmanager
def locked_folder(
    folder: Path,
    world: World = World(),  # noqa: B008 - frozen
    *,
    wait: bool = False,
    deep: bool = True,
) -> Iterator[None]:
    """Keep other processes out of a folder in the block; what dead owners left half written is removed first.

    The lock is the system's own on the file `.lock` (`flock`), so it goes with its process, however that ends.
    `.owner.json` names the process, and is there only in the block, or after the process was killed. A folder is
    locked once: a second block in the same process is refused, as it would be in another one.

    Args:
        folder: made if it is missing.
        world: the ranks of one job are one owner: the main one takes the lock, the others wait for it.
        wait: wait for another process that has it, however long that takes; else refuse.
        deep: the folders below are no one else's; else they have locks of their own, and are left alone.

    Raises:
        InUseError: it is locked; says by which process, where, and since when. On other ranks an AbmllError.
        AbmllError: it is no folder. On every rank.
        OSError: the folder cannot be written, ...
    """
    with ExitStack() as stack:
        with agree_on_failure(world):
            if world.is_main:
                stack.enter_context(_locked(folder, wait, deep))
        yield


@contextmanager
def _locked(folder: Path, wait: bool, deep: bool) -> Iterator[None]:
    if folder.exists() and not folder.is_dir():
        raise AbmllError(f"{folder}: a file is there; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        if not wait:
            raise InUseError(
                f"{folder} is in use by {_owner(folder)}. Wait for it, stop it, or choose another folder"
            ) from error
        log.info("%s is in use by %s; waiting for it", folder, _owner(folder))
        lock.acquire(timeout=-1)
    try:
        _take_over(folder, deep)
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _take_over(folder: Path, deep: bool) -> None:
    if (folder / OWNER).exists():
        log.info("%s: taken over from %s, which ended without a word", folder, _owner(folder))
    for path in tidy(folder, deep=deep):
        log.info("%s: half written by a process that ended, removed", path)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    write_sealed_json(folder / OWNER, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})


def _owner(folder: Path) -> str:
    with suppress(AbmllError, KeyError):
        owner = read_sealed_json(folder / OWNER)
        return f"process {owner['pid']} on {owner['host']} (since {owner['since']})"
    return "another process"
