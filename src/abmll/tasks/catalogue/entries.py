"""An entry of the catalogue: the hub's id, configuration and splits of a set, and what its columns mean."""

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from abmll.errors import unknown_name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choices(_Part):
    """Where a row's choices are; one of these.

    Attributes:
        column: a list of texts.
        columns: one column for each choice.
        fixed: the same for every row.
        right, wrong: the right choice's column and those of the others; their order is drawn from a hash.
        inline: a text that ends in "(A) ... (B) ...".
        lettered: a text like "a ) ... , b ) ...".
        strip_letters: the choices begin with "A)", which is taken off.
    """

    column: str | None = None
    columns: tuple[str, ...] | None = None
    fixed: tuple[str, ...] | None = None
    right: str | None = None
    wrong: tuple[str, ...] | None = None
    inline: str | None = None
    lettered: str | None = None
    strip_letters: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> "Choices":
        forms = (self.column, self.columns, self.fixed, self.right, self.inline, self.lettered)
        if sum(form is not None for form in forms) != 1 or (self.right is None) != (self.wrong is None):
            raise ValueError("choices take one of column, columns, fixed, right and wrong, inline, lettered")
        return self


class Answer(_Part):
    """Where a row's answer is, and in what form.

    Attributes:
        column: its column.
        form: `index` from 0 (or false, true), `position` from 1, `letter`, `text` of the choice, or `label`: one of
            the labels beside the choices.
        labels: for `label`: their column.
    """

    column: str
    form: Literal["index", "position", "letter", "text", "label"]
    labels: str | None = None

    @model_validator(mode="after")
    def _labels_where_needed(self) -> "Answer":
        if (self.form == "label") != (self.labels is not None):
            raise ValueError("form `label` needs `labels`, the others have none")
        return self


class Columns(_Part):
    """How a row becomes a question.

    `question` and `context` are texts with columns in braces, "{question}" for one. A column inside another is written
    with dots: `choices.text`, `ids.0`.

    Attributes:
        choices, answer: where and in what form; no answer where `choices` says which is right.
        values: for a column: what to read in place of each of its values.
        replace: for every text: what to read in place of a part of it.
    """

    question: str
    context: str | None = None
    choices: Choices
    answer: Answer | None = None
    values: Mapping[str, Mapping[str, str]] = {}
    replace: Mapping[str, str] = {}

    @model_validator(mode="after")
    def _answered(self) -> "Columns":
        if (self.answer is None) != (self.choices.right is not None):
            raise ValueError("a row needs either `answer` or `choices.right`")
        return self


class Entry(_Part):
    """One set of the catalogue.

    Attributes:
        name: of the task.
        hub: the data set's id; None where it was not found on the hub, as `note` says.
        configuration: of the data set; None: it has one only.
        splits: `train` and `test`, as the data set calls them.
        test_share: where there is no `test`: the share of its passages or questions that become the test rows.
        columns: how its rows read; None where that is not known.
        licence: of the rows, as its authors give it.
        layout_source: the public file that the columns were read in; None: nowhere.
        note: whatever else should be known.
        revision: the commit that is read; `abmll tasks pin` finds it out, it is never written by hand.
        verified: whether rows of that commit were mapped.
    """

    name: str
    hub: str | None = Field(pattern=r"^[\w-]+/[\w.-]+$")
    configuration: str | None = None
    splits: Mapping[Literal["train", "test"], str] = {}
    test_share: float | None = Field(None, gt=0, lt=1)
    columns: Columns | None = None
    licence: str
    layout_source: str | None
    note: str = ""
    revision: None = None
    verified: Literal[False] = False


def catalogue_names() -> tuple[str, ...]:
    """The names of all sets, sorted.

    >>> {"arc_easy", "winogrande"} <= set(catalogue_names())
    True
    """
    return tuple(sorted(_catalogue()))


def catalogue_entry(name: str) -> Entry:
    """One set.

    Raises:
        AbmllError: there is none of that name.

    >>> catalogue_entry("arc_easy").hub
    'allenai/ai2_arc'
    """
    if name not in _catalogue():
        raise unknown_name("hub task", name, _catalogue())
    return _catalogue()[name]


@functools.cache
def _catalogue() -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for file in resources.files("abmll.tasks.catalogue").iterdir():
        if file.name.endswith(".yaml"):
            for name, values in yaml.safe_load(file.read_text("utf-8")).items():
                assert name not in found, name
                found[name] = Entry(name=name, **values)
    return found
