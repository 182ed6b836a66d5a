"""JSON lines, Parquet files and workbooks -> rows with their line numbers, or the reason why a line is none."""

import datetime
import json
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from abmll.errors import AbmllError
from abmll.tables.rows import MOST_CELL, BadRow, RawRow, shown

BATCH_ROWS = 1024  # of Parquet
MOST_WORKBOOK = 1 << 30  # bytes of a workbook's parts, unpacked


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


def workbook_records(file: BinaryIO) -> Iterator[tuple[int, list[str] | BadRow]]:
    """The rows of the one filled sheet of a workbook (.xlsx), as the texts that a spreadsheet's CSV would have.

    A formula counts for the value that the program which saved the workbook computed. Dates are as ISO 8601 has them,
    true and false as JSON has them, numbers without their formats. Of merged cells the first one has the value, and the
    others are empty. Hidden rows are rows; hidden and empty sheets, and sheets of charts, are passed over.

    Args:
        file: at its start.

    Raises:
        AbmllError: openpyxl, which reads it, is not installed.
    """
    try:
        from openpyxl import load_workbook  # optional extra
    except ImportError:
        raise AbmllError(
            "workbooks (.xlsx) are read by openpyxl, which is not installed (the extra `xlsx`): pip install openpyxl, "
            "or save the sheet as CSV"
        ) from None
    number, width = 0, 0
    try:
        _refuse_large(file)
        values, formulas = (load_workbook(file, read_only=True, data_only=only) for only in (True, False))
        for sheet in (*values.worksheets, *formulas.worksheets):
            sheet.reset_dimensions()  # some programs write wrong ones
        title = _filled_sheet(values)
        rows = [book[title].iter_rows() for book in (values, formulas)]
        for number, cells in enumerate(zip(*rows, strict=True), start=1):
            record = _texts(*cells)
            if not isinstance(record, BadRow):  # empty cells at the end are not in the file
                width = width or len(record)
                record += [""] * (width - len(record))
            yield number, record
    except (BadRow, AbmllError) as error:
        yield number + 1, BadRow(str(error), rows_lost=True)
    except Exception as error:  # openpyxl raises whatever its steps do: KeyError, BadZipFile, ParseError, ...
        why = f"not a workbook (.xlsx), or one with a password: {shown(str(error) or type(error).__name__)}"
        yield number + 1, BadRow(why, rows_lost=True)


def _refuse_large(file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as parts:
        if (size := sum(part.file_size for part in parts.infolist())) > MOST_WORKBOOK:
            raise BadRow(f"a workbook of {size:,} bytes; {MOST_WORKBOOK:,} is the most. Save the sheet as CSV")
    file.seek(0)


def _filled_sheet(book: Any) -> str:
    """The name of the one sheet that shows something.

    Raises:
        BadRow: there is none, or there are several.
    """
    shown_sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
    filled = [sheet.title for sheet in shown_sheets if any(c.value is not None for r in sheet.iter_rows() for c in r)]
    if len(filled) != 1:
        names = ", ".join(map(shown, filled))
        what = f"several sheets have rows: {names}; delete or hide the others" if filled else "no sheet has any rows"
        raise BadRow(what)
    return filled[0]


def _texts(values: Collection[Any], formulas: Collection[Any]) -> list[str] | BadRow:
    try:
        return [_cell_text(cell, formula) for cell, formula in zip(values, formulas, strict=True)]
    except BadRow as error:
        return error


def _cell_text(cell: Any, formula: Any) -> str:
    """One cell as text.

    Raises:
        BadRow: it holds an error, a formula that nobody computed, or too much.
    """
    value = cell.value
    if value is None:
        if formula.data_type == "f":
            raise BadRow(
                f"cell {_cell_name(formula)} has a formula whose value was not saved: open and save the workbook in a "
                "spreadsheet, or put the value in its place"
            )
        return ""
    if cell.data_type == "e":
        raise BadRow(f"cell {_cell_name(cell)} holds the error {shown(value)}")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time()
        return value.date().isoformat() if midnight else value.isoformat(" ")
    text = str(value)
    if len(text) > MOST_CELL:
        raise BadRow(f"cell {_cell_name(cell)} has {len(text):,} characters; {MOST_CELL:,} is the most")
    return text


def _cell_name(cell: Any) -> str:
    """A cell as spreadsheets name it: B7."""
    from openpyxl.utils import get_column_letter  # optional extra

    return f"{get_column_letter(cell.column)}{cell.row}"
