"""Truncation and flipped bits in every file of a run directory."""

import hashlib
import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abmll.adapters.folder import read_adapter
from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.files import read_sealed_json
from abmll.metrics.predictions import read_predictions
from abmll.running.rundir import RunDirectory

HARMLESS = (".lock", "README.md")
"""Files whose content nobody relies on."""


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


def contents(run: Path) -> dict[str, Any]:
    """Everything a run directory says, as its readers give it: for comparing before and after damage."""
    directory = RunDirectory(run)
    found: dict[str, Any] = {"config": load_config(RunConfig, run / "config.yaml").to_yaml()}
    for step in directory.steps(incomplete=True):
        checkpoint = directory.load(step)
        tensors = {**checkpoint.shared, **{f"o.{n}": t for n, t in checkpoint.optimizer.items()}}
        found[f"checkpoint {step}"] = ({n: t.tolist() for n, t in tensors.items()}, checkpoint.state)
    adapter = read_adapter(run / "adapter")
    found["adapter"] = ({n: t.tolist() for n, t in adapter.tensors.items()}, adapter.facts)
    for path in sorted(run.glob("predictions/**/*.jsonl")):
        found[str(path)] = read_predictions(path)
    for name in ("origin.json", "cost.json", "environment.json", "trained.json"):
        if (run / name).exists():
            found[name] = read_sealed_json(run / name)
    return found


def files_of(run: Path) -> list[Path]:
    """Every file that somebody reads, relative to the run directory."""
    return sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file() and p.name not in HARMLESS)


def damaged(
    run: Path,
    name: Path,
    damage: Callable[[Path, random.Random], str],
    rng: random.Random,
    check: Callable[[Path], str],
) -> tuple[str, str]:
    """Damage a file of a copy, ask `check` what became of it, and put the file back; what was done, and the answer."""
    original = (run / name).read_bytes()
    try:
        what = damage(run / name, rng)
        return what, "unchanged" if (run / name).read_bytes() == original else check(run)
    finally:
        (run / name).write_bytes(original)


def reading(whole: dict[str, Any]) -> Callable[[Path], str]:
    """A check: reads everything. `refused` is right, `the same` too (a space in JSON, say); anything else is wrong."""

    def check(run: Path) -> str:
        try:
            return "the same" if contents(run) == whole else "SILENTLY USED"
        except AbmllError:
            return "refused"

    return check


def journal_check(run: Path) -> str:
    """Cut the journal where its last checkpoint would go on: damage must be told, or be none."""
    directory = RunDirectory(run)
    latest = directory.latest()
    assert latest is not None
    sealed = json.loads((directory.checkpoint_path(latest.step) / "journal.json").read_bytes())
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = told.append  # type: ignore[method-assign]
    logger = logging.getLogger("abmll.running.rundir")
    logger.addHandler(handler)
    try:
        directory.cut_journal(latest.step)
    finally:
        logger.removeHandler(handler)
    intact = hashlib.sha256(directory.journal.read_bytes()).hexdigest() == sealed["sha256"]
    return "told" if told else "the same" if intact else "SILENTLY USED"


def campaign(run: Path, times: int, seed: int = 0) -> dict[str, Counter[str]]:
    """Damage every file of a run directory so many times in each way; kind of file -> outcomes.

    Raises:
        AssertionError: something damaged was used without a word.
    """
    rng, check, tally = random.Random(seed), reading(contents(run)), defaultdict[str, Counter[str]](Counter)
    for name in files_of(run):
        for damage in (flip, truncate) * times:
            on = journal_check if name.name == "journal.jsonl" else check
            what, outcome = damaged(run, name, damage, rng, on)
            assert outcome != "SILENTLY USED", f"{name}, {what}: used without a word"
            tally[_kind(name)][f"{damage.__name__}: {outcome}"] += 1
    return dict(tally)


def _kind(name: Path) -> str:
    return (
        f"{name.parts[0]}/{name.name if name.parts[0] == 'checkpoints' else '*'}" if len(name.parts) > 1 else name.name
    )
