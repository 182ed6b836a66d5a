"""Whatever a data set's columns hold, a row of it is a question or a reason why not."""

import contextlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from abmll.tables.collect import collect
from abmll.tables.rows import BadRow
from abmll.tasks.catalogue.entries import catalogue_entry
from abmll.tasks.catalogue.mapping import columns_of, map_row
from tests.hub_layouts import LAYOUTS

TEXT = st.text(st.characters(exclude_categories=()), max_size=6) | st.sampled_from(["A", "1", "(A) x (B) y", "a ) 1"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
NAMES = TEXT | st.sampled_from(["text", "label", "A", "contexts"])
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(NAMES, v, max_size=3), max_leaves=8)


@st.composite
def rows(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A set's name, and a row of it in which some columns hold something else, or are not there."""
    name = draw(st.sampled_from(sorted(LAYOUTS)))
    row = dict(LAYOUTS[name].row)
    columns = catalogue_entry(name).columns
    assert columns is not None
    for column in draw(st.lists(st.sampled_from(sorted(columns_of(columns))), min_size=1, max_size=4)):
        if draw(st.booleans()) and column in row:
            row[column] = draw(VALUES)
        else:
            row.pop(column, None)
    return name, row


@settings(max_examples=300, deadline=None)
@given(case=rows())
def test_trust_14_any_row_of_any_set_is_a_question_or_a_reason(case: tuple[str, dict[str, Any]]) -> None:
    name, row = case
    columns = catalogue_entry(name).columns
    assert columns is not None
    mapped: dict[str, Any] | BadRow = BadRow("not mapped")
    with contextlib.suppress(BadRow):
        mapped = map_row(columns, row)
    found = collect("set", [(1, mapped)])
    assert len(found.questions) + len(found.problems) == 1
    for question in found.questions:
        assert question.answer in range(len(question.choices))
        assert all(text.encode() is not None for text in (question.question, question.context, *question.choices))
    assert all(problem.encode() for problem in found.problems)
