"""What is not imported until it is needed: public names, and the commands of `abmll`."""

import ast
import gc
import importlib.metadata
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import abmll
from abmll.cli import COMMANDS, app
from abmll.cli.lazy import quick_imports
from abmll.tables.layouts import Layout

MODELS = {"torch", "transformers", "peft", "sklearn", "matplotlib", "scipy.stats"}
"""What takes half a second or more to import."""
HEAVY = {"torch", "transformers", "peft", "scipy", "sklearn", "matplotlib", "pyarrow", "numpy"}


def imported_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('|'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split("|"))


@pytest.mark.parametrize("code", ["import abmll", "from abmll.cli import app\nlen(str(app))"])
def test_heavy_libraries_are_not_imported(code: str) -> None:
    assert not HEAVY & imported_by(code)


def test_nothing_is_collected_between_imports_and_all_is_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[str] = []
    monkeypatch.setattr("gc.freeze", lambda: frozen.append("freeze"))
    monkeypatch.setattr("atexit.register", lambda function: frozen.append(function.__name__))
    assert gc.isenabled()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert frozen == [], "nothing was imported: what is garbage must be collected"
    with quick_imports():
        monkeypatch.setitem(sys.modules, "new", sys)
    assert frozen == ["freeze", "unfreeze"]
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()
    with disabled(), quick_imports():
        pass


ENDS = """
import atexit, sys, threading, time
import abmll.__main__ as entry

class Object:
    def __del__(self):
        print("taken down")

def main():
    threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
    atexit.register(print, "exit function")
    print("output")
    sys.exit(CODE)

alive = Object()
alive.itself = alive
entry.main = main
entry.run()
"""


