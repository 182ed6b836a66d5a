"""Tables as spreadsheets of any country and age write them; and what is no file of rows, which is never waited for."""

import csv
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from abmll.errors import AbmllError
from abmll.everyday.labelled import read_labelled, read_unlabelled
from abmll.question import Question
from abmll.tables.delimited import Dialect, find_dialect
from abmll.tables.layouts import Layout
from abmll.tables.read import RowFile
from abmll.tables.rows import MOST_CELL, BadRow
from abmll.tables.write import writing
from abmll.tasks.sources import load_tasks
from tests.tables import read_questions

ROWS = [{"text": "Good, and cheap", "label": "a"}, {"text": 'He said "no"; then left', "label": "b"}]
PLAIN = 'text,label\n"Good, and cheap",a\n"He said ""no""; then left",b\n'
SEMICOLONS = 'text;label\nGood, and cheap;a\n"He said ""no""; then left";b\n'
TABS = 'text\tlabel\nGood, and cheap\ta\n"He said ""no""; then left"\tb\n'

SAME: dict[str, tuple[str, bytes]] = {  # as ROWS
    "commas": ("a.csv", PLAIN.encode()),
    "semicolons": ("a.csv", SEMICOLONS.encode()),
    "tabs": ("a.csv", TABS.encode()),
    "tsv": ("a.tsv", TABS.encode()),
    "TSV": ("a.TSV", TABS.encode()),
    "sep": ("a.csv", b"sep=;\r\n" + SEMICOLONS.replace("\n", "\r\n").encode()),
    "sep of another sign": ("a.csv", b'"sep=|"\ntext|label\nGood, and cheap|a\n"He said ""no""; then left"|b\n'),
    "sep with a mark": ("a.csv", b"\xef\xbb\xbfsep=;\n" + SEMICOLONS.encode()),
    "byte order mark": ("a.csv", b"\xef\xbb\xbf" + PLAIN.encode()),
    "UTF-16, as Excel's Unicode text": ("a.csv", TABS.replace("\n", "\r\n").encode("utf-16")),
    "UTF-16, big": ("a.csv", b"\xfe\xff" + PLAIN.encode("utf-16-be")),
    "UTF-32": ("a.csv", PLAIN.encode("utf-32")),
    "line ends of Windows": ("a.csv", PLAIN.replace("\n", "\r\n").encode()),
    "line ends of an old Mac": ("a.csv", PLAIN.replace("\n", "\r").encode()),
    "no line end at the end": ("a.csv", PLAIN.rstrip("\n").encode()),
    "a space after each comma": ("a.csv", b'text, label\n"Good, and cheap", a\n"He said ""no""; then left", "b"\n'),
    "a space in the rows alone": ("a.csv", b'text,label\n"Good, and cheap", "a"\n"He said ""no""; then left", b\n'),
    "spaces around everything": (
        "a.csv",
        b' text , label \n"Good, and cheap", a \n"He said ""no""; then left", b \n',
    ),
    "empty columns at the end": ("a.csv", PLAIN.replace("\n", ",,\n").encode()),
    "empty columns in some rows": ("a.csv", PLAIN.replace(",a\n", ",a,,,\n").encode()),
    "empty rows": ("a.csv", PLAIN.replace(",a\n", ",a\n,\n\n , \n").encode() + b",\n,,,\n"),
    "empty rows above": ("a.csv", b"\n,\n" + PLAIN.encode()),
    "marks in the header": (
        "a.csv",
        PLAIN.replace("text", "\ufefftext\u200b").replace("label", "label\u00a0").encode(),
    ),
    "JSON lines": ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode()),
    "JSON lines of UTF-16": ("a.jsonl", "".join(json.dumps(row) + "\r\n" for row in ROWS).encode("utf-16")),
}


@pytest.mark.parametrize("kind", SAME)
def test_the_same_rows_however_they_were_written(kind: str, tmp_path: Path) -> None:
    name, data = SAME[kind]
    (tmp_path / name).write_bytes(data)
    found = read_labelled(tmp_path / name, Layout())
    assert found.layout.labels == ("a", "b")
    assert [(row.context, row.answer) for row in found.rows] == [(row["text"], n) for n, row in enumerate(ROWS)]
    places = [int(row.location.rsplit(":", 1)[1]) for row in found.rows]
    assert places == sorted(places)


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'sep=;\r\n\r\ntext;label\r\n"two\r\nlines";a\r\n;\r\nx;b\r\n')
    assert [(line, dict(row)) for line, row in RowFile(path).rows() if not isinstance(row, BadRow)] == [
        (4, {"text": "two\r\nlines", "label": "a"}),
        (7, {"text": "x", "label": "b"}),
    ]


