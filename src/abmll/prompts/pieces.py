"""A question whose context is too long, as several questions, each with a piece of it."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from abmll.prompts.cutting import CUTS
from abmll.prompts.encode import Encoder
from abmll.question import Question


def pieces_of(encoder: Encoder, question: Question, most: int) -> tuple[Question, ...]:
    """A question as at most `most` questions: their contexts are parts of its own, of equal numbers of words, in order.

    There are as few as fit into the encoder's `max_tokens` each. Where there would be more than `most`, so many of them
    are taken, evenly spread, the first and the last included; then, and where one does not fit whatever its size, the
    question counts as cut (`Encoder.truncated`).

    Args:
        encoder: that asks them.
        question: one that fits is given back alone.
        most: pieces, at least 1; by 1 the question is cut.

    Raises:
        AbmllError: as `Encoder.__call__`.
    """
    if most < 2 or not encoder(question).truncated:
        return (question,)
    starts = [match.start() for match in CUTS.finditer(question.context)]
    for count in range(_fewest(encoder, question), len(starts) + 1):
        pieces = [replace(question, context=text) for text in _parts(question.context, starts, count)]
        long = [piece for piece in pieces if encoder(piece).truncated]
        encoder.truncated.difference_update(long)
        if not long:
            break
    else:
        encoder.truncated.add(question)
        return (question,)
    if len(pieces) <= most:
        encoder.truncated.discard(question)
        return tuple(pieces)
    encoder.truncated.add(question)
    return tuple(pieces[i] for i in np.linspace(0, len(pieces) - 1, most).round().astype(int))


def _fewest(encoder: Encoder, question: Question) -> int:
    """How many pieces are tried first: one fewer than the context's tokens would fill, as borders save some."""
    bare = encoder(replace(question, context=""))
    room = encoder.max_tokens - len(bare.prefix) - max(map(len, bare.continuations))
    return max(2, math.ceil(encoder.count(encoder.marked(question.context)) / max(1, room)) - 1)


def _parts(text: str, starts: list[int], count: int) -> list[str]:
    """A text in parts of equal numbers of words, by where its words start.

    >>> _parts("one two three four five", [0, 4, 8, 14, 19], 2)
    ['one two', 'three four five']
    """
    bounds = [starts[i] for i in np.arange(count) * len(starts) // count] + [len(text)]
    bounds[0] = 0
    return [text[start:end].rstrip() for start, end in pairwise(bounds)]
