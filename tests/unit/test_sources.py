"""Tables of tasks: what is read, and what is said about every bad row."""

import json
import os
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from abmll.errors import AbmllError
from abmll.question import Question
from abmll.tables.frames import rows_in
from abmll.tables.read import RowFile
from abmll.tables.rows import BadRow, group_of, question_from_row
from abmll.tasks.sources import load_tasks
from tests.tables import read_questions

GOOD = {"id": "q", "question": "Which is a metal?", "context": "", "choices": ["oxygen", "iron"], "answer": 1}


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def reasons(path: Path, **options: bool) -> dict[int, str]:
    """Line -> what is said about it."""
    with pytest.raises(AbmllError) as caught:
        read_questions(path, **options)
    said = [line.removeprefix(f"  {path}:") for line in str(caught.value).splitlines()[1:]]
    return {int(line.split(": ", 1)[0]): line.split(": ", 1)[1] for line in said}


def test_a_jsonl_row_becomes_a_question(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "metals.jsonl", GOOD, {**GOOD, "id": 7, "answer": "oxygen", "context": "Read."})
    assert read_questions(path) == (
        Question("q", "Which is a metal?", ("oxygen", "iron"), 1),
        Question("7", "Which is a metal?", ("oxygen", "iron"), 0, "Read."),
    )


def test_id_and_context_may_be_absent_and_the_id_is_then_the_line(tmp_path: Path) -> None:
    row = {key: GOOD[key] for key in ("question", "choices", "answer")}
    path = write_jsonl(tmp_path / "a.jsonl", row, "", "  ", row)
    assert [q.id for q in read_questions(path)] == ["1", "4"]


BAD_ROWS = {
    "not JSON": "{",
    "not a JSON object but [1]": "[1]",
    "NaN is not JSON": '{"question": NaN}',
    "field 'answer' is given twice": '{"answer": 0, "answer": 1}',
    "nested too deep": "[" * 100_000,
    "too many digits": '{"answer": ' + "9" * 5000 + "}",
    "question is missing (found: 'choices')": {"choices": ["a", "b"]},
    "question is empty": {**GOOD, "question": " \t"},
    "question is 3, not text": {**GOOD, "question": 3},
    "question holds a NUL": {**GOOD, "question": "a\0b"},
    "half of a surrogate pair": {**GOOD, "choices": ["a", "\ud800"]},
    "context is ['x'], not text": {**GOOD, "context": ["x"]},
    "id is True": {**GOOD, "id": True},
    "id is 1.5": {**GOOD, "id": 1.5},
    "choices is missing": {**GOOD, "choices": None},
    "choices is the text 'a,b'": {**GOOD, "choices": "a,b"},
    "choices is {'a': 1}, not a list": {**GOOD, "choices": {"a": 1}},
    "has 0 choices": {**GOOD, "choices": []},
    "has 1 choice;": {**GOOD, "choices": ["a"]},
    "choice 1 is 2, not text": {**GOOD, "choices": ["a", 2]},
    "choice 1 is empty": {**GOOD, "choices": ["a", " "]},
    "choices 0 and 2 are the same: 'a'": {**GOOD, "choices": ["a", "b", "a "]},
    "both choices and choice_": {**GOOD, "choice_0": "x"},
    "answer is missing (found": {key: GOOD[key] for key in ("question", "choices")},
    "answer is missing": {**GOOD, "answer": None},
    "answer 2 is out of range: 2 choices, 0 to 1": {**GOOD, "answer": 2},
    "answer -1 is out of range": {**GOOD, "answer": -1},
    "answer is True": {**GOOD, "answer": True},
    "answer is 0.5": {**GOOD, "answer": 0.5},
    "answer is [0]": {**GOOD, "answer": [0]},
    "answer 'gold' is not one of the choices": {**GOOD, "answer": "gold"},
    "answer '1' is not one of the choices": {**GOOD, "answer": "1"},
}


def test_every_bad_row_is_reported_with_its_line_and_reason_all_at_once(tmp_path: Path) -> None:
    rows = [
        {**row, "id": n} if isinstance(row, dict) and "id" not in row else row
        for n, row in enumerate(BAD_ROWS.values())
    ]
    rows = [{**row, "id": n} if isinstance(row, dict) and row["id"] == "q" else row for n, row in enumerate(rows)]
    said = reasons(write_jsonl(tmp_path / "bad.jsonl", GOOD, *rows))
    assert list(said) == list(range(2, len(BAD_ROWS) + 2))
    for expected, reason in zip(BAD_ROWS, said.values(), strict=True):
        wanted = expected.replace("(found: 'choices')", "(found: 'choices', 'id')")
        assert wanted in reason


