"""Delimited text (CSV, TSV) as spreadsheets of any country write it -> rows with their line numbers.

Of a file's first lines these are found out: a `sep=;` that Excel writes; whether commas, semicolons or tabs separate
the columns; whether a space after each of them belongs to no cell. Columns without a name at the end and rows without a
cell that is filled are left out, for spreadsheets write them.
"""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from abmll.tables.normal import same_form, tidy
from abmll.tables.rows import MOST_CELL, BadRow, RawRow, shown

SEPARATORS = (",", ";", "\t")
SAMPLE = 50  # lines by which the separator is found out
SAMPLE_CHARACTERS = 1 << 16
_SEP_LINE = re.compile(r'"?sep=([^"\s]|\t)"?[\s,;]*', re.IGNORECASE)
_LONE_RETURN = re.compile(r"(?<=\r)(?!\n)")
TOO_LONG = "field larger than field limit"  # as the csv module says it
_SAID = {
    TOO_LONG: f"a cell of more than {MOST_CELL >> 20} MiB, or a quote that is never closed",
    "unexpected end of data": "a quote is opened here and never closed",
    "expected after": "text after a closing quote; a quote inside quotes is written twice",
}
"""Part of a message of the csv module -> what it means."""


@dataclass(frozen=True)
class Dialect:
    """How cells are separated.

    Attributes:
        separator: between cells.
        spaced: a space after each separator belongs to no cell.
    """

    separator: str = ","
    spaced: bool = False


def delimited_rows(lines: Iterator[str | BadRow], separator: str | None = None) -> Iterator[RawRow]:
    """The rows of a file whose first line names the columns.

    Args:
        lines: of `text_lines`.
        separator: between cells; None: found out.
    """
    pieces = _pieces(lines)
    first = list(_sample(pieces))
    skipped = 0
    if first and isinstance(first[0], str) and (match := _SEP_LINE.fullmatch(first[0])):
        separator, first, skipped = match[1], first[1:], 1
    dialect = find_dialect([line for line in first if isinstance(line, str)], separator)
    for line, row in headed_rows(_records(itertools.chain(first, pieces), dialect)):
        yield line + skipped, row


def find_dialect(lines: list[str], separator: str | None = None) -> Dialect:
    """How the cells of a file are separated, by its first lines.

    Commas, unless the first line has none of them, or only another sign separates every line into as many cells.

    >>> find_dialect(["text;label\\n", "Good, and cheap.;good\\n"]), find_dialect(["text, label\\n", 'x, "y"\\n'])
    (Dialect(separator=';', spaced=False), Dialect(separator=',', spaced=True))
    """
    if separator is None:
        by = {sign: _parsed(lines, sign) for sign in SEPARATORS}
        able = [sign for sign in SEPARATORS if by[sign] and len(by[sign][0]) > 1]
        separator = max(able, key=lambda sign: _evenness(by[sign]), default=",")
    return Dialect(separator, _is_spaced(_parsed(lines, separator)))


def _parsed(lines: list[str], separator: str) -> list[list[str]]:
    """The records of some lines, as far as they can be read."""
    found: list[list[str]] = []
    try:
        for record in csv.reader(lines, delimiter=separator):
            if any(map(str.strip, record)):
                found.append(record)
    except csv.Error:
        pass  # too long a cell; the reader itself will say so
    return found


def _evenness(records: list[list[str]]) -> float:
    """Share of the records that have as many cells as the first."""
    return sum(len(record) == len(records[0]) for record in records) / len(records)


def _is_spaced(records: list[list[str]]) -> bool:
    """Whether a space follows each separator of the first line, or of all others."""
    head, *others = [[cell for cell in record[1:] if cell.strip()] for record in records] or [[]]
    rest = list(itertools.chain(*others))
    return any(cells and all(cell.startswith(" ") for cell in cells) for cells in (head, rest))


def _sample(lines: Iterator[str | BadRow]) -> Iterator[str | BadRow]:
    characters = 0
    for line in itertools.islice(lines, SAMPLE):
        yield line
        characters += len(line) if isinstance(line, str) else 0
        if characters > SAMPLE_CHARACTERS:
            return


def _pieces(lines: Iterator[str | BadRow]) -> Iterator[str | BadRow]:
    """Lines that end in any way: old programs write a carriage return alone."""
    for line in lines:
        if isinstance(line, str) and "\r" in line[:-2]:
            yield from filter(None, _LONE_RETURN.split(line))
        else:
            yield line


def headed_rows(records: Iterable[tuple[int, list[str] | BadRow]]) -> Iterator[RawRow]:
    """Rows of texts, the first of which names the columns; those without a cell that is filled are left out.

    >>> list(headed_rows([(1, ["text", "label"]), (2, ["", ""]), (3, ["Never again.", "bad"])]))
    [(3, {'text': 'Never again.', 'label': 'bad'})]
    """
    names: list[str] | None = None
    for line, record in records:
        if isinstance(record, BadRow):
            yield line, record
            if names is None:
                return
            continue
        if not any(map(same_form, record)) and not (record == [""] and names is not None and len(names) == 1):
            continue  # a blank line, or a row of a spreadsheet that nobody filled; not "" in a column of its own
        if names is None:
            names = _names(record)
            if repeated := _repeated(names):
                yield line, BadRow(f"column {shown(repeated)} is given twice")
                return
        else:
            yield line, _row(names, record)


def _records(lines: Iterator[str | BadRow], dialect: Dialect) -> Iterator[tuple[int, list[str] | BadRow]]:
    source = _Lines(lines)
    reader = csv.reader(source, delimiter=dialect.separator, skipinitialspace=dialect.spaced, strict=True)
    while True:
        begin = source.count + 1
        try:
            with _own_limit():
                record = next(reader)
        except StopIteration:
            return
        except (csv.Error, BadRow) as error:
            yield begin, error if isinstance(error, BadRow) else _bad_record(error, lines=source.count + 1 - begin)
            if TOO_LONG in str(error):  # where the next row begins cannot be known
                return
            continue
        yield begin, record


class _Lines:
    """Lines for the csv module, which are counted; a bad one is raised, and those after it come all the same."""

    def __init__(self, lines: Iterator[str | BadRow]) -> None:
        self._lines, self.count = lines, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.count += 1
        if isinstance(line, BadRow):
            raise line
        return line


@contextmanager
def _own_limit() -> Iterator[None]:
    """Cells up to our own limit; that of the csv module is one for the whole process."""
    before = csv.field_size_limit(MOST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _bad_record(error: csv.Error, lines: int) -> BadRow:
    """What is wrong with a record; a quote that is not closed takes the rows behind it with it."""
    said = next((said for part, said in _SAID.items() if part in str(error)), str(error))
    return BadRow(f"not CSV: {said}", rows_lost=lines > 1)


def _names(header: list[str]) -> list[str]:
    names = [tidy(name) for name in header]
    while names and not names[-1]:
        names.pop()
    return [name or (f"column {n}" if "" in names[: n - 1] else "") for n, name in enumerate(names, start=1)]


def _repeated(names: list[str]) -> str | None:
    forms = [same_form(name) for name in names]
    return next((name for name, form in zip(names, forms, strict=True) if forms.count(form) > 1), None)


def _row(names: list[str], record: list[str]) -> Mapping[str, Any] | BadRow:
    if len(record) < len(names) or any(map(same_form, record[len(names) :])):
        return BadRow(f"{len(record)} fields, but the first line names {len(names)}")
    return dict(zip(names, record, strict=False))
