"""`python -m abmll.lm_eval` where the harness is not installed."""

import importlib
import runpy
import sys

import pytest

from abmll.errors import AbmllError


@pytest.fixture(autouse=True)
def without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "abmll.lm_eval", raising=False)


def test_without_the_harness_the_command_line_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("abmll.lm_eval", run_name="__main__")
    assert stopped.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: abmll.lm_eval needs lm_eval: pip install lm_eval")


def test_without_the_harness_an_import_is_an_error() -> None:
    with pytest.raises(AbmllError, match=r"^abmll\.lm_eval needs lm_eval: pip install lm_eval"):
        importlib.import_module("abmll.lm_eval")
