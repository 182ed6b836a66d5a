"""Labels of every type: as texts, as classes, and written to JSON and read back."""

import datetime
import enum
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch

from abmll.errors import AbmllError
from abmll.tables.labels import Classes, as_array, classes_from_json, classes_to_json, label_text
from abmll.tables.rows import BadRow


class Word(enum.StrEnum):
    GOOD = "good"


class Number(enum.IntEnum):
    THREE = 3


class Other(enum.Enum):
    GOOD = "good"


TEXTS: list[tuple[Any, str]] = [
    ("good", "good"),
    (" good\u200b", "good"),
    (np.str_("good"), "good"),
    (b"good", "good"),
    (np.bytes_(b"good"), "good"),
    (Word.GOOD, "good"),
    (3, "3"),
    (3.0, "3"),
    (np.int8(3), "3"),
    (np.float32(3), "3"),
    (Decimal("3.00"), "3"),
    (Number.THREE, "3"),
    (torch.tensor(3), "3"),
    (np.array(3), "3"),
    (pyarrow.scalar(3), "3"),
    (0.1, "0.1"),
    (np.float32(0.1), "0.1"),
    (Decimal("0.10"), "0.1"),
    (True, "true"),
    (np.True_, "true"),
    (datetime.date(2024, 1, 2), "2024-01-02"),
    (datetime.datetime(2024, 1, 2), "2024-01-02"),
    (pd.Timestamp("2024-01-02"), "2024-01-02"),
    (np.datetime64("2024-01-02"), "2024-01-02"),
    (np.datetime64("2024-01-02T00:00:00", "ns"), "2024-01-02"),
    (datetime.datetime(2024, 1, 2, 3, 4), "2024-01-02 03:04:00"),
    (np.datetime64("2024-01-02T03:04:05.500"), "2024-01-02 03:04:05.5"),
    (pd.Timestamp("2024-01-02", tz="UTC"), "2024-01-02 00:00:00+00:00"),
]


@pytest.mark.parametrize(("value", "text"), TEXTS, ids=repr)
def test_a_label_of_any_type_is_a_text(value: Any, text: str) -> None:
    assert label_text(value, "label") == text


NONE = [
    None,
    float("nan"),
    np.float32("nan"),
    pd.NA,
    pd.NaT,
    np.datetime64("NaT"),
    Decimal("nan"),
    np.ma.masked,
    "",
    " ",
]
NO_LABEL = [b"\xff", ("a",), ["a"], {"a": 1}, {"a"}, 1j, Other.GOOD, float("inf"), datetime.time(3), object(), "a\0"]
NO_LABEL += [np.timedelta64(1, "D"), np.void(b"a"), pd.Period("2024-01"), 10**5000, "\ud800", np.array(["a", "b"])]


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_nothing_is_no_label(value: Any) -> None:
    with pytest.raises(BadRow, match=r"label is (missing|empty)"):
        label_text(value, "label")


@pytest.mark.parametrize("value", NO_LABEL, ids=lambda value: type(value).__name__)
def test_what_is_no_label_says_so(value: Any) -> None:
    with pytest.raises(BadRow, match=r"^label (is|holds) "):
        label_text(value, "label")


@pytest.mark.parametrize(
    ("values", "one"),
    [
        ([3, "3", 3.0, np.int64(3), "3.0", Decimal(3), " 3"], "3"),
        ([True, "true", "True", np.True_, "TRUE"], "true"),
        ([1, 1.0, True, "1"], "1"),
        (["é", "e\u0301", " é", "\ufeffé"], "é"),
        (
            [datetime.date(2024, 1, 2), np.datetime64("2024-01-02"), "2024-01-02", pd.Timestamp("2024-01-02")],
            "2024-01-02",
        ),
        (["good", b"good", np.str_("good"), Word.GOOD], "good"),
    ],
)
def test_forms_of_one_label_are_one_class_whichever_comes_first(values: list[Any], one: str) -> None:
    for first in values:
        classes = Classes([first, *values, "~"]).ordered()
        assert set(classes.texts) == {one, "~"}
        assert {classes.texts[classes.index(value) or 0] for value in values} == {one}
        assert None not in {classes.index(value) for value in values}


def test_texts_that_differ_are_classes_of_their_own() -> None:
    classes = Classes(["1", "1.0", "01", "a", "A", "true", "True"])
    assert len(classes.texts) == 7
    assert classes.index(1) == 0
    assert classes.index("2") is None


def test_the_tidiest_text_stands_for_a_class_and_types_are_kept() -> None:
    assert Classes([" good", "good", "good "]).values == ["good"]
    assert Classes([" good", "good "]).values == [" good"]
    assert Classes([3, "neutral", "3"]).ordered().values == [3, "neutral"]
    assert Classes([10, 9, 2.5]).ordered().values == [2.5, 9, 10]


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b"],
        [0, 1],
        [0.5, 1.5],
        [False, True],
        [b"a", b"b"],
        [3, "neutral"],
        [None, None],
        [datetime.date(2024, 1, 1), datetime.date(2024, 2, 1)],
        [datetime.datetime(2024, 1, 1, 5), datetime.datetime(2024, 1, 1, 6, tzinfo=datetime.UTC)],
        [Decimal("1.5"), Decimal("2.5")],
        [2**70, 3],
        np.array([1, 2], dtype="int8"),
        np.array([0.1, 0.2], dtype="float32"),
        np.array(["2024-01-01", "2024-02-01"], dtype="datetime64[D]"),
        np.array(["2024-01-01", "2024-02-01"], dtype="datetime64[ns]"),
        np.array(["a", b"b"], dtype=object),
    ],
    ids=str,
)
def test_classes_are_written_with_their_types(values: Any) -> None:
    before = values if isinstance(values, np.ndarray) else as_array(values)
    after = classes_from_json(json.loads(json.dumps(classes_to_json(before), allow_nan=False)))
    assert after.dtype == before.dtype
    assert after.tolist() == before.tolist()
    assert [type(value) for value in after] == [type(value) for value in before]


def test_the_first_format_was_a_list() -> None:
    assert classes_from_json(["a", "b"]).tolist() == ["a", "b"]
    assert classes_from_json([0, 1]).dtype == np.array([0, 1]).dtype


@pytest.mark.parametrize(
    "values",
    [
        None,
        3,
        {},
        {"dtype": "O", "values": []},
        {"dtype": "|V9", "values": [1]},
        {"dtype": None, "values": 3},
        {"dtype": None, "values": [{"what": "x"}]},
        {"dtype": None, "values": [{"date": "soon"}]},
        {"dtype": None, "values": [{}]},
        {"dtype": "<i8", "values": ["x"]},
        {"dtype": None, "values": [{"decimal": "x"}]},
    ],
)
def test_classes_that_were_damaged_are_an_error(values: Any) -> None:
    with pytest.raises(AbmllError, match="not what was saved"):
        classes_from_json(values)
