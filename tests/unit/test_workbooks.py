"""Workbooks (.xlsx): read as the CSV that a spreadsheet would write, or refused with what to do."""

import datetime
import sys
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from abmll.errors import AbmllError
from abmll.everyday.labelled import read_labelled
from abmll.everyday.survey import survey
from abmll.tables import formats
from abmll.tables.layouts import Layout
from abmll.tables.read import RowFile
from abmll.tables.rows import BadRow
from abmll.tasks.sources import load_tasks

HEAD = ["text", "label"]


def write_book(path: Path, *sheets: list[list[Any]]) -> Any:
    """A workbook as somebody else's library writes it."""
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for rows in sheets:
        sheet = book.create_sheet()
        for row in rows:
            sheet.append(row)
    book.save(path)
    return book


def rows_of(path: Path) -> list[Any]:
    return list(RowFile(path).rows())


def refusal(path: Path) -> str:
    (problem,) = [row for _, row in rows_of(path) if isinstance(row, BadRow)]
    return str(problem)


def test_rows_are_those_of_the_csv_with_the_numbers_of_the_sheet(tmp_path: Path) -> None:
    values = [
        [None, None],
        ["text", "label", None, "when"],
        ["one", 3, None, datetime.datetime(2024, 1, 2)],
        [404, 3.0, "", datetime.datetime(2024, 1, 2, 13, 5)],
        [None, None],
        ["three", True],
        [0.25, "a"],
    ]
    write_book(tmp_path / "a.xlsx", values)
    assert rows_of(tmp_path / "a.xlsx") == [
        (3, {"text": "one", "label": "3", "": "", "when": "2024-01-02"}),
        (4, {"text": "404", "label": "3", "": "", "when": "2024-01-02 13:05:00"}),
        (6, {"text": "three", "label": "true", "": "", "when": ""}),
        (7, {"text": "0.25", "label": "a", "": "", "when": ""}),
    ]


def test_labelled_rows_and_questions_are_read_as_from_csv(tmp_path: Path) -> None:
    rows = [[f"text {n}", "good" if n % 2 else "bad"] for n in range(8)]
    write_book(tmp_path / "mine.xlsx", [HEAD, *rows])
    (tmp_path / "mine.csv").write_text("\n".join(",".join(row) for row in [HEAD, *rows]))
    book, text = (read_labelled(tmp_path / f"mine.{kind}", Layout()) for kind in ("xlsx", "csv"))
    assert (book.layout, [r.context for r in book.rows]) == (text.layout, [r.context for r in text.rows])
    assert book.rows[0].location == f"{tmp_path}/mine.xlsx:2"
    asked = [["question", "choice_0", "choice_1", "answer"], ["Red?", "yes", "no", 1], ["Blue?", "yes", "no", "yes"]]
    write_book(tmp_path / "asked.train.xlsx", asked)
    assert [q.answer for q in load_tasks(tmp_path / "asked")[0].train] == [1, 0]


def test_a_formula_counts_for_its_value_and_is_refused_without_one(tmp_path: Path) -> None:
    file = tmp_path / "a.xlsx"
    write_book(file, [HEAD, ["one", "=1+2"]])
    assert refusal(file).startswith("cell B2 has a formula whose value was not saved")
    with zipfile.ZipFile(file) as parts:
        content = {name: parts.read(name) for name in parts.namelist()}
    sheet = next(name for name in content if "worksheets/" in name)
    assert b"<v></v>" in content[sheet] or b"<v />" in content[sheet] or b"<v/>" in content[sheet]
    for empty in (b"<v></v>", b"<v />", b"<v/>"):
        content[sheet] = content[sheet].replace(empty, b"<v>3</v>")  # as a spreadsheet saves it
    with zipfile.ZipFile(file, "w") as parts:
        for name, part in content.items():
            parts.writestr(name, part)
    assert rows_of(file) == [(2, {"text": "one", "label": "3"})]


def test_merged_cells_have_a_value_in_the_first_row_alone(tmp_path: Path) -> None:
    book = write_book(tmp_path / "a.xlsx", [HEAD, ["one", "good"], ["two", None], ["three", "bad"]])
    book.worksheets[0].merge_cells("B2:B3")
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(AbmllError, match=r"a.xlsx:3: label is missing"):
        read_labelled(tmp_path / "a.xlsx", Layout())


def test_the_sheet_is_the_one_that_shows_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.xlsx"
    book = write_book(file, [], [HEAD, ["one", "good"]], [["notes"]])
    assert refusal(file) == "several sheets have rows: 'Sheet1', 'Sheet2'; delete or hide the others"
    book.worksheets[2].sheet_state = "hidden"
    book.save(file)
    assert rows_of(file) == [(2, {"text": "one", "label": "good"})]
    write_book(file, [], [])
    assert refusal(file) == "no sheet has any rows"


def test_errors_in_cells_are_named(tmp_path: Path) -> None:
    write_book(tmp_path / "a.xlsx", [HEAD, ["one", "good"], ["two", "#N/A"]])
    found = rows_of(tmp_path / "a.xlsx")
    assert [str(row) for _, row in found[1:]] == ["cell B3 holds the error '#N/A'"]
    with pytest.raises(AbmllError, match=r"a.xlsx:3: cell B3 holds the error"):
        read_labelled(tmp_path / "a.xlsx", Layout())


def test_what_is_no_workbook_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"text,label\n")
    assert refusal(tmp_path / "a.xlsx").startswith("not a workbook (.xlsx), or one with a password: ")
    write_book(tmp_path / "b.xlsx", [HEAD, ["one", "good"]])
    monkeypatch.setattr(formats, "MOST_WORKBOOK", 1000)
    assert "1,000 is the most. Save the sheet as CSV" in refusal(tmp_path / "b.xlsx")
    with pytest.raises(AbmllError, match=r"a\.xls: tables are .*; save the sheet as \.xlsx or \.csv"):
        RowFile(tmp_path / "a.xls").rows().__next__()


def test_without_openpyxl_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_book(tmp_path / "a.xlsx", [HEAD, ["one", "good"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(AbmllError, match="pip install openpyxl, or save the sheet as CSV"):
        read_labelled(tmp_path / "a.xlsx", Layout())


def test_workbooks_are_not_written(tmp_path: Path) -> None:
    write_book(tmp_path / "a.xlsx", [["text"], ["one"]])
    with pytest.raises(AbmllError, match=r"out\.xlsx: tables are \.jsonl, \.csv, \.tsv or \.parquet files"):
        survey(RowFile(tmp_path / "a.xlsx"), Layout(("a", "b")), tmp_path / "out.xlsx")
