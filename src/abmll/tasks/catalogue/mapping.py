"""A row in a data set's own layout -> the fields that `question_from_row` takes."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from abmll.tables.rows import BadRow, shown
from abmll.tasks.catalogue.entries import Answer, Choices, Columns

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BRACES = re.compile(r"\{([^{}]+)\}")
_INLINE = re.compile(r"\(([A-Z])\)")
_LETTERED = re.compile(r"(?:^|,)\s*([a-z])\s*\)")
_LETTER_IN_FRONT = re.compile(r"\s*[A-Za-z]\s*[).:]\s*")


def columns_of(columns: Columns) -> frozenset[str]:
    """The top-level columns that a layout reads.

    >>> from abmll.tasks.catalogue.entries import catalogue_entry
    >>> sorted(columns_of(catalogue_entry("arc_easy").columns))
    ['answerKey', 'choices', 'question']
    """
    choices, answer = columns.choices, columns.answer
    single = (choices.column, choices.right, choices.inline, choices.lettered)
    paths = [*filter(None, single), *(choices.columns or ()), *(choices.wrong or ())]
    paths += filter(None, (answer.column, answer.labels)) if answer else ()
    for text in filter(None, (columns.question, columns.context)):
        paths += _BRACES.findall(text)
    return frozenset(path.split(".")[0] for path in paths)


def map_row(columns: Columns, row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields question, context, choices and answer of a row.

    Raises:
        BadRow: a column is not there, or holds something else than the layout says.

    >>> from abmll.tasks.catalogue.entries import catalogue_entry
    >>> columns = catalogue_entry("winogrande").columns
    >>> row = {"sentence": "_ is red.", "option1": "Iron", "option2": "Rust", "answer": "2"}
    >>> map_row(columns, row)
    {'question': '_ is red.', 'context': '', 'choices': ['Iron', 'Rust'], 'answer': 1}
    """
    row = _with_values(columns, row)
    question, choices = _render(columns.question, row), _choices(columns.choices, row)
    if columns.choices.inline:
        question = _INLINE.split(question)[0]
    if columns.choices.right:
        choices, answer = _drawn(question, choices)
    else:
        assert columns.answer is not None  # the entry was checked
        answer = _answer(columns.answer, row)
    return {
        "question": _clean(columns, question),
        "context": _clean(columns, _render(columns.context, row)) if columns.context else "",
        "choices": [_clean(columns, choice) for choice in choices],
        "answer": _clean(columns, answer) if isinstance(answer, str) else answer,
    }


def _with_values(columns: Columns, row: Mapping[str, Any]) -> Mapping[str, Any]:
    changed = {}
    for name, meanings in columns.values.items():
        value = str(row.get(name))
        if value not in meanings:
            raise BadRow(f"{name} is {shown(row.get(name))}, not one of {', '.join(meanings)}")
        changed[name] = meanings[value]
    return {**row, **changed}


def _clean(columns: Columns, text: object) -> object:
    if not isinstance(text, str):
        return text  # question_from_row says what is wrong with it
    for old, new in columns.replace.items():
        text = text.replace(old, new)
    return text.strip()


def _at(row: Mapping[str, Any], path: str) -> Any:
    """The value at a path; a step into a list of structs goes into each."""
    name, *steps = path.split(".")
    if name not in row:
        raise BadRow(f"no column {shown(name)} (found: {', '.join(map(shown, row)) or 'nothing'})")
    value = row[name]
    for step in steps:
        value = _step(value, step, path)
    return value


def _step(value: Any, step: str, path: str) -> Any:
    if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
        return value[int(step)]
    if isinstance(value, list) and not step.isdecimal():
        return [_step(part, step, path) for part in value]
    if isinstance(value, Mapping) and step in value:
        return value[step]
    raise BadRow(f"{path}: there is no {step!r} in {shown(value)}")


def _render(text: str, row: Mapping[str, Any]) -> str:
    return _BRACES.sub(lambda match: _as_text(_at(row, match[1]), match[1]), text)


def _as_text(value: Any, path: str) -> str:
    """A list is read line by line."""
    if isinstance(value, list):
        return "\n".join(_as_text(part, path) for part in value)
    if isinstance(value, str):
        return value
    raise BadRow(f"{path} is {shown(value)}, not text")


def _choices(choices: Choices, row: Mapping[str, Any]) -> list[Any]:
    if choices.fixed:
        return list(choices.fixed)
    if choices.inline:
        return _lettered(_INLINE, _as_text(_at(row, choices.inline), choices.inline))
    if choices.lettered:
        return _lettered(_LETTERED, _as_text(_at(row, choices.lettered), choices.lettered))
    if choices.column:
        found = _at(row, choices.column)
        if not isinstance(found, list):
            raise BadRow(f"{choices.column} is {shown(found)}, not a list")
    else:
        right = (choices.right,) if choices.right else ()
        found = [_at(row, path) for path in (*right, *(choices.columns or choices.wrong or ()))]
    return [_without_letter(text) if choices.strip_letters else text for text in found]


def _lettered(pattern: re.Pattern[str], text: str) -> list[str]:
    """What stands behind each letter, the letters being A, B, C, ... in order."""
    _, *parts = pattern.split(text)
    letters, texts = parts[::2], parts[1::2]
    if [letter.upper() for letter in letters] != list(LETTERS[: len(letters)]):
        raise BadRow(f"lettered choices expected, found {shown(text)}")
    return [text.strip() for text in texts]


def _without_letter(text: Any) -> Any:
    return _LETTER_IN_FRONT.sub("", text, count=1) if isinstance(text, str) and _LETTER_IN_FRONT.match(text) else text


def _drawn(question: str, choices: Sequence[Any]) -> tuple[list[Any], int]:
    """The choices in an order that depends on their texts alone, and where the first of them went."""
    keys = [hashlib.sha256(f"{question}\x1f{choice}".encode("utf-8", "replace")).digest() for choice in choices]
    order = sorted(range(len(choices)), key=keys.__getitem__)
    return [choices[n] for n in order], order.index(0)


def _answer(answer: Answer, row: Mapping[str, Any]) -> Any:
    value = _at(row, answer.column)
    if answer.form == "text":
        return value
    if answer.form == "label":
        return _place(value, _at(row, answer.labels or ""), answer.column)
    if answer.form == "letter":
        return _place(value.strip().upper() if isinstance(value, str) else value, list(LETTERS), answer.column)
    return _number(value, answer.column) - (answer.form == "position")


def _place(value: Any, labels: Any, column: str) -> int:
    if not isinstance(labels, list) or value not in labels:
        raise BadRow(f"{column} is {shown(value)}, not one of {shown(labels)}")
    return labels.index(value)


def _number(value: Any, column: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,4}", value.strip(), re.ASCII):
        return int(value)
    if isinstance(value, int):  # False and True are 0 and 1
        return int(value)
    raise BadRow(f"{column} is {shown(value)}, not a whole number")
