"""`abmll watch` as a user meets it, on a tiny run: what counts, what is refused, what is kept between calls."""

import csv
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import abmll as library
from abmll import AbmllError, WatchOptions, watch_task
from abmll.cli import console
from abmll.metrics.betting import first_alarm, wealth
from abmll.watching.state import read_counted
from tests.commands import Command, command, place_saved_task
from tests.everyday import asked, write_asked, write_csv

WATCH = "watch runs/mine sure.csv --task t"
HEADER = ["text", "label", "prediction", "confidence", "answered"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_saved_task(tmp_path_factory.mktemp("home"))


@pytest.fixture
def abmll(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    shutil.copytree(home / "runs", tmp_path / "runs")
    shutil.copy(home / "my.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.out_console, "_width", 200)
    monkeypatch.setattr(console.err_console, "_width", 200)
    return command(monkeypatch, capsys)


def answered(wrong: Sequence[bool], first: int = 0) -> list[list[str]]:
    """Rows of `abmll predict --abstain-below-risk` with a column of labels; all are labelled good."""
    return [
        [f"new text {n}", "good", "bad" if bad else "good", "0.9", "true"] for n, bad in enumerate(wrong, start=first)
    ]


def write_answers(path: Path, rows: list[list[str]]) -> Path:
    return write_csv(path, HEADER, rows)


def test_alarm_and_no_alarm_by_exit_code_and_message(abmll: Command, tmp_path: Path) -> None:
    write_answers(tmp_path / "sure.csv", answered([False] * 18 + [True] * 2))
    code, out, _ = abmll(f"{WATCH} --abstain-below-risk 0.1")
    evidence = wealth(np.array([False] * 18 + [True] * 2), 0.1)[-1]
    assert code == 0
    assert out == (
        "No alarm: 2 of 20 labelled answers are wrong (10.0 %), 20 of the 20 are new; promised is 10 % at most, "
        f"evidence {evidence:.2g} of 20\n"
    )
    write_answers(tmp_path / "sure.csv", answered([True] * 12, first=20))
    code, out, _ = abmll(WATCH)  # the risk is that of the first call
    label = first_alarm(wealth(np.array([False] * 18 + [True] * 14), 0.1))
    assert code == 3
    assert out.startswith(f"ALARM at label {label}: the promise of 10 % at most fails: 14 of 32 labelled answers")
    write_answers(tmp_path / "sure.csv", answered([False] * 50, first=40))
    assert abmll(WATCH)[0] == 3  # it stays
    assert abmll(f"{WATCH} --restart --abstain-below-risk 0.1")[0] == 0


def test_a_table_that_grows_is_given_again_and_rows_count_once(abmll: Command, tmp_path: Path) -> None:
    rows = answered([False, True, False])
    write_answers(tmp_path / "sure.csv", rows)
    assert abmll(f"{WATCH} --abstain-below-risk 0.1")[0] == 0
    more = [*rows, ["NEW  text 1.", "good", "bad", "0.9", "true"], *answered([False] * 4, first=3)]
    more += [["no label yet", "", "good", "0.9", "true"], ["unsure", "good", "other", "0.4", "false"]]
    write_answers(tmp_path / "sure.csv", more)
    code, out, err = abmll(WATCH)
    assert code == 0
    assert "1 of 7 labelled answers are wrong (14.3 %), 4 of the 7 are new" in out
    assert "left out: 1 rows without a label" in err
    assert "left out: 1 rows not answered" in err
    assert "left out: 4 rows counted before" in err
    counted = read_counted(tmp_path / "runs" / "mine" / "watch" / "t", "t")
    assert counted is not None
    assert counted.wrong == (False, True, False, False, False, False, False)
    assert "new text" not in (tmp_path / "runs" / "mine" / "watch" / "t" / "counted.json").read_text()


def test_one_row_of_a_group_counts(abmll: Command, tmp_path: Path) -> None:
    rows = [
        [*row, "customer 1" if n < 10 else f"customer {n}"] for n, row in enumerate(answered([True] * 10 + [False]))
    ]
    write_csv(tmp_path / "sure.csv", [*HEADER, "group"], rows)
    code, out, _ = abmll(f"{WATCH} --abstain-below-risk 0.1")
    assert (code, "1 of 2 labelled answers" in out) == (0, True)
    rows = [[*row, "customer 1"] for row in answered([True] * 5, first=50)]
    write_csv(tmp_path / "sure.csv", [*HEADER, "group"], rows)
    assert "1 of 2 labelled answers" in abmll(WATCH)[1]


def test_what_predict_writes_is_watched_and_rows_alone_are_answered_here(abmll: Command, tmp_path: Path) -> None:
    rng = random.Random(5)
    texts = [(f"the {rng.choice(('sun', 'rain'))} is over the hill {n}", n) for n in range(40)]
    rows = [[text, "good" if "sun" in text else "bad"] for text, _ in texts]
    write_csv(tmp_path / "rows.csv", ["text", "label"], rows)
    code, _, err = abmll("predict runs/mine rows.csv --task t --abstain-below-risk 0.6 -o sure.csv")
    assert code == 0, err
    code, out, _ = abmll(f"{WATCH} --abstain-below-risk 0.6")
    assert code in (0, 3)
    with (tmp_path / "sure.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    sure = [row for row in table if row["answered"] == "true"]
    wrong = sum(row["prediction"] != row["label"] for row in sure)
    assert f"{wrong} of {len(sure)} labelled answers" in out
    code, again, _ = abmll("watch runs/mine rows.csv --task t --restart --abstain-below-risk 0.6")
    assert code in (0, 3)
    assert f"{wrong} of {len(sure)} labelled answers" in again
    counted = read_counted(tmp_path / "runs" / "mine" / "watch" / "t", "t")
    assert counted is not None
    assert counted.threshold is not None


def test_questions_with_choices_of_their_own(abmll: Command, tmp_path: Path) -> None:
    write_asked(tmp_path / "mine.jsonl", asked(12))
    assert abmll("adapt runs/mine mine.jsonl --save mc --no-check")[0] == 0
    rows = [
        {**row, "context": f"{row['context']} {n}", "prediction": row["choices"][row["answer"]], "answered": True}
        for n, row in enumerate(asked(9, seed=8))
    ]
    rows[0]["prediction"] = next(each for each in rows[0]["choices"] if each != rows[0]["prediction"])
    write_asked(tmp_path / "sure.jsonl", rows)
    code, out, _ = abmll("watch runs/mine sure.jsonl --task mc --abstain-below-risk 0.2")
    assert (code, "1 of 9 labelled answers" in out) == (0, True)


def test_another_adaptation_makes_another_promise(abmll: Command, tmp_path: Path) -> None:
    write_answers(tmp_path / "sure.csv", answered([True] * 8))
    assert abmll(f"{WATCH} --abstain-below-risk 0.1")[0] == 3
    assert abmll("adapt runs/mine my.csv --save t --hold-back 20 --no-check --replace")[0] == 0
    write_answers(tmp_path / "sure.csv", answered([False] * 8))
    code, out, err = abmll(WATCH)
    assert (code, "0 of 8 labelled answers" in out) == (0, True)
    assert "counting began anew" in err


def spoilt(rows: list[list[str]], **cells: str) -> list[list[str]]:
    """The rows with cells of the second one set."""
    for name, value in cells.items():
        rows[1][HEADER.index(name)] = value
    return rows


MISTAKES = {
    "no risk yet": ("", answered([False]), "--abstain-below-risk R says what was promised"),
    "a wild risk": ("--abstain-below-risk 2", answered([False]), "between 0 and 1"),
    "no label": ("--abstain-below-risk 0.1", spoilt(answered([False] * 2), label="")[1:], "none of 1 rows has a label"),
    "another label": ("--abstain-below-risk 0.1", spoilt(answered([False] * 3), label="fair"), "sure.csv:3: label is"),
    "another prediction": (
        "--abstain-below-risk 0.1",
        spoilt(answered([False] * 3), prediction="fair"),
        "sure.csv:3: prediction is 'fair', none of 'bad', 'good'",
    ),
    "neither": ("--abstain-below-risk 0.1", spoilt(answered([False] * 3), answered="maybe"), "sure.csv:3: answered is"),
    "another column": ("--abstain-below-risk 0.1 --label tag", answered([False]), "column 'tag'"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_message_exit_code_2_and_nothing_is_kept(kind: str, abmll: Command, tmp_path: Path) -> None:
    options, rows, message = MISTAKES[kind]
    write_answers(tmp_path / "sure.csv", rows)
    code, _, err = abmll(f"{WATCH} {options}")
    assert (code, message in err) == (2, True), err
    assert not (tmp_path / "runs" / "mine" / "watch" / "t" / "counted.json").exists()


def test_rows_that_were_adapted_to_and_predictions_without_abstaining_are_refused(
    abmll: Command, tmp_path: Path
) -> None:
    with (tmp_path / "my.csv").open(encoding="utf-8", newline="") as file:
        own = [[row["text"], row["label"], "good", "0.9", "true"] for row in csv.DictReader(file)]
    write_answers(tmp_path / "sure.csv", own)
    code, _, err = abmll(f"{WATCH} --abstain-below-risk 0.1")
    assert (code, "were adapted to" in err) == (2, True)
    write_csv(tmp_path / "sure.csv", HEADER[:3], [row[:3] for row in answered([False])])
    code, _, err = abmll(f"{WATCH} --abstain-below-risk 0.1")
    assert (code, "no column 'answered'" in err) == (2, True)
    assert abmll(f"{WATCH.replace(' t', ' nowhere')} --abstain-below-risk 0.1")[0] == 2


def test_another_risk_and_a_damaged_file_are_refused_and_a_failed_write_loses_nothing(
    abmll: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_answers(tmp_path / "sure.csv", answered([False] * 4))
    assert abmll(f"{WATCH} --abstain-below-risk 0.1")[0] == 0
    code, _, err = abmll(f"{WATCH} --abstain-below-risk 0.2")
    assert (code, "watches for a share of 0.1, not 0.2" in err) == (2, True)
    file = tmp_path / "runs" / "mine" / "watch" / "t" / "counted.json"
    before = file.read_bytes()
    write_answers(tmp_path / "sure.csv", answered([True] * 4, first=9))
    with monkeypatch.context() as patch:
        patch.setattr("abmll.watching.state.write_sealed_json", _disk_full)
        assert abmll(WATCH)[0] == 1
    assert file.read_bytes() == before
    values = json.loads(before)
    file.write_text(json.dumps({**values, "wrong": "0"}))
    code, _, err = abmll(WATCH)
    assert (code, "--restart` begins anew" in err) == (2, True)
    for name, value in (("wrong", "2"), ("risk", 7), ("seen", ["x"]), ("format", 9)):
        library.watching.state.write_sealed_json(
            file, {**{k: v for k, v in values.items() if k != "sha256"}, name: value}, "counted.json of t"
        )
        assert abmll(WATCH)[0] == 2, name


def _disk_full(*_: object) -> None:
    raise OSError(28, "No space left on device", "counted.json")


def test_from_python(abmll: Command, tmp_path: Path) -> None:
    write_answers(tmp_path / "sure.csv", answered([True] * 6))
    watched = watch_task("runs/mine", "t", "sure.csv", WatchOptions(risk=0.1))
    assert watched.fails
    assert (watched.counted.alarm, watched.new, watched.counted.errors) == (6, 6, 6)
    with pytest.raises(AbmllError, match=r"risk -1: expected|risk -1\.0: expected|abstain-below-risk -1"):
        watch_task("runs/mine", "t", "sure.csv", WatchOptions(risk=-1.0))
