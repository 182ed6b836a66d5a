"""One process at a time in a folder, by a lock that the system drops when its owner dies."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from abmll.errors import AbmllError
from abmll.files import read_sealed_json, tidy, write_sealed_json

log = logging.getLogger(__name__)

LOCK, OWNER = ".lock", ".owner.json"


class FolderLock:
    """The right to write into a folder.

    The lock is the system's own on the file `.lock` (`flock`), so it goes with the process that holds it, however that
    ends. `.owner.json` says who holds it, and is there only while somebody does, or after he was killed.

    Args:
        folder: made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK, timeout=0)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock in the block; what dead owners left half written is removed first.

        Whoever holds it already may take it again.

        Raises:
            AbmllError: another process holds it; says which, where, and since when. Or it is no folder.
            OSError: the folder cannot be written, ...
        """
        if self._lock.is_locked:
            yield
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise AbmllError(f"{self.folder}: a file is there; give a folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise AbmllError(
                f"{self.folder} is in use by {self._owner()}. Wait for it, stop it, or choose another folder"
            ) from error
        try:
            self._take_over()
            yield
        finally:
            (self.folder / OWNER).unlink(missing_ok=True)
            self._lock.release()

    def _take_over(self) -> None:
        if (self.folder / OWNER).exists():
            log.info("%s: taken over from %s, which ended without a word", self.folder, self._owner())
        for path in tidy(self.folder):
            log.info("%s: half written by a process that ended, removed", path)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_sealed_json(self.folder / OWNER, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})

    def _owner(self) -> str:
        with suppress(AbmllError, KeyError):
            found = read_sealed_json(self.folder / OWNER)
            return f"process {found['pid']} on {found['host']} (since {found['since']})"
        return "another process"
