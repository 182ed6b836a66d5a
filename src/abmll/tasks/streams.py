"""Tables that need not fit into memory: every column of every row, in order, as often as asked for.

`tables` reads the columns of a question from a file of a few thousand rows; here are the rows of a user, with whatever
else is in them, in as little memory for a million as for ten.
"""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from abmll.errors import AbmllError
from abmll.tasks.rows import BadRow, printable, shown
from abmll.tasks.tables import EXTENSIONS, Row, json_object, parquet_row

MOST_LINE = 64 << 20  # bytes of one line of JSON
BATCH_ROWS = 1024  # of Parquet


def extension_of(path: Path) -> str:
    """The ending that says how a table is written.

    Raises:
        AbmllError: it is none of .jsonl, .csv and .parquet.

    >>> extension_of(Path("rows.CSV"))
    'csv'
    """
    found = path.suffix[1:].lower()
    if found not in EXTENSIONS:
        raise AbmllError(f"{printable(path)}: tables are .jsonl, .csv or .parquet files")
    return found


@dataclass(frozen=True)
class Table:
    """A file of rows.

    Attributes:
        path: the file.
    """

    path: Path

    @property
    def extension(self) -> str:
        """jsonl, csv or parquet."""
        return extension_of(self.path)

    @property
    def untyped(self) -> bool:
        """Whether every value is text (CSV), so that an answer of digits may be an index."""
        return self.extension == "csv"

    def rows(self) -> Iterator[Row]:
        """Line numbers and rows from the first on, or what is wrong with a row; blank lines are passed over.

        Raises:
            AbmllError: the file cannot be opened.
        """
        reader = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[self.extension]
        with _opened(self.path) as file:
            yield from reader(file)

    def schema(self) -> "pyarrow.Schema | None":
        """The columns of a Parquet file with their types; None for the others, which have none.

        Raises:
            AbmllError: the file cannot be opened, or is no Parquet file.
        """
        if self.extension != "parquet":
            return None
        with _opened(self.path) as file:
            try:
                return pyarrow.parquet.ParquetFile(file).schema_arrow
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                raise AbmllError(f"{printable(self.path)}:1: {_not_parquet(error)}") from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise AbmllError(f"{printable(path)}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    with file:
        yield file


def _jsonl(file: BinaryIO) -> Iterator[Row]:
    for number, line in enumerate(_lines(file), start=1):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            try:
                yield number, json_object(line)
            except BadRow as error:
                yield number, error


def _lines(file: BinaryIO) -> Iterator[str | BadRow]:
    """Lines of UTF-8 text, their ends kept; a byte order mark is dropped."""
    first = True
    while data := file.readline(MOST_LINE):
        if len(data) == MOST_LINE and not data.endswith(b"\n"):
            yield BadRow(f"a line of more than {MOST_LINE >> 20} MiB")
            return
        if first and data.startswith((b"\xff\xfe", b"\xfe\xff")):
            yield BadRow("the file is UTF-16; save it as UTF-8")
            return
        data, first = data.removeprefix(b"\xef\xbb\xbf") if first else data, False
        try:
            yield data.decode()
        except UnicodeDecodeError as error:
            yield BadRow(f"not UTF-8 (byte {error.object[error.start]:#04x} at {error.start} of the line)")


def _csv(file: BinaryIO) -> Iterator[Row]:
    bad: list[BadRow] = []

    def text() -> Iterator[str]:
        for line in _lines(file):
            if isinstance(line, BadRow):
                bad.append(line)
                return
            yield line

    reader = csv.reader(text(), strict=True)
    names: list[str] | None = None
    while True:
        begin = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield begin, bad[0] if bad else BadRow(f"not CSV: {error}")
            if names is None or bad:
                return
            continue
        if not record:
            continue
        if names is None:
            names = [name.strip() for name in record]
            if other := _other_separator(names):
                yield begin, BadRow(f"one column, {shown(names[0])}: separate columns by commas, not by {other}")
                return
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                yield begin, BadRow(f"column {shown(repeated[0])} is given twice")
                return
        elif len(record) != len(names):
            yield begin, BadRow(f"{len(record)} fields, but the first line names {len(names)}")
        else:
            yield begin, dict(zip(names, record, strict=True))
    if bad:
        yield reader.line_num + 1, bad[0]


def _other_separator(names: list[str]) -> str:
    """What separates the columns that a spreadsheet of another country, or a copied table, writes as one."""
    found = {";": "semicolons", "\t": "tabs"}
    return next((word for sign, word in found.items() if len(names) == 1 and sign in names[0]), "")


def _parquet(file: BinaryIO) -> Iterator[Row]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if len(set(names)) < len(names):
            raise BadRow("a column is given twice")
        number = 0
        for batch in table.iter_batches(BATCH_ROWS):
            for place in range(batch.num_rows):
                number += 1
                yield number, parquet_row(batch, place)
    except BadRow as error:
        yield 1, error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield 1, BadRow(_not_parquet(error))


def _not_parquet(error: Exception) -> str:
    return f"not Parquet: {shown(str(error).splitlines()[0] if str(error) else error)}"


def as_text(value: Any) -> str:
    """A value of any table as the text of a CSV cell: text as it is, nothing as "", the rest as JSON.

    >>> as_text("x"), as_text(None), as_text(True), as_text(["a", 1])
    ('x', '', 'true', '["a", 1]')
    """
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