@pytest.mark.parametrize(("code", "ends"), [("None", 0), ("0", 0), ("2", 2), ("143", 143), ("'what'", 1)])
def test_a_process_ends_with_all_done_and_takes_nothing_down(code: str, ends: int) -> None:
    line = [sys.executable, "-c", ENDS.replace("CODE", code)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == ends
    assert done.stdout.splitlines()[:3] == ["output", "thread", "exit function"]
    assert ("taken down" in done.stdout) == (code == "'what'"), "text is printed by Python, which then ends as ever"
    assert done.stderr == ("what\n" if code == "'what'" else "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_output_that_cannot_be_written_is_no_success() -> None:
    with Path("/dev/full").open("w") as full:
        line = [sys.executable, "-c", ENDS.replace("CODE", "0")]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    assert "No space left" in done.stderr


@contextmanager
def disabled() -> Iterator[None]:
    """A program may have switched collection off: it stays so."""
    gc.disable()
    yield
    was = gc.isenabled()
    gc.enable()
    assert not was


MISSPELT = {
    "train nowhere.yaml": "nowhere.yaml: cannot be read",
    "compare nowhere.yaml": "nowhere.yaml: cannot be read",
    "adapt nowhere": "nowhere: no run directory",
    "adapt smollm2 nowhere": "nowhere: no such",
    "adapt smollm2 nowhere.csv --save t": "nowhere.csv: no such",
    "adapt smollm2 builtin:plurals --save t hello": "'hello' is not of the form section.key=value",
    "bases nowhere": "unknown base 'nowhere'",
    "predict nowhere rows.csv -o out.csv": "nowhere: no run directory",
    "predict smollm2 nowhere.csv -o out.csv": "nowhere.csv: cannot be read",
    "predict smollm2 . -o o --task t --abstain-below-risk 0.1 --held-back nowhere": "nowhere: cannot be read",
    "push nowhere ann/mine": "nowhere: no run directory",
    "push smollm2 mine": "'mine': no name of a repository",
    "page nowhere --task t -o page.html": "nowhere: no run directory",
    "page smollm2 --task t -o page.html --rows nowhere.csv": "nowhere.csv: cannot be read",
    "page smollm2 --task t -o page.txt": "page.txt: the page is written as .html",
    "serve nowhere --task t": "nowhere: no run directory",
    "serve smollm2 --task t --token-file nowhere": "nowhere: cannot be read",
    "serve smollm2 --task t --pilot nowhere": "nowhere: cannot be read",
    "serve smollm2 --task t --abstain-below-risk 2": "--abstain-below-risk 2",
    "watch nowhere rows.csv --task t": "nowhere: no run directory",
    "watch smollm2 nowhere.csv --task t": "nowhere.csv: cannot be read",
    "score nowhere.jsonl": "nowhere.jsonl: cannot be read",
    "report nowhere": "nowhere: cannot be read",
    "export nowhere -o out": "nowhere: no run directory",
    "export smollm2 -o out model.dtype": "'model.dtype' is not of the form section.key=value",
    "export smollm2 -o out --calibrated --questions nowhere.csv": "nowhere.csv: cannot be read",
    "tasks list nowhere": "nowhere: no such",
    "tasks show nowhere": "nowhere: no such",
    "tasks check nowhere": "nowhere: no such",
    "doctor --batch nowhere.json": "nowhere.json: cannot be read",
}
MISSPELT_COLUMNS = {
    "adapt smollm2 rows.csv --save t --text txt": "text",
    "adapt smollm2 rows.csv --save t --label lable": "label",
    "predict smollm2 rows.csv -o out.csv --labels a,b --text txt": "text",
    "predict run rows.csv -o out.csv --task reviews": "review is missing",
    "predict smollm2 rows.csv -o out.csv": "question is missing (found: 'text', 'label'); rows of texts need",
    "predict run good.csv -o out.csv --task reviews --abstain-below-risk 0.1 --held-back rows.csv": "review is missing",
    "export smollm2 -o out --calibrated --questions rows.csv": "question is missing",
    "export run -o out --calibrated --task reviews --questions rows.csv": "review is missing",
    "tasks show rows.csv": "question is missing",
    "tasks check rows.csv": "question is missing",
}
"""`rows.csv` has the columns text and label; the task that `run` has saved was adapted to a column `review`."""
CALL_AFTER_CALL = """
import contextlib, io, json, sys
from abmll.cli import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["abmll", *line.split()]
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
    print(json.dumps([line, code, out.getvalue(), err.getvalue(), list(sys.modules)]))
"""


def called(lines: list[str], folder: Path) -> list[tuple[str, int | None, str, str, set[str]]]:
    """One process that runs commands one after the other: exit code, output, errors, modules imported until then."""
    command = [sys.executable, "-c", CALL_AFTER_CALL, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return [(*values[:4], set(values[4])) for values in map(json.loads, done.stdout.splitlines())]


def test_help_of_every_command_imports_no_model_library(tmp_path: Path) -> None:
    subcommands = [f"tasks {name} --help" for name in ("list", "show", "check", "pin")]
    lines = [f"{name} --help" for name in COMMANDS] + subcommands
    calls = called(lines, tmp_path)
    assert [line for line, *_ in calls] == lines
    for line, code, out, _, modules in calls:
        assert code == 0, line
        assert f"abmll {line.removesuffix(' --help')} " in out
        assert not MODELS & modules, line


def test_a_misspelt_file_or_override_of_every_command_imports_no_model_library(tmp_path: Path) -> None:
    assert {line.split()[0] for line in MISSPELT} == set(COMMANDS)
    for line, code, _, err, modules in called(list(MISSPELT), tmp_path):
        assert (code, MISSPELT[line] in " ".join(err.split())) == (2, True), err
        assert not MODELS & modules, line
    assert not list(tmp_path.iterdir())


def test_a_misspelt_column_of_every_command_that_reads_rows_imports_no_model_library(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"row {n},{'ab'[n % 2]}\n" for n in range(9)))
    (tmp_path / "good.csv").write_text("review\nfine\n")
    saved = tmp_path / "run" / "tasks" / "reviews"
    saved.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    layout = Layout(("a", "b"), text="review").to_dict()
    (saved / "task.json").write_text(json.dumps({"name": "reviews", "details": {"layout": layout}}))
    before = sorted(tmp_path.rglob("*"))
    for line, code, _, err, modules in called(list(MISSPELT_COLUMNS), tmp_path):
        said = " ".join(err.split())
        assert (code, MISSPELT_COLUMNS[line] in said, "in 8 more rows too" in said) == (2, True, True), err
        assert not MODELS & modules, line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", ["", "adapt", "tasks", "tasks list"])
def test_help_has_a_short_form(command: str, option: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), option], prog_name="abmll")
    assert (shown.exit_code, f"Usage: abmll {command}".strip() in shown.output) == (0, True), shown.output


def test_the_version_is_that_of_the_package() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"abmll {importlib.metadata.version('abmll')}\n")


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
