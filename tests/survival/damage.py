"""Truncation and flipped bits in every file of a run directory."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abmll.adapters.folder import read_adapter
from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.files import read_sealed_json
from abmll.metrics.predictions import read_predictions
from abmll.running.rundir import RunDirectory

HARMLESS = (".lock",)
"""Files whose content nothing reads."""


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
    for name in ("origin.json", "cost.json", "environment.json"):
        if (run / name).exists():
            found[name] = read_sealed_json(run / name)
    return found


def files_of(run: Path) -> list[Path]:
    """Every file that somebody reads, relative to the run directory."""
    return sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file() and p.name not in HARMLESS)


def damaged(
    run: Path, name: Path, damage: Callable[[Path, random.Random], str], rng: random.Random, check: Callable[[Path], str]
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


def journal_damage(run: Path, rng: random.Random, damage: Callable[[Path, random.Random], str]) -> tuple[str, str]:
    """Damage the journal before its last checkpoint's seal, and let `cut_journal` look at it."""
    journal = run / "journal.jsonl"
    original, directory = journal.read_bytes(), RunDirectory(run)
    latest = directory.latest()
    assert latest is not None
    sealed = json.loads((directory.checkpoint_path(latest.step) / "journal.json").read_text())["bytes"]
    try:
        journal.write_bytes(original[:sealed])
        what = damage(journal, rng)
        return what, "journal"
    finally:
        pass


def copy_of(run: Path, place: Path) -> Path:
    """A run directory that may be damaged."""
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(run, place))
