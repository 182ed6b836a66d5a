"""Whatever a file holds, it is read or reported as file:line: reason; no other exception leaves the reader."""

import contextlib
import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abmll.errors import AbmllError
from abmll.question import Question
from abmll.tables.rows import BadRow, question_from_row
from tests.tables import read_questions

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates and NUL too
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=3), max_leaves=8
)
FIELDS = st.sampled_from(
    ["id", "question", "context", "choices", "answer", "choice_0", "choice_1", "choice_a", "choice_b", "other"]
)
NEARLY = st.fixed_dictionaries(
    {
        "question": st.just("Which?") | VALUES,
        "choices": st.lists(st.sampled_from(["a", "b", "c", "1", ""]), max_size=4) | VALUES,
        "answer": st.integers(-1, 4) | st.sampled_from(["a", "1"]) | VALUES,
    },
    optional={"id": VALUES, "context": VALUES, "choice_0": VALUES},
)
ROWS = NEARLY | st.dictionaries(FIELDS | ANY_TEXT, VALUES, max_size=6)
QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read_or_report(path: Path, labelled: bool = True) -> tuple[Question, ...]:
    try:
        questions = read_questions(path, labelled)
    except AbmllError as error:
        check_report(str(error), path)
        return ()
    for question in questions:
        check(question, labelled)
    return questions


def check_report(text: str, path: Path) -> None:
    head, *lines = text.splitlines()
    assert re.fullmatch(r"[\d,]+ bad rows?; nothing was loaded:", head)
    for line in lines[:50]:
        assert re.match(rf"  {re.escape(str(path))}:\d+: .", line), line
    assert text.encode()


def check(question: Question, labelled: bool) -> None:
    assert question.question.strip()
    assert len(set(question.choices)) == len(question.choices) >= 2
    assert (question.answer is None and not labelled) or question.answer in range(len(question.choices))
    texts = (question.id, question.question, question.context, *question.choices)
    assert all(text.encode() is not None and "\0" not in text for text in texts)


@QUICK
@given(row=ROWS, labelled=st.booleans(), untyped=st.booleans(), merge=st.booleans())
def test_trust_14_any_row_is_a_question_or_a_reason(
    row: dict[str, object], labelled: bool, untyped: bool, merge: bool
) -> None:
    with contextlib.suppress(BadRow):
        check(question_from_row(row, "1", labelled, untyped, merge), labelled)


@QUICK
@given(rows=st.lists(ROWS, max_size=4), ascii_only=st.booleans())
def test_trust_14_any_jsonl_file(folder: Path, rows: list[object], ascii_only: bool) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    path = folder / "a.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    read_or_report(path)


@QUICK
@given(data=st.binary(max_size=60), extension=st.sampled_from(["jsonl", "csv", "parquet"]))
def test_trust_14_any_bytes(folder: Path, data: bytes, extension: str) -> None:
    path = folder / f"a.{extension}"
    path.write_bytes(data)
    read_or_report(path)


@QUICK
@given(
    header=st.lists(FIELDS, max_size=6),
    records=st.lists(st.lists(st.sampled_from(["", "0", "1", "a", '["a", "b"]']) | ANY_TEXT, max_size=6), max_size=4),
)
def test_trust_14_any_csv_file(folder: Path, header: list[str], records: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([header, *records])
    path = folder / "a.csv"
    path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    read_or_report(path, labelled=False)


@QUICK
@given(data=st.data(), size=st.integers(0, 3))
def test_trust_14_any_parquet_file(folder: Path, data: st.DataObject, size: int) -> None:
    plain = st.text(max_size=5)
    kinds = [plain, st.integers(-3, 5), st.floats(), st.booleans(), st.binary(max_size=3), st.lists(plain, max_size=3)]
    names = data.draw(st.lists(FIELDS, max_size=6))
    columns = [
        pyarrow.array(data.draw(st.lists(st.none() | data.draw(st.sampled_from(kinds)), min_size=size, max_size=size)))
        for _ in names
    ]
    path = folder / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=names), path)
    read_or_report(path)


@QUICK
@given(cut=st.integers(0, 2000), flip=st.integers(0, 2000), bit=st.integers(0, 7))
def test_trust_14_a_damaged_parquet_file(folder: Path, cut: int, flip: int, bit: int) -> None:
    path = folder / "damaged.parquet"
    table = {"question": ["a?", "b?"], "choices": [["x", "y"], ["x", "z"]], "answer": [0, 1]}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    damaged = bytearray(path.read_bytes())
    damaged[flip % len(damaged)] ^= 1 << bit
    path.write_bytes(bytes(damaged[: max(1, len(damaged) - cut // 10)]))
    read_or_report(path)
