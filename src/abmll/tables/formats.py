"""JSON lines and Parquet files -> rows with their line numbers, or the reason why a line is none."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from abmll.tables.rows import BadRow, RawRow, shown

BATCH_ROWS = 1024  # of Parquet


def jsonl_rows(lines: Iterator[str | BadRow]) -> Iterator[RawRow]:
    """The rows of JSON lines; blank lines are passed over."""
    for number, line in enumerate(lines, start=1):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            try:
                yield number, json_object(line)
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
        raise BadRow(f"not a JSON object but {shown(value)}; write one object a line")
    return value


def _no_constant(name: str) -> float:
    raise BadRow(f"{name} is not JSON")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise BadRow(f"field {shown(next(n for n in names if names.count(n) > 1))} is given twice")
    return value


def parquet_rows(data: bytes, columns: Collection[str]) -> Iterator[RawRow]:
    """The rows of a Parquet file in any layout, with those columns alone.

    Args:
        data: the file's bytes.
        columns: names of its columns, each of which it must have.
    """

    def choose(names: list[str]) -> list[str]:
        if missing := sorted(set(columns) - set(names)):
            raise BadRow(f"no column {', '.join(map(shown, missing))}; the file has {', '.join(map(shown, names))}")
        return [name for name in names if name in columns]

    return parquet_columns(pyarrow.BufferReader(data), choose)


def parquet_columns(file: BinaryIO | Any, choose: Callable[[list[str]], list[str]]) -> Iterator[RawRow]:
    """The rows of a Parquet file, with the columns that `choose` takes of their names."""
    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if len(set(names)) < len(names):
            raise BadRow("a column is given twice")
        for batch in table.iter_batches(BATCH_ROWS, columns=choose(names)):
            for row in range(batch.num_rows):
                number += 1
                yield number, parquet_row(batch, row)
    except BadRow as error:
        yield 1, BadRow(str(error), error.fault, rows_lost=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield number + 1, BadRow(not_parquet(error), rows_lost=True)


def not_parquet(error: Exception) -> str:
    """Why a file is no Parquet file."""
    return f"not Parquet: {shown(str(error).splitlines()[0] if str(error) else error)}"


def parquet_row(batch: Any, row: int) -> Mapping[str, Any] | BadRow:
    """One row of a batch of a Parquet file, or what is wrong with it."""
    try:
        return {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except UnicodeDecodeError:
        return BadRow("holds text that is not UTF-8")
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        return BadRow(f"cannot be read: {shown(str(error))}")
