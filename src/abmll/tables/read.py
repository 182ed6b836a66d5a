"""The reader of files of rows: every row in order, as often as asked for, of files that need not fit into memory.

Text is UTF-8 or UTF-16, with or without a byte order mark. A million rows take as little memory as ten, with whatever
else is in them; of a workbook, whose texts are in a table of their own, all texts are in memory.
"""

import codecs
import datetime
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from abmll.errors import AbmllError
from abmll.files import open_regular
from abmll.tables.delimited import delimited_rows, headed_rows
from abmll.tables.formats import jsonl_rows, not_parquet, parquet_columns, workbook_records
from abmll.tables.rows import MOST_CELL, BadRow, RawRow, printable

WRITTEN = ("jsonl", "csv", "tsv", "parquet")
"""Endings of tables that are written; a workbook would have to be written whole, in memory."""
EXTENSIONS = (*WRITTEN, "xlsx")
"""Endings of tables that are read."""
_MARKED = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16's, so it is looked for first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark -> encoding."""


def extension_of(path: Path, known: Sequence[str] = EXTENSIONS) -> str:
    """The ending that says how a table is written.

    Args:
        path: its file.
        known: endings of which it must have one.

    Raises:
        AbmllError: it has none of them.

    >>> extension_of(Path("rows.CSV"))
    'csv'
    """
    found = path.suffix[1:].lower()
    if found not in known:
        *others, last = (f".{extension}" for extension in known)
        hint = "; save the sheet as .xlsx or .csv" if found in ("xls", "xlsm", "xlsb", "ods") else ""
        raise AbmllError(f"{printable(path)}: tables are {', '.join(others)} or {last} files{hint}")
    return found


@dataclass(frozen=True)
class RowFile:
    """A file of rows.

    Attributes:
        path: the file.
    """

    path: Path

    @property
    def extension(self) -> str:
        """jsonl, csv, tsv, parquet or xlsx."""
        return extension_of(self.path)

    @property
    def untyped(self) -> bool:
        """Whether every value is text (CSV, a workbook), so that an answer of digits may be an index."""
        return self.extension in ("csv", "tsv", "xlsx")

    def rows(self, needed: Callable[[list[str]], list[str]] = list) -> Iterator[RawRow]:
        """Line numbers and rows from the first on, or what is wrong with a row; blank lines are passed over.

        Args:
            needed: chooses the columns of Parquet that are read, by their names; others may be large.

        Raises:
            AbmllError: the file cannot be opened.
        """
        extension = self.extension
        with open_regular(self.path) as file:
            if extension == "parquet":
                yield from parquet_columns(file, needed)
            elif extension == "xlsx":
                yield from headed_rows(workbook_records(file))
            elif extension == "jsonl":
                yield from jsonl_rows(text_lines(file))
            else:
                yield from delimited_rows(text_lines(file), "\t" if extension == "tsv" else None)

    def schema(self) -> "pyarrow.Schema | None":
        """The columns of a Parquet file with their types; None for the others, which have none.

        Raises:
            AbmllError: the file cannot be opened, or is no Parquet file.
        """
        if self.extension != "parquet":
            return None
        with open_regular(self.path) as file:
            try:
                return pyarrow.parquet.ParquetFile(file).schema_arrow
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                raise AbmllError(f"{printable(self.path)}:1: {not_parquet(error)}") from None


def as_text(value: Any) -> str:
    """A value of any table as the text of a CSV cell: text as it is, nothing as "", dates by ISO 8601, else JSON.

    >>> as_text("x"), as_text(None), as_text(True), as_text(["a", 1]), as_text(datetime.date(2024, 1, 2))
    ('x', '', 'true', '["a", 1]', '2024-01-02')
    """
    if value is None:
        return ""
    if isinstance(value, datetime.date | datetime.time | Decimal):
        return str(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def text_lines(file: BinaryIO) -> Iterator[str | BadRow]:
    """Lines with their ends, or what is wrong with one; nothing comes after a line that is too long.

    Args:
        file: at its start; it can be set back.
    """
    start = file.read(4)
    mark = next((mark for mark in _MARKED if start.startswith(mark)), b"")
    encoding = _MARKED.get(mark, "utf-8")
    if encoding != "utf-8":
        file.seek(0)
        return _decoded(file, encoding)
    if _is_wide(start):
        return iter([BadRow("looks like UTF-16 without its byte order mark; save it as UTF-8", rows_lost=True)])
    file.seek(len(mark))
    return _utf8(file)


def _is_wide(start: bytes) -> bool:
    """Whether every second byte is zero, as in UTF-16 of Latin letters."""
    return len(start) == 4 and (start[0::2] == b"\0\0") != (start[1::2] == b"\0\0")


def _utf8(file: BinaryIO) -> Iterator[str | BadRow]:
    while data := file.readline(MOST_CELL):
        if len(data) == MOST_CELL and not data.endswith(b"\n"):
            yield _too_long()
            return
        try:
            yield data.decode()
        except UnicodeDecodeError as error:
            at = error.start
            yield BadRow(f"not UTF-8 (byte {error.object[at]:#04x} at {at} of the line); save the file as UTF-8")


def _decoded(file: BinaryIO, encoding: str) -> Iterator[str | BadRow]:
    text = io.TextIOWrapper(file, encoding, newline="\n")
    try:
        while line := text.readline(MOST_CELL):
            if len(line) == MOST_CELL and not line.endswith("\n"):
                yield _too_long()
                return
            yield line
    except UnicodeError:
        yield BadRow(f"not {encoding.upper()}, which its byte order mark says; save the file as UTF-8", rows_lost=True)
    finally:
        text.detach()


def _too_long() -> BadRow:
    return BadRow(f"a line of more than {MOST_CELL >> 20} MiB", rows_lost=True)
