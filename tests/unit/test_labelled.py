"""A user's labelled rows: which kind they are, what is said of them, and which of them are held back."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from abmll.errors import AbmllError
from abmll.everyday.adapt import refuse_used
from abmll.everyday.labelled import Labelled, read_labelled, read_own_rows, read_unlabelled
from abmll.question import Question
from abmll.tables.identity import identity
from abmll.tables.layouts import Layout
from abmll.tasks.sources import load_tasks
from tests.everyday import hold_back

TEXTS = "text,label\na,good\nb,bad\nc,good\n"


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def classified(*labels: str, texts: tuple[str, ...] | None = None) -> Labelled:
    """Rows of plain classification, each with a text of its own unless `texts` says otherwise."""
    layout = Layout(tuple(sorted({"bad", "good", *labels})))
    given = texts or tuple(f"text {n}" for n in range(len(labels)))
    made = [
        layout.question({"text": text, "label": label}, n, location=f"f.csv:{n}")
        for n, (text, label) in enumerate(zip(given, labels, strict=True), start=2)
    ]
    return Labelled(layout, tuple(made))


# -------------------- reading


def test_rows_of_texts_have_the_labels_that_occur_in_order(tmp_path: Path) -> None:
    found = read_labelled(written(tmp_path / "a.csv", TEXTS), Layout())
    assert found.layout.labels == ("bad", "good")
    assert [(row.context, row.answer, row.choices) for row in found.rows] == [
        ("a", 1, ("bad", "good")),
        ("b", 0, ("bad", "good")),
        ("c", 1, ("bad", "good")),
    ]
    assert [row.location for row in found.rows] == [f"{tmp_path / 'a.csv'}:{line}" for line in (2, 3, 4)]


def test_labels_that_are_given_stay_in_their_order_and_need_not_occur(tmp_path: Path) -> None:
    layout = Layout(("good", "fair", "bad"))
    found = read_labelled(written(tmp_path / "a.csv", TEXTS), layout)
    assert found.layout == layout
    assert [row.answer for row in found.rows] == [0, 2, 0]


def test_a_column_question_says_that_rows_have_choices_of_their_own(tmp_path: Path) -> None:
    rows = [{"question": "Red?", "choices": ["yes", "no"], "answer": n, "text": "t", "label": "l"} for n in (0, 1)]
    file = written(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    own = read_labelled(file, Layout())
    assert own.layout == Layout()
    assert [(row.question, row.choices, row.answer) for row in own.rows] == [
        ("Red?", ("yes", "no"), 0),
        ("Red?", ("yes", "no"), 1),
    ]
    named = read_labelled(file, Layout(("l", "m")))
    assert [(row.context, row.answer) for row in named.rows] == [("t", 0), ("t", 0)]
    told = read_labelled(file, Layout(("l", "m")), fixed=False)
    assert told.layout == Layout()
    with pytest.raises(AbmllError, match="every row is labelled 'l'"):
        read_labelled(file, Layout(), fixed=True)


def test_rows_to_be_predicted_need_no_label_and_a_wrong_one_is_not_looked_at(tmp_path: Path) -> None:
    layout = Layout(("bad", "good"))
    for text in ("text\na\nb\n", "text,label\na,\nb,who knows\n"):
        found = read_unlabelled(written(tmp_path / "a.csv", text), layout)
        assert [(row.context, row.answer) for row in found] == [("a", None), ("b", None)]


def test_an_answer_of_digits_is_an_index_in_csv_alone(tmp_path: Path) -> None:
    found = read_labelled(written(tmp_path / "a.csv", "question,choice_0,choice_1,answer\nRed?,yes,no,1\n"), Layout())
    assert found.rows[0].answer == 1
    row = {"question": "Red?", "choices": ["yes", "no"], "answer": "1"}
    with pytest.raises(AbmllError, match=r"a\.jsonl:1: answer '1' is not one of the choices"):
        read_labelled(written(tmp_path / "a.jsonl", json.dumps(row)), Layout())


def test_every_bad_row_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv", "text,label\na,good\n,bad\nc,ugly\nd,bad\n")
    with pytest.raises(AbmllError) as caught:
        read_labelled(file, Layout(("bad", "good")))
    assert f"{file}:3: text is " in str(caught.value)
    assert f"{file}:4: label is 'ugly', none of the labels 'bad', 'good'" in str(caught.value)
    assert str(caught.value).startswith("2 bad rows")


@pytest.mark.parametrize("layout", [Layout(), Layout(("bad", "good"))])
def test_a_file_without_rows_is_said_to_have_none(layout: Layout, tmp_path: Path) -> None:
    for read in (read_labelled, read_unlabelled) if layout.labels else (read_labelled,):
        with pytest.raises(AbmllError, match=r"a\.csv.*: the file has no rows"):
            read(written(tmp_path / "a.csv", "text,label\n"), layout)


@pytest.mark.parametrize("labels", [77, 151, 1000])
def test_many_labels_are_taken_where_they_repeat(labels: int, tmp_path: Path) -> None:
    lines = [f"t{n},l{n % labels:04}\n" for n in range(2 * labels)]
    found = read_labelled(written(tmp_path / "a.csv", "text,label\n" + "".join(lines)), Layout())
    assert found.layout.labels == tuple(f"l{n:04}" for n in range(labels))


def test_a_column_that_hardly_repeats_is_not_the_one_of_labels(tmp_path: Path) -> None:
    lines = [f"t{n},l{n:03}\n" for n in range(101)]
    found = read_labelled(written(tmp_path / "a.csv", "text,label\n" + "".join(lines[:100])), Layout())
    assert found.layout.labels == tuple(f"l{n:03}" for n in range(100))
    file, advice = tmp_path / "b.csv", "--label names another, --labels says which labels there are"
    with pytest.raises(AbmllError) as caught:
        read_labelled(written(file, "text,label\n" + "".join(lines)), Layout())
    assert str(caught.value) == (
        f"{file}: 101 different values of 'label' in 101 rows; is it the column of labels? {advice}"
    )
    names = tuple(f"l{n:03}" for n in range(101))
    assert read_labelled(file, Layout(names)).layout.labels == names
    lines = [f"t{n},l{n % 1001}\n" for n in range(2002)]
    with pytest.raises(AbmllError) as caught:
        read_labelled(written(file, "text,label\n" + "".join(lines)), Layout())
    assert str(caught.value) == (
        f"{file}:1002: more than 1,000 different values of 'label'; is it the column of labels? {advice}"
    )


def test_remarks_name_ten_labels_at_most(tmp_path: Path) -> None:
    names = tuple(f"l{n:03}" for n in range(40))
    rows = "text,label\n" + "".join(f"t{n},{name}\n" for n, name in enumerate(names[:25]))
    remarks = read_labelled(written(tmp_path / "a.csv", rows), Layout(names)).remarks()
    assert any("'l033', 'l034' or 5 more: nothing can be learned" in remark for remark in remarks), remarks
    assert any("'l008', 'l009' or 15 more: too few to learn" in remark for remark in remarks), remarks


# -------------------- remarks


def test_few_rows_are_said_with_how_little_they_can_show() -> None:
    few = classified(*["good", "bad"] * 6)
    low, high = binomtest(6, 12).proportion_ci(0.95, method="exact")
    assert few.remarks() == [
        f"12 labelled rows are few: an accuracy measured on them is uncertain by up to {50 * (high - low):.0f} points "
        "either way (95 %). 20 or more are better"
    ]
    assert classified(*["good", "bad"] * 10).remarks() == []
    assert classified(*["good", "bad"] * 9, "good").remarks()[0].startswith("19 labelled rows are few")


def test_one_sided_rows_are_those_where_one_answer_is_more_than_four_in_five() -> None:
    assert classified(*["good"] * 16, *["bad"] * 4).remarks() == []
    (found,) = classified(*["good"] * 17, *["bad"] * 4).remarks()
    assert found == "one-sided: 17 of 21 rows are labelled 'good', so saying so always is right 81 % of the time"
    own = tuple(Question(str(n), f"{n}?", (f"a{n}", f"b{n}"), int(n < 20)) for n in range(22))
    (found,) = Labelled(Layout(), own).remarks()
    assert found == (
        "one-sided: 20 of 22 rows are answered by choice 1 (from 0), so saying so always is right 91 % of the time"
    )


def test_labels_of_no_row_and_of_one_row_are_named() -> None:
    found = classified(*["good", "bad"] * 10, "fair", "odd").remarks()
    assert found == ["one row alone is labelled 'fair', 'odd': too few to learn from and check"]
    rows = classified(*["good", "bad"] * 10).rows
    found = Labelled(Layout(("bad", "good", "fair", "odd")), rows).remarks()
    assert found == ["no row is labelled 'fair', 'odd': nothing can be learned about it"]


def test_rows_that_ask_the_same_are_counted_and_contradictions_are_named() -> None:
    labels, texts = ["good", "bad"] * 11, [f"text {n}" for n in range(22)]
    texts[2] = texts[4] = "Text 0!"  # case and punctuation do not make another question
    found = classified(*labels, texts=tuple(texts)).remarks()
    assert found == ["2 rows ask the same as an earlier one; the check keeps them together"]
    texts[4], texts[3] = "text 4", "TEXT 0"  # text 0 is good, 3 is bad
    found = classified(*labels, texts=tuple(texts)).remarks()
    assert found == [
        "2 rows ask the same as an earlier one; the check keeps them together",
        "the same question has two different answers: f.csv:2 and f.csv:5",
    ]
    texts[2] = "text 2"
    assert classified(*labels, texts=tuple(texts)).remarks()[0] == (
        "1 row asks the same as an earlier one; the check keeps them together"
    )
    seven = classified(*["good", "bad"] * 14, texts=tuple(f"text {n // 2}" for n in range(28))).remarks()
    assert seven[-1].count(" and ") == 5, "the first five are named"


# -------------------- held-back rows


def test_a_row_is_the_same_whatever_case_spaces_punctuation_order_and_answer() -> None:
    first = Question("1", "Is iron a metal?", ("yes", "no"), 0, "Iron rusts.")
    for other in (
        Question("2", "is IRON  a metal", ("yes", "no"), 1, "iron rusts"),
        Question("3", "Is iron a metal?", ("no", "yes"), None, "Iron rusts."),
    ):
        assert identity(other) == identity(first)
    for other in (
        Question("1", "Is tin a metal?", ("yes", "no"), 0, "Iron rusts."),
        Question("1", "Is iron a metal?", ("yes", "maybe"), 0, "Iron rusts."),
        Question("1", "Is iron a metal?", ("yes", "no"), 0, "Tin does not."),
        Question("1", "Is iron a metal?", ("yes", "no"), 0),
    ):
        assert identity(other) != identity(first)
    assert len(identity(first)) == 32
    assert set(identity(first)) <= set("0123456789abcdef")


def test_rows_are_held_back_by_numpys_permutation_and_the_rest_stay_in_order() -> None:
    labelled = classified(*["good", "bad"] * 6)
    used, aside = hold_back(labelled, 5, seed=3)
    drawn = np.random.default_rng(3).permutation(12)[:5]
    assert aside == tuple(labelled.rows[i] for i in sorted(drawn))
    assert used.rows == tuple(row for row in labelled.rows if row not in aside)
    assert used.layout == labelled.layout


def test_rows_that_ask_the_same_are_one_row_and_on_one_side() -> None:
    labelled = classified(*["good"] * 9, texts=tuple(f"text {n % 3}" for n in range(9)))
    used, aside = hold_back(labelled, 1, seed=0)
    assert len(aside) == 1
    assert len(used.rows) == 6
    assert aside[0] in labelled.rows[:3], "the first of those that ask the same"
    with pytest.raises(
        AbmllError, match=r"--hold-back 2 of 3 different rows or groups of rows leaves fewer than two to adapt to$"
    ):
        hold_back(labelled, 2, seed=0)
    assert hold_back(labelled, 0, seed=0) == (labelled, ())
    one = classified("good")
    assert hold_back(one, 0, seed=0) == (one, ())


def test_used_rows_are_refused_by_their_places() -> None:
    labelled = classified(*["good", "bad"] * 6)
    used = [identity(row) for row in labelled.rows]
    refuse_used(Labelled(labelled.layout, labelled.rows[:2]), used[2:])
    refuse_used(Labelled(labelled.layout, ()), used)
    with pytest.raises(AbmllError) as caught:
        refuse_used(labelled, used[1:3])
    assert str(caught.value) == (
        "2 of the rows held back were adapted to (or another row of their group or context was), so they promise "
        "nothing: f.csv:3, f.csv:4"
    )
    with pytest.raises(AbmllError) as caught:
        refuse_used(labelled, used)
    assert str(caught.value).endswith("f.csv:10, f.csv:11, ...")
    nowhere = Question("the id", "Red?", ("yes", "no"), 0)
    with pytest.raises(AbmllError, match=r"nothing: the id$"):
        refuse_used(Labelled(Layout(), (nowhere,)), [identity(nowhere)])


def test_a_question_with_half_of_a_character_has_an_identity_too() -> None:
    """Classifier and Python take any text; a file's rows cannot have one."""
    half, whole = (Question("1", text, ("yes", "no"), 0) for text in ("a \ud83d b", "a b"))
    assert identity(half) == identity(whole), "what is no letter and no digit does not count"


