"""Which rows are one: they ask the same question, or are of one group (a passage, a customer). All of it is here."""

import hashlib
from collections.abc import Callable, Iterable, Sequence

from abmll.question import Question
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
    text = "\x1f".join((context, stem, *choices))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


def group_identity(question: Question) -> str | None:
    """A hash of a question's group, from which no text comes back; None without one."""
    if question.group is None:
        return None
    return hashlib.sha256(f"group\x1f{question.group}".encode("utf-8", "replace")).hexdigest()[:32]


def identities(rows: Iterable[Question]) -> list[str]:
    """What `refuse_used` must know of rows that were adapted to: hashes of each row and of each group, sorted."""
    keys = {key for row in rows for key in (identity(row), group_identity(row)) if key is not None}
    return sorted(keys)


def clusters(rows: Sequence[Question]) -> list[int]:
    """The number of each row's cluster: rows that ask the same, or are of one group, are in one.

    >>> stories = [Question(str(i), f"{i}?", ("a", "b"), 0, group=group) for i, group in enumerate("xyx")]
    >>> clusters([*stories, Question("3", "1?", ("a", "b"), 1)])
    [0, 1, 0, 1]
    """
    numbered: list[int] = []
    known: dict[tuple[str, str | None], int] = {}
    for row in rows:
        keys = [("same", identity(row)), *([("group", row.group)] if row.group is not None else [])]
        numbers = sorted({known[key] for key in keys if key in known}) or [max(numbered, default=-1) + 1]
        for number in numbers[1:]:  # this row joins clusters that were apart until now
            numbered = [numbers[0] if other == number else other for other in numbered]
            known = {key: numbers[0] if other == number else other for key, other in known.items()}
        known |= dict.fromkeys(keys, numbers[0])
        numbered.append(numbers[0])
    return numbered
