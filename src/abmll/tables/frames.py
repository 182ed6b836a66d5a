"""Examples and labels as Python has them (lists, arrays, frames and columns of any library) -> one row each."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import narwhals
import numpy as np
import pyarrow

from abmll.errors import AbmllError
from abmll.question import Question
from abmll.tables.normal import same_form
from abmll.tables.rows import shown

KINDS = "a list, a Series, a DataFrame or a dictionary of columns"


def rows_in(examples: Any, text: str = "text") -> list[Any]:
    """Examples of any kind as a list of texts, mappings or questions.

    Args:
        examples: texts, rows or questions; frames and columns of pandas, Polars, Arrow and whatever else narwhals
            knows; arrays of texts; a dictionary of columns.
        text: the column of texts. A frame of one column is its texts whatever that is called: with no choices, even
            `question` is no multiple choice.

    Raises:
        AbmllError: it is one example, or several in no order, or a table of several unnamed columns.

    >>> rows_in({"text": ["a", "b"]}), rows_in(pyarrow.table({"review": ["a"]})), rows_in(np.array([["a"], ["b"]]))
    ([{'text': 'a'}, {'text': 'b'}], ['a'], [np.str_('a'), np.str_('b')])
    """
    if isinstance(examples, Mapping):
        rows = _by_column(examples)
        return rows if _has_a_name(examples, text) else [value for row in rows for value in row.values()]
    frame = _frame(examples)
    if frame is not None:
        return frame.rows(named=True) if _has_a_name(frame.columns, text) else _only_column(frame)
    if isinstance(examples, np.ndarray) and examples.dtype.names:
        return [dict(zip(examples.dtype.names, row.tolist(), strict=True)) for row in examples]
    found = _column(examples, "examples", "one text a row")
    return [row._asdict() if hasattr(row, "_asdict") else row for row in found]  # named tuples


def _has_a_name(columns: Collection[Any], text: str) -> bool:
    """Whether the columns of a table go by their names: several, or the one of texts."""
    return len(columns) != 1 or same_form(str(next(iter(columns)))) == same_form(text)


def labels_in(y: Any, rows: int) -> list[Any]:
    """`y` as a list, one label for each row; a table of one column is that column.

    Raises:
        AbmllError: it is no column, has several labels a row, or is of another length.

    >>> labels_in(np.array([[1], [0]]), rows=2), labels_in(pyarrow.chunked_array([["a", "b"]]), rows=2)
    ([np.int64(1), np.int64(0)], ['a', 'b'])
    """
    frame = _frame(y)
    if frame is not None:
        if len(frame.columns) != 1:
            raise AbmllError(f"y has {len(frame.columns)} columns; give one label a row")
        y = _only_column(frame)
    labels = _column(y, "y", "one label a row; y.argmax(axis=1) of one-hot rows")
    if len(labels) != rows:
        raise AbmllError(f"{rows} examples and {len(labels)} labels")
    several = [number for number, label in enumerate(labels) if _is_several(label)]
    if several:
        raise AbmllError(
            f"row {several[0]} (from 0) has {shown(labels[several[0]])} as its label; give one label a row"
        )
    return labels


def _frame(value: Any) -> Any:
    """A frame of any library, as narwhals has it; None if it is none."""
    value = pyarrow.Table.from_batches([value]) if isinstance(value, pyarrow.RecordBatch) else value
    try:
        found = narwhals.from_native(value, pass_through=True)
        found = found.collect() if isinstance(found, narwhals.LazyFrame) else found
    except (ValueError, TypeError) as error:  # columns of one name; a frame that cannot be computed
        raise AbmllError(f"a frame cannot be read: {' '.join(str(error).split())}") from error
    return found if isinstance(found, narwhals.DataFrame) else None


def _only_column(frame: Any) -> list[Any]:
    return next(iter(frame.iter_columns())).to_list()


def _by_column(columns: Mapping[Any, Any]) -> list[Any]:
    """A dictionary of columns as rows."""
    single = [name for name, values in columns.items() if isinstance(values, str | bytes) or not _is_sized(values)]
    if single or not columns:
        what = f"{shown(single[0])} is {shown(columns[single[0]])}" if single else "it is empty"
        raise AbmllError(f"examples are {KINDS}; of this dictionary {what}, no column. For one row: [row]")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise AbmllError(f"columns of different lengths: {', '.join(f'{shown(k)} {n}' for k, n in lengths.items())}")
    lists = [_column(values, shown(name), "one value a row") for name, values in columns.items()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _column(values: Any, what: str, advice: str) -> list[Any]:
    """Values in order as a list, those of an array as its own scalars."""
    if isinstance(values, str | bytes | bytearray | Question | Mapping) or not isinstance(values, Iterable):
        kinds = KINDS if what == "examples" else "a list, an array or a column"
        raise AbmllError(f"{what}: {kinds}, not one {type(values).__name__}")
    if isinstance(values, set | frozenset):
        raise AbmllError(f"{what}: a set has no order; give a list")
    if isinstance(values, pyarrow.Array | pyarrow.ChunkedArray):
        return values.to_pylist()
    if getattr(values, "ndim", 1) != 1:
        shape = tuple(getattr(values, "shape", ()))
        if len(shape) != 2 or shape[1] != 1:
            raise AbmllError(f"{what}: an array of shape {shape}; give {advice}")
        values = np.asarray(values)[:, 0]
    found = list(values)
    return [each[0] for each in found] if found and all(map(_is_nested, found)) else found


def _is_sized(value: Any) -> bool:
    return hasattr(value, "__len__") and isinstance(value, Iterable) and not isinstance(value, Mapping)


def _is_nested(value: Any) -> bool:
    """A list of one, as a table of one column has in each of its rows."""
    return isinstance(value, list | tuple) and len(value) == 1


def _is_several(label: Any) -> bool:
    several = (list, tuple, set, frozenset, Mapping, np.ndarray)
    return isinstance(label, several) and not (isinstance(label, np.ndarray) and label.ndim == 0)
