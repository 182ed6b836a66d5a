"""Branches: how the choices of a question go on from its prompt, side by side or as a tree of what they begin with."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

Choices = tuple[tuple[int, ...], ...]

MANY_CHOICES = 26
"""Choices above which `likelihood.share_labels: auto` makes a tree of them; as many have a letter."""


class Branches(NamedTuple):
    """The tokens of choices after a prompt. All but the last token of a choice are fed in: that one predicts nothing.

    Side by side, each choice has tokens of its own. In a tree, choices that begin with the same tokens share these, so
    that a token is fed in once, whatever its choices are; they are laid out depth first, and what may look at a token
    is a run of columns after it.

    Attributes:
        tokens: fed in, in this order.
        depth: how many tokens of its choice stand before each.
        reach: the first place after each from which it is not seen any more.
        reads: for each token of each choice, in the order of the choices, where it is predicted: 0 for the prompt's
            last token, 1 + i for fed token i.
    """

    tokens: Int[np.ndarray, " F"]
    depth: Int[np.ndarray, " F"]
    reach: Int[np.ndarray, " F"]
    reads: Int[np.ndarray, " M"]

    @property
    def is_chain(self) -> bool:
        """Whether each token is seen by all after it, as in a plain sequence."""
        return bool((self.reach == len(self.tokens)).all())


@lru_cache(maxsize=1024)
def side_by_side(choices: Choices) -> Branches:
    """Each choice apart from the others.

    >>> found = side_by_side(((7, 8, 9), (7, 5)))
    >>> found.tokens.tolist(), found.depth.tolist(), found.reach.tolist(), found.reads.tolist()
    ([7, 8, 7], [0, 1, 0], [2, 2, 3], [0, 1, 2, 0, 3])
    """
    fed = np.array([len(choice) - 1 for choice in choices])
    ends = fed.cumsum()
    depth, end = np.arange(fed.sum()) - np.repeat(ends - fed, fed), np.repeat(ends, fed)
    reads = [np.concatenate([[0], np.arange(stop - count, stop) + 1]) for stop, count in zip(ends, fed, strict=True)]
    tokens = np.fromiter(chain(*(choice[:-1] for choice in choices)), np.int64, int(fed.sum()))
    return Branches(tokens, depth, end, np.concatenate(reads))


@lru_cache(maxsize=1024)
def tree(choices: Choices) -> Branches:
    """Choices that share the tokens which they begin with.

    >>> found = tree(((7, 8, 9), (7, 5)))
    >>> found.tokens.tolist(), found.depth.tolist(), found.reach.tolist(), found.reads.tolist()
    ([7, 8], [0, 1], [2, 2], [0, 1, 2, 0, 1])
    """
    places = dict[tuple[int, ...], int]()  # a beginning -> where its last token is fed in
    for choice in sorted(choices):  # so a beginning is followed by all that go on from it
        for length in range(1, len(choice)):
            places.setdefault(choice[:length], len(places))
    beginnings = list(places)
    reach = np.arange(1, len(beginnings) + 1)
    for place in reversed(range(len(beginnings))):
        above = places.get(beginnings[place][:-1])
        if above is not None:
            reach[above] = max(reach[above], reach[place])
    return Branches(
        tokens=np.array([beginning[-1] for beginning in beginnings], dtype=np.int64),
        depth=np.array([len(beginning) - 1 for beginning in beginnings], dtype=np.int64),
        reach=reach,
        reads=np.array(
            [0 if length == 0 else 1 + places[choice[:length]] for choice in choices for length in range(len(choice))]
        ),
    )


def fed_tokens(choices: Sequence[tuple[int, ...]], shared: bool) -> int:
    """How many tokens are fed in after the prompt."""
    return len(tree(tuple(choices)).tokens) if shared else sum(len(choice) - 1 for choice in choices)
