"""Examples and labels of every kind that Python has: as rows, or refused in one message."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from scipy import sparse

from abmll.errors import AbmllError
from abmll.question import Question
from abmll.tables.frames import labels_in, rows_in
from abmll.tables.values import plain

TEXTS = ["one", "two", "three"]
LABELS = ["a", "b", "a"]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


def polars() -> Any:
    return pytest.importorskip("polars", reason="needs pip install abmll[dev]")


COLUMNS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda values: (value for value in values),
    "iterator": iter,
    "dict values": lambda values: dict(enumerate(values)).values(),
    "array": np.array,
    "array of objects": lambda values: np.array(values, dtype=object),
    "column of an array": lambda values: np.array(values)[:, None],
    "list of lists of one": lambda values: [[value] for value in values],
    "list of tuples of one": lambda values: [(value,) for value in values],
    "series": pd.Series,
    "series of another index": lambda values: pd.Series(values, index=[7, 7, 1]),
    "series of strings": lambda values: pd.Series(values, dtype="string"),
    "categories": lambda values: pd.Series(values, dtype="category"),
    "index": pd.Index,
    "array of pandas": lambda values: pd.array(values),
    "arrow array": pyarrow.array,
    "chunked array": lambda values: pyarrow.chunked_array([values[:1], values[1:]]),
    "dictionary array": lambda values: pyarrow.array(values).dictionary_encode(),
    "polars series": lambda values: polars().Series(values),
    "polars categories": lambda values: polars().Series(values, dtype=polars().Categorical),
}
FRAMES: dict[str, Callable[[dict[str, list[Any]]], Any]] = {
    "pandas": pd.DataFrame,
    "pandas of another index": lambda columns: pd.DataFrame(columns, index=[3, 1, 3]),
    "pandas on arrow": lambda columns: pd.DataFrame(columns).convert_dtypes(dtype_backend="pyarrow"),
    "arrow table": pyarrow.table,
    "record batch": pyarrow.RecordBatch.from_pydict,
    "polars": lambda columns: polars().DataFrame(columns),
    "polars, lazy": lambda columns: polars().LazyFrame(columns),
    "dictionary of lists": dict,
    "dictionary of arrays": lambda columns: {name: np.array(values) for name, values in columns.items()},
    "dictionary of series": lambda columns: OrderedDict((n, pd.Series(v, index=[5, 4, 3])) for n, v in columns.items()),
    "rows": lambda columns: [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    "named tuples": lambda columns: list(pd.DataFrame(columns).itertuples(index=False)),
    "generator of rows": lambda columns: (
        dict(zip(columns, r, strict=True)) for r in zip(*columns.values(), strict=True)
    ),
    "records of numpy": lambda columns: pd.DataFrame(columns).to_records(index=False),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_texts_and_labels_of_any_column(kind: str) -> None:
    assert [plain(value) for value in rows_in(COLUMNS[kind](TEXTS))] == TEXTS
    assert [plain(value) for value in labels_in(COLUMNS[kind](LABELS), 3)] == LABELS


@pytest.mark.parametrize("kind", FRAMES)
def test_rows_of_any_frame(kind: str) -> None:
    found = rows_in(FRAMES[kind]({"text": TEXTS, "label": LABELS}))
    assert [{name: plain(value) for name, value in row.items()} for row in found] == ROWS


ONE_COLUMN = ["pandas", "arrow table", "record batch", "polars", "polars, lazy", "dictionary of lists"]


@pytest.mark.parametrize("kind", ONE_COLUMN)
def test_a_frame_of_one_column_with_y_is_one_of_texts(kind: str) -> None:
    for name in ("review", "question"):
        assert [plain(value) for value in rows_in(FRAMES[kind]({name: TEXTS}))] == TEXTS


@pytest.mark.parametrize("kind", ONE_COLUMN[:-1])
def test_a_frame_of_one_column_is_that_column(kind: str) -> None:
    assert [plain(value) for value in labels_in(FRAMES[kind]({"sentiment": LABELS}), 3)] == LABELS
    rows = [{name: plain(value) for name, value in row.items()} for row in rows_in(FRAMES[kind]({"text": TEXTS}))]
    assert rows == [{"text": text} for text in TEXTS]


@pytest.mark.parametrize(
    "y",
    [np.array([1, 0]), np.array([1.0, 0.0], dtype="float32"), pd.Series([1, 0], dtype="Int64"), torch.tensor([1, 0])],
)
def test_labels_of_numbers(y: Any) -> None:
    assert [plain(label) for label in labels_in(y, 2)] == [1, 0]


def test_a_frame_of_one_column_of_two_names() -> None:
    frame = pd.DataFrame([["a"], ["b"]], columns=pd.MultiIndex.from_tuples([("text", "x")]))
    assert rows_in(frame) == labels_in(frame, 2) == ["a", "b"]


def test_labels_with_gaps_say_so() -> None:
    gaps = [pd.Series(["a", None]), pd.Series(["a", None], dtype="string"), pd.Series(["a", None], dtype="category")]
    gaps += [pyarrow.array(["a", None]), np.ma.array([1, 2], mask=[False, True]), np.array([1.0, np.nan])]
    gaps += [pd.Series(pd.to_datetime(["2024-01-01", None])), pd.array([1, None], dtype="Int64")]
    for y in gaps:
        first, second = map(plain, labels_in(y, 2))
        assert first is not None
        assert second is None


NO_EXAMPLES: dict[str, tuple[Any, str]] = {
    "a text": ("hello", "not one str"),
    "bytes": (b"hello", "not one bytes"),
    "a question": (Question("1", "x", ("a", "b"), 0), "not one Question"),
    "nothing": (None, "not one NoneType"),
    "a number": (3, "not one int"),
    "a row": ({"text": "hello"}, r"'text' is 'hello', no column. For one row: \[row\]"),
    "an empty dictionary": ({}, "it is empty"),
    "columns of different lengths": ({"text": ["a"], "label": ["a", "b"]}, "different lengths: 'text' 1, 'label' 2"),
    "a set": ({"a", "b"}, "a set has no order"),
    "an array of no dimension": (np.array("a"), r"shape \(\); give one text a row"),
    "a table of numpy": (np.array([["a", "b"], ["c", "d"]]), r"shape \(2, 2\); give one text a row"),
    "three dimensions": (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
    "a sparse matrix": (sparse.csr_matrix(np.eye(3)), r"shape \(3, 3\)"),
    "columns of one name": (
        pd.DataFrame([["a", "b"]], columns=["text", "text"]),
        "unique column names.*'text' 2 times",
    ),
}
NO_LABELS: dict[str, tuple[Any, str]] = {
    "a text": ("aba", "y: a list, an array or a column, not one str"),
    "a dictionary": ({0: "a", 1: "b", 2: "a"}, "not one dict"),
    "a set": ({"a", "b", "c"}, "a set has no order"),
    "a number": (3, "not one int"),
    "too few": (["a"], "3 examples and 1 labels"),
    "one-hot": (np.eye(3), r"shape \(3, 3\); give one label a row; y.argmax\(axis=1\) of one-hot rows"),
    "one-hot, a frame": (pd.DataFrame(np.eye(3)), "y has 3 columns; give one label a row"),
    "one-hot, a tensor": (torch.eye(3), r"shape \(3, 3\)"),
    "one-hot, lists": ([[1, 0], [0, 1], [1, 0]], r"row 0 \(from 0\) has \[1, 0\] as its label; give one label a row"),
    "several labels": ([["a"], ["a", "b"], []], r"row 0 \(from 0\) has \['a'\]"),
    "tuples": ([("a", "b"), ("a",), "a"], r"row 0 \(from 0\) has \('a', 'b'\)"),
    "sets": (["a", {"a"}, "b"], r"row 1 \(from 0\) has \{'a'\}"),
    "arrow lists": (pyarrow.array([["a", "b"], ["a"], []]), r"has \['a', 'b'\]"),
    "arrays": ([np.array([1, 0])] * 3, r"has array\(\[1, 0\]\)"),
}


@pytest.mark.parametrize("kind", NO_EXAMPLES)
def test_what_are_no_examples_is_one_message(kind: str) -> None:
    examples, message = NO_EXAMPLES[kind]
    with pytest.raises(AbmllError, match=message) as caught:
        rows_in(examples)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", NO_LABELS)
def test_what_are_no_labels_is_one_message(kind: str) -> None:
    labels, message = NO_LABELS[kind]
    with pytest.raises(AbmllError, match=message) as caught:
        labels_in(labels, 3)
    assert "\n" not in str(caught.value)
