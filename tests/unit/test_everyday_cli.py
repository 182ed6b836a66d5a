"""`abmll adapt --save` and `abmll predict` as a user meets them, on a tiny run."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from scipy.stats import entropy

from abmll.cli import console
from abmll.cli.work import adapt as cli_adapt
from abmll.everyday import adapt as own_tasks
from abmll.everyday import predict as predicting
from abmll.everyday.adapt import layout_of
from abmll.everyday.labelled import read_unlabelled
from abmll.everyday.saved import read_posterior, write_details
from abmll.everyday.session import open_run
from abmll.exporting.calibrated import calibrate
from abmll.methods.noise import drawn
from abmll.metrics.usefulness import ORDER, VECTORS
from abmll.systems.plans import PredictionPlan
from abmll.systems.system import System
from abmll.text_classifiers import Encode
from tests.commands import Command, command, place_saved_task
from tests.everyday import asked, texts, write_asked, write_csv, write_texts


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, and a task adapted to 24 rows with 26 held back."""
    return place_saved_task(tmp_path_factory.mktemp("home"))


@pytest.fixture
def abmll(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in a copy of the home's files; gives exit code, output and errors, lines unwrapped."""
    shutil.copytree(home / "runs", tmp_path / "runs")
    shutil.copy(home / "my.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.out_console, "_width", 200)
    monkeypatch.setattr(console.err_console, "_width", 200)
    return command(monkeypatch, capsys)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def own_rows(path: Path, count: int = 7) -> Path:
    """Rows to predict with columns of their own."""
    rows = [[n, text, "=1+1"] for n, (text, _) in enumerate(texts(count, seed=3))]
    return write_csv(path, ["nr", "text", "a note"], rows)


def test_predict_keeps_the_rows_and_adds_answers_in_every_format(abmll: Command, tmp_path: Path) -> None:
    own_rows(tmp_path / "rows.csv")
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        code, out, _ = abmll(f"predict runs/mine rows.csv --task t -o {name} adaptation.samples=2")
        assert (code, out) == (0, f"Written: {name}, 7 rows\n")
    table = read_csv(tmp_path / "out.csv")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    parquet = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    own, ours = ["nr", "text", "a note"], ["prediction", "confidence", "p_bad", "p_good", "spread", "information"]
    assert list(table[0]) == list(lines[0]) == list(parquet[0]) == own + ours
    theirs = [list(row.values()) for row in read_csv(tmp_path / "rows.csv")]
    assert [[row[name] for name in own] for row in table] == [[nr, text, f"'{note}"] for nr, text, note in theirs]
    assert [[line[name] for name in own] for line in lines] == theirs
    for cells, line, row in zip(table, lines, parquet, strict=True):
        assert line == row
        assert line["p_bad"] + line["p_good"] == pytest.approx(1)
        assert line["confidence"] == line[f"p_{line['prediction']}"] == max(line["p_bad"], line["p_good"])
        assert 0 < line["spread"] < 0.5
        assert 0 < line["information"] < np.log(2)
        assert cells["prediction"] == line["prediction"]
        assert float(cells["confidence"]) == pytest.approx(line["confidence"], rel=1e-5)


def test_answers_are_those_of_the_exported_draws(abmll: Command, tmp_path: Path) -> None:
    """The mean and the standard deviation over the very draws that `abmll export --draw` merges."""
    saved = read_posterior(tmp_path / "runs" / "mine", "t")
    session = open_run(tmp_path / "runs" / "mine", {"adaptation": {"samples": 2}}, saved)
    layout = own_tasks.layout_of(saved)
    question = layout.question({"text": texts(1, seed=9)[0][0]}, 1, labelled=False)
    (found,) = session.system.answer([question], session.drawing)
    tables = []
    for draw in range(session.drawing.samples):
        with drawn(session.system.method.adapters, draw):
            batch = session.system.batcher.batch([question])
            tables.append(session.system.likelihood.scores(batch).log_probabilities.detach().exp().numpy()[0])
    assert found.probabilities == pytest.approx(np.mean(tables, axis=0), abs=1e-5)
    assert found.spread == pytest.approx(np.std(tables, axis=0)[found.choice], abs=1e-5)
    disagreement = entropy(np.mean(tables, axis=0)) - np.mean([entropy(table) for table in tables])
    assert found.information == pytest.approx(disagreement, abs=1e-5)


def test_multiple_choice_works_the_same_way(abmll: Command, tmp_path: Path) -> None:
    rows = asked(12)
    write_asked(tmp_path / "mine.jsonl", rows)
    code, out, _ = abmll("adapt runs/mine mine.jsonl --save mc --no-check")
    assert code == 0
    assert "Saved: runs/mine/tasks/mc (12 rows adapted to)" in out
    unlabelled = [{"own": n, **{k: v for k, v in row.items() if k != "answer"}} for n, row in enumerate(rows[:5])]
    unlabelled[3]["choices"] = ["=cmd|' /C calc'!A0", "garden"]
    write_asked(tmp_path / "rows.jsonl", unlabelled)
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        assert abmll(f"predict runs/mine rows.jsonl --task mc -o {name}")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for before, after in zip(unlabelled, lines, strict=True):
        assert {name: after[name] for name in before} == before
        assert after["prediction"] == before["choices"][int(np.argmax(after["probabilities"]))]
        assert len(after["probabilities"]) == len(before["choices"])
    cell = read_csv(tmp_path / "out.csv")[3]
    assert cell["prediction"] == ("'" * lines[3]["prediction"].startswith("=")) + lines[3]["prediction"]
    assert json.loads(cell["probabilities"]) == pytest.approx(lines[3]["probabilities"], rel=1e-5)


def test_labels_and_no_task_answer_by_the_shared_weights(abmll: Command, tmp_path: Path) -> None:
    own_rows(tmp_path / "rows.csv", 3)
    assert abmll("predict runs/mine rows.csv --labels good,bad,fair -o out.csv")[0] == 0
    assert list(read_csv(tmp_path / "out.csv")[0])[3:8] == ["prediction", "confidence", "p_good", "p_bad", "p_fair"]


def test_trust_46_labels_and_names_of_columns_are_no_formulas_and_those_that_are_none_stay(
    abmll: Command, tmp_path: Path
) -> None:
    own_rows(tmp_path / "rows.csv", 5)
    for labels, shown in (("=1+1,=2+2", {"'=1+1", "'=2+2"}), ("+,-", {"+", "-"})):
        for name in ("out.csv", "out.jsonl"):
            assert abmll(f"predict runs/mine rows.csv --labels {labels} --prefix @x_ -o {name}")[0] == 0
        table = read_csv(tmp_path / "out.csv")
        assert {name for name in table[0] if name.startswith("'")} == {
            f"'@x_{name}"
            for name in ("prediction", "confidence", "spread", "information", *map("p_{}".format, labels.split(",")))
        }
        assert {row["'@x_prediction"] for row in table} <= shown
        assert {row["a note"] for row in table} == {"'=1+1"}
        exact = [json.loads(line)["@x_prediction"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["'@x_prediction"].removeprefix("'") for row in table] == exact


def test_chunks_change_nothing_and_bound_memory(
    abmll: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_rows(tmp_path / "rows.csv", 11)
    assert abmll("predict runs/mine rows.csv --task t -o whole.csv")[0] == 0
    most: list[int] = []
    real = System.answer

    def watched(system: System, questions: Any, plan: Any) -> Any:
        answers = real(system, questions, plan)
        most.append(len(system.batcher.encoder._cache))
        return answers

    monkeypatch.setattr(System, "answer", watched)
    monkeypatch.setattr(predicting, "CHUNK", 4)
    assert abmll("predict runs/mine rows.csv --task t -o parts.csv")[0] == 0
    assert most == [4, 4, 3]
    for one, other in zip(read_csv(tmp_path / "whole.csv"), read_csv(tmp_path / "parts.csv"), strict=True):
        assert one["text"] == other["text"]
        assert float(one["confidence"]) == pytest.approx(float(other["confidence"]), abs=1e-5)


BAD_ROWS = {
    "a.csv": ("nr,text\n1,x\n2,\n3\n", ["a.csv:3: text is empty", "a.csv:4: 1 fields"]),
    "b.jsonl": ('{"text": "x"}\n{"text": 3}\n{]\n', ["b.jsonl:2: text is 3, not text", "b.jsonl:3: not JSON"]),
    "c.csv": ("nr,words\n1,x\n", ["c.csv:2: text is missing (found: 'nr', 'words')"]),
    "d.csv": ("nr,text\n", ["d.csv:1: the file has no rows"]),
    "e.jsonl": ("", ["e.jsonl:1: the file has no rows"]),
    "f.csv": ("text,prediction\nx,y\n", ["'prediction' already", "--prefix"]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_trust_14_bad_rows_are_named_by_file_and_line_and_nothing_is_written(
    name: str, abmll: Command, tmp_path: Path
) -> None:
    text, messages = BAD_ROWS[name]
    (tmp_path / name).write_text(text)
    code, _, err = abmll(f"predict runs/mine {name} --task t -o out.csv")
    assert code == 2
    assert all(message in " ".join(err.split()) for message in messages), err
    assert not (tmp_path / "out.csv").exists()
    assert "loading" not in err, "rows and columns are checked before a model is loaded"


def test_a_prefix_makes_room(abmll: Command, tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", ["text", "prediction"], [["a", "mine"]])
    assert abmll("predict runs/mine rows.csv --task t --prefix abmll_ -o out.csv")[0] == 0
    (row,) = read_csv(tmp_path / "out.csv")
    assert row["prediction"] == "mine"
    assert row["abmll_prediction"] in ("bad", "good")


def test_where_nothing_can_be_written_is_said_before_a_model_is_loaded(abmll: Command, tmp_path: Path) -> None:
    own_rows(tmp_path / "rows.csv")
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for out, why in (
        ("folder.csv", "a folder; give a file"),
        ("pipe.csv", "a pipe or a device"),
        ("rows.csv/out.csv", "cannot be written (Not a directory)"),
        (f"{'x' * 300}.csv", "cannot be written (File name too long)"),
    ):
        code, _, err = abmll(f"predict runs/mine rows.csv --task t -o {out}")
        assert (code, "loading" in err) == (2, False), err
        assert why in " ".join(err.split()), err
    assert abmll("predict runs/mine rows.csv --task t -o new/folders/out.csv")[0] == 0


def test_a_column_of_ours_counts_as_taken_only_where_it_is_added(abmll: Command, tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", ["text", "answered"], [["a", "mine"]])
    code, _, err = abmll("predict runs/mine rows.csv --task t --abstain-below-risk 0.3 -o out.csv")
    assert (code, "has a column 'answered' already" in err, "loading" in err) == (2, True, False)
    assert abmll("predict runs/mine rows.csv --task t -o out.csv")[0] == 0


def test_a_saved_task_is_read_and_warned_about_once(
    abmll: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_rows(tmp_path / "rows.csv")
    file = tmp_path / "runs" / "mine" / "tasks" / "t" / "task.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in values.items() if name != "sha256"}))
    assert abmll("predict runs/mine rows.csv --task t -o out.csv")[0] == 0
    assert caplog.text.count("has no SHA-256, as version 0.1.0 wrote none") == 1


MISTAKES = {
    "no such task": ("predict runs/mine my.csv --task u -o o.csv", "unknown saved task of runs/mine 'u'"),
    "no such run": ("predict nowhere my.csv --task t -o o.csv", "nowhere: no run directory"),
    "no such file": ("predict runs/mine no.csv --task t -o o.csv", "no.csv: cannot be read"),
    "onto itself": ("predict runs/mine my.csv --task t -o my.csv", "the file of rows itself"),
    "an ending": ("predict runs/mine my.csv --task t -o o.xlsx", ".jsonl, .csv, .tsv or .parquet"),
    "labels twice": ("predict runs/mine my.csv --task t --labels a,b -o o.csv", "adapted with"),
    "no task": ("predict runs/mine my.csv --abstain-below-risk 0.1 -o o.csv", "needs --task"),
    "no risk": ("predict runs/mine my.csv --task t --held-back my.csv -o o.csv", "--held-back is for"),
    "a wild risk": ("predict runs/mine my.csv --task t --abstain-below-risk 3 -o o.csv", "between 0 and 1"),
    "taken": ("adapt runs/mine my.csv --save t", "has a saved task 't' already"),
    "a name that leaves": ("adapt runs/mine my.csv --save ../t", "task name"),
    "nothing to save": ("adapt runs/mine --save u", "needs a file of labelled rows"),
    "one label": ("adapt runs/mine my.csv --save u --labels a", "two or more"),
    "other labels": ("adapt runs/mine my.csv --save u --labels a,b", "my.csv:2: label is 'bad', none of the labels"),
    "a file without --save": ("adapt runs/mine my.csv", "--save NAME adapts to it"),
    "all held back": ("adapt runs/mine my.csv --save u --hold-back 49", "leaves fewer than two"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(kind: str, abmll: Command, tmp_path: Path) -> None:
    line, message = MISTAKES[kind]
    before = (tmp_path / "my.csv").read_bytes()
    code, _, err = abmll(line)
    assert code == 2
    assert message in " ".join(err.split()), err
    assert (tmp_path / "my.csv").read_bytes() == before
    assert not (tmp_path / "o.csv").exists()


def test_adapt_ends_with_the_check_and_says_first_how_long_it_takes(abmll: Command, tmp_path: Path) -> None:
    write_texts(tmp_path / "few.csv", 10)
    code, out, err = abmll("adapt runs/mine few.csv --save checked adaptation.samples=2")
    assert code == 0
    assert re.search(r"A check will take about \d+ s\..*--no-check", err)
    assert "10 labelled rows are few" in err
    rows = set(ORDER) - {VECTORS}
    assert all(f"│ {name} " in out for name in rows)
    assert re.search(r"No evidence that adapting helps|Adapting (helps|hurts)", out)
    assert re.search(r"Advice: use .* nats\), .* s per 1,000 rows", " ".join(out.split()))
    assert "Left out: sentence vectors + regression (no encoder was named (--vectors))" in " ".join(out.split())
    assert "measured on this machine" in out
    kept = read_posterior(tmp_path / "runs" / "mine", "checked").details
    assert kept["check"]["n"] == 10
    assert set(kept["check"]["table"]) == rows
    assert kept["check"]["advice"]["choice"] in rows
    assert kept["steps"] == 5


def test_sentence_vectors_are_a_row_where_an_encoder_is_named(
    abmll: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[str] = []

    def load(source: str) -> Encode:
        named.append(source)
        return lambda some: np.array([[text.count("sun"), 1.0] for text in some])

    monkeypatch.setattr(cli_adapt, "load_encoder", load)
    write_texts(tmp_path / "few.csv", 10)
    assert (
        abmll("adapt runs/mine few.csv --save v --vectors my/encoder adaptation.samples=1 adaptation.steps=1")[0] == 0
    )
    assert named == ["my/encoder"]
    assert VECTORS in read_posterior(tmp_path / "runs" / "mine", "v").details["check"]["table"]
    write_asked(tmp_path / "asked.jsonl", asked(6))
    code, _, err = abmll("adapt runs/mine asked.jsonl --save q --vectors my/encoder")
    assert (code, "--vectors my/encoder: is for texts and labels" in err, "loading" in err) == (2, True, False)


def test_rows_of_too_few_groups_are_saved_and_not_checked(abmll: Command, tmp_path: Path) -> None:
    """One group for all rows can be dealt to no folds."""
    for groups in (1, 3):
        rows = [[text, label, f"g{n % groups}"] for n, (text, label) in enumerate(texts(24))]
        write_csv(tmp_path / "grouped.csv", ["text", "label", "group"], rows)
        code, out, _ = abmll(f"adapt runs/mine grouped.csv --save g{groups} adaptation.steps=1")
        assert code == 0
        assert f"{groups} different rows or groups cannot tell: 4 is the fewest" in out
        assert "check" not in read_posterior(tmp_path / "runs" / "mine", f"g{groups}").details


def test_what_is_adapted_to_is_counted_after_holding_back(abmll: Command, tmp_path: Path) -> None:
    """Of 12 pairs of rows, 4 pairs are held back: 16 rows are left, of which an epoch is 16 steps and more."""
    rows = [[text, label, f"g{n // 2}"] for n, (text, label) in enumerate(texts(24))]
    write_csv(tmp_path / "grouped.csv", ["text", "label", "group"], rows)
    code, out, err = abmll("adapt runs/mine grouped.csv --save g --hold-back 4 --no-check")
    assert code == 0
    steps = read_posterior(tmp_path / "runs" / "mine", "g").details["steps"]
    assert f"adapting to 16 rows: {steps} steps" in err
    assert "(16 rows adapted to, 4 held back" in out
    code, _, err = abmll("adapt runs/mine grouped.csv --save h --hold-back 32 --no-check")
    assert (code, "leaves fewer than two" in err) == (2, True)
    assert "loading" not in err
    assert "adapting to" not in err


def test_the_check_can_be_stopped_and_the_task_stays(
    abmll: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli_adapt, "check_and_learn", stop)
    code, out, err = abmll("adapt runs/mine my.csv --save s adaptation.steps=1")
    assert (code, "the check was stopped; the task is saved" in err, "Next: abmll predict" in out) == (0, True, True)
    assert "check" not in read_posterior(tmp_path / "runs" / "mine", "s").details


def test_steps_are_one_pass_or_what_is_asked_for(abmll: Command, tmp_path: Path) -> None:
    """By rows held back of which those that the task is sure of are right."""
    for options, steps in (("", 25), ("adaptation.steps=2", 2), ('adaptation={"steps":3}', 3)):
        assert abmll(f"adapt runs/mine my.csv --save s{steps} --no-check {options}")[0] == 0
        assert read_posterior(tmp_path / "runs" / "mine", f"s{steps}").details["steps"] == steps


def test_trust_09_an_edited_task_promises_nothing(abmll: Command, tmp_path: Path) -> None:
    """Rows held back said that no threshold keeps the promise; after `sed s/false/true/` it was once promised."""
    own_rows(tmp_path / "rows.csv")
    write_texts(tmp_path / "new.csv", 40, seed=9)
    line = "predict runs/mine rows.csv --task t --abstain-below-risk 0.1 -o out.csv"
    file = tmp_path / "runs" / "mine" / "tasks" / "t" / "task.json"
    edited = json.loads(file.read_text())
    held_back = edited["details"]["held_back"]
    right = [int(np.argmax(p)) for p in held_back["probabilities"]]
    assert held_back["answers"] != right, "nothing is wrong, so nothing can be made right"
    assert "no threshold keeps the promise" in abmll(line)[2]
    held_back["answers"] = right
    file.write_text(json.dumps(edited))
    for more in ("", " --held-back new.csv"):
        code, _, err = abmll(line + more)
        assert (code, "task.json: damaged or edited" in err, "--save t --replace" in err) == (2, True, True), err
    edited.pop("sha256")
    file.write_text(json.dumps(edited))
    for more in ("", " --held-back new.csv"):
        code, _, err = abmll(line + more)
        assert (code, "so nothing can be promised by it" in " ".join(err.split())) == (2, True), err
    assert not (tmp_path / "out.csv").exists()
    assert abmll("predict runs/mine rows.csv --task t -o out.csv")[0] == 0, "without a promise an old file is as ever"


def test_abstaining_needs_enough_rows_held_back(abmll: Command, tmp_path: Path) -> None:
    own_rows(tmp_path / "rows.csv")
    code, _, err = abmll("predict runs/mine rows.csv --task t --abstain-below-risk 0.05 -o out.csv")
    assert code == 2
    assert "it needs 45 labelled rows or more" in err
    assert "here are 26" in err
    assert "Risk and coverage on the rows held back" in err
    assert not (tmp_path / "out.csv").exists()
    assert abmll("adapt runs/mine my.csv --save bare --no-check")[0] == 0
    code, _, err = abmll("predict runs/mine rows.csv --task bare --abstain-below-risk 0.1 -o out.csv")
    assert (code, "it needs 22" in err, "here are 0" in err) == (2, True, True)


def _hold(run: Path, errors: int, rows: int = 60) -> None:
    """Put other answers in the place of those held back, the least confident ones wrong."""
    details = read_posterior(run, "t").details
    held = {
        "probabilities": [[p, 1 - p] for p in np.linspace(0.5, 1, rows).tolist()],
        "answers": [int(n < errors) for n in range(rows)],
    }
    write_details(run, "t", {**details, "held_back": {**details["held_back"], **held}})


def test_abstaining_answers_above_the_threshold_alone(abmll: Command, tmp_path: Path) -> None:
    own_rows(tmp_path / "rows.csv", 9)
    _hold(tmp_path / "runs" / "mine", 0)
    code, _, err = abmll("predict runs/mine rows.csv --task t --abstain-below-risk 0.1 -o out.csv")
    assert code == 0
    assert "Answered: 9 of 9 rows (100 %)" in err
    assert {row["answered"] for row in read_csv(tmp_path / "out.csv")} == {"true"}
    _hold(tmp_path / "runs" / "mine", 60, 300)
    code, _, err = abmll("predict runs/mine rows.csv --task t --abstain-below-risk 0.1 -o out.csv")
    assert code == 0
    table = read_csv(tmp_path / "out.csv")
    silent = [row for row in table if row["answered"] == "false"]
    assert 0 < len(silent) < 9
    assert f"Answered: {9 - len(silent)} of 9" in err
    assert all(row["prediction"] == "" and row["p_good"] for row in silent)
    lowest = min(float(row["confidence"]) for row in table if row["answered"] == "true")
    assert all(float(row["confidence"]) < lowest for row in silent)


def test_abstaining_refuses_where_no_threshold_can_promise(abmll: Command, tmp_path: Path) -> None:
    own_rows(tmp_path / "rows.csv")
    _hold(tmp_path / "runs" / "mine", 60)
    code, _, err = abmll("predict runs/mine rows.csv --task t --abstain-below-risk 0.1 -o out.csv")
    assert (code, "no threshold keeps the promise" in err) == (2, True)
    assert not (tmp_path / "out.csv").exists()


def test_rows_that_were_adapted_to_promise_nothing(abmll: Command, tmp_path: Path) -> None:
    own_rows(tmp_path / "rows.csv")
    line = "predict runs/mine rows.csv --task t --abstain-below-risk 0.1 -o out.csv --held-back"
    code, _, err = abmll(f"{line} my.csv")
    assert code == 2
    assert "24 of the rows held back were adapted to" in " ".join(err.split())
    assert re.search(r"my\.csv:\d+, my\.csv:\d+", err)
    write_texts(tmp_path / "new.csv", 30, seed=8)
    code, _, err = abmll(f"{line} new.csv")
    assert "adapted to, so" not in err
    twice = [list(row) for row in texts(12, seed=8)] * 2
    write_csv(tmp_path / "twice.csv", ["text", "label"], twice)
    assert "here are 12" in abmll(f"{line} twice.csv")[2], "the same row twice is one"


def test_other_settings_than_those_of_the_rows_held_back_are_refused(abmll: Command, tmp_path: Path) -> None:
    own_rows(tmp_path / "rows.csv")
    line = "predict runs/mine rows.csv --task t --abstain-below-risk 0.1 -o out.csv adaptation.samples=2"
    code, _, err = abmll(line)
    assert (code, "with another sampler and samples than now" in " ".join(err.split())) == (2, True)
    assert abmll(line.replace(" --abstain-below-risk 0.1", ""))[0] == 0


def test_rows_that_are_not_answered_have_the_name_that_was_asked_for(abmll: Command, tmp_path: Path) -> None:
    own_rows(tmp_path / "rows.csv", 40)
    assert abmll("predict runs/mine rows.csv --task t -o all.jsonl")[0] == 0
    everything = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert {(line["spread"], line["information"]) for line in everything} == {(None, None)}, "the mean weights"
    saved = read_posterior("runs/mine", "t")
    held_back = {**saved.details["held_back"], "probabilities": [[0.99, 0.01]] * 300 + [[0.5, 0.5]] * 100}
    held_back["answers"] = [0] * 300 + [1] * 100
    write_details(Path("runs/mine"), "t", {**saved.details, "held_back": held_back})
    line = "predict runs/mine rows.csv --task t --abstain-below-risk 0.1 -o some.jsonl --other elsewhere"
    code, _, err = abmll(line)
    assert code == 0, err
    some = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines()]
    named = [line for line in some if not line["answered"]]
    assert 0 < len(named) < 40
    assert {line["prediction"] for line in named} == {"elsewhere"}
    assert max(line["confidence"] for line in named) <= min(line["confidence"] for line in some if line["answered"])
    assert [line["prediction"] for line in some if line["answered"]] == [
        whole["prediction"] for whole, line in zip(everything, some, strict=True) if line["answered"]
    ]
    assert f"Answered: {40 - len(named)} of 40 rows" in err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--task t --other x", "--other is for --abstain-below-risk"),
        ("--task t --abstain-below-risk 0.1 --other=", "--other is missing"),
    ],
)
def test_a_name_for_rows_that_are_not_answered_needs_such_rows(
    options: str, why: str, abmll: Command, tmp_path: Path
) -> None:
    own_rows(tmp_path / "rows.csv")
    code, _, err = abmll(f"predict runs/mine rows.csv -o out.csv {options}")
    assert (code, why in " ".join(err.split())) == (2, True)


def test_a_row_that_does_not_fit_the_model_is_named(abmll: Command, tmp_path: Path) -> None:
    rows = asked(4)
    rows[2]["question"] = "river " * 2000
    write_asked(tmp_path / "long.jsonl", rows)
    code, _, err = abmll("adapt runs/mine long.jsonl --save long")
    assert (code, "long.jsonl:3: question '3' needs" in " ".join(err.split())) == (2, True)
    write_csv(tmp_path / "rows.csv", ["text"], [["river " * 2000], ["sun"]])
    code, _, err = abmll("predict runs/mine rows.csv --task t -o out.csv")
    assert (code, "1 row is longer than likelihood.max_tokens=512" in " ".join(err.split())) == (0, True)


def test_a_task_of_texts_is_calibrated_on_texts_with_its_own_settings(abmll: Command, tmp_path: Path) -> None:
    """Its columns, labels and likelihood, not those of the run: the temperature is that of what `predict` says."""
    own_rows(tmp_path / "rows.csv")
    assert abmll("adapt runs/mine my.csv --save sums --no-check likelihood.normalisation=sum")[0] == 0
    code, _, err = abmll("export runs/mine -o served --task sums --calibrated --questions rows.csv")
    assert code == 0, err
    saved = read_posterior("runs/mine", "sums")
    session = open_run(Path("runs/mine"), saved=saved)
    rows = read_unlabelled(Path("rows.csv"), layout_of(saved))
    expected = calibrate(session.system, rows, PredictionPlan("weight", session.config.adaptation.samples))
    found = json.loads((tmp_path / "served" / "calibration.json").read_text())
    assert found["likelihood"]["normalisation"] == "sum"
    assert found["temperature"] == pytest.approx(expected.temperature, rel=1e-4)
    assert found["before"]["mean_kl"] == pytest.approx(expected.before.mean_kl, rel=1e-3)
