"""experiments/user_tasks, end to end on the tiny model: no set is scored by a run that it was trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from abmll.question import Question, Task
from abmll.tasks.sources import load_tasks
from benchmarks.own.answers import ADAPTED
from benchmarks.own.cells import answer_entries, write_cell
from benchmarks.own.draws import Cell, read_set
from experiments.user_tasks.__main__ import main
from experiments.user_tasks.prepare import WORDS, prepare, read_protocol, tasks_of, without_scored
from experiments.user_tasks.report import report

LABELS = {"cold": ("no", "yes"), "goemotions": tuple(f"mood {i}" for i in range(10))}
FOLDS = [["cold"], ["goemotions"]]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two labelled sets."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, labels in LABELS.items():
        for part in ("train", "test"):
            rows = [{"text": f"{name} {part} {i} is {label}", "label": label} for i in range(12) for label in labels]
            (folder / f"{name}.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """One question set."""
    folder = tmp_path / "questions"
    folder.mkdir()
    rows = [{"question": f"Is {i} even?", "choices": ["yes", "no"], "answer": i % 2} for i in range(30)]
    (folder / "even.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    """One system, one step."""
    run = {
        "model": {"shape": "tiny-llama"},
        "likelihood": {"kind": "letter", "max_tokens": 256},
        "training": {"iterations": 1},
        "adaptation": {"examples": 4, "steps": 1},
    }
    system = {"reptile": {"method": {"name": "reptile"}}}
    path = tmp_path / "protocol.yaml"
    settings = {"labels": 8, "most": 2, "renamed": 1}
    path.write_text(yaml.safe_dump({"folds": FOLDS, "tasks": settings, "run": run, "systems": system}))
    return path


def test_the_committed_folds_have_every_set_once() -> None:
    names = [name for fold in read_protocol().folds for name in fold]
    assert len(names) == len(set(names)) == 12


def test_tasks_of_a_set_keep_the_right_label(own: Path) -> None:
    data = read_set(own, "goemotions")
    tasks = list(tasks_of(data, labels=8, most=2, renamed=1))
    assert [task.name for task in tasks] == [
        *("goemotions-0", "goemotions-0-renamed-0", "goemotions-1", "goemotions-1-renamed-0")
    ]
    for plain, renamed in zip(tasks[::2], tasks[1::2], strict=True):
        assert all(row.context.endswith(row.choices[row.answer or 0]) for row in plain.train)
        assert {row.choices for row in renamed.train} == {renamed.train[0].choices}
        assert set(renamed.train[0].choices) <= set(WORDS)
        assert [row.answer for row in plain.train] == [row.answer for row in renamed.train]


def test_no_run_is_trained_on_a_set_that_it_is_scored_on(own: Path, questions: Path, protocol: Path) -> None:
    out = protocol.parent / "prepared"
    prepare(read_protocol(protocol), own, questions, out)
    for folder, others in (("fold-0", "goemotions"), ("fold-1", "cold"), ("questions", None)):
        names = {task.name.split("-")[0] for task in load_tasks(out / "tasks" / folder)}
        assert names == {"even", others} - {None}


def test_texts_that_are_scored_are_not_trained_on(own: Path) -> None:
    sets = {"cold": read_set(own, "cold")}
    same = sets["cold"].test[0].context
    task = Task(
        "copy", (Question("1", "Which mood?", ("a", "b"), 0, same), Question("2", "Which?", ("a", "b"), 1, "x y"))
    )
    kept, left_out = without_scored([task], sets, ["cold"])
    assert left_out == 1
    assert [row.id for row in kept[0].train] == ["2"]


def test_end_to_end(own: Path, questions: Path, protocol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, answers = protocol.parent / "prepared", protocol.parent / "answers"
    at = ["--protocol", str(protocol)]
    assert main([*at, "prepare", "--own", str(own), "--questions", str(questions), "--out", str(prepared)]) == 0
    monkeypatch.setattr("experiments.user_tasks.work.PAUSE", 0.0)
    work = ["work", "--prepared", str(prepared), "--own", str(own), "--out", str(answers)]
    assert main([*at, *work, "--draws", "1", "--test-rows", "3"]) == 0
    made = sorted(str(path.relative_to(answers)) for path in answers.glob("*/*.npz"))
    assert made == sorted(
        f"{folder}/{cell}-20-0.npz" for folder in ("new", "reptile.own", "reptile.questions") for cell in LABELS
    )
    written = [path.stat().st_mtime_ns for path in sorted(answers.glob("*/*.npz"))]
    assert main([*at, *work, "--draws", "1", "--test-rows", "3", "--number", "2"]) == 0
    assert written == [path.stat().st_mtime_ns for path in sorted(answers.glob("*/*.npz"))]
    assert main(["report", str(answers), "--out", str(answers)]) == 0
    told = json.loads((answers / "results.json").read_text())
    assert told["against_new"]["reptile.own"]["sets"] == 2


def test_differences_are_of_sets(tmp_path: Path) -> None:
    right = np.array([0, 1, 0, 1])
    for system, sure in (("new", 0.6), ("abmll.own", 0.9)):
        for name in LABELS:
            table = np.where(np.eye(2)[right] > 0, sure, 1 - sure)
            entries = answer_entries(ADAPTED.strip(), table, table, (1.0, 1.0))
            cell = Cell(name, 20, 0)
            write_cell(tmp_path / system, cell, entries | {"test_answers": right, "own_answers": right})
    told = report(tmp_path)["against_new"]["abmll.own"]
    assert told["sets_with_lower_nll"] == told["sets"] == 2
    assert told["nll_posterior"] < 0
    assert told["accuracy"] == 0
