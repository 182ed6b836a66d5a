"""Signals that ask a process to stop, and where in its work it does.

The command line runs inside `listening()`. Where nothing needs to be saved (loading a model) SIGINT, SIGTERM, SIGUSR1
and SIGUSR2 raise `Stopped` at once. Inside `gently()` the handler only sets a flag; the work there calls
`stop_if_asked()` between inner steps and between batches of questions, and whoever holds state catches `Stopped`,
saves the state and raises it on. A second signal ends the process at once, whatever it is doing: every file is whole or
absent at any time. What comes within a second of the first is the same request: terminals, `timeout` and schedulers
send a signal to a process and to the one that started it, which passes it on.

Without `listening()` (the library in a notebook, say) there is no handler, the flag is never set, and Ctrl-C is
Python's own KeyboardInterrupt.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
ONE_REQUEST = 1.0
"""Seconds within which several signals are one request to stop."""
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class Stopped(BaseException):
    """A signal asked for a stop, and what was worth keeping is on disk. No `Exception`: nothing swallows it by chance.

    Attributes:
        signal: its number.
        saved: what was saved, for the message; may be empty.

    >>> Stopped(signal.SIGTERM, "step 3 is saved").exit_code
    143
    """

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{': ' if saved else ''}{saved}")
        self.signal, self.saved = number, saved

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it."""
        return 128 + self.signal


class _State:
    """One per process, as signal handlers are."""

    asked = 0
    since = 0.0
    gentle = 0


@contextmanager
def listening() -> Iterator[None]:
    """Take SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 as requests to stop, until the block ends.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    _State.asked = 0
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.asked = 0


@contextmanager
def gently() -> Iterator[None]:
    """Inside, a stop waits for the next `stop_if_asked`."""
    _State.gentle += 1
    try:
        yield
    finally:
        _State.gentle -= 1


def asked() -> int:
    """The number of the signal that asked for a stop; 0 for none.

    >>> asked()
    0
    """
    return _State.asked


def is_gentle() -> bool:
    """Whether a stop waits for the next `stop_if_asked` here."""
    return _State.gentle > 0


def stop_if_asked() -> None:
    """Return, unless a signal came since `listening` began.

    Raises:
        Stopped: a signal came.
    """
    if _State.asked:
        raise Stopped(_State.asked)


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.asked and time.monotonic() - _State.since < ONE_REQUEST:
        return
    if _State.asked:
        os.write(2, (SHOW_CURSOR if sys.stderr.isatty() else b"") + b"\nstopped at once\n")
        os._exit(128 + number)
    _State.asked, _State.since = number, time.monotonic()
    if not _State.gentle:
        raise Stopped(number)
