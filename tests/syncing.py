"""Files are not waited for until they are on the disk: that guards against a loss of power, which no test has.

A process that is killed loses nothing that it gave to the system. Three files of tests, of methods, training and
comparisons, waited 5,842 times, some milliseconds each. What a full or failing disk does is tested with the real call:
`monkeypatch.setattr(os, "fsync", FSYNC)`.
"""

import os
from typing import Protocol


class HasFileno(Protocol):
    def fileno(self) -> int: ...


FSYNC = os.fsync


def without_waiting(file: int | HasFileno) -> None:
    """In place of `os.fsync`: what is no open file is refused as there."""
    os.fstat(file if isinstance(file, int) else file.fileno())
