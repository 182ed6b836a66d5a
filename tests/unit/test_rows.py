"""One row of a table: what is taken of it, and the whole sentence that says why it is none."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from abmll.errors import AbmllError
from abmll.question import Question
from abmll.tables.collect import Rows, collect, reject_repeats, settle
from abmll.tables.formats import parquet_rows
from abmll.tables.layouts import Layout, parse_labels
from abmll.tables.read import RowFile, as_text, extension_of
from abmll.tables.rows import BadRow, question_from_row, report, shown
from tests.faults import rows_of
from tests.tables import read_questions

GOOD: dict[str, Any] = {"question": "Which is a metal?", "choices": ["oxygen", "iron"], "answer": 1}
TWO = "a question needs two or more"


def why(row: dict[str, Any], **options: Any) -> str:
    with pytest.raises(BadRow) as caught:
        question_from_row(row, "7", **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": "  "}, "question is empty"),
        ({"question": 3}, "question is 3, not text"),
        ({"question": "a\0b"}, "question holds a NUL character"),
        ({"context": "\ud800"}, "context holds half of a surrogate pair, which is not a character"),
        ({"choices": ["a", "b\0"]}, "choice 1 holds a NUL character"),
        ({"choices": ["a", 2]}, "choice 1 is 2, not text"),
        ({"choices": [" ", "b"]}, "choice 0 is empty"),
        ({"choices": []}, f"has 0 choices; {TWO}"),
        ({"choices": ["a"]}, f"has 1 choice; {TWO}"),
        ({"choices": 7}, "choices is 7, not a list"),
        ({"choices": "a,b"}, """choices is the text 'a,b', not a JSON list like ["yes", "no"]"""),
        ({"choices": '{"a": 1}'}, """choices is the text '{"a": 1}', not a JSON list like ["yes", "no"]"""),
        ({"choices": ["a", "b", "a"]}, "choices 0 and 2 are the same: 'a'"),
        ({"choice_0": "x"}, "has both choices and choice_... columns; keep one"),
        ({"answer": 2}, "answer 2 is out of range: 2 choices, 0 to 1"),
        ({"answer": -1}, "answer -1 is out of range: 2 choices, 0 to 1"),
        ({"answer": 0.5}, "answer is 0.5, not an index from 0 or the text of a choice"),
        ({"answer": True}, "answer is True, not an index from 0 or the text of a choice"),
        ({"answer": "gold"}, "answer 'gold' is not one of the choices; give its text, or its index from 0"),
        ({"answer": "1"}, "answer '1' is not one of the choices; give its text, or its index from 0"),
        ({"answer": "go\0ld"}, "answer holds a NUL character"),
        ({"answer": None}, "answer is missing"),
        ({"id": 1.5}, "id is 1.5, not text or a whole number"),
        ({"id": True}, "id is True, not text or a whole number"),
        ({"id": "a\0"}, "id holds a NUL character"),
    ],
)
def test_a_row_that_is_none_says_why_in_a_sentence(change: dict[str, Any], reason: str) -> None:
    assert why({**GOOD, **change}) == reason


def columns(**values: Any) -> dict[str, Any]:
    return {"question": "q", "answer": 0, **values}


def test_columns_of_choices_go_in_order_and_empty_ones_at_the_end_are_none() -> None:
    for names in (("choice_0", "choice_1", "choice_2"), ("choice_a", "choice_b", "choice_c")):
        row = columns(**dict(zip(reversed(names), ("z", "y", "x"), strict=True)))
        assert question_from_row(row, "7").choices == ("x", "y", "z")
        for nothing in (None, "", float("nan")):
            assert question_from_row({**row, names[2]: nothing}, "7").choices == ("x", "y")
    many = columns(**{f"choice_{n}": str(n) for n in range(12)})
    assert question_from_row(many, "7").choices == tuple(map(str, range(12)))
    assert why(columns(choice_0="x", choice_b="y")) == "has both choice_0 and choice_a columns; keep one kind"
    assert why(columns(choice_0="x", choice_2="y")) == "has columns choice_0, choice_2; expected choice_0, choice_1"
    assert why(columns(choice_b="x", choice_c="y")) == "has columns choice_b, choice_c; expected choice_a, choice_b"
    assert why(columns(choice_0="x", choice_1="", choice_2="z")) == "choice 1 is empty"


def test_a_list_of_choices_may_be_text_and_stands_beside_no_empty_column() -> None:
    for choices in (["x", "y"], ("x", "y"), '["x", "y"]'):
        assert question_from_row(columns(choices=choices), "7").choices == ("x", "y")
    for nothing in ("", None):
        assert question_from_row(columns(choices=nothing, choice_0="x", choice_1="y"), "7").choices == ("x", "y")


@pytest.mark.parametrize(
    ("value", "untyped", "answer"),
    [(1, False, 1), (1.0, False, 1), ("iron", False, 1), ("iron", True, 1), ("1", True, 1), (" 0 ", True, 0)],
)
def test_an_answer_is_an_index_or_the_text_of_a_choice(value: Any, untyped: bool, answer: int) -> None:
    assert question_from_row({**GOOD, "answer": value}, "7", untyped=untyped).answer == answer


def test_digits_that_may_be_a_choice_or_an_index_are_refused_where_the_two_differ() -> None:
    numbers = columns(choices=["1", "0", "7"])
    assert question_from_row({**numbers, "answer": "7"}, "7", untyped=True).answer == 2
    assert question_from_row({**numbers, "answer": "1"}, "7").answer == 0, "typed: text is text"
    assert why({**numbers, "answer": "1"}, untyped=True) == (
        "answer 1 may be the choice '1' or the index of '0'; use JSONL"
    )
    assert question_from_row(columns(choices=["0", "1"], answer="1"), "7", untyped=True).answer == 1
    assert why({**GOOD, "answer": "2"}, untyped=True) == "answer 2 is out of range: 2 choices, 0 to 1"
    assert why({**GOOD, "answer": "-1"}, untyped=True) == "answer -1 is out of range: 2 choices, 0 to 1"


def test_answers_may_be_missing_where_none_are_asked_for() -> None:
    for row in ({**GOOD, "answer": None}, {k: v for k, v in GOOD.items() if k != "answer"}):
        assert question_from_row(row, "7", labelled=False).answer is None
    assert question_from_row({**GOOD, "answer": ""}, "7", labelled=False, untyped=True).answer is None
    assert question_from_row(GOOD, "7", labelled=False).answer == 1
    assert why({**GOOD, "answer": ""}, untyped=True) == "answer is missing"
    assert why({**GOOD, "answer": 9}, labelled=False) == "answer 9 is out of range: 2 choices, 0 to 1"


def test_repeated_choices_are_merged_where_that_is_asked_for_and_the_answer_follows() -> None:
    for answer, kept in ((0, 0), (1, 1), (2, 0), (3, 2)):
        row = columns(choices=["a", "b", "a", "c"], answer=answer)
        found = question_from_row(row, "7", merge_choices=True)
        assert (found.choices, found.answer) == (("a", "b", "c"), kept)
    assert why(columns(choices=["a", "a", "a"]), merge_choices=True) == f"has one choice, 3 times; {TWO}"
    unlabelled = question_from_row(columns(choices=["a", "a", "b"], answer=None), "7", False, merge_choices=True)
    assert (unlabelled.choices, unlabelled.answer) == (("a", "b"), None)


def test_ids_contexts_and_places_are_what_the_row_says() -> None:
    plain = question_from_row(GOOD, "7", location="f.csv:3")
    assert (plain.id, plain.context, plain.location) == ("7", "", "f.csv:3")
    full = question_from_row({**GOOD, "id": 12, "context": "Read."}, "7")
    assert (full.id, full.context, full.location) == ("12", "Read.", "")
    for nothing in (None, "", float("nan")):
        assert question_from_row({**GOOD, "id": nothing}, "7").id == "7"
    for nothing in (None, float("nan")):
        assert question_from_row({**GOOD, "context": nothing}, "7").context == ""


def test_values_are_shown_short_and_printable() -> None:
    assert shown("x" * 39) == repr("x" * 39)
    assert shown("x" * 40) == "'" + "x" * 37 + "..."
    assert shown("\ud800") == "'\\ud800'"
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "<list>"
    assert shown(10**5000) == "<int>"
    while nested:
        nested = nested.pop()


# -------------------- rows of a table, all told at once


def test_bad_rows_are_collected_with_their_lines_beside_the_good_ones() -> None:
    rows = [(1, GOOD), (2, BadRow("torn")), (4, {**GOOD, "id": "1"}), (5, {**GOOD, "answer": 9})]
    found = collect("a.jsonl", rows)
    assert [(q.id, q.location) for q in found.questions] == [("1", "a.jsonl:1")]
    assert found.problems == [
        "a.jsonl:2: torn",
        "a.jsonl:4: id '1' is that of line 1 too",
        "a.jsonl:5: answer 9 is out of range: 2 choices, 0 to 1",
    ]
    assert collect("a.jsonl", []).problems == ["a.jsonl:1: the file has no rows"]
    options = {"labelled": False, "untyped": True, "merge_choices": True}
    row = {"question": "q", "choice_0": "x", "choice_1": "x", "choice_2": "y"}
    (made,) = collect("a", [(3, row)], partial(question_from_row, **options)).questions
    assert (made.id, made.answer, made.choices) == ("3", None, ("x", "y"))


def test_test_rows_that_are_train_rows_are_bad_rows() -> None:
    train = Rows("t/a.train.jsonl", [Question("1", "Red?", ("a", "b"), 0, "", "t/a.train.jsonl:5")])
    again, other = (
        Question(name, text, ("b", "a"), 1, "", f"t/a.test.jsonl:{name}")
        for name, text in (("1", "Red?"), ("2", "Blue?"))
    )
    test = Rows("t/a.test.jsonl", [again, other])
    reject_repeats(train, test)
    assert test.questions == [other]
    assert test.problems == ["t/a.test.jsonl:1: the same question is in a.train.jsonl:5, the train rows"]


def test_bad_rows_are_refused_or_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    good = Rows("a", [Question("1", "?", ("a", "b"), 0)] * 3, ["a:9: torn", "a:11: torn"])
    fine, empty = Rows("b", good.questions), Rows("c", [], ["c:1: the file has no rows"])
    assert settle([good, fine], "skip") == 2
    assert [r.getMessage() for r in caplog.records] == ["skipped 2 of 5 rows; the first: a:9: torn"]
    assert settle([fine], "error") == 0
    assert settle([], "error") == 0
    for rows, on_bad_row, count in (([good, fine], "error", 2), ([fine, empty], "skip", 1), ([good, empty], "skip", 3)):
        with pytest.raises(AbmllError, match=rf"^{count} bad rows?; nothing was loaded:"):
            settle(rows, on_bad_row)  # type: ignore[arg-type]


def test_fifty_bad_rows_are_printed_and_the_rest_counted() -> None:
    lines = str(report(f"a:{n}: torn" for n in range(50))).splitlines()
    assert lines == ["50 bad rows; nothing was loaded:", *(f"  a:{n}: torn" for n in range(50))]
    lines = str(report(f"a:{n}: torn" for n in range(1051))).splitlines()
    assert (lines[0], lines[50], lines[51]) == (
        "1,051 bad rows; nothing was loaded:",
        "  a:49: torn",
        "  ... and 1,001 more",
    )
    assert str(report(["a:1: torn"])).splitlines() == ["1 bad row; nothing was loaded:", "  a:1: torn"]


# -------------------- layouts


def test_the_question_names_up_to_ten_labels() -> None:
    assert Layout(("bad", "good")).stem == "Which fits the text: bad or good?"
    assert Layout(("a", "b", "c")).stem == "Which fits the text: a, b or c?"
    ten, eleven = (Layout(tuple(f"l{n}" for n in range(count))) for count in (10, 11))
    assert ten.stem == "Which fits the text: l0, l1, l2, l3, l4, l5, l6, l7, l8 or l9?"
    assert eleven.stem == "Which label fits the text?"
    assert Layout(("bad", "good"), ask="How was it?").stem == "How was it?"
    assert Layout().stem == ""
    assert Layout(ask="How was it?").stem == "How was it?"


def test_rows_with_choices_of_their_own_keep_their_line_as_id() -> None:
    row = {**GOOD, "id": "x"}
    made = Layout().question(row, 3, location="f:3")
    assert (made.id, made.answer, made.location) == ("3", 1, "f:3")
    assert Layout().question({**row, "answer": "1"}, 3, untyped=True).answer == 1
    assert Layout().question({**row, "answer": "who knows"}, 3, labelled=False).answer is None
    with pytest.raises(BadRow, match=r"^answer 'who knows' is not one of"):
        Layout().question({**row, "answer": "who knows"}, 3)


@pytest.mark.parametrize(
    ("value", "label"), [("bad", 0), (" good ", 1), ("2", 2), (2, 2), (2.0, 2), (True, 3), ("true", 3)]
)
def test_labels_are_texts_whole_numbers_true_or_false(value: Any, label: int) -> None:
    made = Layout(("bad", "good", "2", "true")).question({"text": "t", "label": value}, 1)
    assert (made.answer, made.context, made.choices) == (label, "t", ("bad", "good", "2", "true"))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("bad, good", ("bad", "good")),
        (' ["yes, sir", "no"]', ("yes, sir", "no")),
        ("a,b,c", ("a", "b", "c")),
    ],
)
def test_labels_that_are_given_are_names_between_commas_or_json(text: str, labels: tuple[str, ...]) -> None:
    assert parse_labels(text) == labels


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("one", "1 label: plain classification needs two or more"),
        ("[]", "0 labels: plain classification needs two or more"),
        ("a,b,a", "labels 'a' and 'a' are the same"),
        ("a, ,b", "a label is empty"),
        ("a\0,b", "a label holds a NUL character"),
        ('["a"', "--labels '[\"a\"' is not a JSON list"),
        ('["a", 2]', "--labels '[\"a\", 2]': expected names between commas, or a JSON list of texts"),
    ],
)
def test_labels_that_are_none_say_why(text: str, reason: str) -> None:
    with pytest.raises(AbmllError) as caught:
        parse_labels(text)
    assert str(caught.value) == reason


def test_columns_come_back_as_they_were_saved_or_are_refused() -> None:
    for layout in (Layout(), Layout(("a", "b"), "t", "l", "Which?")):
        values = json.loads(json.dumps(layout.to_dict()))
        assert Layout.from_dict(values) == layout
        for change in (
            {"labels": "ab"},
            {"labels": ["a", 1]},
            {"text": 1},
            {"label": None},
            {"ask": 7},
            {"more": 1},
        ):
            with pytest.raises(AbmllError, match=r"^the columns that a task was adapted with are not what was saved$"):
                Layout.from_dict({**values, **change})
    assert Layout(text="t", label="l").with_labels(["x", "y"]) == Layout(("x", "y"), "t", "l")


# -------------------- files


@pytest.mark.parametrize(("name", "kind"), [("a.CSV", "csv"), ("a.b.jsonl", "jsonl"), ("a.parquet", "parquet")])
def test_a_table_is_known_by_its_ending(name: str, kind: str) -> None:
    assert extension_of(Path(name)) == RowFile(Path(name)).extension == kind
    assert RowFile(Path(name)).untyped == (kind == "csv")


def test_only_parquet_has_a_schema(tmp_path: Path) -> None:
    assert RowFile(tmp_path / "a.csv").schema() is None
    (tmp_path / "a.parquet").write_bytes(b"not really")
    with pytest.raises(AbmllError, match=r"a\.parquet:1: not Parquet: "):
        RowFile(tmp_path / "a.parquet").schema()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        ("", ""),
        (None, ""),
        (True, "true"),
        (1.5, "1.5"),
        (["é", 1], '["é", 1]'),
        ({"a": None}, '{"a": null}'),
    ],
)
def test_a_value_as_the_text_of_a_cell(value: Any, text: str) -> None:
    assert as_text(value) == text


def test_a_label_that_is_none_of_them_is_said_with_all_of_them() -> None:
    with pytest.raises(BadRow, match=r"^label is '3', none of the labels '1', '2'$"):
        Layout(("1", "2")).question({"text": "t", "label": "3"}, 1)


@pytest.mark.parametrize("ask", ["", "  "])
def test_a_question_that_is_empty_is_refused(ask: str) -> None:
    with pytest.raises(AbmllError, match=r"^--ask is empty: give a question, or leave it out$"):
        Layout(("1", "2"), ask=ask)


def test_parquet_with_one_column_twice_is_refused_by_name(tmp_path: Path) -> None:
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "a.parquet")
    ((line, reason),) = RowFile(tmp_path / "a.parquet").rows()
    assert (line, str(reason)) == (1, "a column is given twice")


def parquet(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_chosen_columns_of_parquet_come_alone_and_missing_ones_are_named(tmp_path: Path) -> None:
    data = parquet(tmp_path / "a.parquet", a=[1, 2], b=["x", None], c=[0.5, 1.5]).read_bytes()
    assert list(parquet_rows(data, ["c", "a"])) == [(1, {"a": 1, "c": 0.5}), (2, {"a": 2, "c": 1.5})]
    ((line, reason),) = parquet_rows(data, ["a", "z", "y"])
    assert (line, str(reason)) == (1, "no column 'y', 'z'; the file has 'a', 'b', 'c'")


def test_many_rows_of_parquet_are_numbered_over_batches(tmp_path: Path) -> None:
    """2,500 rows are three batches of a stream."""
    table = RowFile(parquet(tmp_path / "a.parquet", n=list(range(2500))))
    assert [(line, row["n"]) for line, row in table.rows()] == [(n + 1, n) for n in range(2500)]
    assert table.schema().names == ["n"]


def test_what_is_no_parquet_is_said_by_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really PAR1")
    ((line, reason),) = RowFile(tmp_path / "a.parquet").rows()
    assert line == 1
    assert str(reason).startswith(("not Parquet: '", 'not Parquet: "')), "a text, and not an exception's name"
    with pytest.raises(AbmllError) as caught:
        RowFile(tmp_path / "a.parquet").schema()
    assert str(caught.value) == f"{tmp_path / 'a.parquet'}:1: {reason}"


def test_a_file_of_another_kind_or_none_is_said_by_its_path(tmp_path: Path) -> None:
    for act in (partial(read_questions, labelled=False), lambda path: list(RowFile(path).rows())):
        with pytest.raises(AbmllError) as caught:
            act(tmp_path / "a.txt")
        assert str(caught.value).startswith(f"{tmp_path / 'a.txt'}: t")
        assert ".jsonl, .csv" in str(caught.value)
        with pytest.raises(AbmllError) as caught:
            act(tmp_path / "no.csv")
        assert str(caught.value) == f"{tmp_path / 'no.csv'}: cannot be read (No such file or directory)"


def test_bytes_that_are_no_text_are_told_before_what_they_break(tmp_path: Path) -> None:
    """The quote is open only because reading ended at the line that is not UTF-8."""
    found = rows_of(tmp_path / "a.csv", b'a,b\n1,2\n3,"x\n\xff\n4,5\n')
    assert found[0] == (2, {"a": "1", "b": "2"})
    assert any(str(row).startswith("not UTF-8 (byte 0xff at 0 of the line") for _, row in found[1:])
    first, bad, last = rows_of(tmp_path / "b.jsonl", b'{"a": 1}\n\n{"b": "\xe9"}\n{"c": 2}\n')
    assert (first, last) == ((1, {"a": 1}), (4, {"c": 2}))
    assert bad[0] == 3
    assert bad[1].startswith("not UTF-8 (byte 0xe9 at 7 of the line)")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes (column 2)"),
        ("[1]", "not a JSON object but [1]"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1, "b": 2, "b": 3}', "field 'b' is given twice"),
        ("[" * 100_000, "not JSON of a question: nested too deep"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON of a question: a number has too many digits"),
    ],
)
def test_a_line_that_is_no_object_says_why(text: str, reason: str, tmp_path: Path) -> None:
    ((line, said),) = rows_of(tmp_path / "a.jsonl", text.encode())
    assert line == 1
    assert said.startswith(reason)


def test_a_row_of_nothing_is_missing_everything() -> None:
    assert why({}) == "question is missing (found: nothing)"
    assert why({"a": 1, "b": 2}) == "question is missing (found: 'a', 'b')"
    assert why({"question": "q"}) == "choices is missing (found: 'question')"
    assert why({"question": "q", "choices": ["x", "y"]}) == "answer is missing (found: 'question', 'choices')"


def test_rows_are_labelled_typed_and_unmerged_unless_told_otherwise() -> None:
    rows = [
        (1, {**GOOD, "answer": "1"}),
        (2, {**GOOD, "choices": ["a", "a", "b"]}),
        (3, {k: v for k, v in GOOD.items() if k != "answer"}),
    ]
    found = collect("a", rows)
    assert found.questions == []
    first, second, third = found.problems
    assert first == "a:1: answer '1' is not one of the choices; give its text, or its index from 0"
    assert second == "a:2: choices 0 and 1 are the same: 'a'"
    assert third.startswith("a:3: answer is missing")


def test_a_row_of_plain_classification_has_its_line_as_id() -> None:
    made = Layout(("bad", "good")).question({"text": "t", "label": "good"}, 12, location="f:12")
    assert made == Question("12", "Which fits the text: bad or good?", ("bad", "good"), 1, "t")
    assert made.location == "f:12"
