"""One row of a table -> a Question, or the reason why not. Every source of tasks goes through here."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from abmll.errors import AbmllError
from abmll.tasks.question import Question

FIELDS = ("id", "question", "context", "choices", "answer", "group")
CHOICE_COLUMN = re.compile(r"choice_(?:(\d{1,3})|([a-z]))", re.ASCII)
SHOWN = 50


class BadRow(ValueError):
    """The reason why one row is not a question; whoever knows the file and line puts them in front."""


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
    default_id: str,
    labelled: bool = True,
    untyped: bool = False,
    merge_choices: bool = False,
    place: str = "",
) -> Question:
    """Check one row and make it a Question.

    Args:
        row: {id, question, context, choices, answer, group}, `id`, `context` and `group` optional; instead of
            `choices` there may be columns choice_0, choice_1, ... or choice_a, choice_b, ...; others are ignored.
        default_id: the id of a row that has none.
        labelled: False allows `answer` to be absent.
        untyped: every value is text (CSV): an `answer` of digits is an index.
        merge_choices: drop a repeated choice rather than refuse the row.
        place: file:line of the row.

    Raises:
        BadRow: with the reason.

    >>> row = {"question": "Which is a metal?", "choices": ["oxygen", "iron"], "answer": "iron"}
    >>> question_from_row(row, default_id="7")
    Question(id='7', question='Which is a metal?', choices=('oxygen', 'iron'), answer=1, context='')
    """
    question = text_of(row, "question")
    if not question.strip():
        raise BadRow("question is empty")
    context = "" if is_missing(row.get("context")) else text_of(row, "context")
    choices = _choices(row)
    answer = _answer(row, choices, labelled, untyped)
    kept, answer = _distinct(choices, answer, merge_choices)
    return Question(_id(row, default_id), question, kept, answer, context, place, group_of(row))


def group_of(row: Mapping[str, Any]) -> str | None:
    """The column `group`: which rows belong together; None without one.

    Raises:
        BadRow: it is neither text nor a whole number.

    >>> group_of({"group": 7.0}), group_of({"group": ""})
    ('7', None)
    """
    value = row.get("group")
    if value is None or value == "" or value != value:  # NaN stands for nothing in a table
        return None
    if isinstance(value, float) and value.is_integer():  # a table with gaps turns whole numbers into floats
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadRow(f"group is {shown(value)}, not text or a whole number")
    return checked_text(str(value), "group").strip() or None


def is_missing(value: object) -> bool:
    """None, or the NaN that stands for it in tables."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def checked_text(text: str, what: str) -> str:
    """The text, if every part of it is a character other than NUL; BadRow if not."""
    if "\0" in text:
        raise BadRow(f"{what} holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{what} holds half of a surrogate pair, which is not a character") from None
    return text


def text_of(row: Mapping[str, Any], field: str) -> str:
    """The text in a column.

    Raises:
        BadRow: it is missing, no text, or holds what is no character.
    """
    value = row.get(field)
    if is_missing(value):
        raise BadRow(f"{field} is missing (found: {', '.join(map(shown, row)) or 'nothing'})")
    if not isinstance(value, str):
        raise BadRow(f"{field} is {shown(value)}, not text")
    return checked_text(value, field)


def _id(row: Mapping[str, Any], default: str) -> str:
    value = row.get("id")
    if is_missing(value) or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadRow(f"id is {shown(value)}, not text or a whole number")
    try:
        return checked_text(str(value), "id")
    except ValueError as error:  # BadRow, or an integer of more digits than Python prints
        raise BadRow(str(error)) from None


