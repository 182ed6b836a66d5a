"""A user's rows with answers beside them, written row by row: CSV, JSONL or Parquet, whole or absent."""

import csv
import errno
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet

from abmll.errors import AbmllError, NonFiniteError
from abmll.files import file_beside
from abmll.tables.normal import first_sign
from abmll.tables.read import WRITTEN, as_text, extension_of
from abmll.tables.rows import printable

FORMULA = frozenset("=+-@")
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

    Spaces, quotation marks, byte order marks and what else nobody sees do not hide the sign; full-width and other forms
    of it count. Plain numbers, and signs alone (the labels + and -, say), stay as they are: they are harmless, and rows
    are joined on them.

    >>> neutral("=HYPERLINK(1)"), neutral("iron"), neutral("-1"), neutral("-1+cmd"), neutral("+")
    ("'=HYPERLINK(1)", 'iron', '-1', "'-1+cmd", '+')
    """
    opens = text[:1] in ("\t", "\r", "\n") or first_sign(text) in FORMULA
    return f"'{text}" if opens and not _HARMLESS.fullmatch(text) else text


@contextmanager
def writing(
    path: Path,
    columns: Sequence[str],
    added: Mapping[str, type],
    *,
    schema: pyarrow.Schema | None = None,
) -> Iterator[RowWriter]:
    """A writer to `path`, which appears when the block ends without an error.

    Args:
        path: ends in .csv, .tsv, .jsonl or .parquet. In the first two no cell, the user's and the names of columns
            included, is one that a spreadsheet would take for a formula, see `neutral`.
        columns: of the user's rows, in order.
        added: name of each added column -> str, float, bool or list (of floats).
        schema: types of the user's columns, for Parquet.

    Raises:
        AbmllError: the file cannot be written, or a value does not fit its column.
    """
    check_writable(path)
    kind = extension_of(path, WRITTEN)
    try:
        with file_beside(path) as part:
            if kind == "parquet":
                yield from _parquet(part, columns, added, schema)
                return
            with part.open("w", encoding="utf-8", newline="") as file:
                yield _Jsonl(file) if kind == "jsonl" else _Csv(file, columns, added, "\t" if kind == "tsv" else ",")
    except OSError as error:
        raise AbmllError(f"{printable(path)}: cannot be written ({error.strerror or error})") from error


def check_writable(path: Path) -> None:
    """Refuse where `writing` could put no file, before there is something to write. Nothing is made.

    Raises:
        AbmllError: it is no table, a folder, a pipe or a device, or where it is no file can be made.
    """
    extension_of(path, WRITTEN)
    try:
        there = _exists(path)
        if there and path.is_dir():
            raise AbmllError(f"{printable(path)}: a folder; give a file")
        if there and not path.is_file():
            raise AbmllError(f"{printable(path)}: a pipe or a device, in whose place no file is put; give a file")
        folder = next(parent for parent in path.absolute().parents if _exists(parent))
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise AbmllError(f"{printable(path)}: cannot be written ({error.strerror or error})") from None


def _exists(path: Path) -> bool:
    """Whether a file or folder is there; one whose name is too long cannot be."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


class _Csv:
    def __init__(self, file: Any, columns: Sequence[str], added: Mapping[str, type], separator: str) -> None:
        self._columns, self._added = list(columns), list(added)
        self._file, self._line = file, io.StringIO()
        # line ends of two characters, so that a cell with either of them is quoted
        self._writer = csv.writer(self._line, delimiter=separator, lineterminator="\r\n")
        self._put(list(map(neutral, (*self._columns, *self._added))))

    def write(self, rows: Sequence[Mapping[str, Any]], added: Sequence[Mapping[str, Any]]) -> None:
        """As `RowWriter`."""
        _refuse_non_finite(added)
        for row, extra in zip(rows, added, strict=True):
            ours = (_short(extra.get(name)) for name in self._added)
            self._put([_cell(value) for value in (*map(row.get, self._columns), *ours)])

    def _put(self, cells: Sequence[str]) -> None:
        self._line.seek(0)
        self._line.truncate()
        self._writer.writerow(cells)
        self._file.write(self._line.getvalue().removesuffix("\r\n") + "\n")


def _cell(value: Any) -> str:
    text = as_text(value)
    return text if value is None or isinstance(value, bool | int | float) else neutral(text)


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
