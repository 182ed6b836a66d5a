"""`abmll adapt` without --save: unseen tasks scored from a run, and where the predictions go."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abmll.cli.work.score_unseen import score_unseen
from abmll.config import CompareConfig, TaskSource, parse_overrides
from abmll.errors import AbmllError
from abmll.report import write_report
from abmll.runs.compare import run_comparison
from abmll.runs.prepare import tasks_of, tasks_to_score
from abmll.runs.train_run import train
from abmll.systems.build import load_base
from abmll.tables.read import RowFile
from abmll.tasks.registered import RawTask, register_source
from abmll.training.checkpoints import Checkpoint, RunDirectory
from tests.commands import Command, command
from tests.everyday import place_run
from tests.registries import fresh_registries
from tests.runs import config_in, system_in
from tests.tiny import tiny_tasks, write_tasks


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, and tasks that it has not seen."""
    folder = place_run(tmp_path_factory.mktemp("home"))
    write_tasks(folder / "unseen", tiny_tasks(6, seed=2)[4:])  # no row is one of train
    return folder


@pytest.fixture
def abmll(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in a copy of the home, two folders deep; gives exit code, output and errors."""
    place = tmp_path / "deep" / "home"
    shutil.copytree(home, place)
    monkeypatch.chdir(place)
    return command(monkeypatch, capsys)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_trust_43_what_adapt_predicts_stays_in_the_run(abmll: Command, tmp_path: Path) -> None:
    """Those of the mean weights too: they once went two folders up, where a comparison has them."""
    before = files_of(tmp_path)
    code, out, _ = abmll("adapt runs/mine unseen adaptation.samples=2")
    assert code == 0
    new = files_of(tmp_path) - before
    inside = "deep/home/runs/mine/"
    assert {name for name in new if not name.startswith(inside)} == set()
    names = {name.removeprefix(inside) for name in new if name.endswith(".jsonl")}
    place = "examples-00000018/draw-0"
    assert names == {f"predictions/{m}{place}/{t}.jsonl" for m in ("", "mean/") for t in ("tiny4", "tiny5")}
    again = abmll("score runs/mine/predictions")[1]
    assert len(re.findall("tiny[45]", out)) == 4, "two tasks, by draws and by the mean"
    assert sorted(again.splitlines()) == sorted(out.splitlines()), "the README's command finds all of them"


def test_a_run_trained_on_python_objects_is_scored_by_doing_what_its_messages_say(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message for each role whose tasks are in no file."""
    *tasks, chosen = tiny_tasks(4, n_rows=16)
    train(system_in(config_in(home)), tasks, tmp_path / "run", validation=[chosen], iterations=1)
    overrides: list[str] = []
    for role in ("train", "validation"):
        with pytest.raises(AbmllError, match=rf"^tasks\.{role}: .* were Python objects \(tiny") as caught:
            score_unseen(str(tmp_path / "run"), str(home / "unseen"), parse_overrides(overrides), None)
        advised = re.search(r"holds: (.*?) (takes|leaves)", str(caught.value))
        assert advised is not None
        overrides += shlex.split(advised[1])
    score_unseen(str(tmp_path / "run"), str(home / "unseen"), parse_overrides(overrides), None)
    assert len(re.findall("tiny[45]", capsys.readouterr().out)) == 4


@pytest.mark.parametrize("spec", ["asked", "asked:rest"])
def test_a_source_of_tasks_to_score_is_called_once(spec: str, abmll: Command) -> None:
    calls: list[str] = []

    def source(rest: str) -> list[RawTask]:
        calls.append(rest)
        train, test = (
            [{"question": q.question, "choices": q.choices, "answer": q.answer, "context": q.context} for q in rows]
            for rows in (tiny_tasks(6, seed=2)[4].train, tiny_tasks(6, seed=2)[4].test)
        )
        return [RawTask("mine", train, test)]

    with fresh_registries():
        register_source("asked", source)
        code, out, err = abmll(f"adapt runs/mine {spec} adaptation.samples=1")
    assert (code, len(calls)) == (0, 1), err
    assert "mine" in out


def test_the_rows_of_tasks_to_score_are_read_once_and_a_misspelt_path_is_said_before(
    abmll: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    rows = RowFile.rows

    def watched(table: RowFile, *arguments: Any) -> Iterator[Any]:
        read.append(table.path.name)
        return rows(table, *arguments)

    monkeypatch.setattr(RowFile, "rows", watched)
    code, _, err = abmll("adapt runs/mine unsen")
    assert (code, "unsen: no such folder or file" in err, read) == (2, True, [])
    code, _, err = abmll("adapt runs/mine buildin:plurals")
    assert (code, "Did you mean builtin:?" in " ".join(err.split()), read) == (2, True, [])
    assert abmll("adapt runs/mine unseen adaptation.samples=1")[0] == 0
    assert sorted(name for name in read if name.startswith(("tiny4", "tiny5"))) == [
        f"{task}.{split}.jsonl" for task in ("tiny4", "tiny5") for split in ("test", "train")
    ]


def test_adapting_a_run_of_a_comparison_leaves_its_results(abmll: Command) -> None:
    base = config_in(Path.cwd()).model_dump(mode="json")
    unseen = {"source": "unseen", "names": ["tiny4"]}
    base |= {"name": "two", "tasks": {**base["tasks"], "unseen": unseen, "leak_check": "off"}}
    systems = {"reptile": {"method": {"name": "reptile", "inner_steps": 2}}}
    config = CompareConfig.model_validate({**base, "systems": systems, "reference": "reptile"})
    run_comparison(config, Path("two"), lambda: load_base(config.model))
    before = {path: path.read_bytes() for path in Path("two").rglob("predictions/**/*.jsonl")}
    assert before
    for line in ("adapt two/reptile/seed-0 unseen", "adapt two/reptile/seed-0 adaptation.steps=9"):
        assert abmll(line)[0] == 0
    assert {path: path.read_bytes() for path in Path("two").rglob("predictions/**/*.jsonl")} == before
    assert write_report(Path("two"))["systems"].keys() >= {"reptile"}


def test_without_checkpoints_it_says_what_can_be_done(abmll: Command) -> None:
    shutil.rmtree("runs/mine/checkpoints")  # as the adapter that comes along
    code, _, err = abmll("adapt runs/mine unseen")
    assert code == 2
    assert "None" not in err
    assert "--save NAME" in " ".join(err.split())


def test_it_adapts_from_the_step_that_validation_chose(abmll: Command) -> None:
    """As `adapter/` does; not from the last one."""
    run = RunDirectory(Path("runs/mine"))
    last = run.load(3)
    run.save(Checkpoint(2, run.load(0).shared, last.optimizer, {**last.state, "best_step": 2}))
    run.save(Checkpoint(3, last.shared, last.optimizer, {**last.state, "best_step": 2}))
    assert abmll("adapt runs/mine unseen adaptation.samples=1")[0] == 0
    assert [path.name for path in Path("runs/mine/predictions").glob("examples-*")] == ["examples-00000012"]
    assert abmll("adapt runs/mine unseen adaptation.samples=1 --step 3")[0] == 0
    assert len(list(Path("runs/mine/predictions").glob("examples-*"))) == 2


def test_trust_17_a_task_that_was_trained_on_is_not_scored_as_unseen(abmll: Command, tmp_path: Path) -> None:
    code, _, said = abmll("adapt runs/mine train")
    assert code == 2
    assert "leaks between rows learned from and rows that must be new" in said
    assert "tasks.leak_check=warn" in said
    assert abmll("adapt runs/mine train tasks.leak_check=warn adaptation.samples=2")[0] == 0


def test_trust_17_drop_leaves_out_rows_to_score_as_training_is_past(home: Path) -> None:
    config = config_in(home, tasks={"leak_check": "drop"})
    plain = tasks_of(config.tasks.train)
    found = tasks_to_score(config, TaskSource(source=str(home / "train")))
    assert [task.train for task in found.train] == [task.train for task in plain]
    assert not any(task.train for task in found.unseen)
    unseen = {"source": str(home / "unseen")}
    chosen = config_in(home, tasks={"leak_check": "drop", "validation": unseen})
    found = tasks_to_score(chosen, TaskSource(**unseen))
    assert not any(task.train or task.test for task in found.unseen)
    assert all(task.train and task.test for task in found.validation)
