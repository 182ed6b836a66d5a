"""Labels of plain classification: of any type that a table has, as texts that the model reads, and back again."""

import datetime
import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from abmll.errors import AbmllError
from abmll.tables.normal import same_form, tidy
from abmll.tables.rows import BadRow, checked_text, shown
from abmll.tables.values import plain

ARE = "text, a number, a date, true or false"
_ZEROS = re.compile(r"(\.\d*?)0+(?=\D|$)")
_MIDNIGHT = re.compile(r"[ T]00:00(:00)?$")
_NUMBER = re.compile(r"[+-]?\d{1,300}(\.\d{1,300})?", re.ASCII)
_DTYPE = re.compile(r"[<>|=]([biuf]\d{1,2}|M8\[[a-z]{1,2}\])", re.ASCII)


def label_text(value: Any, what: str) -> str:
    """A label as the text that the model reads.

    Raises:
        BadRow: it is missing, empty, or of a type that is no label.

    >>> [label_text(each, "label") for each in (3, 3.0, "3 ", True, b"good", np.datetime64("2024-01-01T00:00"))]
    ['3', '3', '3', 'true', 'good', '2024-01-01']
    """
    value = plain(value)
    if value is None or (isinstance(value, str) and not value):
        raise BadRow(f"{what} is missing")
    text = tidy(checked_text(_as_text(value, what), what))
    if not text:
        raise BadRow(f"{what} is empty")
    return text


def _as_text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()  # as JSON writes it
    try:
        if isinstance(value, int):
            return str(value)
        if isinstance(value, float | Decimal) and math.isfinite(value):
            return _number_text(value)
        if isinstance(value, bytes | bytearray):
            return value.decode()
    except ValueError:  # not UTF-8; an integer of more digits than Python prints
        pass
    if isinstance(value, datetime.date | np.datetime64):
        return _date_text(value)
    raise BadRow(f"{what} is {shown(value)}, not {ARE}", f"{what} is no label")


def _number_text(value: float | Decimal) -> str:
    """A whole number without a point: a table with gaps turns integers into floats."""
    if value == int(value):
        return str(int(value))
    return format(value.normalize(), "f") if isinstance(value, Decimal) else repr(value)


def _date_text(value: Any) -> str:
    """A date, or a moment without the zeros at its end."""
    text = str(np.datetime_as_string(value)) if isinstance(value, np.datetime64) else value.isoformat()
    return _MIDNIGHT.sub("", _ZEROS.sub(r"\1", text).removesuffix(".")).replace("T", " ")


class Classes:
    """The different labels of some rows, each with the value that stands for it and the text that the model reads.

    Values that are one label in two forms are one class: 3, 3.0 and "3"; "good" and " good"; True and "True".

    Args:
        values: labels, all of them.

    Attributes:
        values: one of each class, in the order in which classes came first; of its forms one that is no text, or else
            the tidiest.
        texts: what the model reads for each.

    Raises:
        BadRow: a value is none.

    >>> classes = Classes([3, "neutral", "3", np.float64(3.0)])
    >>> classes.values, classes.texts, classes.index("3.0"), classes.index("else")
    ([3, 'neutral'], ('3', 'neutral'), 0, None)
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self.values: list[Any] = []
        self._texts: list[str] = []
        self._by_text: dict[str, int] = {}
        self._by_number: dict[int | float | Decimal, int] = {}
        for value in values:
            self.add(value)

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model reads for each class."""
        return tuple(self._texts)

    def add(self, value: Any) -> None:
        """Another label; a new class if it is none of the others.

        Raises:
            BadRow: it is no label.
        """
        class_index, text = self.index(value), label_text(value, "label")
        if class_index is None:
            class_index = len(self.values)
            self.values.append(_standing(value))
            self._texts.append(text)
        elif _rank(value, text) > _rank(self.values[class_index], self._texts[class_index]):
            self.values[class_index], self._texts[class_index] = _standing(value), text
        self._by_text.setdefault(same_form(text), class_index)
        if (number := _number_of(value, text)) is not None:
            self._by_number.setdefault(number, class_index)

    def index(self, value: Any) -> int | None:
        """The class of a label, in whatever form it is; None if no label was like it.

        Raises:
            BadRow: it is no label.
        """
        text = label_text(value, "label")
        found = self._by_text.get(same_form(text))
        return self._by_other_form(value, text) if found is None else found

    def _by_other_form(self, value: Any, text: str) -> int | None:
        """1 and "1.0", True and 1 or "True": forms of one value, if either of the two is no text."""
        number = _number_of(value, text)
        class_index = None if number is None else self._by_number.get(number)
        if class_index is None and text.casefold() in ("true", "false"):
            class_index = next((n for n, own in enumerate(self.texts) if own.casefold() == text.casefold()), None)
        if class_index is None or (_is_text(value) and _is_text(self.values[class_index])):
            return None
        return class_index

    def ordered(self) -> "Classes":
        """The classes in the order of their values, or of their texts where values are of several types."""
        values = Classes(sorted(self.values, key=_is_text)).values  # texts last: they may be forms of the others
        try:
            return Classes(sorted(values))
        except TypeError:
            return Classes(sorted(values, key=lambda value: label_text(value, "label")))


