"""Prompt and answers as token ids: where the answers begin, and how many of them cost little more than one."""

import re
from collections.abc import Callable, Sequence

Ids = Callable[[str], list[int]]

TAIL = 256
"""Characters before the end of a prompt that are tokenised again with each answer, at least."""
LEAST, FEWEST = 4 * TAIL, 4
"""Characters of a prompt, and answers, with fewer of which whole texts are tokenised."""
_BREAKS = re.compile(r"(?<=\n)(?=\S)|(?<=\S)(?= \S)")


def split_at_seam(
    ids: Ids, prompt: str, separator: str, answers: Sequence[str], inner: Ids | None = None
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Tokenise prompt + separator + answer as one text each, and cut where the answers begin.

    Tokenising the two sides apart gives ids that the model never saw where a token spans the seam. The cut is the
    longest run of ids that every full text shares with the prompt alone, so a merged token belongs to the answer.

    Args:
        ids: of a text.
        prompt, separator, answers: the texts.
        inner: ids of a text inside another, see `ids_of_all`.

    Returns:
        The shared prefix, and what follows it for each answer.
    """
    alone = ids(prompt)
    full = ids_of_all(ids, prompt, separator, answers, inner)
    cut = min(common_length(alone, row) for row in full)
    return tuple(alone[:cut]), tuple(tuple(row[cut:]) for row in full)


def ids_of_all(
    ids: Ids, prompt: str, separator: str, answers: Sequence[str], inner: Ids | None = None
) -> list[list[int]]:
    """Token ids of prompt + separator + answer, for each answer.

    A tokenizer reads from the left and breaks texts at words, so of a long prompt only the end is tokenised again for
    each answer, from a break well before it. Whether this tokenizer breaks there is seen by the prompt, which must be
    the same in two parts as in one; if it is not, whole texts are tokenised.

    Args:
        ids: of a text.
        prompt, separator, answers: the texts.
        inner: ids of a text inside another, without what stands around every text; None: whole texts.
    """
    break_at = _break_in(prompt) if inner is not None and len(answers) >= FEWEST else None
    if inner is None or break_at is None:
        return [ids(prompt + separator + answer) for answer in answers]
    head, tail = ids(prompt[:break_at]), prompt[break_at:]
    if head + inner(tail) != ids(prompt):
        return [ids(prompt + separator + answer) for answer in answers]
    return [head + inner(tail + separator + answer) for answer in answers]


def _break_in(prompt: str) -> int | None:
    """Where the last line or word begins before the tail of a long prompt; None in a short one, or without words."""
    if len(prompt) < LEAST:
        return None
    breaks = [found.start() for found in _BREAKS.finditer(prompt, len(prompt) - 2 * TAIL, len(prompt) - TAIL)]
    return breaks[-1] if breaks else None


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two texts begin with in common.

    >>> common_length([1, 2, 3], [1, 2, 4])
    2
    """
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
