"""The corpus: spoilt files made from a seed, each read as the library reads it, and what became of it."""

import random
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from abmll.errors import AbmllError
from tests.hostile.mutations import BYTES
from tests.hostile.targets import FORMS, TARGETS, Target

MOST_SECONDS = 20.0  # of the wall: the machine may be busy
MOST_MESSAGE = 8000


@dataclass(frozen=True)
class Outcome:
    """What became of one spoilt file.

    Attributes:
        case: kind, seed and number: all that makes it again.
        done: which file was spoilt, and how.
        became: "refused" (an `AbmllError`), "read" (it was harmless, or its bad rows were skipped and counted), or what
            must not be.
        said: the message.
    """

    case: str
    done: str
    became: str
    said: str = ""


def spoilt(kind: str, count: int, folder: Path, seed: int = 0) -> Iterator[Outcome]:
    """Spoil one file of a good folder in `count` ways, one after the other."""
    target = TARGETS[kind]
    good = folder / "good"
    good.mkdir()
    target.build(good)
    names = sorted({p.relative_to(good) for pattern in target.files for p in good.glob(pattern) if p.is_file()})
    before = _listing(folder.parent, folder)
    for number in range(count):
        rng = random.Random(f"{kind} {seed} {number}")
        place = folder / "spoilt"
        shutil.copytree(good, place)
        name = names[number % len(names)]
        done = _spoil(place, name, target, rng)
        yield _outcome(f"{kind} {seed} {number}", f"{name}: {done}", target, place)
        shutil.rmtree(place)
    assert _listing(folder.parent, folder) == before, "something was written outside the folder"


def _spoil(place: Path, name: Path, target: Target, rng: random.Random) -> str:
    form = FORMS.get(name.suffix)
    mutation = form if form is not None and rng.random() < 0.6 else rng.choice(BYTES)
    path = place / name
    path.write_bytes(mutation(path.read_bytes(), rng))
    resealed = target.reseal is not None and rng.random() < 0.7
    if resealed and target.reseal is not None:
        target.reseal(place)
    return mutation.__name__ + (", resealed" if resealed else "")


def _outcome(case: str, done: str, target: Target, place: Path) -> Outcome:
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(place)
        became, said = "read", ""
    except AbmllError as error:
        became, said = "refused", str(error)
        faults = _faults(said)
        became = f"refused, but its message {faults}" if faults else became
    except Exception as error:
        became, said = f"{type(error).__name__}", str(error)[:300]
    seconds = time.perf_counter() - began
    return Outcome(case, done, became if seconds < MOST_SECONDS else f"{became} after {seconds:.0f} s", said)


def _faults(message: str) -> str:
    """What is wrong with a message; empty if nothing is."""
    if not message.strip():
        return "is empty"
    if len(message) > MOST_MESSAGE:
        return f"has {len(message):,} characters"
    try:
        message.encode()
    except UnicodeEncodeError:
        return "cannot be printed"
    return ""


def _listing(folder: Path, without: Path) -> set[Path]:
    return {path for path in folder.iterdir() if path != without}


def tally(outcomes: list[Outcome]) -> Counter[str]:
    """How often each outcome was."""
    return Counter(outcome.became for outcome in outcomes)


def bad(outcomes: list[Outcome]) -> list[Outcome]:
    """Those that must not be: another error than ours, too slow, an unreadable message."""
    return [outcome for outcome in outcomes if outcome.became not in ("refused", "read")]
