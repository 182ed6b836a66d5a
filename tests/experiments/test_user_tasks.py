"""experiments/user_tasks, end to end on the tiny model: no set is scored by a run that it was trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from abmll.errors import AbmllError
from abmll.question import Question, Task
from abmll.tasks.sources import load_tasks
from benchmarks.own.answers import ADAPTED
from benchmarks.own.cells import answer_entries, write_cell
from benchmarks.own.draws import Cell, read_set
from experiments.user_tasks.__main__ import main
from experiments.user_tasks.prepare import WORDS, prepare, read_protocol, tasks_of, without_scored
from experiments.user_tasks.report import report
from experiments.user_tasks.second.__main__ import main as second_main
from experiments.user_tasks.second.protocol import PERMITTED, Second, read_second
from experiments.user_tasks.second.protocol import prepare as prepare_second
from experiments.user_tasks.second.rates import choose_rates, folder, read_by_folder

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
        "adaptation": {"examples": 4, "steps": 1, "batch_size": 10},
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
    for kind, others in (("fold-0", "goemotions"), ("fold-1", "cold"), ("questions", None)):
        names = {task.name.split("-")[0] for task in load_tasks(out / "tasks" / kind)}
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


NOT_OPEN = ("NC", "SA", "ND", "research", "unstated", "GPL")


def test_no_set_is_permitted_whose_licence_keeps_a_package_from_passing_it_on() -> None:
    second = read_second()
    assert not [name for name in second.open if any(word in name for word in NOT_OPEN)]
    permitted = {name for name in second.licences if second.is_permitted(name)}
    assert {"banking77", "clinc150", "cold", "openbookqa"} <= permitted
    assert not permitted & {"airline_complaints", "gnad10", "morfitt", "race", "boolq", "mutual", *second.doubtful}
    assert set(second.sets) <= set(second.licences)
    with pytest.raises(AbmllError, match="nosuch: its licence stands nowhere"):
        second.is_permitted("nosuch")


def test_the_first_rate_is_that_of_training_and_many_labels_have_no_letters() -> None:
    second = read_second()
    assert second.first.systems[second.system]["method"]["inner_lr"] == second.rates[0]
    for name in ("banking77", "clinc150", "goemotions"):
        assert {second.reading(Cell(name, 2, draw)) for draw in range(5)} == {"cloze"}
    assert second.reading(Cell("cold", 20, 0)) == "letter"


@pytest.fixture
def second_protocol(protocol: Path) -> Path:
    """Two rates and one seed; rows of one of the two sets may not be passed on."""
    path = protocol.parent / "second" / "protocol.yaml"
    path.parent.mkdir()
    settings = {
        "first": "../protocol.yaml",
        "system": "reptile",
        "seeds": [0],
        "rates": [1e-3, 1e-4],
        "cloze": {"goemotions": [0]},
        "shipped": {"adaptation": {"meta_rows": 2}},
        "open": ["MIT"],
        "licences": {"cold": "CC-BY-NC-4.0", "goemotions": "MIT", "even": "MIT"},
        "doubtful": {},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def test_permitted_folders_have_no_other_rows(own: Path, questions: Path, second_protocol: Path) -> None:
    out = second_protocol.parent / "prepared"
    prepare_second(read_second(second_protocol), own, questions, out)
    found = {
        path.name: {task.name.split("-")[0] for task in load_tasks(path)} for path in sorted((out / "tasks").iterdir())
    }
    assert found == {
        "all.fold-0": {"even", "goemotions"},
        "all.fold-1": {"even", "cold"},
        "permitted.every": {"even", "goemotions"},
        "permitted.fold-0": {"even", "goemotions"},
        "permitted.fold-1": {"even"},
    }


def _answer(out: Path, second: Second, rate: float, name: str, sure: float) -> None:
    """Right answers to a cell of a set, more or less sure."""
    right = np.array([0, 1, 0, 1])
    table = np.where(np.eye(2)[right] > 0, sure, 1 - sure)
    entries = answer_entries(ADAPTED.strip(), table, table, (1.0, 1.0))
    right_answers = {"test_answers": right, "own_answers": right}
    write_cell(out / folder(PERMITTED, rate, 0), Cell(name, 20, 1), entries | right_answers)


def test_rates_are_chosen_by_the_sets_of_the_other_folds(tmp_path: Path, second_protocol: Path) -> None:
    second = read_second(second_protocol)
    first, other = second.rates
    for rate, name, sure in ((first, "cold", 0.9), (other, "cold", 0.6), (first, "goemotions", 0.6)):
        _answer(tmp_path, second, rate, name, sure)
    _answer(tmp_path, second, other, "goemotions", 0.9)
    rates = choose_rates(second, read_by_folder(tmp_path))
    assert rates["fold-0"]["letter"] == other  # cold is scored, goemotions is better at the other
    assert rates["fold-1"]["letter"] == first
    assert rates["fold-1"]["cloze"] == first  # no cell is read so: that of training


def test_second_end_to_end(
    own: Path, questions: Path, second_protocol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, answers = tmp_path / "prepared", tmp_path / "answers"
    at = ["--protocol", str(second_protocol)]
    assert second_main([*at, "prepare", "--own", str(own), "--questions", str(questions), "--out", str(prepared)]) == 0
    monkeypatch.setattr("experiments.user_tasks.second.work.PAUSE", 0.0)
    work = ["work", "--prepared", str(prepared), "--own", str(own), "--out", str(answers)]
    assert second_main([*at, *work, "--draws", "1", "--test-rows", "3"]) == 0
    made = {str(path.relative_to(answers)) for path in answers.glob("*/*.npz")}
    folders = ("permitted-0.001-0", "permitted-0.0001-0", "all-0.001-0")
    assert made == {f"{one}/{cell}-20-0.npz" for one in folders for cell in LABELS}
    with np.load(answers / "permitted-0.001-0" / "goemotions-20-0.npz") as stored:
        assert str(stored["likelihood"]) == "cloze"
    for reading in ("cloze", "letter"):
        assert (answers / "runs" / f"permitted.every.{reading}.0" / "calibrator.json").is_file()
    assert second_main([*at, "report", str(answers), "--out", str(tmp_path / "told")]) == 0
    told = json.loads((tmp_path / "told" / "results.json").read_text())
    assert set(told["sets"]["permitted, chosen rate"]) == set(LABELS)
    assert told["is_worth_shipping"] is None
