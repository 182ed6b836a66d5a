"""A built-in family of questions: facts -> items -> a task whose split no fact crosses."""

import csv
import functools
import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from abmll.question import Question, Task


@dataclass(frozen=True, slots=True)
class Item:
    """One question before its choices are drawn.

    Attributes:
        fact: what must be known to answer; all items of one fact land on one side of the split.
        question: the stem.
        right: the right choice.
        wrong: false here, and of the same kind; as many as the family shows are drawn from them.
    """

    fact: str
    question: str
    right: str
    wrong: Collection[str]


@dataclass(frozen=True)
class Family:
    """A named source of items.

    Attributes:
        name: of the task.
        items: makes the items; pure.
        choices: how many each question shows.
        labels: the choices of every question, in this order; empty if each has its own.
        held_out: kept from meta-training, to try adaptation on.
        licence: of its rows; those whose facts are from somebody's data name that.
    """

    name: str
    items: Callable[[], Iterable[Item]]
    choices: int
    labels: tuple[str, ...] = ()
    held_out: bool = False
    licence: str = "Apache-2.0"

    @property
    def test_share(self) -> float:
        """The part of the facts in `test`: most, where 20 questions are learned from and 60 are scored."""
        return 0.65 if self.held_out else 0.3


FAMILIES: dict[str, Family] = {}


def family(
    name: str, choices: int = 4, labels: tuple[str, ...] = (), held_out: bool = False, licence: str = Family.licence
) -> Callable[[Callable[[], Iterable[Item]]], Callable[[], Iterable[Item]]]:
    """Register a function that makes items."""

    def register(items: Callable[[], Iterable[Item]]) -> Callable[[], Iterable[Item]]:
        FAMILIES[name] = Family(name, items, len(labels) or choices, labels, held_out, licence)
        return items

    return register


def draw(pool: Iterable[str], count: int, *key: object) -> list[str]:
    """The first `count` different texts of `pool` in an order that depends on `key` alone.

    A keyed hash, not a random generator: the same on every platform and in every version of Python.

    >>> draw(["b", "a", "c", "a"], 2, "some key") == draw(["c", "b", "a"], 2, "some key")
    True
    """
    return sorted(set(pool), key=lambda text: _digest(*key, text))[:count]


def build(family: Family) -> Task:
    """The task of a family: choices drawn, the right one at every place equally often, split by fact."""
    items = sorted(family.items(), key=lambda item: _digest(family.name, "order", item.question))
    facts = sorted({item.fact for item in items}, key=lambda fact: _digest(family.name, "split", fact))
    test_facts = set(facts[: round(len(facts) * family.test_share)])
    test = [item for item in items if item.fact in test_facts]
    train = [item for item in items if item.fact not in test_facts]
    return Task(
        family.name,
        train=_questions(family, train),
        test=_questions(family, test),
        source="built-in",
        licence=family.licence,
    )


def _questions(family: Family, items: list[Item]) -> tuple[Question, ...]:
    by_place = sorted(range(len(items)), key=lambda n: _digest(family.name, "place", items[n].question))
    places = {n: rank % family.choices for rank, n in enumerate(by_place)}
    seen: dict[str, int] = {}
    questions = []
    for n, item in enumerate(items):
        seen[item.fact] = seen.get(item.fact, -1) + 1
        choices = _choices(family, item, places[n])
        name = f"{item.fact}/{seen[item.fact]}"
        questions.append(Question(name, item.question, choices, choices.index(item.right)))
    return tuple(questions)


def _choices(family: Family, item: Item, place: int) -> tuple[str, ...]:
    if family.labels:
        return family.labels
    wrong = draw(item.wrong, family.choices - 1, family.name, item.question)
    return (*wrong[:place], item.right, *wrong[place:])


def _digest(*key: object) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()


@functools.cache
def words(file: str) -> dict[str, Any]:
    """One of the word lists beside this module."""
    return yaml.safe_load(_beside(file))


def table(file: str) -> list[dict[str, str]]:
    """The rows of one of the tables beside this module: tabs between columns, comments before their names."""
    lines = [line for line in _beside(file).splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def _beside(file: str) -> str:
    return resources.files("abmll.tasks.builtin").joinpath(file).read_text("utf-8")


def entries(text: str) -> list[str]:
    """The entries of a list written with commas.

    >>> entries("hot cold, big small")
    ['hot cold', 'big small']
    """
    return [entry.strip() for entry in text.split(",")]


def pairs(text: str) -> dict[str, str]:
    """The entries of a list of "key=value".

    >>> pairs("cut paper=scissors, dig a hole=a spade")
    {'cut paper': 'scissors', 'dig a hole': 'a spade'}
    """
    return dict(entry.split("=", 1) for entry in entries(text))
