"""Lines of text files as people have them: UTF-8 or UTF-16, with or without a byte order mark, of any size."""

import codecs
import io
from collections.abc import Iterator
from typing import BinaryIO

from abmll.tables.rows import MOST_CELL, BadRow

_MARKED = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16's, so it is looked for first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark -> encoding."""


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
