"""Families about numbers, the elements and fixed sequences."""

import itertools
from collections.abc import Iterator

import periodictable

from abmll.tasks.builtin.family import Item, draw, family

LAST_ELEMENT = 103  # those after it are known to chemists alone
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
ORDINALS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
]


@family("element-symbols")
def element_symbols() -> Iterator[Item]:
    known = {e.symbol: e.name for e in periodictable.elements if 1 <= e.number <= LAST_ELEMENT}
    for symbol, name in known.items():
        alike = [s for s, n in known.items() if s != symbol and (s[0] == symbol[0] or n[0] == name[0])]
        near = alike if len(alike) > 2 else [s for s in known if s != symbol]
        yield Item(symbol, f"What is the chemical symbol of {name}?", symbol, near)
        yield Item(symbol, f"Which element has the symbol {symbol}?", name, [known[s] for s in near])


@family("number-words")
def number_words() -> Iterator[Item]:
    short = draw(map(str, range(21, 100)), 45, "number-words")
    for text in short + draw(map(str, range(101, 1000)), 60, "number-words"):
        near = [n for n in _near(int(text)) if 0 < n < 1000]
        words = number_in_words(int(text))
        yield Item(text, f"Which number is {words}?", text, [str(n) for n in near])
        if text in short:  # four long numbers in words are too much to read
            yield Item(text, f"How is {text} written in words?", words, [number_in_words(n) for n in near])


def _near(number: int) -> set[int]:
    """Numbers that are easily taken for this one: a digit more or less, two digits swapped."""
    digits = str(number)
    swapped = {int(digits[:n] + digits[n + 1] + digits[n] + digits[n + 2 :]) for n in range(len(digits) - 1)}
    return (swapped | {number + 1, number - 1, number + 10, number - 10, number + 100}) - {number}


def number_in_words(number: int) -> str:
    """A number below 1000 in words.

    >>> number_in_words(342)
    'three hundred and forty-two'
    """
    small = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ]
    tens = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    if number < 20:
        return small[number]
    if number < 100:
        return tens[number // 10 - 2] + (f"-{small[number % 10]}" if number % 10 else "")
    rest = f" and {number_in_words(number % 100)}" if number % 100 else ""
    return f"{small[number // 100]} hundred{rest}"


@family("addition")
def addition() -> Iterator[Item]:
    sums = [f"{a} + {b}" for a, b in itertools.product(range(11, 50), range(3, 10))]
    for text in draw(sums, 150, "addition"):
        total = sum(map(int, text.split(" + ")))
        near = [total + step for step in (-10, -2, -1, 1, 2, 10)]
        yield Item(text, f"What is {text}?", str(total), [str(n) for n in near])


@family("number-order", choices=2)
def number_order() -> Iterator[Item]:
    for text in draw(map(str, range(102, 990)), 90, "number-order"):
        others = {n for n in _near(int(text)) if n > 100 and n != int(text)}
        other = draw(map(str, others), 1, "number-order", text)[0]
        small, large = sorted((text, other), key=int)
        first, second = draw([text, other], 2, "order", text)
        fact = f"{small} {large}"
        yield Item(fact, f"Which number is larger, {first} or {second}?", large, [small])
        yield Item(fact, f"Which number is smaller, {second} or {first}?", small, [large])


@family("sequences")
def sequences() -> Iterator[Item]:
    yield from _steps("month", MONTHS, circular=True)
    yield from _steps("day of the week", DAYS, circular=True)
    yield from _steps("letter", LETTERS, circular=False)
    yield from _steps("place in a race", ORDINALS, circular=False)


def _steps(kind: str, members: list[str], circular: bool) -> Iterator[Item]:
    """What comes after and before: one fact in two directions."""
    following = members[1:] + members[: int(circular)]
    for before, after in zip(members, following, strict=False):
        fact = f"{before} {after}"
        for word, right, stem in ((before, after, "after"), (after, before, "before")):
            place = members.index(right)
            window = [members[(place + step) % len(members)] for step in (-3, -2, -1, 1, 2, 3)]
            wrong = [member for member in window if member not in (word, right)]
            yield Item(fact, f"Which {kind} comes just {stem} {word}?", right, wrong)
