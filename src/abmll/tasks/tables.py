"""Tables on disk (JSONL, CSV, Parquet) -> rows with their line numbers, or the reason why a line is none."""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from abmll.errors import AbmllError
from abmll.tasks.rows import CHOICE_COLUMN, FIELDS, BadRow, printable, shown

EXTENSIONS = ("jsonl", "csv", "parquet")
Row = tuple[int, Mapping[str, Any] | BadRow]  # line number from 1, and the row or what is wrong with it


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, in order; blank lines are passed over.

    Raises:
        AbmllError: the file cannot be opened, or has another extension than .jsonl, .csv or .parquet.
    """
    extension = path.suffix[1:].lower()
    if extension not in EXTENSIONS:
        raise AbmllError(f"{printable(path)}: tasks are read from .jsonl, .csv or .parquet files")
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise AbmllError(f"{printable(path)}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if extension == "parquet":
        return _parquet_rows(data)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return iter([(1, BadRow("the file is UTF-16; save it as UTF-8"))])
    data = data.removeprefix(b"\xef\xbb\xbf")
    return _jsonl_rows(data) if extension == "jsonl" else _csv_rows(data)


def _not_utf8(error: UnicodeDecodeError) -> BadRow:
    return BadRow(f"not UTF-8 (byte {error.object[error.start]:#04x} at {error.start} of the line)")


def _jsonl_rows(data: bytes) -> Iterator[Row]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json_object(line.decode())
        except UnicodeDecodeError as error:
            yield number, _not_utf8(error)
        except BadRow as error:
            yield number, error


def json_object(text: str) -> dict[str, Any]:
    """One line of JSON as an object.

    Raises:
        BadRow: it is no JSON, or no object.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise BadRow("not JSON of a question: nested too deep") from None
    except BadRow:
        raise
    except ValueError:
        raise BadRow("not JSON of a question: a number has too many digits") from None
    if not isinstance(value, dict):
        raise BadRow(f"not a JSON object but {shown(value)}")
    return value


def _no_constant(name: str) -> float:
    raise BadRow(f"{name} is not JSON")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise BadRow(f"field {shown(next(n for n in names if names.count(n) > 1))} is given twice")
    return value


def _csv_rows(data: bytes) -> Iterator[Row]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        yield from _undecodable_lines(data)
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records = _csv_records(reader)
    number, header = next(((n, r) for n, r in records if r), (1, []))
    if isinstance(header, BadRow):
        yield number, header
        return
    names = [name.strip() for name in header]
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        yield number, BadRow(f"column {shown(repeated[0])} is given twice")
        return
    if header and "question" not in names:
        yield number, BadRow(f"no column 'question'; the first line names {', '.join(map(shown, names))}")
        return
    for number, record in records:
        if isinstance(record, BadRow):
            yield number, record
        elif record and len(record) != len(names):
            yield number, BadRow(f"{len(record)} fields, but the first line names {len(names)}")
        elif record:
            yield number, dict(zip(names, record, strict=True))


def _csv_records(reader: Any) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Records with the line that each begins on: a quoted field may span several."""
    while True:
        begin = reader.line_num + 1
        try:
            yield begin, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield begin, BadRow(f"not CSV: {error}")


def _undecodable_lines(data: bytes) -> Iterator[Row]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            yield number, _not_utf8(error)


def _parquet_rows(data: bytes) -> Iterator[Row]:
    def wanted(names: list[str]) -> list[str]:
        if "question" not in names:
            raise BadRow(f"no column 'question'; the file has {', '.join(map(shown, names)) or 'none'}")
        return [name for name in names if name in FIELDS or CHOICE_COLUMN.fullmatch(name)]

    return _parquet_columns(data, wanted)


def parquet_rows(data: bytes, columns: Collection[str]) -> Iterator[Row]:
    """The rows of a Parquet file in any layout, with those columns alone.

    Args:
        data: the file's bytes.
        columns: names of its columns, each of which it must have.
    """

    def wanted(names: list[str]) -> list[str]:
        if missing := sorted(set(columns) - set(names)):
            raise BadRow(f"no column {', '.join(map(shown, missing))}; the file has {', '.join(map(shown, names))}")
        return [name for name in names if name in columns]

    return _parquet_columns(data, wanted)


def _parquet_columns(data: bytes, wanted: Callable[[list[str]], list[str]]) -> Iterator[Row]:
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        names = wanted(file.schema_arrow.names)
        if len(set(names)) < len(names):
            raise BadRow("a column is given twice")
        number = 0
        for batch in file.iter_batches(columns=names):
            for place in range(batch.num_rows):
                number += 1
                yield number, parquet_row(batch, place)
    except BadRow as error:
        yield 1, error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield 1, BadRow(f"not Parquet: {shown(str(error).splitlines()[0] if str(error) else error)}")


def parquet_row(batch: Any, place: int) -> Mapping[str, Any] | BadRow:
    """One row of a batch of a Parquet file, or what is wrong with it."""
    try:
        return {name: batch.column(name)[place].as_py() for name in batch.schema.names}
    except UnicodeDecodeError:
        return BadRow("holds text that is not UTF-8")
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        return BadRow(f"cannot be read: {shown(str(error))}")
