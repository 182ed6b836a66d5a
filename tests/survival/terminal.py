"""Ctrl-C as a user presses it: the real command in a terminal of its own."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def press(place: Path, arguments: list[str], after: str, seconds: float, keys: bytes = b"\x03") -> tuple[int, str]:
    """Run `abmll ARGUMENTS` in a pseudo-terminal, and press keys some time after it said something.

    Returns:
        Its exit code, and everything that stood on the terminal.
    """
    main, terminal = pty.openpty()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "120"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    process = subprocess.Popen(
        [sys.executable, "-m", "abmll", *arguments],
        cwd=place,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=_take_terminal,
    )
    os.close(terminal)
    shown, pressed, end = b"", False, 0.0
    while True:
        ready = select.select([main], [], [], 0.05)[0]
        try:
            shown += os.read(main, 65536) if ready else b""
        except OSError:  # the other side is closed
            break
        if not end and after.encode() in shown:
            end = time.monotonic() + seconds
        if end and not pressed and time.monotonic() > end:
            os.write(main, keys)
            pressed = True
    os.close(main)
    return process.wait(), shown.decode(errors="replace")


def _take_terminal() -> None:
    """Become the owner of the terminal, so that it turns Ctrl-C into SIGINT for this process, as a shell's would."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