def _choices(row: Mapping[str, Any]) -> list[str]:
    value = row.get("choices")
    numbered = _numbered_choices(row)
    if is_missing(value) or value == "":
        if not numbered:
            raise BadRow(f"choices is missing (found: {', '.join(map(shown, row)) or 'nothing'})")
        value = numbered
    elif numbered:
        raise BadRow("has both choices and choice_... columns; keep one")
    if isinstance(value, str):
        value = _json_list(value)
    if not isinstance(value, list | tuple):
        raise BadRow(f"choices is {shown(value)}, not a list")
    for place, choice in enumerate(value):
        if not isinstance(choice, str):
            raise BadRow(f"choice {place} is {shown(choice)}, not text")
        if not checked_text(choice, f"choice {place}").strip():
            raise BadRow(f"choice {place} is empty")
    if len(value) < 2:
        raise BadRow(f"has {len(value)} choice{'s' * (len(value) != 1)}; a question needs two or more")
    return list(value)


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
    values = [row[key] for key in ordered]
    while values and (is_missing(values[-1]) or values[-1] == ""):
        values.pop()
    return values


def _answer(row: Mapping[str, Any], choices: Sequence[str], labelled: bool, untyped: bool) -> int | None:
    value = row.get("answer")
    if is_missing(value) or (untyped and value == ""):
        if not labelled:
            return None
        if "answer" in row:
            raise BadRow("answer is missing")
        raise BadRow(f"answer is missing (found: {', '.join(map(shown, row)) or 'nothing'})")
    if isinstance(value, str):
        return _text_answer(checked_text(value, "answer"), choices, untyped)
    if isinstance(value, float) and value.is_integer():  # a table with gaps turns whole numbers into floats
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRow(f"answer is {shown(value)}, not an index from 0 or the text of a choice")
    return _in_range(value, choices)


def _in_range(index: int, choices: Sequence[str]) -> int:
    if not 0 <= index < len(choices):
        raise BadRow(f"answer {shown(index)} is out of range: {len(choices)} choices, 0 to {len(choices) - 1}")
    return index


def _text_answer(text: str, choices: Sequence[str], untyped: bool) -> int:
    index = int(text) if untyped and re.fullmatch(r"-?[0-9]{1,9}", text.strip(), re.ASCII) else None
    if text not in choices:
        if index is not None:
            return _in_range(index, choices)
        raise BadRow(f"answer {shown(text)} is not one of the choices; give its text, or its index from 0")
    place = choices.index(text)
    if index is not None and 0 <= index < len(choices) and index != place:
        raise BadRow(f"answer {text} may be the choice {text!r} or the index of {choices[index]!r}; use JSONL")
    return place


def _distinct(choices: list[str], answer: int | None, merge: bool) -> tuple[tuple[str, ...], int | None]:
    """Without repeats. Two choices that differ in spaces alone are repeats: a model reads them alike."""
    first: dict[str, int] = {}
    for place, choice in enumerate(choices):
        same = first.setdefault(" ".join(choice.split()), place)
        if same != place and not merge:
            raise BadRow(f"choices {same} and {place} are the same: {shown(choice)}")
    if len(first) < 2:
        raise BadRow(f"has one choice, {len(choices)} times; a question needs two or more")
    kept = tuple(choices[place] for place in first.values())
    if answer is not None:
        answer = list(first).index(" ".join(choices[answer].split()))
    return kept, answer


def same_question(question: Question) -> tuple[object, ...]:
    """What makes two rows the same question: all texts, whatever the spaces and the order of the choices.

    >>> a, b = Question("1", "Red?", ("yes", "no"), 0), Question("2", "Red? ", ("no", "yes"), 1)
    >>> same_question(a) == same_question(b)
    True
    """
    context, stem, *choices = (" ".join(t.split()) for t in (question.context, question.question, *question.choices))
    return context, stem, tuple(sorted(choices))


def report(problems: Iterable[str]) -> AbmllError:
    """All bad rows in one error, the first 50 printed.

    >>> print(report(["a.jsonl:3: question is empty"]))
    1 bad row; nothing was loaded:
      a.jsonl:3: question is empty
    """
    found = list(problems)
    lines = [f"{len(found):,} bad row{'s' * (len(found) != 1)}; nothing was loaded:"]
    lines += [f"  {problem}" for problem in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"  ... and {len(found) - SHOWN:,} more")
    return AbmllError("\n".join(lines))
