"""Families about everyday things, sayings and feelings."""

import itertools
from collections.abc import Iterator

from abmll.tasks.builtin.family import Item, draw, entries, family, pairs, words

FEELINGS = ("positive", "negative")


@family("kinds")
def kinds() -> Iterator[Item]:
    lists = words("everyday.yaml")
    members = lists["kinds"]
    for kind, text in members.items():
        near = {other for group in lists["kind_groups"] if kind in entries(group) for other in entries(group)}
        wrong = near - {kind, *entries(lists["overlaps"].get(kind, ""))}
        for word in entries(text):
            yield Item(word, f"What kind of thing is '{word}'?", kind, wrong)


@family("sizes", choices=2)
def sizes() -> Iterator[Item]:
    steps = [entries(text) for text in words("everyday.yaml")["sizes"]]
    found = [
        f"{small}={large}"
        for low, high in itertools.combinations(range(len(steps)), 2)
        if 2 <= high - low <= 4
        for small, large in itertools.product(steps[low], steps[high])
    ]
    for fact in draw(found, 100, "sizes"):
        small, large = fact.split("=")
        first, second = draw([small, large], 2, "order", fact)
        yield Item(fact, f"Which is bigger, {first} or {second}?", large, [small])
        yield Item(fact, f"Which is smaller, {second} or {first}?", small, [large])


def _themed(list_name: str) -> Iterator[tuple[str, str, list[str]]]:
    """Purpose, thing, and the things of the other themes."""
    themes = {theme: pairs(text) for theme, text in words("everyday.yaml")[list_name].items()}
    for theme, found in themes.items():
        others = [thing for other in themes if other != theme for thing in themes[other].values()]
        for purpose, thing in found.items():
            yield purpose, thing, [other for other in others if other != thing]


@family("uses")
def uses() -> Iterator[Item]:
    for purpose, thing, others in _themed("uses"):
        yield Item(purpose, f"What do you need to {purpose}?", thing, others)


@family("sayings", choices=3)
def sayings() -> Iterator[Item]:
    endings = pairs(words("everyday.yaml")["sayings"])
    for saying, ending in endings.items():
        wrong = set(endings.values()) - {ending}
        yield Item(saying, f"How does the saying end? {saying} ...", ending, wrong)


@family("feelings", labels=FEELINGS)
def feelings() -> Iterator[Item]:
    lists = words("everyday.yaml")
    for feeling in FEELINGS:
        for opinion in entries(lists["feelings"][feeling]):
            for subject in draw(entries(lists["subjects"]), 2, "feelings", opinion):
                sentence = f"{subject.capitalize()} was {opinion}."
                yield Item(opinion, f"Is this opinion positive or negative? {sentence}", feeling, ())


@family("occupations", held_out=True)
def occupations() -> Iterator[Item]:
    for work, person, others in _themed("occupations"):
        yield Item(work, f"Who {work}?", person, others)
