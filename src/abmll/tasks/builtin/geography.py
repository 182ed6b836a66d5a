"""Families about countries, cities and languages."""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from abmll.tasks.builtin.family import Item, draw, family, pairs, table, words

NAME_LENGTH = 26  # longer names (Saint Vincent and the Grenadines) make questions too long
SMALL_AREA = 2_000  # square kilometres: few people know which of two islands is the larger
CONTINENTS = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "the Americas", "SA": "the Americas"}
GEONAMES = "Apache-2.0; the facts are of GeoNames, CC BY 4.0"
ISO_CODES = "Apache-2.0; the names are of iso-codes, LGPL-2.1"


class Country(NamedTuple):
    """What the families ask about a member of the United Nations."""

    code: str
    name: str
    continent: str
    capital: str
    currency: str
    domain: str
    area: int


@functools.cache
def countries() -> dict[str, Country]:
    """ISO code -> country."""
    lists = words("places.yaml")
    names, capitals, money = (pairs(lists[key]) for key in ("names", "capital_names", "currency_names"))
    found = (
        Country(
            code=(code := row["code"]),
            name=names.get(code, row["name"]),
            continent=row["continent"],
            capital=capitals.get(code, row["capital"]),
            currency=money.get(code, row["currency"].lower().removeprefix("belarusian ")),
            domain=row["domain"],
            area=int(row["area"]),
        )
        for row in table("countries.tsv")
    )
    return {country.code: country for country in found if len(country.name) <= NAME_LENGTH}


def clear(unclear: str) -> list[Country]:
    """The countries that a list of exceptions leaves."""
    except_for = set(words("places.yaml")[unclear].split())
    return [country for country in countries().values() if country.code not in except_for]


def same_continent(country: Country, among: Iterable[Country]) -> list[Country]:
    """The others on the continent; the whole Pacific has too few, so it borrows from Asia."""
    near = {country.continent} | ({"AS"} if country.continent == "OC" else set())
    near |= {"NA", "SA"} if country.continent in ("NA", "SA") else set()
    return [other for other in among if other.continent in near and other.code != country.code]


@family("capitals", licence=GEONAMES)
def capitals() -> Iterator[Item]:
    known = clear("capital_unclear")
    for country in known:
        others = same_continent(country, known)
        stem = f"What is the capital of {country.name}?"
        yield Item(country.code, stem, country.capital, [other.capital for other in others])
        stem = f"{country.capital} is the capital of which country?"
        yield Item(country.code, stem, country.name, [other.name for other in others])


@family("continents", labels=tuple(dict.fromkeys(CONTINENTS.values())), licence=GEONAMES)
def continents() -> Iterator[Item]:
    for country in clear("two_continents"):
        if label := CONTINENTS.get(country.continent):
            yield Item(country.code, f"In which part of the world is {country.name}?", label, ())


@family("currencies", licence=GEONAMES)
def currencies() -> Iterator[Item]:
    known = clear("currency_unclear")
    users: dict[str, list[Country]] = {}
    for country in known:
        users.setdefault(country.currency, []).append(country)
    for country in known:
        stem = f"What is the currency of {country.name}?"
        yield Item(country.currency, stem, country.currency, _unlike(country.currency, users))
    for currency, (country, *more) in users.items():
        if not more:
            others = [other.name for other in same_continent(country, known) if other.currency != currency]
            yield Item(currency, f"Which country uses the {currency}?", country.name, others)


def _unlike(currency: str, others: Iterable[str]) -> list[str]:
    """Krona, krone and koruna, rial and real are too alike to tell apart: none is a fair distractor of another."""
    return [other for other in others if other[:2] != currency[:2] and _consonants(other) != _consonants(currency)]


def _consonants(word: str) -> str:
    return "".join(letter for letter in word if letter not in "aeiou")[:2]


@family("internet-domains", licence=GEONAMES)
def internet_domains() -> Iterator[Item]:
    known = list(countries().values())
    for country in known:
        alike = [other.domain for other in known if other.domain[1] == country.domain[1] and other != country]
        nearby = [other.domain for other in same_continent(country, known)]
        stem = f"Which internet domain belongs to {country.name}?"
        yield Item(country.code, stem, country.domain, alike if len(alike) > 2 else nearby)
        stem = f"Which country has the internet domain {country.domain}?"
        yield Item(country.code, stem, country.name, [other.name for other in same_continent(country, known)])


@family("cities", choices=3, licence=GEONAMES)
def cities() -> Iterator[Item]:
    for city, code in pairs(words("places.yaml")["cities"]).items():
        country = countries()[code]
        others = [other.name for other in same_continent(country, countries().values())]
        yield Item(city, f"In which country is the city of {city}?", country.name, others)


@family("nationalities", licence=GEONAMES)
def nationalities() -> Iterator[Item]:
    adjectives = pairs(words("places.yaml")["nationalities"])
    known = [countries()[code] for code in adjectives if code in countries()]
    for country in known:
        others = [adjectives[other.code] for other in same_continent(country, known)]
        stem = f"What do you call somebody or something from {country.name}?"
        yield Item(country.code, stem, adjectives[country.code], others)


@family("country-sizes", choices=2, licence=GEONAMES)
def country_sizes() -> Iterator[Item]:
    """Pairs on one continent where one has three times the area of the other, or more."""
    known = [country for country in countries().values() if country.area > SMALL_AREA]
    for country in known:
        smaller = [other.name for other in same_continent(country, known) if other.area * 3 < country.area]
        for other in draw(smaller, 1, "country-sizes", country.code):
            first, second = draw([country.name, other], 2, "order", country.code)
            fact = f"{country.name} {other}"
            yield Item(fact, f"Which has the larger area, {first} or {second}?", country.name, [other])
            yield Item(fact, f"Which has the smaller area, {second} or {first}?", other, [country.name])


@family("language-codes", licence=ISO_CODES)
def language_codes() -> Iterator[Item]:
    names = pairs(words("places.yaml")["languages"])
    for code, name in names.items():
        alike = [other for other in names if other != code and other[0] == code[0]]
        near = alike if len(alike) > 2 else [other for other in names if other != code]
        yield Item(code, f"Which two-letter code stands for {name}?", code, near)
        yield Item(code, f"Which language has the code '{code}'?", name, [names[other] for other in near])


@family("state-capitals", held_out=True)
def state_capitals() -> Iterator[Item]:
    capital_of = pairs(words("places.yaml")["state_capitals"])
    known = {state: capital for state, capital in capital_of.items() if state not in capital}
    for state, capital in known.items():
        others = [other for other in known if other != state]
        yield Item(state, f"What is the capital of the US state of {state}?", capital, [known[o] for o in others])
        yield Item(state, f"{capital} is the capital of which US state?", state, others)