def test_the_report_prints_50_rows_and_counts_the_rest(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "bad.jsonl", *["{"] * 1234)
    with pytest.raises(AbmllError) as caught:
        read_questions(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "1,234 bad rows; nothing was loaded:"
    assert lines[-1] == "  ... and 1,184 more"
    assert len(lines) == 52


def test_a_repeated_id_names_both_lines(tmp_path: Path) -> None:
    said = reasons(write_jsonl(tmp_path / "a.jsonl", GOOD, "", GOOD))
    assert said == {3: "id 'q' is that of line 1 too"}


def test_a_repeated_choice_may_be_dropped_instead(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {**GOOD, "choices": ["b", "b", "c"], "answer": 2})
    assert list(reasons(path)) == [1]
    assert read_questions(path, merge_choices=True)[0] == Question("q", "Which is a metal?", ("b", "c"), 1)
    path = write_jsonl(tmp_path / "b.jsonl", {**GOOD, "choices": ["b", "b"], "answer": 1})
    assert reasons(path, merge_choices=True) == {1: "has one choice, 2 times; a question needs two or more"}


def test_rows_without_an_answer_are_read_when_allowed_and_an_answer_is_not_looked_at(tmp_path: Path) -> None:
    row = {key: GOOD[key] for key in ("question", "choices")}
    path = write_jsonl(tmp_path / "a.jsonl", row, {**row, "answer": None}, {**row, "answer": 9})
    assert [q.answer for q in read_questions(path, labelled=False)] == [None, None, None]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_byte_order_mark_and_line_ends_make_no_difference(tmp_path: Path, start: bytes, end: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(start + json.dumps(GOOD).encode() + end + b"{" + end)
    assert list(reasons(path)) == [2]
    path = tmp_path / "a.csv"
    path.write_bytes(start + end.join([b"question,choice_a,choice_b,answer", b'"two', b'lines",x,y,0', b"q,x,y,5"]))
    assert reasons(path) == {4: "answer 5 is out of range: 2 choices, 0 to 1"}


def test_bytes_that_are_not_utf8_are_reported_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"question": "caf\xe9"}\n')
    assert reasons(path) == {2: "not UTF-8 (byte 0xe9 at 17 of the line); save the file as UTF-8"}
    path = tmp_path / "a.csv"
    path.write_bytes(b"question,choices,answer\ncaf\xe9,,\n")
    assert list(reasons(path)) == [2]


def test_csv_takes_a_list_or_columns_of_choices(tmp_path: Path) -> None:
    listed, numbered = tmp_path / "a.csv", tmp_path / "b.csv"
    listed.write_text('question,choices,answer\nMetal?,"[""oxygen"", ""iron""]",iron\n')
    numbered.write_text("id,question,choice_0,choice_1,choice_2,answer\nx,Metal?,oxygen,iron,,1\n\n,2 + 2?,4,5,6,4\n")
    assert read_questions(listed) == (Question("2", "Metal?", ("oxygen", "iron"), 1),)
    assert read_questions(numbered) == (
        Question("x", "Metal?", ("oxygen", "iron"), 1),
        Question("4", "2 + 2?", ("4", "5", "6"), 0),
    )


def test_bad_csv_is_reported_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "question,choice_0,choice_1,choice_2,answer\n"
        "q,a,b\n"
        "q,a,b,c,x,y\n"
        "q,a,,c,0\n"
        "q,1,0,2,1\n"
        "q,a,b,c,\n"
        "q,a,b,c,C\n"
        '"q,a,b,c,0\n'
    )
    said = reasons(path)
    assert said[2] == "3 fields, but the first line names 5"
    assert said[3] == "6 fields, but the first line names 5"
    assert said[4] == "choice 1 is empty"
    assert said[5].startswith("answer 1 may be the choice '1' or the index of '0'")
    assert said[6] == "answer is missing"
    assert said[7].startswith("answer 'C' is not one of the choices")
    assert said[8].startswith("not CSV: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file has no rows"),
        ("question,choices,answer\n", "the file has no rows"),
        ("a;b\n1;2\n3;4\n", "question is missing (found: 'a', 'b'), in 1 more row too"),
        ("question,question\n", "column 'question' is given twice"),
        ("question,choice_0,choice_b,answer\nq,x,y,0\n", "has both choice_0 and choice_a columns; keep one kind"),
        ("question,choice_1,choice_2,answer\nq,x,y,0\n", "has columns choice_1, choice_2; expected choice_0, choice_1"),
    ],
)
def test_a_csv_header_that_cannot_be_understood(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert list(reasons(path).values()) == [reason]


def test_parquet_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = {
        "question": ["a?", None, "c?"],
        "choices": [["x", "y"], ["x", "y"], ["x"]],
        "answer": [1.0, 0.0, float("nan")],
        "picture": [b"\xff", None, b""],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    assert list(reasons(path)) == [2, 3]
    pyarrow.parquet.write_table(pyarrow.table(table).slice(0, 1), path)
    assert read_questions(path) == (Question("1", "a?", ("x", "y"), 1),)


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 but not really PAR1")
    assert reasons(path)[1].startswith("not Parquet: ")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    assert reasons(path) == {1: "question is missing (found: 'text')"}


def damaged(path: Path, rows: int, group: int) -> Path:
    """A Parquet file of good rows, the third of its groups of rows broken."""
    table = pyarrow.Table.from_pylist([{**GOOD, "id": str(n), "question": f"Is {n} even?"} for n in range(rows)])
    pyarrow.parquet.write_table(table, path, row_group_size=group, compression="zstd")
    part = pyarrow.parquet.ParquetFile(path).metadata.row_group(2)
    columns = [part.column(i) for i in range(part.num_columns)]
    start = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
    data = bytearray(path.read_bytes())
    data[start : start + sum(column.total_compressed_size for column in columns)] = bytes(
        sum(column.total_compressed_size for column in columns)
    )
    path.write_bytes(data)
    return path


def test_trust_14_a_damaged_parquet_file_is_refused_at_the_row_where_it_breaks_even_if_bad_rows_are_skipped(
    tmp_path: Path,
) -> None:
    """The rows behind the damage are lost, so that it is no single row that may be left out."""
    path = damaged(tmp_path / "a.parquet", 6000, 1500)
    *good, (line, reason) = RowFile(path).rows()
    assert 1 < line == len(good) + 1 <= 3001
    assert str(reason).startswith("not Parquet: ")
    with pytest.raises(AbmllError, match=rf"a\.parquet:{line}: not Parquet: "):
        load_tasks(path, on_bad_row="skip")


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    raw = pyarrow.array([b"fine?", b"caf\xe9?"]).cast(pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    columns = {"question": text, "choices": [["x", "y"]] * 2, "answer": [0, 1]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert reasons(path) == {2: "holds text that is not UTF-8"}


def folder_of(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "metals.train.jsonl", GOOD)
    write_jsonl(tmp_path / "metals.test.jsonl", {**GOOD, "question": "Which is not a gas?"})
    (tmp_path / "gases.train.csv").write_text("question,choice_a,choice_b,answer\nA gas?,oxygen,iron,0\n")
    (tmp_path / "README.md").write_text("not a table")
    return tmp_path


def test_a_folder_gives_its_tasks_in_order_of_name(tmp_path: Path) -> None:
    gases, metals = load_tasks(folder_of(tmp_path))
    assert (gases.name, len(gases.train), len(gases.test)) == ("gases", 1, 0)
    assert (metals.name, len(metals.train), len(metals.test)) == ("metals", 1, 1)
    assert str(tmp_path) in metals.source


def test_names_choose_tasks_and_their_order(tmp_path: Path) -> None:
    folder_of(tmp_path)
    assert [task.name for task in load_tasks(tmp_path, ["metals", "gases", "metals"])] == ["metals", "gases"]
    with pytest.raises(AbmllError, match=r"unknown task 'metal'\. Did you mean 'metals'\? Known: gases, metals"):
        load_tasks(tmp_path, ["metal"])
    with pytest.raises(AbmllError, match="unknown task"):
        load_tasks(tmp_path, ["../metals"])
    with pytest.raises(AbmllError, match="no task is named"):
        load_tasks(tmp_path, [])


def test_bad_rows_of_all_files_come_in_one_error_and_those_not_asked_for_do_not_count(tmp_path: Path) -> None:
    folder_of(tmp_path)
    first = write_jsonl(tmp_path / "bad.train.jsonl", "{")
    second = write_jsonl(tmp_path / "worse.test.jsonl", GOOD, {**GOOD, "id": "r", "answer": 9})
    with pytest.raises(AbmllError) as caught:
        load_tasks(tmp_path)
    assert str(caught.value).startswith("2 bad rows; nothing was loaded:")
    assert f"{first}:1: " in str(caught.value)
    assert f"{second}:2: " in str(caught.value)
    assert len(load_tasks(tmp_path, ["metals"])) == 1


def test_a_question_in_train_and_test_is_reported(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.train.jsonl", {**GOOD, "question": "Other?", "id": "p"}, GOOD)
    leak = {**GOOD, "choices": ["iron", "oxygen"], "question": "Which is a  metal? ", "answer": 0}
    write_jsonl(tmp_path / "a.test.jsonl", leak)
    with pytest.raises(AbmllError, match=r"a\.test\.jsonl:1: the same question is in a\.train\.jsonl:2"):
        load_tasks(tmp_path)


def test_the_same_stem_on_another_passage_is_no_leak(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.train.jsonl", {**GOOD, "context": "One passage."})
    write_jsonl(tmp_path / "a.test.jsonl", {**GOOD, "context": "Another passage."})
    assert len(load_tasks(tmp_path)) == 1


def test_one_file_or_one_stem(tmp_path: Path) -> None:
    folder_of(tmp_path)
    write_jsonl(tmp_path / "alone.jsonl", GOOD)
    (stem,) = load_tasks(tmp_path / "metals")
    (train,) = load_tasks(str(tmp_path / "metals.train.jsonl"))
    (test,) = load_tasks(tmp_path / "metals.test.jsonl")
    (alone,) = load_tasks(tmp_path / "alone.jsonl")
    assert (stem.name, len(stem.train), len(stem.test)) == ("metals", 1, 1)
    assert (train.name, len(train.train), len(train.test)) == ("metals", 1, 0)
    assert (test.name, len(test.train), len(test.test)) == ("metals", 0, 1)
    assert (alone.name, len(alone.train), len(alone.test)) == ("alone", 1, 0)
    assert load_tasks(tmp_path / "alone") == (alone,)


def test_a_folder_that_cannot_be_understood(tmp_path: Path) -> None:
    with pytest.raises(AbmllError, match=r"no NAME\.train\.jsonl or NAME\.test\.jsonl"):
        load_tasks(tmp_path)
    write_jsonl(tmp_path / "a.validation.jsonl", GOOD)
    with pytest.raises(AbmllError, match=r"name it NAME\.train\.jsonl or NAME\.test\.jsonl"):
        load_tasks(tmp_path)
    (tmp_path / "a.validation.jsonl").unlink()
    write_jsonl(tmp_path / "a.train.jsonl", GOOD)
    (tmp_path / "a.train.csv").write_text("question\n")
    with pytest.raises(AbmllError, match="holds the same rows; keep one"):
        load_tasks(tmp_path)


def test_trust_43_a_link_may_not_leave_the_folder(tmp_path: Path) -> None:
    outside = write_jsonl(tmp_path / "secret.jsonl", GOOD)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "a.train.jsonl").symlink_to(outside)
    with pytest.raises(AbmllError, match="a link that leaves the folder"):
        load_tasks(folder)


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.train.jsonl").symlink_to(tmp_path / "b.train.jsonl")
    (tmp_path / "b.train.jsonl").symlink_to(tmp_path / "a.train.jsonl")
    with pytest.raises(AbmllError, match="cannot be read"):
        load_tasks(tmp_path)


@pytest.mark.parametrize(
    "name", [f"{n}.train.jsonl" for n in ("a\nb", "-rf", "a\\b", "a:b", "CON", "nul.v2", "a ", "a.")]
)
def test_trust_43_a_name_that_could_not_be_a_file_name_everywhere(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / name, GOOD)
    with pytest.raises(AbmllError, match="cannot name a task"):
        load_tasks(tmp_path)


@pytest.mark.parametrize("spec", ["nowhere", "no/where", "a\0b", "", "bultin"])
def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AbmllError):
        load_tasks(spec)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(AbmllError, match=r"none\.jsonl: no such folder or file"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(AbmllError, match=r"folder\.jsonl: no NAME\.train\.jsonl"):
        read_questions(tmp_path / "folder.jsonl")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(AbmllError, match=r"tables are \.jsonl, \.csv, \.tsv, \.parquet or \.xlsx"):
        read_questions(tmp_path / "a.txt")


def test_builtin_specs() -> None:
    assert len(load_tasks("builtin")) >= 15
    assert len(load_tasks("builtin:held-out")) == 3
    assert [task.name for task in load_tasks("builtin:occupations")] == ["occupations"]
    assert [task.name for task in load_tasks("builtin", ["uses", "kinds"])] == ["uses", "kinds"]
    with pytest.raises(AbmllError, match=r"unknown built-in task 'capital'\. Did you mean 'capitals'"):
        load_tasks("builtin:capital")
    with pytest.raises(AbmllError, match="unknown task 'occupations'"):
        load_tasks("builtin", ["occupations"])


def test_the_error_can_be_printed_whatever_the_file_holds(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    write_jsonl(folder / "a.train.jsonl", {**GOOD, "answer": "\udc80"}, {"\ud800": 1})
    with pytest.raises(AbmllError) as caught:
        load_tasks(folder)
    assert str(caught.value).encode()


def test_trust_14_bad_rows_may_be_skipped_and_are_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = {**GOOD, "id": "r", "question": "Which is a gas?"}
    write_jsonl(tmp_path / "a.train.jsonl", "{", GOOD, {**GOOD, "id": "s", "answer": 9}, GOOD)
    write_jsonl(tmp_path / "a.test.jsonl", other, {**GOOD, "id": "t", "choices": ["iron", "oxygen"], "answer": 0})
    with pytest.raises(AbmllError, match="4 bad rows; nothing was loaded"):
        load_tasks(tmp_path)
    (task,) = load_tasks(tmp_path, on_bad_row="skip")
    assert ([q.id for q in task.train], [q.id for q in task.test], task.skipped) == (["q"], ["r"], 4)
    assert f"skipped 3 of 4 rows; the first: {tmp_path}/a.train.jsonl:1: not JSON" in caplog.text
    assert "skipped 1 of 2 rows; the first: " in caplog.text
    assert [q.id for q in read_questions(tmp_path / "a.train.jsonl", on_bad_row="skip")] == ["q"]


def test_trust_14_skipped_rows_are_the_same_ones_that_would_be_refused(tmp_path: Path) -> None:
    rows = [{**row, "id": n} if isinstance(row, dict) else row for n, row in enumerate(BAD_ROWS.values())]
    rows = [{**row, "id": True} if isinstance(row, dict) and row.get("id") == 14 else row for row in rows]
    path = write_jsonl(tmp_path / "bad.jsonl", GOOD, *rows)
    refused = reasons(path)
    kept = {int(q.location.rsplit(":", 1)[1]) for q in read_questions(path, on_bad_row="skip")}
    assert kept == set(range(1, len(rows) + 2)) - set(refused)


def test_trust_18_a_file_without_one_good_row_is_refused_even_so(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.train.jsonl", "{", "[1]")
    write_jsonl(tmp_path / "b.train.jsonl", GOOD)
    with pytest.raises(AbmllError, match="2 bad rows; nothing was loaded"):
        load_tasks(tmp_path, on_bad_row="skip")
    (tmp_path / "a.train.jsonl").write_text("")
    with pytest.raises(AbmllError, match="the file has no rows"):
        load_tasks(tmp_path, on_bad_row="skip")


def test_a_question_knows_where_it_was_read_and_is_the_same_wherever_that_was(tmp_path: Path) -> None:
    here, there = (write_jsonl(tmp_path / f"{name}.jsonl", "", GOOD) for name in ("here", "there"))
    (first,), (second,) = read_questions(here), read_questions(there)
    assert (first.location, second.location) == (f"{here}:2", f"{there}:2")
    assert first == second
    assert hash(first) == hash(second)
    assert "here" not in repr(first)


def test_forms_of_ids_answers_choices_and_columns_are_one(tmp_path: Path) -> None:
    row = {
        "\ufeffid ": "q1",
        "question\u200b": " Caf\u00e9? ",
        "choices": [" ir\u200bon", "tin\u00a0"],
        "answer": "iron ",
    }
    path = write_jsonl(tmp_path / "a.jsonl", row, {**GOOD, "id": " q1\u200b"}, {**GOOD, "id": 2.0}, {**GOOD, "id": "2"})
    assert reasons(path) == {2: "id 'q1' is that of line 1 too", 4: "id '2' is that of line 3 too"}
    (first, _) = read_questions(path, on_bad_row="skip")
    assert first == Question("q1", "Caf\u00e9?", ("iron", "tin"), 0)
    path.write_text(
        "question,choice_0,choice_1,answer\nCafe\u0301?, iron ,t\u200bin,\ufeffiron\nq,x\u200by,z, 1 \n", "utf-8"
    )
    assert read_questions(path.rename(tmp_path / "a.csv"))[0] == Question("2", "Caf\u00e9?", ("iron", "tin"), 0)
    twice = write_jsonl(tmp_path / "b.jsonl", {**GOOD, "answer ": 0})
    assert reasons(twice) == {1: "column 'answer' is given twice"}


def test_a_test_row_that_is_a_train_row_in_another_form_is_reported(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.train.jsonl", {**GOOD, "question": "Caf\u00e9  or tea?", "choices": ["oxygen", "iron"]})
    form = {**GOOD, "question": "\ufeffCafe\u0301 or\u00a0tea?", "choices": ["ir\u200don", "oxy\u00adgen"]}
    write_jsonl(tmp_path / "a.test.jsonl", form)
    with pytest.raises(AbmllError, match=r"a\.test\.jsonl:1: the same question is in a\.train\.jsonl:1"):
        load_tasks(tmp_path)


ROW = {"question": "Why?", "choices": ["a", "b"], "answer": 0}


def test_rows_may_name_their_group_in_every_format(tmp_path: Path) -> None:
    named = [{**ROW, "question": f"{i}?", "group": group} for i, group in enumerate(["x", "x", None, "7"])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    lines = [f'{i}?,"[""a"", ""b""]",0,{group}\n' for i, group in enumerate(("x", "x", "", "7"))]
    (tmp_path / "b.csv").write_text("question,choices,answer,group\n" + "".join(lines))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(named), tmp_path / "c.parquet")
    for file in ("a.jsonl", "b.csv", "c.parquet"):
        assert [q.group for q in read_questions(tmp_path / file)] == ["x", "x", None, "7"], file
    (tmp_path / "d.jsonl").write_text(json.dumps({**ROW, "group": 7}) + "\n" + json.dumps({**ROW, "group": [1]}) + "\n")
    with pytest.raises(AbmllError, match=r"d\.jsonl:2: group is \[1\], not text or a whole number"):
        read_questions(tmp_path / "d.jsonl")


GROUPS = [  # the value, and the group
    (float("nan"), None),
    (pandas.NA, None),
    (pandas.NaT, None),
    (np.ma.masked, None),
    (" \u200b", None),
    (np.int64(7), "7"),
    (7.0, "7"),
    (np.array(7), "7"),
    (np.str_("a"), "a"),
    ("a\u200b", "a"),
    ("Cafe\u0301\u00a0 Noir", "Caf\u00e9 Noir"),
]


@pytest.mark.parametrize(("value", "group"), GROUPS)
def test_a_group_is_one_in_whatever_form_a_table_holds_it(value: object, group: str | None) -> None:
    assert group_of({"group": value}) == group
    assert question_from_row({**ROW, "group": value}, "1").group == group


def test_a_column_of_groups_of_numpy_is_read_row_by_row() -> None:
    columns = {"question": ["a?", "b?"], "choices": [["x", "y"]] * 2, "answer": [0, 1], "group": np.array([1, 2])}
    assert [question_from_row(row, "1").group for row in rows_in(columns)] == ["1", "2"]


def test_a_group_that_is_none_makes_a_bad_row_and_no_traceback() -> None:
    for value in (np.array([1, 2]), [1], True, 1.5, 10**5000, np.datetime64("2024-01-01")):
        with pytest.raises(BadRow, match=r"^group is |digits"):
            group_of({"group": value})


def test_test_rows_that_share_a_passage_are_one_group(tmp_path: Path) -> None:
    """A passage of several rows; not the instruction that all rows share, nor a group that a row has of its own."""

    def write(name: str, contexts: list[str], group: str | None = None) -> None:
        rows = [{**ROW, "question": f"{i}?", "context": text} for i, text in enumerate(contexts)]
        rows[0] |= {"group": group} if group else {}
        (tmp_path / f"{name}.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{name}.train.jsonl").write_text(json.dumps({**ROW, "question": "Other?"}) + "\n")

    write("stories", ["one", "two", " one ", "", "three", ""])
    write("instructed", ["Answer:", "Answer:", "Answer:"])
    write("named", ["one", "one", "two"], group="mine")
    groups = {task.name: [q.group for q in task.test] for task in load_tasks(tmp_path)}
    first, *others = groups["stories"]
    assert first is not None
    assert others == [None, first, None, None, None]
    assert groups["instructed"] == [None] * 3
    assert groups["named"] == ["mine", first, None]
