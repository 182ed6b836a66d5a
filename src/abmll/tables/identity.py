"""Which rows are one: they ask the same question, or are of one group (a passage, a customer). All of it is here."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from abmll.question import Question, context_group, context_groups
from abmll.tables.normal import gist


def same_question(question: Question, form: Callable[[str], str] = gist) -> tuple[str, str, tuple[str, ...]]:
    """What makes two rows the same question, whatever their answers and the order of their choices: the one definition.

    Args:
        question: the row.
        form: of its texts: `gist`, or `same_form` for what looks the same to the letter.

    >>> ask = lambda text, *choices: same_question(Question("1", text, choices, 0))
    >>> ask("Is iron a metal?", "yes", "no") == ask("is IRON a  metal", "no", "yes")
    True
    """
    return form(question.context), form(question.question), tuple(sorted(map(form, question.choices)))


def identity(question: Question) -> str:
    """What two rows share that are the same question, whatever their answers: a hash, from which no text comes back.

    Case, spaces, punctuation and the order of the choices do not count.

    >>> ask = lambda text: identity(Question("1", text, ("yes", "no"), 0))
    >>> ask("Is iron a metal?") == ask("is IRON a  metal"), ask("Is iron a metal?") == ask("Is tin a metal?")
    (True, False)
    """
    context, stem, choices = same_question(question)
    return _hash("\x1f".join((context, stem, *choices)))


class RowKeys(NamedTuple):
    """What says that two rows are one, as hashes from which no text comes back.

    Attributes:
        question: `identity`, which rows share that ask the same.
        group: which rows of one group share; None without a group.
        context: `context_key`, where it tells rows apart; None where all share it.
    """

    question: str
    group: str | None
    context: str | None = None


def row_keys(rows: Sequence[Question], *, by_context: bool = False) -> tuple[RowKeys, ...]:
    """The keys of each row.

    Args:
        rows: the questions.
        by_context: rows have a key of their context, and those without a group are of that of their context, see
            `abmll.question.context_groups`.
    """
    shared = context_groups([row.context for row in rows]) if by_context else [None] * len(rows)
    groups = (name if row.group is None else row.group for row, name in zip(rows, shared, strict=True))
    contexts = [context_key(row) if by_context else None for row in rows]
    contexts = contexts if len(set(contexts)) > 1 else [None] * len(rows)
    return tuple(
        RowKeys(identity(row), _group_key(group), context)
        for row, group, context in zip(rows, groups, contexts, strict=True)
    )


def context_key(question: Question) -> str | None:
    """What rows of one context share, as a group of that context does; None without a context."""
    return _group_key(context_group(question.context))


def _group_key(group: str | None) -> str | None:
    return None if group is None else _hash(f"group\x1f{group}")


def distinct_keys(keys: Iterable[RowKeys]) -> list[str]:
    """The hashes of rows, their groups and contexts, each once and sorted: what a saved posterior was adapted to."""
    return sorted({key for of_row in keys for key in of_row if key is not None})


def clusters(keys: Sequence[RowKeys]) -> tuple[int, ...]:
    """The number of each row's cluster: rows that ask the same, or are of one group, are in one.

    >>> stories = [Question(str(i), f"{i}?", ("a", "b"), 0, group=group) for i, group in enumerate("xyx")]
    >>> clusters(row_keys([*stories, Question("3", "1?", ("a", "b"), 1)]))
    (0, 1, 0, 1)
    """
    numbered: list[int] = []
    known: dict[str, int] = {}
    for of_row in keys:
        own = [key for key in (of_row.question, of_row.group) if key is not None]
        numbers = sorted({known[key] for key in own if key in known}) or [max(numbered, default=-1) + 1]
        for number in numbers[1:]:  # this row joins clusters that were apart until now
            numbered = [numbers[0] if other == number else other for other in numbered]
            known = {key: numbers[0] if other == number else other for key, other in known.items()}
        known |= dict.fromkeys(own, numbers[0])
        numbered.append(numbers[0])
    return tuple(numbered)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]