@pytest.mark.parametrize(
    ("lines", "dialect"),
    [
        (["text\n", "a;b\n", "c\td\n"], Dialect(",")),  # one column, whose cells hold other signs
        (["id,text;note\n", "1,a\n", "2,b;c\n"], Dialect(",")),
        (["text;label, or none\n", "a;x\n", "b, c;y\n"], Dialect(";")),
        (["text,label\n", "one, two\n"], Dialect(",", spaced=True)),
        (["text,label\n", '"one, two",x\n'], Dialect(",")),
        (["text,label\n", '"one, two",x\n', "a, y\n"], Dialect(",")),
        ([], Dialect(",")),
    ],
)
def test_the_separator_is_what_separates_every_line_alike(lines: list[str], dialect: Dialect) -> None:
    assert find_dialect(lines) == dialect


def problems(path: Path, **options: Any) -> list[str]:
    with pytest.raises(AbmllError) as caught:
        read_labelled(path, Layout(**options))
    return [line.strip().removeprefix(f"{path}:") for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", ['"he said \\"no\\"",good', '"open" x,good', "one,two,three", "é"])
def test_a_bad_row_is_one_fault_wherever_it_stands(place: int, bad: str, tmp_path: Path) -> None:
    rows = ["nope,bad", "fine,good", "well,good"]
    rows[place] = bad
    path = tmp_path / "a.csv"
    path.write_bytes("\n".join(["text,label", *rows, ""]).encode("latin-1" if bad == "é" else "utf-8"))
    (problem,) = problems(path)
    assert problem.startswith(f"{place + 2}: ")
    assert "missing" not in problem


@pytest.mark.parametrize("bad", ["{", "[1]", '{"text": 3, "label": "x"}', '{"label": "x"}'])
def test_a_bad_first_line_of_json_is_one_fault(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([bad, *(json.dumps(row) for row in ROWS)]))
    (problem,) = problems(path)
    assert problem.startswith("1: ")


def test_a_bad_first_row_of_questions_leaves_them_questions(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,choice_0,choice_1,answer\n"a\\"b",x,y,0\nRed?,yes,no,1\n')
    (problem,) = problems(path)
    assert problem.startswith("2: not CSV")


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n,a\nx,\ny,b,c\nz,b\n")
    assert [problem.split(":")[0] for problem in problems(path)] == ["2", "3", "4"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_a_missing_column_is_one_message_that_names_the_option(name: str, tmp_path: Path) -> None:
    path, rows = tmp_path / name, [{"words": f"w{n}", "label": "ab"[n % 2]} for n in range(30)]
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name == "a.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["words", "label"], delimiter="\t" if name == "a.tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    (problem,) = problems(path)
    assert "text is missing (found: 'words', 'label')" in problem
    assert "--text" in problem
    assert "in 29 more rows too" in problem
    with pytest.raises(AbmllError) as caught:
        read_unlabelled(path, Layout(("a", "b")))
    assert len(str(caught.value).splitlines()) == 2
    (problem,) = problems(path, text="words", label="team")
    assert "team is missing" in problem
    with pytest.raises(AbmllError) as caught:
        read_questions(path)
    assert len(str(caught.value).splitlines()) == 2


def test_a_column_that_some_rows_lack_is_told_for_each_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"label": "a"}, {"label": "b"}]))
    assert [problem.split(":")[0] for problem in problems(path)] == ["3", "4"]


def test_a_long_cell_is_read_and_one_beyond_our_limit_is_our_message(tmp_path: Path, monkeypatch: Any) -> None:
    long, before = "word " * 60000, csv.field_size_limit()
    for name, text in (("a.csv", f"text,label\n{long},a\nb,b\n"), ("b.csv", f'text,label\n"{long}\nx",a\nb,b\n')):
        (tmp_path / name).write_text(text)
        assert len(read_labelled(tmp_path / name, Layout()).rows[0].context) >= len(long) - 1
    for module in ("delimited", "read", "rows"):
        monkeypatch.setattr(f"abmll.tables.{module}.MOST_CELL", 1 << 16)
    assert ["a line of more than 0 MiB" in problem for problem in problems(tmp_path / "a.csv")] == [True]
    (tmp_path / "c.csv").write_text('text,label\n"' + "word\n" * 60000 + '",a\nb,b\n')
    (problem,) = problems(tmp_path / "c.csv")
    assert problem == "2: not CSV: a cell of more than 64 MiB, or a quote that is never closed"
    assert csv.field_size_limit() == before, "the limit is the whole process's"
    assert MOST_CELL == 64 << 20, "docs/everyday.md says so"


