"""`abmll serve` as it is typed: what it refuses before it listens, and without what it needs."""

import importlib
import socket
import sys
from pathlib import Path

import pytest

from abmll.cli.verbs.serve import KERNELS
from abmll.errors import AbmllError
from tests.commands import Command, command
from tests.serving import place_tasks

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_tasks(tmp_path_factory.mktemp("home"))


@pytest.fixture
def abmll(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(home)
    for variable, count in KERNELS.items():
        monkeypatch.setenv(variable, count)  # which `abmll serve` would set for all later tests
    return command(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--task nothing", "unknown saved task of runs/mine 'nothing'. Known: draws, own, t"),
        ("--task t --task t", "--task t: is given twice"),
        ("--task t --pilot other=my.csv", "--pilot other=...: is no task that is served"),
        ("--task t --pilot t=", "--pilot t=: expected TASK=FILE"),
        ("--task t --host 0.0.0.0", "--host 0.0.0.0: others can reach it, so a token is needed"),
        ("--task t --queue 9", "--queue 9: is less than the rows of one request, --rows 1024"),
        ("--task t --abstain-below-risk 0.05", "needs 45 rows held back from adapting, or more; here are 26"),
        ("--task t adaptation.samples=no", "adaptation.samples"),
    ],
)
def test_what_cannot_be_served_is_told_before_anything_listens(abmll: Command, line: str, said: str) -> None:
    code, out, err = abmll(f"serve runs/mine {line}")
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())


def test_a_port_that_is_taken_is_told(abmll: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = abmll(f"serve runs/mine --task t --port {taken.getsockname()[1]}")
    assert code == 2
    assert "cannot listen there (Address already in use)" in " ".join(err.split())


def test_a_short_token_is_refused_and_not_repeated(abmll: Command, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2")
    code, out, err = abmll(f"serve runs/mine --task t --host 0.0.0.0 --token-file {tmp_path / 'token'}")
    assert code == 2
    assert "16 ASCII characters or more" in " ".join(err.split())
    assert "hunter2" not in out + err


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "abmll.serving", raising=False)
    with pytest.raises(AbmllError, match="pip install fastapi uvicorn"):
        importlib.import_module("abmll.serving")
