"""A user's tables: read row by row, with every column; written with ours beside, whole or absent."""

import csv
import datetime
import json
import re
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abmll.errors import AbmllError
from abmll.tables.layouts import Layout, parse_labels
from abmll.tables.read import RowFile
from abmll.tables.rows import BadRow
from abmll.tables.write import neutral, writing
from tests.faults import rows_of

ROWS = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]


def test_every_column_in_order_and_its_line(tmp_path: Path) -> None:
    jsonl = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    assert rows_of(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + jsonl + b"\n\n") == [(1, ROWS[0]), (2, ROWS[1])]
    table = rows_of(tmp_path / "a.csv", b'nr,text\r\n1,"two\nlines"\r\n\r\n2,x\r\n')
    assert table == [(2, {"nr": "1", "text": "two\nlines"}), (5, {"nr": "2", "text": "x"})]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert list(RowFile(tmp_path / "a.parquet").rows()) == [(1, ROWS[0]), (2, ROWS[1])]


BAD = {
    "not JSON": ("a.jsonl", b'{"text": "a"}\n{]\n', (2, "not JSON")),
    "no object": ("a.jsonl", b"[1]\n", (1, "not a JSON object")),
    "not UTF-8": ("a.jsonl", b'{"text": "\xff"}\n', (1, "not UTF-8")),
    "UTF-16 without a mark": ("a.csv", "a,b".encode("utf-16-le"), (1, "UTF-16")),
    "fields": ("a.csv", b"a,b\n1\n", (2, "1 fields, but the first line names 2")),
    "open quote": ("a.csv", b'a,b\n1,"x\n', (2, "not CSV")),
    "column twice": ("a.csv", b"a,a\n1,2\n", (1, "given twice")),
    "bytes in CSV": ("a.csv", b"a,b\n1,2\n3,\xff\n", (3, "not UTF-8")),
    "no Parquet": ("a.parquet", b"PAR", (1, "not Parquet")),
}


@pytest.mark.parametrize("kind", BAD)
def test_trust_14_a_bad_row_is_its_line_and_the_reason(kind: str, tmp_path: Path) -> None:
    name, data, (line, reason) = BAD[kind]
    found = rows_of(tmp_path / name, data)
    assert found[-1][0] == line
    assert reason in str(found[-1][1])


@pytest.mark.parametrize("name", ["rows.txt", "nowhere.csv"])
def test_a_file_that_is_no_table_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(AbmllError, match=name):
        list(RowFile(tmp_path / name).rows())


def test_a_row_becomes_a_question_either_way() -> None:
    own = Layout().question({"question": "Red?", "choices": ["yes", "no"], "id": 3.5, "answer": "?"}, 7, labelled=False)
    assert (own.id, own.choices, own.answer) == ("7", ("yes", "no"), None)
    layout = Layout(("1", "2"), text="t", label="l", ask="Which?")
    made = layout.question({"t": "hello", "l": 2.0}, 1)
    assert (made.question, made.context, made.answer) == ("Which?", "hello", 1)
    assert Layout(("false", "true"), text="t", label="l").question({"t": "x", "l": True}, 1).answer == 1
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    assert "Which label fits" in Layout(tuple(f"l{n}" for n in range(11))).stem


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"t": "x", "l": "3"}, "none of the labels"),
        ({"t": "x"}, r"l is missing \(found: 't'\)"),
        ({"t": "x", "l": [1]}, "not text, a number, a date, true or false"),
        ({"t": " ", "l": "1"}, "t is empty"),
        ({"l": "1"}, "t is missing"),
        ({"t": "a\0", "l": "1"}, "NUL"),
    ],
)
def test_trust_14_a_row_that_is_none_says_why(row: dict[str, object], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        Layout(("1", "2"), text="t", label="l").question(row, 1)


@pytest.mark.parametrize("text", ["one", "a,a", "a, ,b", "a\0,b", '["a"', '["a", 2]', "[]"])
def test_labels_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(AbmllError):
        parse_labels(text)


@pytest.mark.parametrize(
    "values", [None, [], {}, {"labels": 3, "text": "t", "label": "l", "ask": None}, {"labels": None, "text": 3}]
)
def test_columns_that_were_damaged_are_an_error(values: object) -> None:
    with pytest.raises(AbmllError, match="columns"):
        Layout.from_dict(values)


HOSTILE = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "  =1", "\u00a0@A1"]
# what a reader may drop before the sign: byte order marks, zero-width and filling characters, marks of direction,
# variation selectors, tags, control characters, quotation marks; and other forms of the signs
UNSEEN = [
    "\ufeff",
    "\u200b",
    "\u2060",
    "\u00ad",
    "\u200e",
    "\u202e",
    "\u2066",
    "\u3164",
    "\ufe0f",
    "\U000e0001",
    "\u034f",
]
UNSEEN += [
    "\0",
    "\x0b",
    "\x1f",
    "\x7f",
    "\u0085",
    "\u2028",
    "\u3000",
    '"',
    "\u201c",
    "\u00ab",
    '\ufeff \t\u200b\u00a0"',
]
HOSTILE += [f"{mark}{sign}" for mark in UNSEEN for sign in ("=1+1", "+1a", "-1a", "@a", "\uff1d1", "\uff0b1a")]
HOSTILE += ["\ufe66x", "\ufe62x", "\ufe63x", "\ufe6bx", "\uff20x", "\u207ax", "\u2212x"]