@pytest.mark.parametrize(
    ("name", "data", "kept"),
    [
        ("a.csv", b'question,choices,answer\nq,"[""a"", ""b""]",0\n"r,x,0\ns,x,0\nt,x,0\n', None),  # a quote takes all
        ("a.csv", b'question,choices,answer\nq,"[""a"", ""b""]",0\n"r,x,0\n', 1),
        ("a.jsonl", '{"question": "q", "choices": ["a", "b"], "answer": 0}\n'.encode("utf-16") + b"\x00\xd8" * 9, None),
        ("a.jsonl", b'{"question": "q", "choices": ["a", "b"], "answer": 0}\n\xff\n', 1),
    ],
)
def test_rows_that_cannot_be_read_are_not_left_out_as_one_bad_row(
    name: str, data: bytes, kept: int | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    if kept is None:
        with pytest.raises(AbmllError, match="1 bad row"):
            read_questions(tmp_path / name, on_bad_row="skip")
    else:
        assert len(read_questions(tmp_path / name, on_bad_row="skip")) == kept


def test_tasks_of_tab_and_semicolon_separated_files(tmp_path: Path) -> None:
    (tmp_path / "a.train.tsv").write_text("question\tchoice_0\tchoice_1\tanswer\nRed?\tyes\tno\t0\n")
    (tmp_path / "a.test.csv").write_text("question;choice_0;choice_1;answer\nBlue?; yes ;no;yes\n")
    (task,) = load_tasks(tmp_path)
    assert task.train == (Question("2", "Red?", ("yes", "no"), 0),)
    assert task.test == (Question("2", "Blue?", ("yes", "no"), 0),)


# What is no file of rows


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.close()


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


NO_FILES = {"named pipe": make_pipe, "socket": make_socket, "device": make_device, "folder": Path.mkdir}
posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")


def within_seconds(work: Any, seconds: float = 20) -> list[BaseException]:
    """The error that work ends with; it must end."""
    found: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits for ever"
    return found


@posix
@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.tsv"])
def test_what_is_no_file_is_refused_at_once(kind: str, name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    path = Path(name)
    NO_FILES[kind](path)
    for work in (
        lambda: read_labelled(path, Layout()),
        lambda: read_questions(path, labelled=False),
        lambda: RowFile(path).schema() or list(RowFile(path).rows()),
    ):
        (error,) = within_seconds(work)
        assert isinstance(error, AbmllError)
        assert ("directory" if kind == "folder" else f"a {kind}") in str(error)
    if kind != "folder":
        (error,) = within_seconds(lambda: load_tasks(path))
        assert f"a {kind}" in str(error)


@posix
def test_a_pipe_among_the_files_of_a_folder(tmp_path: Path) -> None:
    make_pipe(tmp_path / "a.train.csv")
    (error,) = within_seconds(lambda: load_tasks(tmp_path))
    assert "a named pipe, which is not read" in str(error)


@posix
@pytest.mark.parametrize("line", ["train {} -o out", "score {}", "adapt smollm2 {} --save x", "tasks check {}"])
def test_commands_do_not_wait_for_a_pipe(line: str, tmp_path: Path) -> None:
    make_pipe(tmp_path / "pipe.csv")
    command = [sys.executable, "-m", "abmll", *line.format("pipe.csv").split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "a named pipe" in done.stderr
    assert "Traceback" not in done.stderr


@posix
def test_no_file_is_put_in_the_place_of_a_device_or_a_pipe(tmp_path: Path) -> None:
    for make in (make_pipe, make_device):
        path = tmp_path / f"{make.__name__}.csv"
        make(path)
        with pytest.raises(AbmllError, match="a pipe or a device"), writing(path, [], {}):
            pass
        assert not path.is_file()


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_huge_file_without_a_line_is_refused_in_little_memory(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    for module in ("delimited", "read"):
        monkeypatch.setattr(f"abmll.tables.{module}.MOST_CELL", 1 << 20)
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room
    (error,) = within_seconds(lambda: read_labelled(tmp_path / name, Layout()))
    assert "a line of more than 1 MiB" in str(error)
