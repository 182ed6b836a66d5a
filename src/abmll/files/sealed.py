"""JSON files: whole or absent, without NaN, and sealed so that a damaged or edited one does not pass."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError, NonFiniteError
from abmll.files.whole import check_regular, write_text

MOST_JSON = 8 << 20
"""Characters of a JSON text that is read strictly, where nothing else is said."""
MOST_SEALED = 1 << 30
"""Bytes of a sealed file that this machine wrote: one with all questions of a task, or a batch that failed, grows with
them. Of what others may have made up, a reader takes `MOST_JSON`."""
SEAL = "sha256"


def strict_json(text: str | bytes, most: int = MOST_JSON) -> Any:
    """JSON in which no name is given twice, every number is finite and every text can be written.

    Args:
        text: the JSON.
        most: characters that it may have.

    Raises:
        ValueError: it is something else, or nested too deeply to be read.

    >>> strict_json('{"a": [1, null]}')
    {'a': [1, None]}
    """
    if len(text) > most:
        raise ValueError(f"{len(text):,} characters are too many")
    try:
        value = json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # 1e999 is read as an infinity
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a surrogate pair, which is not a character") from error
    return value


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, entry in pairs:
        if name in value:
            raise ValueError(f"{name[:80]!r} is given twice")
        value[name] = entry
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for a JSON value.

    Raises:
        NonFiniteError: a number in it is NaN or infinite, which JSON has not; names the file and the entry.
    """
    refuse_non_finite(path, value)
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def refuse_non_finite(path: Path, value: Any) -> None:
    """Refuse a JSON value that holds NaN or an infinity.

    Raises:
        NonFiniteError: names the file and the first such entry.

    >>> refuse_non_finite(Path("scores.json"), {"abmll": [{"nll": float("nan")}]})
    Traceback (most recent call last):
    ...
    abmll.errors.NonFiniteError: scores.json: abmll.0.nll is nan, not a finite number; nothing was written
    """
    for entry, number in _numbers(value, ""):
        if not math.isfinite(number):
            name = entry or "its value"
            raise NonFiniteError(f"{path}: {name} is {number}, not a finite number; nothing was written")


def _numbers(value: Any, entry: str) -> Iterator[tuple[str, float]]:
    """Every float in a JSON value, with the names and places that lead to it."""
    if isinstance(value, float):
        yield entry, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(part, f"{entry}.{key}" if entry else str(key))


def seal(text: str) -> str:
    """SHA-256 of a text, in hexadecimal: kept beside it, it tells whether the text is still the same."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_sealed_json(path: Path, value: dict[str, Any], of: str | None = None) -> None:
    """`write_json` of an object, with a SHA-256 as its last entry: of everything else in it, and of what it belongs to.

    Args:
        path: the file.
        value: the object.
        of: what the file belongs to, which is not written; None: the file's name. So a whole file in the place of
            another one is noticed.
    """
    refuse_non_finite(path, value)
    write_json(path, {**value, SEAL: _seals(path, value, of)[0]})


def read_sealed_json(
    path: Path, of: str | None = None, advice: str = "delete it", most: int = MOST_SEALED
) -> dict[str, Any]:
    """The inverse of `write_sealed_json`; a file without a seal, from an earlier version, is taken as it is.

    Args:
        path: the file.
        of: what it belongs to, see `write_sealed_json`.
        advice: what to do with a damaged one.
        most: bytes that it may have.

    Raises:
        AbmllError: it is missing, no JSON object, or not what was written; ends in `advice`.
    """
    return read_and_tell_seal(path, of, advice, most)[0]


def read_and_tell_seal(
    path: Path, of: str | None = None, advice: str = "delete it", most: int = MOST_SEALED
) -> tuple[dict[str, Any], bool]:
    """As `read_sealed_json`; and whether the file has a seal at all.

    A SHA-256 of the content alone, as earlier versions wrote, is a seal too.
    """
    try:
        check_regular(path)
        if (size := path.stat().st_size) > most:  # before so much is in memory
            raise ValueError(f"{size:,} bytes are too many")
        value = strict_json(path.read_bytes(), most)
    except AbmllError:
        raise
    except OSError as error:
        raise AbmllError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise AbmllError(f"{path}: cannot be read ({str(error)[:80]}); the file is damaged, {advice}") from error
    if not isinstance(value, dict):
        raise AbmllError(f"{path}: expected an object, found {type(value).__name__}; {advice}")
    expected = value.pop(SEAL, None)
    if expected is None and not _is_unsealed(path, value, of):
        raise AbmllError(f"{path}: damaged (its SHA-256 has another name); {advice}")
    if expected is not None and expected not in _seals(path, value, of):
        raise AbmllError(
            f"{path}: damaged or edited (its SHA-256 is not the one it was written with), or it belongs elsewhere; "
            f"{advice}"
        )
    return value, expected is not None


def _is_unsealed(path: Path, value: dict[str, Any], of: str | None) -> bool:
    """Whether a file without a seal never had one: no entry is the seal of the others."""
    texts = {name: entry for name, entry in value.items() if isinstance(entry, str) and len(entry) == 64}
    return not any(
        entry in _seals(path, {other: part for other, part in value.items() if other != name}, of)
        for name, entry in texts.items()
    )


def _seals(path: Path, value: dict[str, Any], of: str | None) -> tuple[str, ...]:
    """The seal of an object, and that of earlier versions."""
    try:
        content = json.dumps(value, sort_keys=True, allow_nan=False)
        return seal(f"{of or path.name}\n{content}"), seal(content)
    except ValueError:  # NaN, an infinity or half of a surrogate pair, none of which was ever written
        return ()