def test_labels_that_are_missing_are_named_by_line_where_none_were_given(tmp_path: Path) -> None:
    with pytest.raises(AbmllError) as caught:
        read_labelled(written(tmp_path / "a.csv", "text,label\na,x\nb,\nc,y\n"), Layout())
    assert str(caught.value).startswith("1 bad row; ")
    assert f"{tmp_path / 'a.csv'}:3: label is missing" in str(caught.value)


def test_the_train_rows_of_one_task_are_own_rows_and_its_test_rows_are_said_to_be_left_alone() -> None:
    (task,) = load_tasks("builtin:occupations")
    found = read_own_rows("builtin:occupations", None, "text", "label", None)
    assert (found.layout, found.rows) == (Layout(), task.train)
    assert found.remarks()[0] == f"builtin:occupations: its {len(task.test)} test rows are left alone"
    with pytest.raises(AbmllError, match="--labels is for a file of texts and labels"):
        read_own_rows("builtin:occupations", "a, b", "text", "label", None)


def stories(*contexts: str) -> tuple[Question, ...]:
    return tuple(Question(str(i), f"Question {i}?", ("a", "b"), i % 2, text) for i, text in enumerate(contexts))


def test_rows_of_one_context_are_one_cluster_however_they_were_read(tmp_path: Path) -> None:
    """From a table, or as the train rows of a task; the rows themselves stay as they were read."""
    contexts = ["one story", "one  story", "another", "", ""]
    columns = ("question", "context", "choices", "answer")
    lines = [
        json.dumps(dict(zip(columns, (q.question, q.context, q.choices, q.answer), strict=True)))
        for q in stories(*contexts)
    ]
    (tmp_path / "tasks").mkdir()
    for file in (tmp_path / "tasks" / "mine.train.jsonl", tmp_path / "mine.jsonl"):
        written(file, "\n".join(lines))
    written(
        tmp_path / "tasks" / "mine.test.jsonl", json.dumps({"question": "New?", "choices": ["a", "b"], "answer": 0})
    )
    for source in (tmp_path / "mine.jsonl", tmp_path / "tasks"):
        found = read_own_rows(str(source), None, "text", "label", None)
        assert found.clusters == (0, 0, 1, 2, 3)
        assert "2 rows are of 1 groups (a text that repeats, or the column group)" in "\n".join(found.remarks())
    assert Labelled(Layout(), stories("told", "told")).clusters == (0, 1), "what all share tells nothing apart"


def test_rows_that_are_left_stay_as_they_were_grouped_among_all() -> None:
    """The second row is in its story's group because of the first, which may be held back by itself."""
    first, *others = stories("one story", "one story", "another", "a third")
    labelled = Labelled(Layout(), (replace(first, group="mine"), *others))
    keys = dict(zip(labelled.rows, labelled.keys, strict=True))
    drawn = [hold_back(labelled, 1, seed) for seed in range(20)]
    assert all(used.keys == tuple(keys[row] for row in used.rows) for used, _ in drawn)
    assert any(Labelled(Layout(), used.rows).keys != used.keys for used, _ in drawn), "by themselves they say less"


def test_own_rows_ask_what_was_typed(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text(TEXTS, encoding="utf-8")
    labelled = read_own_rows(str(file), "bad,good", "text", "label", "Is it any good?")
    assert (labelled.layout.labels, labelled.layout.ask) == (("bad", "good"), "Is it any good?")
    assert "Is it any good?" in labelled.rows[0].question
