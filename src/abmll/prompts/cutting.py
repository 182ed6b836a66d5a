"""A context that is too long, without some of its words."""

import math
import re
from collections.abc import Callable
from typing import Literal

Cut = Literal["start", "middle", "end"]
"""What a long context loses."""

OMITTED = "[...] "
"""Stands where the middle of a context was left out."""
# where a cut context may begin (and, of two ends, end): at a word, or in a run too long to be one (no spaces)
CUTS = re.compile(r"(?<!\S)\S|(?<=\S{30})\S")
BOTH_ENDS = re.compile(CUTS.pattern + r"|\S(?=\S{30})")


def shortened(text: str, cut: Cut) -> tuple[Callable[[int], str], int]:
    """What is left of a text without some of its words.

    Returns:
        Number of words, from 0 -> the text without so many; and how many there are.

    >>> [shortened("one two three four", cut)[0](2) for cut in ("start", "middle", "end")]
    ['three four', 'one [...] four', 'one two']
    """
    starts = [match.start() for match in (CUTS if cut == "start" else BOTH_ENDS).finditer(text)] + [len(text)]
    words = len(starts) - 1

    def without(count: int) -> str:
        kept = words - count
        if cut == "start":
            return text[starts[count] :]
        if cut == "end" or kept == 0:
            return text[: starts[kept]].rstrip()
        return text[: starts[kept // 2]] + OMITTED + text[starts[kept // 2 + count] :]

    return without, words


def longest_fitting(text: str, cut: Cut, large: int, size: Callable[[str], int], most: int) -> str:
    """The most of `text`, whose own size is `large`, of which `size` is at most `most`; "" if nothing is.

    How many words go is guessed by the sizes at both sides, every third time halfway: sizes take long to find, and grow
    evenly.
    """
    without, words = shortened(text, cut)
    small = size("")
    low, high = -1, words  # without `low` words it is large and does not fit, without `high` it does or is ""
    turn = 0
    while high - low > 1:
        turn += 1
        share = 0.5 if turn % 3 == 0 or large <= small else (large - most) / (large - small)
        middle = min(low + max(1, math.ceil(share * (high - low))), high - 1)
        found = size(without(middle))
        low, large, high, small = (low, large, middle, found) if found <= most else (middle, found, high, small)
    return without(high)