KEPT = [
    "-1",
    "+3.5",
    "5 %",
    "a=b",
    "",
    "+",
    "--",
    "=",
    "@",
    " a",
    "'=1",
    "\ufefftext",
    '"quoted" = said',
    "\u2014 he said",
]


@pytest.mark.parametrize(("name", "separator"), [("out.csv", ","), ("out.tsv", "\t")])
def test_trust_46_formula_prefixes_are_neutralised(name: str, separator: str, tmp_path: Path) -> None:
    """In the user's cells as in ours, and in the names of the columns."""
    assert all(neutral(text) == f"'{text}" for text in HOSTILE)
    assert [neutral(text) for text in KEPT] == KEPT
    assert all(neutral(neutral(text)) == neutral(text) for text in HOSTILE), "a file read again gets no more of them"
    ours = [{"\ufeff=prediction": text} for text in HOSTILE]
    with writing(tmp_path / name, ["\u200b@x"], {"\ufeff=prediction": str}) as writer:
        writer.write([{"\u200b@x": text} for text in HOSTILE], ours)
    with (tmp_path / name).open(encoding="utf-8", newline="") as file:
        header, *read = list(csv.reader(file, delimiter=separator))
    assert header == ["'\u200b@x", "'\ufeff=prediction"]
    assert read == [[f"'{text}"] * 2 for text in HOSTILE]


def test_trust_46_values_that_are_no_text_are_no_formulas(tmp_path: Path) -> None:
    values = [Decimal("-1.5"), datetime.date(2024, 1, 2), -1e-5, -3, ["=1+1"], {"=a": "=1"}, b"=1", None, True]
    with writing(tmp_path / "out.csv", ["x"], {}) as writer:
        writer.write([{"x": value} for value in values], [{}] * len(values))
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        read = [row[0] if row else "" for row in list(csv.reader(file))[1:]]
    assert read == ["-1.5", "2024-01-02", "-1e-05", "-3", '["=1+1"]', '{"=a": "=1"}', "\"b'=1'\"", "", "true"]


@given(st.text(st.sampled_from("=+-@\t\r\n '\"1a(\uff1d"), max_size=6))
def test_trust_46_no_cell_begins_as_a_formula_and_only_an_apostrophe_is_added(text: str) -> None:
    shown = neutral(text)
    assert shown in (text, f"'{text}")
    computes = re.search(r"[^\s=+\-@]", text) and not re.fullmatch(r"[+-]?[0-9]+([.,][0-9]+)?", text)
    assert not (computes and shown.lstrip()[:1] in tuple("=+-@\uff1d"))


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_trust_08_the_file_is_whole_or_as_it_was(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("old")

    def stopped() -> None:
        with writing(path, ["x"], {"p": float}) as writer:
            writer.write([{"x": "1"}], [{"p": 0.5}])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stopped()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    schema = pyarrow.schema(
        [("n", pyarrow.int16()), ("when", pyarrow.date32()), ("tags", pyarrow.list_(pyarrow.string()))]
    )
    source = pyarrow.Table.from_pylist([{"n": 1, "when": None, "tags": ["a"]}], schema)
    pyarrow.parquet.write_table(source, tmp_path / "in.parquet")
    table = RowFile(tmp_path / "in.parquet")
    with writing(tmp_path / "out.parquet", schema.names, {"p": float}, schema=table.schema()) as writer:
        writer.write([row for _, row in table.rows()], [{"p": 0.25}])
    out = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert [out.schema.field(name).type for name in schema.names] == list(schema.types)
    assert out.drop_columns(["p"]).equals(source)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out.csv", tmp_path):
        with pytest.raises(AbmllError), writing(path.with_suffix(".csv") if path != tmp_path else path, [], {}):
            pass
