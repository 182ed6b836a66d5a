"""One row of a table -> a Question, or the reason why not. Every source of tasks goes through here."""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from abmll.errors import AbmllError
from abmll.question import Question
from abmll.tables.normal import same_form, tidy, trimmed
from abmll.tables.values import plain

FIELDS = ("id", "question", "context", "choices", "answer", "group")
CHOICE_COLUMN = re.compile(r"choice_(?:(\d{1,3})|([a-z]))", re.ASCII)
SHOWN = 50
MOST_CELL = 64 << 20
"""Characters of one cell, and bytes of one line of JSON."""


class BadRow(ValueError):
    """The reason why one row is not a question; whoever knows the file and line puts them in front.

    Args:
        reason: what is wrong with this row.
        fault: what may be wrong with the whole table; where no row is without it, that is said once.
        rows_lost: rows behind it cannot be read, so that it is no row that may be left out.
    """

    def __init__(self, reason: str = "", fault: str = "", *, rows_lost: bool = False) -> None:
        super().__init__(reason)
        self.fault, self.rows_lost = fault, rows_lost


RawRow = tuple[int, Mapping[str, Any] | BadRow]
"""A row as it was read: its line from 1, and its columns or what is wrong with it."""


def no_column(column: str, row: Iterable[object], advice: str = "") -> BadRow:
    """A row has no such column.

    Args:
        column: its name.
        row: names of the columns that it has.
        advice: what to do.
    """
    there = ", ".join(map(shown, row)) or "nothing"
    return BadRow(f"{column} is missing (found: {there})" + (f"; {advice}" if advice else ""), f"no column {column}")


def shown(value: object) -> str:
    """`repr`, short enough for one line of a report and safe to print.

    >>> shown("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested beyond Python's stack; an integer of 5,000 digits
        text = f"<{type(value).__name__}>"
    text = printable(text)
    return text if len(text) <= 41 else text[:38] + "..."


def printable(text: object) -> str:
    """`str`, without the halves of characters that a terminal or a log file refuses (they occur in file names)."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def question_from_row(
    row: Mapping[str, Any],
    default_id: int | str,
    labelled: bool = True,
    untyped: bool = False,
    merge_choices: bool = False,
    location: str = "",
) -> Question:
    """Check one row and make it a Question.

    Args:
        row: {id, question, context, choices, answer, group}, `id`, `context` and `group` optional; instead of
            `choices` there may be columns choice_0, choice_1, ... or choice_a, choice_b, ...; others are ignored.
        default_id: the id of a row that has none: its line.
        labelled: False allows `answer` to be absent.
        untyped: every value is text (CSV): an `answer` of digits is an index.
        merge_choices: drop a repeated choice rather than refuse the row.
        location: file:line of the row.

    Raises:
        BadRow: with the reason.

    >>> row = {"question": "Which is a metal?", "choices": ["oxygen", "iron"], "answer": "iron"}
    >>> question_from_row(row, default_id="7")
    Question(id='7', question='Which is a metal?', choices=('oxygen', 'iron'), answer=1, context='')
    """
    row = named(row)
    question = text_of(row, "question")
    if not question:
        raise BadRow("question is empty")
    context = "" if plain(row.get("context")) is None else text_of(row, "context")
    choices = _choices(row)
    answer = _answer(row, choices, labelled, untyped)
    distinct, answer = _distinct(choices, answer, merge_choices)
    return Question(
        _name_in(row, "id") or str(default_id), question, distinct, answer, context, location, group_of(row)
    )


def group_of(row: Mapping[str, Any]) -> str | None:
    """The column `group`: which rows belong together; None without one.

    Raises:
        BadRow: it is neither text nor a whole number.

    >>> group_of({"group": 7.0}), group_of({"group": "a\\u200b"}), group_of({"group": ""})
    ('7', 'a', None)
    """
    return _name_in(row, "group")


_column = functools.lru_cache(maxsize=1 << 12)(same_form)  # tables have the same few columns in every row


