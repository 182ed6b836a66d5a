"""Rivals by the command line, from training to a report: what each keeps, and what refuses by name."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from abmll.everyday.saved import IN_PROMPT, read_posterior
from abmll.everyday.session import open_run
from abmll.files import write_text
from abmll.systems.posteriors.stored import POSTERIOR_FILE
from tests.commands import Command, command
from tests.everyday import write_texts
from tests.runs import config_in, place_tiny, train_run
from tests.tiny import tiny_tasks, write_tasks

RIVALS: dict[str, dict[str, Any]] = {
    "metaicl": {"method": {"name": "metaicl"}},
    "meta-sgd": {"method": {"name": "meta-sgd", "inner_steps": 2}},
    "laplace": {"method": {"name": "reptile", "inner_steps": 2}, "posterior": {"name": "laplace"}},
    "laplace-pooled": {
        "method": {"name": "reptile", "inner_steps": 2},
        "posterior": {"name": "laplace", "form": "kfac", "precision": "pooled"},
    },
}
every_rival = pytest.mark.parametrize("rival", RIVALS)


@pytest.fixture
def abmll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    return command(monkeypatch, capsys)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@every_rival
def test_own_rows_are_adapted_to_answered_and_exported(rival: str, abmll: Command, tmp_path: Path) -> None:
    place_tiny(tmp_path)
    config = config_in(tmp_path, RIVALS[rival]["method"]["name"], **RIVALS[rival])
    write_text(tmp_path / "runs/mine/config.yaml", config.to_yaml())
    train_run(config, tmp_path / "runs/mine")
    write_texts(tmp_path / "my.csv", 12)
    write_texts(tmp_path / "more.csv", 5, seed=1)
    code, _, err = abmll("adapt runs/mine my.csv --save t --no-check")
    assert code == 0, err
    folder = tmp_path / "runs/mine/tasks/t"
    assert (folder / POSTERIOR_FILE).exists() == rival.startswith("laplace")
    assert (IN_PROMPT in read_posterior(tmp_path / "runs/mine", "t").details) == (rival == "metaicl")
    answers = []
    for name in ("one.csv", "two.csv"):
        code, _, err = abmll(f"predict runs/mine more.csv --task t -o {name}")
        assert code == 0, err
        answers.append(read_csv(tmp_path / name))
    assert answers[0] == answers[1]
    assert all((row["spread"] != "") == rival.startswith("laplace") for row in answers[0])
    saved = read_posterior(tmp_path / "runs/mine", "t")
    assert bool(open_run(tmp_path / "runs/mine", saved=saved).system.batcher.examples) == (rival == "metaicl")
    code, _, err = abmll("export runs/mine --task t -o lora")
    if rival == "metaicl":
        assert code != 0
        assert "labelled rows in the prompt" in err
        return
    assert code == 0, err
    assert (tmp_path / "lora/adapter_model.safetensors").exists()
    code, _, err = abmll("export runs/mine --task t -o drawn --merge --draw 0")
    assert code != 0
    assert "holds no stds" in err


def test_a_comparison_of_rivals_goes_on_and_reports(abmll: Command, tmp_path: Path) -> None:
    place_tiny(tmp_path)
    write_tasks(tmp_path / "unseen", tiny_tasks(6, n_rows=12, n_test=4, seed=2)[4:5])
    base = config_in(tmp_path, "reptile").model_dump(mode="json")
    values = {
        **{name: base[name] for name in ("model", "adapter", "tasks", "training")},
        "name": "rivals",
        "adaptation": {"samples": 2, "steps": 2, "examples": 6, "folds": 2},
        "systems": {**RIVALS, "structured": {"method": {"name": "structured", "inner_steps": 2}}},
        "reference": "structured",
    }
    values["tasks"] |= {"unseen": {"source": "unseen"}, "leak_check": "off"}
    write_text(tmp_path / "rivals.yaml", json.dumps(values))
    code, _, err = abmll("compare rivals.yaml -o out")
    assert code == 0, err
    files = {path: path.read_bytes() for path in sorted((tmp_path / "out").glob("**/draw-0/*.jsonl"))}
    lost = [path for path in files if {"metaicl", "laplace", "laplace-pooled"} & set(path.parts)]
    assert len(lost) >= 3
    for path in lost:
        path.unlink()
    code, _, err = abmll("compare rivals.yaml -o out")
    assert code == 0, err
    assert {path: path.read_bytes() for path in files} == files, "what was lost is made again, bit for bit"
    code, out, err = abmll("report out")
    assert code == 0, err
    assert all(row in out for row in ("laplace_mean", "metaicl", "meta-sgd"))
