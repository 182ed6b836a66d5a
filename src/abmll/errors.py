"""Errors that are the user's to mend: said in one message, never as a traceback."""

import difflib
from collections.abc import Iterable


class AbmllError(ValueError):
    """What was wrong, the value, where, and what to do. The command line prints it and exits with 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> AbmllError:
    """An error for a name that is not in a registry, with the nearest names and the whole list.

    >>> print(unknown_name("method", "reptil", ["lora", "reptile"]))
    unknown method 'reptil'. Did you mean 'reptile'? Known: lora, reptile
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return AbmllError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}")
