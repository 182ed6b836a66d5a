"""Stopping before the time is over, by the library's own machinery: state is saved, files are whole."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from abmll.process.stopping import listening


def since_start() -> float:
    """Seconds since this process began, its imports included."""
    return time.time() - psutil.Process().create_time()


@contextmanager
def deadline(minutes: float | None) -> Iterator[None]:
    """Ask this process to stop when it is so old; inside, `abmll.process.stopping.Stopped` comes out at a safe place.

    None: it is never asked to.
    """
    with listening():
        if minutes is None:
            yield
            return
        left = max(0.0, 60 * minutes - since_start())
        timer = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
