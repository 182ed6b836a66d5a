"""What is not imported until it is needed: public names, and the commands of `abmll`."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import abmll
from abmll.cli import COMMANDS, app

HEAVY = {"torch", "transformers", "peft", "scipy", "sklearn", "matplotlib", "pyarrow", "numpy"}


def imported_by(code: str) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('|'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(told.stdout.splitlines()[-1].split("|"))


@pytest.mark.parametrize("code", ["import abmll", "from abmll.cli import app\nlen(str(app))"])
def test_heavy_libraries_are_not_imported(code: str) -> None:
    assert not HEAVY & imported_by(code)


def test_every_public_name_is_there_and_type_checkers_see_the_same() -> None:
    tree = ast.parse(Path(abmll.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in checked.body for alias in node.names}
    assert seen == abmll._MODULES
    assert sorted(seen) == sorted(abmll.__all__)
    for name, module in seen.items():
        assert getattr(abmll, name) is getattr(import_module(module), name)
    assert set(abmll.__all__) <= set(dir(abmll))
    with pytest.raises(AttributeError, match="nothing"):
        abmll.nothing  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name: str) -> None:
    command = get_command(import_module(f"abmll.cli.verbs.{name}").app)
    assert inspect.cleandoc(command.help).split("\n\n")[0].replace("\n", " ") == COMMANDS[name]
    shown = CliRunner().invoke(app, [name, "--help"], prog_name="abmll")
    assert shown.exit_code == 0
    assert f"abmll {name} [OPTIONS]" in shown.output


def test_an_unknown_command_is_told_what_is_near() -> None:
    shown = CliRunner().invoke(app, ["compar"])
    assert shown.exit_code == 2
    assert "compare" in shown.output
