"""Which columns of a user's table make a question: a question with its choices, or a text and labels fixed for all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from abmll.errors import AbmllError
from abmll.question import Question
from abmll.tables.labels import Classes, label_text
from abmll.tables.normal import same_form, tidy
from abmll.tables.rows import BadRow, checked_text, group_of, named, no_column, question_from_row, shown, text_of
from abmll.tables.values import plain

ADVICE = "another column is named by --{0}, in Python by {0}="
TEXTS = "rows of texts need the labels (--labels A,B), or a task that was adapted with them (--task)"
MOST_LISTED = 10
"""Labels that the question put to the model names; with more it names none."""


@dataclass(frozen=True)
class Layout:
    """How a row becomes a question.

    Without `labels` a row is a question of its own: columns question, choices (or choice_0, ...), answer, and maybe
    context. With `labels` it is plain classification: a column of texts and a column of labels.

    Attributes:
        labels: the labels of every row, in the order of the answers; None: each row has choices of its own.
        text: column of the text, which becomes the question's context (so its start may be cut).
        label: column of the label.
        ask: the question put to the model about the text; None: one made of the labels, see `stem`.

    >>> layout = Layout(labels=("bad", "good"))
    >>> made = layout.question({"text": "Never again.", "label": "bad"}, 3)
    >>> made.question, made.context, made.answer
    ('Which fits the text: bad or good?', 'Never again.', 0)
    """

    labels: tuple[str, ...] | None = None
    text: str = "text"
    label: str = "label"
    ask: str | None = None

    def __post_init__(self) -> None:
        if self.labels is not None:
            _check_labels(self.labels)
        if self.ask is not None:
            _check_ask(self.ask)

    @property
    def stem(self) -> str:
        """The question put to the model about every text; "" where rows bring their own."""
        if self.ask is not None or self.labels is None:
            return self.ask or ""
        if len(self.labels) > MOST_LISTED:
            return "Which label fits the text?"
        return f"Which fits the text: {', '.join(self.labels[:-1])} or {self.labels[-1]}?"

    def question(
        self, row: Mapping[str, Any], line: int, *, labelled: bool = True, untyped: bool = False, location: str = ""
    ) -> Question:
        """Check one row and make it a question; its id is its line.

        Args:
            row: column -> value; columns that no question needs are ignored.
            line: its number.
            labelled: read the answer too; else its column is not looked at, and `answer` is None.
            untyped: every value is text (CSV).
            location: file:line, for messages.

        Raises:
            BadRow: with the reason.
        """
        if self.labels is None:
            hidden = {"id"} if labelled else {"id", "answer"}
            columns = {key: value for key, value in named(row).items() if key not in hidden}
            if "question" not in columns:
                raise no_column("question", columns, TEXTS)
            return question_from_row(columns, line, labelled, untyped, location=location)
        text, group = self.text_and_group(row)
        answer = self._answer(row) if labelled else None
        return Question(str(line), self.stem, self.labels, answer, text, location, group)

    def text_and_group(self, row: Mapping[Any, Any]) -> tuple[str, str | None]:
        """What plain classification reads of a row besides its label.

        Raises:
            BadRow: with the reason.
        """
        row = named(row)
        text = text_of(row, same_form(self.text), ADVICE.format("text"))
        if not text:
            raise BadRow(f"{self.text} is empty")
        return text, group_of(row)

    def _answer(self, row: Mapping[str, Any]) -> int:
        assert self.labels is not None
        value = label_in(row, self.label)
        found = self._classes.index(value)
        if found is None:
            raise BadRow(
                f"{self.label} is {shown(plain(value))}, none of the labels {', '.join(map(shown, self.labels))}"
            )
        return found

    @cached_property
    def _classes(self) -> Classes:
        return Classes(self.labels or ())

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for `from_dict`."""
        return asdict(self) | {"labels": None if self.labels is None else list(self.labels)}

    @classmethod
    def from_dict(cls, values: object) -> "Layout":
        """What `to_dict` gave.

        Raises:
            AbmllError: it is no such thing.
        """
        known = {"labels", "text", "label", "ask"}
        if not isinstance(values, dict) or values.keys() != known:
            raise AbmllError("the columns that a task was adapted with are not what was saved")
        labels, *texts = (values[name] for name in ("labels", "text", "label", "ask"))
        fine = labels is None or (isinstance(labels, list) and all(isinstance(x, str) for x in labels))
        if not fine or not all(isinstance(x, str) for x in texts[:2]) or not isinstance(texts[2], str | None):
            raise AbmllError("the columns that a task was adapted with are not what was saved")
        return cls(None if labels is None else tuple(labels), *texts)

    def with_labels(self, labels: Sequence[str]) -> "Layout":
        """The same columns with these labels."""
        return replace(self, labels=tuple(labels))


def label_in(row: Mapping[Any, Any], column: str) -> Any:
    """The value in the column of labels, of any type.

    Raises:
        BadRow: there is no such column, it is missing, empty, or no label.
    """
    row, name = named(row), same_form(column)
    if name not in row:
        raise no_column(column, row, ADVICE.format("label"))
    label_text(row[name], column)
    return row[name]


def parse_labels(text: str) -> tuple[str, ...]:
    """`--labels`: names between commas, or a JSON list where a label holds a comma.

    Raises:
        AbmllError: fewer than two, one twice, or not a list of texts.

    >>> parse_labels("bad, good"), parse_labels('["yes, sir", "no"]')
    (('bad', 'good'), ('yes, sir', 'no'))
    """
    found: Any = [part.strip() for part in text.split(",")]
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise AbmllError(f"--labels {shown(text)} is not a JSON list") from None
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise AbmllError(f"--labels {shown(text)}: expected names between commas, or a JSON list of texts")
    labels = tuple(tidy(label) for label in found)
    _check_labels(labels)
    return labels


def _check_ask(text: str) -> None:
    try:
        checked_text(text, "--ask")
    except BadRow as error:
        raise AbmllError(str(error)) from None
    if not same_form(text):
        raise AbmllError("--ask is empty: give a question, or leave it out")


def _check_labels(labels: tuple[str, ...]) -> None:
    first: dict[str, str] = {}
    for label in labels:
        try:
            checked_text(label, "a label")
        except BadRow as error:
            raise AbmllError(str(error)) from None
        same = same_form(label)
        if not same:
            raise AbmllError("a label is empty")
        if same in first:
            raise AbmllError(f"labels {shown(first[same])} and {shown(label)} are the same")
        first[same] = label
    if len(labels) < 2:
        raise AbmllError(f"{len(labels)} label{'s' * (len(labels) != 1)}: plain classification needs two or more")
