"""Names that become files and folders, and paths that are shown to others."""

import re
from pathlib import Path

from abmll.errors import AbmllError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows takes these for devices


def check_name(kind: str, name: str) -> str:
    """A name that becomes a folder: returned if it can be one on every system, and cannot leave its place.

    Raises:
        AbmllError: it is empty, too long, begins with a dot, holds a separator, or is a device's name on Windows.

    >>> check_name("task", "my-task.v2")
    'my-task.v2'
    """
    if not _NAME.fullmatch(name) or name.endswith(".") or is_device(name):
        raise AbmllError(
            f"{kind} name {name[:100]!r}: up to 80 of a-z, A-Z, 0-9, '-', '_' and '.', the first a letter or digit, "
            "the last no dot, and not a device's name such as CON"
        )
    return name


def is_device(name: str) -> bool:
    """Whether Windows takes a name, whatever its extension, for a device: a file of it cannot be written there.

    >>> is_device("NUL.jsonl"), is_device("nullable")
    (True, False)
    """
    return _DEVICES.fullmatch(name) is not None


def without_home(path: str) -> str:
    """A path below the home folder as `~/...`, anything else as it is: results are shared, user names are not.

    The path may stand after the name of a source of tasks and a colon.

    >>> without_home(str(Path.home() / "models" / "mine")), without_home("org/name")
    ('~/models/mine', 'org/name')
    >>> without_home(f"sqlite:{Path.home() / 'quiz.db'}")
    'sqlite:~/quiz.db'
    """
    name, colon, rest = path.partition(":")
    if colon and name.isidentifier() and len(name) > 1:  # one letter is a drive
        return f"{name}:{without_home(rest)}"
    try:
        home = Path.home()
        below = Path(path).relative_to(home)
    except (RuntimeError, ValueError):  # no home; not below it
        return path
    return path if home == Path(home.anchor) else (Path("~") / below).as_posix()
