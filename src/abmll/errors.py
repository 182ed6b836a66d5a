"""Errors that are the user's to mend: said in one message, never as a traceback."""

import difflib
import unicodedata
from collections.abc import Iterable
from typing import Any

LONGEST_LINE = 2000


class AbmllError(ValueError):
    r"""What was wrong, the value, where, and what to do. The command line prints it and exits with 2.

    A message may quote files of strangers. So that any terminal and log can take it, what a terminal obeys or refuses
    is written out as escapes, and lines of more than 2,000 characters are shortened.

    >>> print(AbmllError("name \x1b[31m"))
    name \x1b[31m
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("\n".join(harmless(_short(line)) for line in str(message).split("\n")))


class NonFiniteError(AbmllError):
    """An answer, a loss, a gradient or a weight is NaN or infinite; nothing was made of it.

    Attributes:
        batch: of a gradient step, the batch that it was met on (`abmll.training.failed_batch.FailedBatch`); else None.
    """

    def __init__(self, message: object = "", batch: Any = None) -> None:
        super().__init__(message)
        self.batch = batch


def harmless(text: str) -> str:
    r"""A text with everything that a terminal would obey or refuse written out: escapes, marks that turn the direction
    of writing, halves of characters. Spaces, tabs and line ends stay.

    >>> print(harmless("a\x1b]0;b\u202ec d"))
    a\x1b]0;b\u202ec d
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or _is_space(c) else ascii(c)[1:-1] for c in text)


def _is_space(character: str) -> bool:
    return character in "\t\n" or unicodedata.category(character) == "Zs"


def _short(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[: LONGEST_LINE - 200]} ... ({len(line):,} characters) ... {line[-150:]}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> AbmllError:
    """An error for a name that is not in a registry, with the nearest names and the whole list.

    >>> print(unknown_name("method", "reptil", ["lora", "reptile"]))
    unknown method 'reptil'. Did you mean 'reptile'? Known: lora, reptile
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return AbmllError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}")