def named(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row by the normal forms of its columns' names.

    Raises:
        BadRow: two columns have one name.

    >>> named({"\\ufefftext ": "a", 3: "b"})
    {'text': 'a', '3': 'b'}
    """
    found: dict[str, Any] = {}
    for key, value in row.items():
        name = _column(str(key))
        if name in found and name:
            raise BadRow(f"column {shown(name)} is given twice", f"column {name} is given twice")
        found[name] = value
    return found


def checked_text(text: str, what: str) -> str:
    """The text, if every part of it is a character other than NUL; BadRow if not."""
    if "\0" in text:
        raise BadRow(f"{what} holds a NUL character")
    if len(text) > MOST_CELL:
        raise BadRow(f"{what} has {len(text):,} characters; {MOST_CELL:,} is the most")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{what} holds half of a surrogate pair, which is not a character") from None
    return text


def text_of(row: Mapping[str, Any], field: str, advice: str = "") -> str:
    """The text in a column, without spaces around it.

    Args:
        row: see `named`.
        field: name of the column.
        advice: what to do if there is none.

    Raises:
        BadRow: there is no such column, it is missing, no text, or holds what is no character.
    """
    if field not in row:
        raise no_column(field, row, advice)
    value = plain(row[field])
    if value is None:
        raise BadRow(f"{field} is missing")
    if not isinstance(value, str):
        raise BadRow(f"{field} is {shown(value)}, not text", f"{field} is no text")
    return trimmed(checked_text(value, field))


def _name_in(row: Mapping[str, Any], column: str) -> str | None:
    """The text or the whole number in a column, as text; None without one."""
    value = _whole(plain(row.get(column)))
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadRow(f"{column} is {shown(value)}, not text or a whole number")
    try:
        return tidy(checked_text(str(value), column)) or None
    except ValueError as error:  # BadRow, or an integer of more digits than Python prints
        raise BadRow(str(error)) from None


def _whole(value: Any) -> Any:
    """A table with gaps turns whole numbers into floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _choices(row: Mapping[str, Any]) -> list[str]:
    value = plain(row.get("choices"))
    numbered = _numbered_choices(row)
    if value is None or value == "":
        if not numbered:
            if "choices" in row:
                raise BadRow("choices is missing")
            raise no_column("choices", row)
        value = numbered
    elif numbered:
        raise BadRow("has both choices and choice_... columns; keep one")
    if isinstance(value, str):
        value = _json_list(value)
    if not isinstance(value, list | tuple):
        raise BadRow(f"choices is {shown(value)}, not a list")
    choices = [_choice(choice, number) for number, choice in enumerate(value)]
    if len(choices) < 2:
        raise BadRow(f"has {len(choices)} choice{'s' * (len(choices) != 1)}; a question needs two or more")
    return choices


def _choice(value: Any, number: int) -> str:
    value = plain(value)
    if not isinstance(value, str):
        raise BadRow(f"choice {number} is {shown(value)}, not text", f"choice {number} is no text")
    text = tidy(checked_text(value, f"choice {number}"))
    if not text:
        raise BadRow(f"choice {number} is empty")
    return text


def _json_list(text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise BadRow(f'choices is the text {shown(text)}, not a JSON list like ["yes", "no"]')
    return value


def _numbered_choices(row: Mapping[str, Any]) -> list[Any]:
    """The values of choice_0, choice_1, ... in order; those at the end may be empty."""
    found = {key: match for key in row if isinstance(key, str) and (match := CHOICE_COLUMN.fullmatch(key))}
    if len({match[1] is None for match in found.values()}) > 1:
        raise BadRow("has both choice_0 and choice_a columns; keep one kind")
    ordered = sorted(found, key=lambda key: (int(found[key][1] or 0), key))
    expected = ["choice_" + (str(n) if found[ordered[0]][1] else chr(97 + n)) for n in range(len(ordered))]
    if ordered != expected:
        raise BadRow(f"has columns {', '.join(ordered)}; expected {', '.join(expected)}")
    values = [plain(row[key]) for key in ordered]
    while values and (values[-1] is None or (isinstance(values[-1], str) and not tidy(values[-1]))):
        values.pop()
    return values


def _answer(row: Mapping[str, Any], choices: Sequence[str], labelled: bool, untyped: bool) -> int | None:
    value = _whole(plain(row.get("answer")))
    value = tidy(checked_text(value, "answer")) if isinstance(value, str) else value
    if value is None or (untyped and value == ""):
        if not labelled:
            return None
        if "answer" in row:
            raise BadRow("answer is missing")
        raise no_column("answer", row)
    if isinstance(value, str):
        return _text_answer(value, choices, untyped)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRow(f"answer is {shown(value)}, not an index from 0 or the text of a choice")
    return _in_range(value, choices)


def _in_range(index: int, choices: Sequence[str]) -> int:
    if not 0 <= index < len(choices):
        raise BadRow(f"answer {shown(index)} is out of range: {len(choices)} choices, 0 to {len(choices) - 1}")
    return index


def _text_answer(text: str, choices: Sequence[str], untyped: bool) -> int:
    index = int(text) if untyped and re.fullmatch(r"-?[0-9]{1,9}", text, re.ASCII) else None
    forms = [same_form(choice) for choice in choices]
    if same_form(text) not in forms:
        if index is not None:
            return _in_range(index, choices)
        raise BadRow(f"answer {shown(text)} is not one of the choices; give its text, or its index from 0")
    by_text = forms.index(same_form(text))
    if index is not None and 0 <= index < len(choices) and index != by_text:
        raise BadRow(f"answer {text} may be the choice {text!r} or the index of {choices[index]!r}; use JSONL")
    return by_text


def _distinct(choices: list[str], answer: int | None, merge: bool) -> tuple[tuple[str, ...], int | None]:
    """Without repeats. Two choices that differ in what nobody sees are repeats."""
    first: dict[str, int] = {}
    for number, choice in enumerate(choices):
        same = first.setdefault(same_form(choice), number)
        if same != number and not merge:
            raise BadRow(f"choices {same} and {number} are the same: {shown(choice)}")
    if len(first) < 2:
        raise BadRow(f"has one choice, {len(choices)} times; a question needs two or more")
    distinct = tuple(choices[number] for number in first.values())
    if answer is not None:
        answer = list(first).index(same_form(choices[answer]))
    return distinct, answer


def report(problems: Iterable[str], rows: int | None = None) -> AbmllError:
    """All bad rows in one error, the first 50 printed.

    Args:
        problems: of each row, or of several together.
        rows: how many rows are bad; None: as many as there are problems.

    >>> print(report(["a.jsonl:3: question is empty"]))
    1 bad row; nothing was loaded:
      a.jsonl:3: question is empty
    """
    found = list(problems)
    count = len(found) if rows is None else rows
    lines = [f"{count:,} bad row{'s' * (count != 1)}; nothing was loaded:"]
    lines += [f"  {problem}" for problem in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"  ... and {len(found) - SHOWN:,} more")
    return AbmllError("\n".join(lines))
