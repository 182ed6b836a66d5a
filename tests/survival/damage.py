"""Flipped bits, lost ends, edited values, missing files, and files in each other's place: in all that is trusted."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from tests.survival.trusted import KINDS, TOLD, Kind, look, outcome

Damage = Callable[[Path, random.Random], str]


def flip(path: Path, rng: random.Random) -> str:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(data)), rng.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))
    return f"bit {bit} of byte {place}"


def truncate(path: Path, rng: random.Random) -> str:
    """Lose the end."""
    data = path.read_bytes()
    size = rng.randrange(len(data))
    path.write_bytes(data[:size])
    return f"cut to {size} of {len(data)} bytes"


def edit(path: Path, rng: random.Random) -> str:
    """Another value, as somebody might type it: true for false, or another digit."""
    data = path.read_bytes()
    found = list(re.finditer(rb"true|false|\d", data))
    if not found:
        return "nothing to edit"
    here = rng.choice(found)
    words = {b"true": b"false", b"false": b"true"}
    new = words.get(here[0]) or b"%d" % ((int(here[0]) + 1) % 10)
    path.write_bytes(data[: here.start()] + new + data[here.end() :])
    return f"{here[0].decode()} to {new.decode()} at byte {here.start()}"


def delete(path: Path, rng: random.Random) -> str:
    """Remove it."""
    path.unlink()
    return "removed"


DAMAGES: tuple[Damage, ...] = (flip, truncate, edit, delete)


def damaged(kind: Kind, place: Path, path: Path, damage: Damage, rng: random.Random) -> tuple[str, str]:
    """Damage a file, see what becomes of it, and put everything back; what was done, and the outcome."""
    whole, before = look(kind, place, path), _contents(place, path)
    try:
        what = damage(place / path, rng)
        found = outcome(whole, look(kind, place, path))
    finally:
        _put_back(place, path, before)
    missing_is_fine = damage is delete and kind.lost and (kind.lost != TOLD or found == TOLD)
    return what, f"missing ({kind.lost})" if found == "SILENTLY USED" and missing_is_fine else found


def swapped(kind: Kind, place: Path, path: Path, other: Path) -> str:
    """Put two files in each other's place, see what becomes of each, and put them back; the worse outcome."""
    wholes = [look(kind, place, each) for each in (path, other)]
    before = {each: (place / each).read_bytes() for each in (path, other)}
    kept = [_contents(place, each) for each in (path, other)]
    try:
        (place / path).write_bytes(before[other])
        (place / other).write_bytes(before[path])
        found = [outcome(whole, look(kind, place, each)) for each, whole in zip((path, other), wholes, strict=True)]
    finally:
        for each, contents in zip((path, other), kept, strict=True):
            _put_back(place, each, contents)
    if "SILENTLY USED" in found and kind.moved:
        return f"harmless ({kind.moved})"
    return max(found, key=["refused", "made again", TOLD, "the same", "SILENTLY USED"].index)


def _contents(place: Path, path: Path) -> dict[Path, bytes]:
    """The files of its folder: reading may mend some of them."""
    return {each: each.read_bytes() for each in (place / path).parent.iterdir() if each.is_file()}


def _put_back(place: Path, path: Path, contents: dict[Path, bytes]) -> None:
    for each, data in contents.items():
        if not each.exists() or each.read_bytes() != data:
            each.write_bytes(data)


def campaign(place: Path, times: int, files: int | None = None, seed: int = 0) -> dict[str, Counter[str]]:
    """Damage files of every kind so many times in each way, and swap them; kind -> outcomes.

    Args:
        place: from `trusted.build_place`.
        times: of each damage to a file.
        files: of a kind, at most so many; None: all.
        seed: of what is damaged, and where.

    Raises:
        AssertionError: something that is not as it was written was used without a word.
    """
    rng, tally = random.Random(seed), defaultdict[str, Counter[str]](Counter)
    for kind in KINDS:
        every = kind.found(place)
        if kind.read is None:
            continue
        for path in every if files is None else sorted(rng.sample(every, min(files, len(every)))):
            for damage in DAMAGES * times:
                what, found = damaged(kind, place, path, damage, rng)
                assert found != "SILENTLY USED", f"{path}, {what}: used without a word"
                tally[kind.name][f"{damage.__name__}: {found}"] += 1
            others = [other for other in every if _can_be_swapped(place, path, other)]
            if others:
                other = rng.choice(others)
                found = swapped(kind, place, path, other)
                assert found != "SILENTLY USED", f"{path} and {other} swapped: used without a word"
                tally[kind.name][f"swap: {found}"] += 1
    return dict(tally)


def _can_be_swapped(place: Path, path: Path, other: Path) -> bool:
    """Whether two files are of one form, in different places, and say different things."""
    return path != other and path.suffix == other.suffix and (place / path).read_bytes() != (place / other).read_bytes()
