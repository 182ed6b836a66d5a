"""Rows that are the same question, or nearly; and that no row of a run is learned from and then asked again."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from abmll.cli import app
from abmll.config import CompareConfig, RunConfig, load_config, merge, parse_override
from abmll.errors import AbmllError
from abmll.question import Question, Task
from abmll.runs.compare import run_comparison
from abmll.runs.prepare import load_run_tasks
from abmll.runs.roles import RunTasks, find_leaks, without_leaks
from abmll.tables.normal import gist
from abmll.tasks import leaks
from abmll.tasks.leaks import ComparedRow, overlaps, repeats, rows_of
from tests.asked import asked, plant, write
from tests.runs import never
from tests.tiny import tiny_tasks, write_tasks

LONG = "A farmer keeps forty brown hens in an old wooden barn beside the river, and sells their eggs in town every week"
TOWN = Question("1", LONG + ". Where does she sell the eggs?", ("in town", "at sea", "in the barn"), 0)
SAME = {
    "case and spaces": {"question": TOWN.question.upper().replace(" ", "  ")},
    "punctuation": {"question": TOWN.question.replace(",", "").replace(".", " -")},
    "quotes and forms of letters": {"question": "\u201c" + TOWN.question.replace("fi", "\ufb01") + "\u201d"},
    "order of the choices": {"choices": ("in the barn", "in town", "at sea"), "answer": 1},
    "another label": {"answer": 2},
}
NEAR = {
    "a slip of the pen": {"question": TOWN.question.replace("wooden", "woden")},
    "a word more": {"question": TOWN.question.replace("sells", "then sells")},
    "a word less": {"question": TOWN.question.replace("old ", "")},
    "a little word": {"question": TOWN.question.replace("an old", "the old")},
    "other wrong choices": {"choices": ("in town", "on the moon", "nowhere")},
    "one choice less": {"choices": ("in town", "at sea")},
    "without its passage": {"context": ""},
}
DIFFERENT = {
    "a number": {"question": TOWN.question.replace("forty", "40")},
    "another right answer": {"choices": ("abroad in spring", "at sea", "in the barn")},
    "what is asked": {"question": LONG + ". What colour are the hens that she keeps?"},
    "a thing in another's place": {"question": TOWN.question.replace("farmer", "banker").replace("hens", "cows")},
    "another passage": {"context": "An altogether other story, of a ship that never came back to its harbour."},
}
PASSAGE = "Her story is told in the village to this day, and has been for as long as anybody there remembers."


def kinds(first: Question, second: Question) -> list[str]:
    return [pair.kind for pair in overlaps(rows_of("a", [first]), rows_of("b", [second]))]


def changed(what: dict[str, Any], context: str) -> tuple[Question, Question]:
    first = replace(TOWN, context=context)
    return first, replace(first, **{"id": "2", **what})


@pytest.mark.parametrize("context", ["", PASSAGE])
@pytest.mark.parametrize("how", SAME)
def test_trust_17_rows_are_the_same_whatever_no_reader_would_call_a_difference(how: str, context: str) -> None:
    first, second = changed(SAME[how], context)
    assert kinds(first, second) == kinds(second, first) == ["same"]


@pytest.mark.parametrize("how", NEAR)
def test_trust_17_rows_are_nearly_the_same_after_a_little_change(how: str) -> None:
    first, second = changed(NEAR[how], PASSAGE)
    assert kinds(first, second) == kinds(second, first) == ["near"]


@pytest.mark.parametrize("how", DIFFERENT)
def test_rows_that_ask_something_else_are_neither(how: str) -> None:
    first, second = changed(DIFFERENT[how], PASSAGE)
    assert kinds(first, second) == kinds(second, first) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is 13 + 25?", "What is 13 - 25?"),
        ("What is the capital of Norway?", "What is the capital of Peru?"),
        ("Which part of speech is the word 'eat'?", "Which part of speech is the word 'see'?"),
        ("Which word goes before 'owl', a or an?", "Which word goes before 'oak', a or an?"),
        ("Is Paris in France?", "Is Nice in France?"),
        ("!!!", "???"),
        ("是吗", "不是吗"),
    ],
)
def test_short_questions_of_one_pattern_are_different(first: str, second: str) -> None:
    choices = ("bratislava", "38", "verb", "an", "yes")
    for number in range(len(choices)):
        assert kinds(Question("1", first, choices, number), Question("2", second, choices, number)) == []


def test_a_row_is_not_its_own_repeat_and_each_later_one_is_told_with_the_first() -> None:
    one, two, three = rows = rows_of("a", [TOWN, replace(TOWN, id="2"), replace(TOWN, id="3")])
    assert [(pair.first, pair.second) for pair in repeats(rows)] == [(one, two), (one, three)]
    assert overlaps(rows[:1], rows[:1]) == ()


def test_normalised_text_keeps_what_decides() -> None:
    assert gist("3 - 2 = 1") != gist("3 + 2 = 1")
    assert gist("well-known") == gist("well known")
    assert gist(" ?! ") == "?!"


WORDS = st.lists(st.sampled_from(["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "1", "2"]), min_size=1, max_size=9)
MANY = st.lists(WORDS.map(" ".join), max_size=12)


@settings(max_examples=60, deadline=None)
@given(first=MANY, second=MANY)
def test_the_filter_misses_no_pair_that_comparing_all_finds(first: list[str], second: list[str]) -> None:
    ours, theirs = (
        rows_of(name, [Question(str(n), text, ("yes", "no"), 0) for n, text in enumerate(texts)])
        for name, texts in (("a", first), ("b", second))
    )
    found = {(id(a), id(b)) for a, b in leaks._candidates(ours, theirs)}
    slowly = {(id(a), id(b)) for a in ours for b in theirs if leaks._much_in_common(a.words, b.words)}
    assert found == slowly


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=12), max_size=6))
def test_any_text_can_be_compared(texts: list[str]) -> None:
    rows = rows_of("a", [Question(str(n), text, ("x" + text, text or "y"), 0, text) for n, text in enumerate(texts)])
    for pair in overlaps(rows, rows):
        assert isinstance(pair.first, ComparedRow)


# In a run


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """Three folders of clean tasks, and a configuration of them."""
    for role, start in (("train", 0), ("validation", 100), ("unseen", 200)):
        rows = [asked(n) for n in range(start, start + 50)]
        write(tmp_path / role, f"{role}-task", rows[:30], rows[30:])
    sources = {role: {"source": str(tmp_path / role)} for role in ("train", "validation", "unseen")}
    return {
        "model": {"shape": "tiny-llama"},
        "tasks": sources,
        "systems": {"structured": {"method": {"name": "structured"}}},
    }


def configured(recipe: dict[str, Any], mode: str = "error") -> CompareConfig:
    return CompareConfig.model_validate({**recipe, "tasks": {**recipe["tasks"], "leak_check": mode}})


PLANTED = {
    "support and query": ("train/train-task.train", 4, "train/train-task.train", "a row of an episode", "another row"),
    "trained on and scored": (
        "train/train-task.train",
        240,
        "unseen/unseen-task.test",
        "trained on",
        "scored, in a task reported",
    ),
    "trained on and chosen by": (
        "train/train-task.train",
        140,
        "validation/validation-task.test",
        "trained on",
        "scored, in a task chosen by",
    ),
    "trained on and adapted on": (
        "train/train-task.train",
        210,
        "unseen/unseen-task.train",
        "trained on",
        "adapted on, in a task reported",
    ),
    "chosen by and reported": (
        "validation/validation-task.test",
        245,
        "unseen/unseen-task.test",
        "chosen by",
        "reported",
    ),
    "chosen by and adapted on": (
        "validation/validation-task.train",
        205,
        "unseen/unseen-task.train",
        "chosen by",
        "reported",
    ),
}


@pytest.mark.parametrize(
    ("what", "near"),  # rows of one episode may be of one pattern: there the very same ones alone count
    [(what, near) for what in PLANTED for near in (False, True) if what != "support and query" or not near],
)
def test_trust_17_a_planted_leak_is_found_and_refused_naming_both_rows(
    what: str, near: bool, recipe: dict[str, Any], tmp_path: Path
) -> None:
    where, number, other, first, second = PLANTED[what]
    text = asked(number)["question"].replace("somebody", "someboddy") if near else asked(number)["question"].upper()
    line = plant(tmp_path / f"{where}.jsonl", asked(number, question=text))
    with pytest.raises(AbmllError) as caught:
        run_comparison(configured(recipe), tmp_path / "out", never)
    told = str(caught.value).splitlines()
    assert told[0] == "tasks: 1 leak between rows learned from and rows that must be new:"
    said = "nearly the same question as" if near else "the same question as"
    assert told[1].startswith(f"  {tmp_path / where}.jsonl:{line} ({first}): {said} {tmp_path / other}.jsonl:")
    assert second in told[1]
    assert int(told[1].split(f"{other}.jsonl:")[-1].split(" ")[0]) == number % 100 % 50 % 30 + 1
    assert "tasks.leak_check=drop" in told[-1]
    assert not (tmp_path / "out").exists()


def test_trust_17_adapted_on_and_scored_in_one_task_is_refused_even_if_written_otherwise(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    plant(tmp_path / "unseen/unseen-task.train.jsonl", asked(240, question=asked(240)["question"].upper()))
    with pytest.raises(AbmllError, match=r"unseen-task\.train\.jsonl:31 \(adapted on\): the same question as"):
        without_leaks(load_run_tasks(configured(recipe)), "error")


def test_rows_of_one_task_that_are_only_alike_are_no_leak(recipe: dict[str, Any], tmp_path: Path) -> None:
    like = asked(240)["question"].replace("somebody", "someboddy")
    plant(tmp_path / "unseen/unseen-task.train.jsonl", asked(240, question=like))
    assert find_leaks(load_run_tasks(configured(recipe))) == ()


def test_clean_tasks_pass_and_are_given_back_as_they_are(recipe: dict[str, Any]) -> None:
    tasks = load_run_tasks(configured(recipe))
    assert without_leaks(tasks, "error") is tasks


@pytest.mark.parametrize("what", PLANTED)
def test_drop_leaves_out_the_row_that_is_learned_from(
    what: str, recipe: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where, number, *_ = PLANTED[what]
    plant(tmp_path / f"{where}.jsonl", asked(number))
    config = configured(recipe, "drop")
    with caplog.at_level(logging.WARNING):
        tasks = without_leaks(load_run_tasks(config), config.tasks.leak_check)
    counts = {task.name: (len(task.train), len(task.test)) for task in tasks.train + tasks.validation + tasks.unseen}
    assert set(counts.values()) == {(30, 20)}
    assert not any(q.id == "planted" for task in tasks.train + tasks.validation for q in task.train + task.test)
    assert find_leaks(tasks) == ()
    assert "The rows named first are left out" in caplog.text


def test_warn_tells_and_goes_on_and_off_does_not_look(
    recipe: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "train/train-task.train.jsonl", asked(240))
    config = configured(recipe, "warn")
    tasks = load_run_tasks(config)
    assert without_leaks(tasks, config.tasks.leak_check) is tasks
    assert "train-task.train.jsonl:31 (trained on)" in caplog.text
    monkeypatch.setattr("abmll.runs.roles.find_leaks", never)
    assert without_leaks(tasks, "off") is tasks


def test_many_leaks_are_counted_and_the_first_shown(recipe: dict[str, Any], tmp_path: Path) -> None:
    for number in range(200, 230):
        path = tmp_path / "train/train-task.train.jsonl"
        path.write_text(path.read_text() + json.dumps(asked(number)) + "\n")
    with pytest.raises(AbmllError) as caught:
        without_leaks(load_run_tasks(configured(recipe)), "error")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("tasks: 30 leaks")
    assert len([line for line in lines if "(trained on)" in line]) == 20
    assert "  ... and 10 more; `abmll tasks check` shows all" in lines


def test_a_task_in_two_roles_is_told_as_that_and_not_row_by_row(recipe: dict[str, Any]) -> None:
    recipe["tasks"]["unseen"] = recipe["tasks"]["train"]
    with pytest.raises(AbmllError, match=r"tasks: train-task is both trained on and held out$"):
        run_comparison(configured(recipe), Path("out"), never)


def test_off_may_be_written_as_yaml_writes_it(recipe: dict[str, Any], tmp_path: Path) -> None:
    assert parse_override("tasks.leak_check=off") == {"tasks": {"leak_check": False}}
    assert configured(recipe, False).tasks.leak_check == "off"  # type: ignore[arg-type]
    path = tmp_path / "recipe.yaml"
    path.write_text(configured(recipe, "off").to_yaml())
    assert load_config(CompareConfig, path).tasks.leak_check == "off"
    assert load_config(CompareConfig, path, ["tasks.leak_check=warn"]).tasks.leak_check == "warn"
    with pytest.raises(AbmllError, match=r"tasks\.leak_check: Input should be 'error', 'drop', 'warn' or 'off'"):
        load_config(CompareConfig, path, ["tasks.leak_check=on"])


def test_the_built_in_tasks_are_clean() -> None:
    config = RunConfig.model_validate(
        {"model": {"shape": "tiny-llama"}, "tasks": {"unseen": {"source": "builtin:held-out"}}}
    )
    assert find_leaks(load_run_tasks(config)) == ()


def test_a_test_row_that_the_prior_of_the_temperature_learns_from_is_learned_from(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = merge(recipe, {"adaptation": {"meta_rows": 2}})
    tasks = load_run_tasks(configured(recipe))
    learned, scored = tasks.train[0], tasks.unseen[0]
    again = replace(scored.test[0], id="again", location="")
    leaking = replace(tasks, train=(replace(learned, test=(*learned.test, again)), *tasks.train[1:]))
    (leak,) = find_leaks(leaking)
    assert (leak.overlap.first.question, leak.first) == (again, "learned from by adaptation.meta_rows")
    assert find_leaks(replace(leaking, scale_from_test=False)) == (), "without it nothing learns from test rows"
    assert again not in without_leaks(leaking, "drop").train[0].test


def test_rows_that_were_made_and_not_read_are_named_by_task_and_id() -> None:
    task, other = Task("made", (TOWN,)), Task("held", (), (replace(TOWN, id="7"),))
    (leak,) = find_leaks(RunTasks((task,), (), (other,)))
    assert str(leak).startswith("made/1 (trained on): the same question as held/7 (scored, in a task reported)")


@pytest.mark.parametrize("rows", [1, 2, 15])
def test_trust_18_tasks_too_small_to_train_on_or_adapt_to_are_refused_with_the_reason(
    rows: int, recipe: dict[str, Any], tmp_path: Path
) -> None:
    small = write_tasks(tmp_path / "small", tuple(replace(task, train=task.train[:rows]) for task in tiny_tasks(1)))
    unseen = {**recipe, "tasks": {**recipe["tasks"], "unseen": {"source": str(small)}}}
    with pytest.raises(AbmllError, match=rf"tiny0 has {rows} train rows, adaptation wants 20"):
        run_comparison(configured(unseen), tmp_path / "out", never)
    train = {**recipe, "tasks": {**recipe["tasks"], "train": {"source": str(small)}}}
    if rows < 12:
        with pytest.raises(AbmllError, match=rf"needs 12 train rows; too small: tiny0 \({rows}\)"):
            run_comparison(configured(train), tmp_path / "out", never)


def test_trust_18_a_task_that_is_too_small_once_its_leaks_are_dropped_is_refused_too(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    rows = [asked(n) for n in range(300, 325)]
    write(tmp_path / "few", "few", [*rows[:11], asked(240)], rows[20:])
    train = {**recipe, "tasks": {**recipe["tasks"], "train": {"source": str(tmp_path / "few")}}}
    with pytest.raises(AbmllError, match=r"needs 12 train rows; too small: few \(11\)"):
        run_comparison(configured(train, "drop"), tmp_path / "out", never)
    shouted = {**rows[22], "question": rows[22]["question"].upper(), "id": "again"}
    write(tmp_path / "few", "few", [*rows[:19], shouted], rows[20:])
    unseen = {**recipe, "tasks": {**recipe["tasks"], "unseen": {"source": str(tmp_path / "few")}}}
    with pytest.raises(AbmllError, match="few has 19 train rows, adaptation wants 20"):
        run_comparison(configured(unseen, "drop"), tmp_path / "out", never)


def test_trust_17_train_refuses_what_compare_refuses(recipe: dict[str, Any], tmp_path: Path) -> None:
    plant(tmp_path / "train/train-task.train.jsonl", asked(240))
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"model": recipe["model"], "tasks": recipe["tasks"]}))
    result = CliRunner().invoke(app, ["train", str(path), "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, AbmllError)
    assert "train-task.train.jsonl:31 (trained on)" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_trust_14_rows_left_out_are_counted_in_the_report(recipe: dict[str, Any], tmp_path: Path) -> None:
    with (tmp_path / "unseen/unseen-task.test.jsonl").open("a") as file:
        file.write("{\n[]\n")
    recipe["tasks"]["unseen"]["on_bad_row"] = "skip"
    recipe["note"] = "Mine."
    with pytest.raises(AssertionError, match="the model was loaded"):
        run_comparison(configured(recipe), tmp_path / "out", never)
    described = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert described["note"] == "Mine. Bad rows left out: unseen-task 2."
