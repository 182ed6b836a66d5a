"""Files of rows, which need not fit into memory: every row in order, as often as asked for.

A million rows take as little memory as ten, with whatever else is in them.
"""

import datetime
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from abmll.errors import AbmllError
from abmll.files import open_regular
from abmll.tables.delimited import Row, delimited_rows
from abmll.tables.formats import jsonl_rows, not_parquet, parquet_columns
from abmll.tables.rows import printable
from abmll.tables.textfile import text_lines

EXTENSIONS = ("jsonl", "csv", "tsv", "parquet")
ARE = ".jsonl, .csv, .tsv or .parquet files"


def extension_of(path: Path) -> str:
    """The ending that says how a table is written.

    Raises:
        AbmllError: it is none of .jsonl, .csv, .tsv and .parquet.

    >>> extension_of(Path("rows.CSV"))
    'csv'
    """
    found = path.suffix[1:].lower()
    if found not in EXTENSIONS:
        raise AbmllError(f"{printable(path)}: tables are {ARE}")
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
        """jsonl, csv, tsv or parquet."""
        return extension_of(self.path)

    @property
    def untyped(self) -> bool:
        """Whether every value is text (CSV), so that an answer of digits may be an index."""
        return self.extension in ("csv", "tsv")

    def rows(self, needed: Callable[[list[str]], list[str]] = list) -> Iterator[Row]:
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