def _is_text(value: Any) -> bool:
    return isinstance(plain(value), str)


def _rank(value: Any, text: str) -> int:
    """Of the values of one class the highest stands for it: a number for True, either for its text, "a" for " a"."""
    if _is_text(value):
        return int(value == text)
    return 2 if isinstance(plain(value), bool) else 3


def as_array(values: Sequence[Any]) -> np.ndarray:
    """Labels as an array: of one dtype where they are of one kind, else of objects.

    >>> as_array([1, 2.5]).tolist(), as_array([1, "a"]).dtype
    ([1.0, 2.5], dtype('O'))
    """
    kinds = {_kind(value) for value in values}
    if len(kinds) == 1 and "other" not in kinds:
        return np.array(values)
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def _number_of(value: Any, text: str) -> int | float | Decimal | None:
    value = plain(value)
    if isinstance(value, str):
        value = (float(text) if "." in text else int(text)) if _NUMBER.fullmatch(text) else None
    return value if isinstance(value, bool | int | float | Decimal) else None


def _standing(value: Any) -> Any:
    """The value that is given back for a class; a subclass that only its own package knows gives way to its base."""
    if hasattr(value, "to_datetime64"):  # a Timestamp of pandas
        return value.to_datetime64() if value.tzinfo is None else value.to_pydatetime()
    return value if isinstance(value, np.generic) else plain(value)


def _kind(value: Any) -> str:
    kinds: dict[str, tuple[type, ...]] = {
        "bool": (bool, np.bool_),
        "text": (str,),
        "number": (int, float, np.integer, np.floating),
        "bytes": (bytes,),
        "date": (np.datetime64,),
    }
    return next((kind for kind, types in kinds.items() if isinstance(value, types)), "other")


_WRITTEN: dict[str, tuple[type, Any, Any]] = {
    "bytes": (bytes, bytes.decode, str.encode),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "decimal": (Decimal, str, Decimal),
    "datetime64": (np.datetime64, str, np.datetime64),
}
"""Name of a type in JSON -> the type, and how a value of it is written and read; a datetime is a date, too."""


def classes_to_json(classes: np.ndarray) -> dict[str, Any]:
    """An array of labels as JSON values, for `classes_from_json`.

    >>> classes_to_json(np.array([2, 3], dtype="int8")), classes_to_json(np.array(["a", b"b"], dtype=object))
    ({'dtype': '|i1', 'values': [2, 3]}, {'dtype': None, 'values': ['a', {'bytes': 'b'}]})
    """
    dtype = classes.dtype.str if _DTYPE.fullmatch(classes.dtype.str) else None
    values = list(classes) if classes.dtype.kind in "MO" else classes.tolist()
    return {"dtype": dtype, "values": [_value_to_json(value) for value in values]}


def _value_to_json(value: Any) -> Any:
    for name, (kind, write, _) in _WRITTEN.items():
        if isinstance(value, kind):
            return {name: write(value)}
    return plain(value)


def classes_from_json(values: Any) -> np.ndarray:
    """What `classes_to_json` gave; or a list of labels, which the first format had.

    Raises:
        AbmllError: it is neither.
    """
    try:
        if isinstance(values, list):
            return np.array(values)
        read, dtype = [_value_from_json(value) for value in values["values"]], values["dtype"]
        if dtype is None:
            return as_array(read)
        if not _DTYPE.fullmatch(dtype):
            raise ValueError(f"dtype {shown(dtype)}")
        return np.array(read, dtype=dtype)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise AbmllError(f"its labels are not what was saved ({error})") from error


def _value_from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((name, text),) = value.items()
    return _WRITTEN[name][2](text)
