"""`python -m abmll` is `abmll`: the command line in a process of its own."""

import atexit
import os
import sys
import threading
from typing import NoReturn

from abmll.cli import main


def run() -> NoReturn:
    """Run the command line and end the process, as soon as all that was to be done at its end is done.

    Threads are waited for, exit functions called and output is written, as at any end of Python; objects are not taken
    down one by one, which took a quarter of the time of a command that imports torch and transformers. Files are whole
    or absent at any moment (`abmll.files`), so none is waiting for that.
    """
    code: str | int | None = None
    try:
        main()
    except SystemExit as end:
        code = end.code
    if code is not None and not isinstance(code, int):
        sys.exit(code)  # Python prints it
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(code)  # Python says what is wrong with the terminal or pipe
    os._exit(code or 0)


if __name__ == "__main__":
    run()
