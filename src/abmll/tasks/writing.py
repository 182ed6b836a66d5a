"""A user's rows with answers beside them, written row by row: CSV, JSONL or Parquet, whole or absent."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet

from abmll.errors import AbmllError, NonFiniteError
from abmll.files import file_beside
from abmll.tasks.rows import printable
from abmll.tasks.streams import as_text, extension_of

FORMULA = re.compile(r"\s*[=+\-@\uff0b\uff0d\uff1d\uff20]|[\t\r\n]")
_HARMLESS = re.compile(r"[+-]?\d+([.,]\d+)?%?|[=+\-@]+", re.ASCII)  # nothing to compute, nowhere to go
TYPES: dict[type, Any] = {
    str: pyarrow.string(),
    float: pyarrow.float64(),
    bool: pyarrow.bool_(),
    list: pyarrow.list_(pyarrow.float64()),
}


class RowWriter(Protocol):
    """Takes rows in order."""

    def write(self, rows: Sequence[Mapping[str, Any]], added: Sequence[Mapping[str, Any]]) -> None:
        """Rows of the user, and the columns that are added to each.

        Raises:
            NonFiniteError: a number in an added column is NaN or infinite.
        """


def neutral(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe goes before =, +, -, @, tab and line ends.

    Plain numbers, and signs alone (the labels + and -, say), stay as they are: they are harmless, and are joined on.

    >>> neutral("=HYPERLINK(1)"), neutral("iron"), neutral("-1"), neutral("-1+cmd"), neutral("+")
    ("'=HYPERLINK(1)", 'iron', '-1', "'-1+cmd", '+')
    """
    return f"'{text}" if FORMULA.match(text) and not _HARMLESS.fullmatch(text) else text


@contextmanager
def writing(
    path: Path,
    columns: Sequence[str],
    added: Mapping[str, type],
    *,
    schema: pyarrow.Schema | None = None,
    keep_cells: bool = False,
) -> Iterator[RowWriter]:
    """A writer to `path`, which appears when the block ends without an error.

    Args:
        path: ends in .csv, .jsonl or .parquet.
        columns: of the user's rows, in order.
        added: name of each added column -> str, float, bool or list (of floats).
        schema: types of the user's columns, for Parquet.
        keep_cells: the user's cells are CSV already and are written as they are; else text that a spreadsheet would
            take for a formula is neutralised in theirs as in ours (CSV only).

    Raises:
        AbmllError: the file cannot be written, or a value does not fit its column.
    """
    kind = extension_of(path)
    if path.is_dir():
        raise AbmllError(f"{printable(path)}: a folder; give a file")
    try:
        with file_beside(path) as part:
            if kind == "parquet":
                yield from _parquet(part, columns, added, schema)
                return
            with part.open("w", encoding="utf-8", newline="") as file:
                yield _Csv(file, columns, added, keep_cells) if kind == "csv" else _Jsonl(file)
    except OSError as error:
        raise AbmllError(f"{printable(path)}: cannot be written ({error.strerror or error})") from error


class _Csv:
    def __init__(self, file: Any, columns: Sequence[str], added: Mapping[str, type], keep_cells: bool) -> None:
        self._columns, self._added, self._keep = list(columns), list(added), keep_cells
        self._file, self._line = file, io.StringIO()
        self._writer = csv.writer(self._line, lineterminator="\r\n")  # so that a cell with either of them is quoted
        own = self._columns if keep_cells else [neutral(name) for name in self._columns]
        self._put([*own, *map(neutral, self._added)])

    def write(self, rows: Sequence[Mapping[str, Any]], added: Sequence[Mapping[str, Any]]) -> None:
        """As `RowWriter`."""
        _refuse_non_finite(added)
        for row, extra in zip(rows, added, strict=True):
            theirs = [as_text(row.get(name)) if self._keep else _cell(row.get(name)) for name in self._columns]
            self._put([*theirs, *(_cell(_short(extra.get(name))) for name in self._added)])

    def _put(self, cells: Sequence[str]) -> None:
        self._line.seek(0)
        self._line.truncate()
        self._writer.writerow(cells)
        self._file.write(self._line.getvalue().removesuffix("\r\n") + "\n")


def _cell(value: Any) -> str:
    return neutral(as_text(value)) if isinstance(value, str) else as_text(value)


def _short(value: Any) -> Any:
    """Six digits of our own numbers."""
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(format(value, ".6g")) if isinstance(value, float) else value


class _Jsonl:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, rows: Sequence[Mapping[str, Any]], added: Sequence[Mapping[str, Any]]) -> None:
        """As `RowWriter`."""
        _refuse_non_finite(added)
        for row, extra in zip(rows, added, strict=True):
            values = {**{key: _json(value) for key, value in row.items()}, **extra}
            self._file.write(json.dumps(values, ensure_ascii=False, default=str, allow_nan=False) + "\n")


def _json(value: Any) -> Any:
    """A user's own value; NaN and infinities, which JSON has not, become null, wherever they stand in it."""
    if isinstance(value, Mapping):
        return {key: _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_non_finite(added: Sequence[Mapping[str, Any]]) -> None:
    """Our own numbers are finite, or there is no answer to write."""
    for extra in added:
        for name, value in extra.items():
            numbers = value if isinstance(value, list) else [value]
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                raise NonFiniteError(f"column {name!r}: {value} is no answer (not finite); nothing was written")


def _parquet(
    part: Path, columns: Sequence[str], added: Mapping[str, type], schema: pyarrow.Schema | None
) -> Iterator[RowWriter]:
    theirs = schema or pyarrow.schema([(name, pyarrow.string()) for name in columns])
    whole = pyarrow.schema([*theirs, *((name, TYPES[kind]) for name, kind in added.items())])
    with pyarrow.parquet.ParquetWriter(part, whole) as writer:
        yield _Parquet(writer, whole)


class _Parquet:
    def __init__(self, writer: pyarrow.parquet.ParquetWriter, schema: pyarrow.Schema) -> None:
        self._writer, self._schema = writer, schema

    def write(self, rows: Sequence[Mapping[str, Any]], added: Sequence[Mapping[str, Any]]) -> None:
        """As `RowWriter`."""
        _refuse_non_finite(added)
        values = [{**row, **extra} for row, extra in zip(rows, added, strict=True)]
        try:
            self._writer.write_table(pyarrow.Table.from_pylist(values, self._schema))
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise AbmllError(f"a row does not fit the columns of a Parquet file ({error}); write .jsonl") from error
