"""Child processes that are really killed: forks, which need no second import of torch."""

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

UNCAUGHT = 99
"""Exit code of a child that ended in a traceback."""


@dataclass
class Child:
    """A process that runs one function.

    Attributes:
        pid: its number.
        output: everything it printed.
    """

    pid: int
    output: Path
    code: int | None = None

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = 60.0) -> int:
        """Its exit code, or minus the signal that killed it.

        Raises:
            TimeoutError: it is still there after so many seconds; it is killed then.
        """
        end = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"still running after {seconds} s:\n{self.text()}")
            else:
                time.sleep(0.002)
        return self.code

    def text(self) -> str:
        """What it printed."""
        return self.output.read_text(errors="replace")


def in_child(work: Callable[[], object], output: Path) -> Child:
    """Run a function in a fork of this process; SystemExit is its exit code."""
    output.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, output)
    code = UNCAUGHT
    try:
        _redirect(output)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        work()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(output: Path) -> None:
    """Everything that is printed goes to a file; pytest's capturing knows nothing of this process."""
    sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(sink, stream)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)


def command(folder: Path, *arguments: str) -> Callable[[], None]:
    """`abmll ARGUMENTS`, run in a folder, as something for a child to do."""

    def work() -> None:
        from abmll import cli
        from abmll.cli import console
        from abmll.cli.work import compare

        logging.getLogger().handlers.clear()  # pytest's
        os.chdir(folder)
        sys.argv = ["abmll", *arguments]
        compare.show_report = lambda folder: None  # figures take longer than everything else here
        console.out_console.width = console.err_console.width = 200
        cli.main()

    return work
