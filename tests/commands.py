"""The command line, called in the test's own process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from abmll import cli
from tests.everyday import place_run, write_texts

Command = Callable[[str], tuple[int, str, str]]
"""What follows `abmll` on a line -> exit code, output, errors."""
ADAPT = "adapt runs/mine my.csv --save t --hold-back 26 --no-check"


def exit_code(line: str, patch: pytest.MonkeyPatch) -> int:
    """Call `abmll LINE`."""
    patch.setattr(sys, "argv", ["abmll", *line.split()])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def command(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls of the command line; none may end in a traceback."""

    def call(line: str) -> tuple[int, str, str]:
        code, shown = exit_code(line, patch), capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    return call


def place_saved_task(folder: Path) -> Path:
    """A tiny run, and a task `t` that is adapted to 24 rows of `my.csv`, with 26 held back."""
    place_run(folder)
    write_texts(folder / "my.csv", 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert exit_code(ADAPT, patch) == 0
    return folder
