"""docs/add-a-method.md, add-a-source.md, add-a-metric.md: everything on a page runs, in its order, outside the library.

A block whose first line names a file becomes that file, in a folder that stands for a user's package; other Python runs
as it stands. pyproject.toml makes the folder an installed distribution with its entry points, as a new process sees it.
"""

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import abmll
from abmll.cli import main
from abmll.metrics.predictions import read_predictions
from tests.registries import fresh_registries, install

DOCS = Path(__file__).parents[2] / "docs"
PART = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$|^    (?P<command>abmll [^\n]+)$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w-]+\.(?:py|yaml|toml))\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user works: the current folder, and on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    """Modules of a page's own are forgotten after it."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not hasattr(sys.modules[name], "__path__") and "." not in name:
            del sys.modules[name]


def run_page(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Do what a page says; returns the files that it wrote and the commands that it ran."""
    text = (DOCS / name).read_text(encoding="utf-8")
    before, after = text.split("```toml\n")
    toml = "```toml\n" + after
    files: list[str] = []
    commands: list[str] = []
    for part in (before, toml):
        with fresh_registries():  # the second part is another process
            for found in PART.finditer(part):
                _do(found, folder, files, commands, monkeypatch)
    return files, commands


def _do(
    part: re.Match[str], folder: Path, files: list[str], commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if part["command"]:
        commands.append(part["command"])
        monkeypatch.setattr(sys, "argv", shlex.split(part["command"]))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, part["command"]
    elif file := FILE.match(part["text"]):
        files.append(file[1])
        (folder / file[1]).write_text(part["text"], encoding="utf-8")
        if file[1] == "pyproject.toml":
            project = tomllib.loads(part["text"])["project"]
            install(folder, project["name"], project["entry-points"])
        elif file[1].startswith("test_"):
            _run_tests(file[1].removesuffix(".py"))
    else:
        assert part["kind"] == "python"
        exec(compile(part["text"], "page", "exec"), {})


def _run_tests(module: str) -> None:
    tests = [value for name, value in vars(import_module(module)).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def summary_of(folder: Path) -> Any:
    """results.json of a comparison."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_the_page_about_methods(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, commands = run_page("add-a-method.md", folder, monkeypatch)
    assert files == ["lora_fa.py", "lora-fa.yaml", "pyproject.toml", "test_lora_fa.py"]
    assert len(commands) == 1
    for name in ("lora-fa", "lora-fa-again"):
        assert summary_of(folder / "runs" / name)["systems"].keys() >= {"structured", "lora-fa", "uniform"}
        (run,) = (folder / "runs" / name / "lora-fa").glob("seed-0/config.yaml")
        assert "decay: 0.0001" in run.read_text(encoding="utf-8")
    facts = abmll.read_adapter(folder / "runs" / "lora-fa" / "lora-fa" / "seed-0" / "adapter").facts
    assert (facts.method, facts.settings["inner_lr"]) == ("lora-fa", 1e-3)


def test_the_page_about_sources(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, commands = run_page("add-a-source.md", folder, monkeypatch)
    assert files == ["quiz_source.py", "pyproject.toml", "quiz.yaml", "test_quiz_source.py"]
    assert [command.split()[1] for command in commands] == ["tasks", "train"]
    assert "more sums  30 train row" in capsys.readouterr().out
    record = json.loads((folder / "runs" / "quiz" / "trained.json").read_text(encoding="utf-8"))
    assert [(t["name"], t["rows"], t["source"]) for t in record["train"]] == [
        ("more sums", 30, "sqlite:quiz.db"),
        ("sums", 30, "sqlite:quiz.db"),
    ]


def test_the_page_about_metrics(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, commands = run_page("add-a-metric.md", folder, monkeypatch)
    assert files == ["overconfidence.py", "sure.yaml", "pyproject.toml", "test_overconfidence.py"]
    assert [command.split()[1] for command in commands] == ["compare", "score"]
    summary = summary_of(folder / "runs" / "sure")
    uniform = summary["systems"]["uniform"]
    assert uniform["accuracy"] == pytest.approx(0.25)  # expected; the page's metric takes the first of equal choices
    file = max((folder / "runs" / "sure").glob("*/seed-0/predictions/examples-*/draw-0/*.jsonl"))
    assert uniform["overconfidence"] == pytest.approx(0.25 - np.mean(read_predictions(file).answers() == 0))
    assert "overconfidence" in (folder / "runs" / "sure" / "table.md").read_text(encoding="utf-8").splitlines()[2]
    assert "overcon" in capsys.readouterr().out
