"""Signals in every phase of `abmll compare`: sent by the process to itself at a chosen call, or from outside."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from tests.survival.children import Child, command, in_child
from tests.survival.places import leftovers, results

PHASES: dict[str, tuple[str, str, int]] = {  # module, function, how often it is called in the tiny comparison at least
    "loading": ("abmll.cli.work.compare", "load_base", 1),
    "inner loop": ("abmll.training.inner", "_step", 12),
    "outer step": ("abmll.training.train", "add_outer_gradient", 6),
    "validation": ("abmll.training.train", "_validated", 3),
    "saving": ("abmll.training.checkpoints", "_contiguous", 8),
    "evaluation": ("abmll.systems.predict", "_score", 20),
    "writing the adapter": ("abmll.runs.train_run", "write_adapter", 2),
}
"""Phase -> a function that is called in it. The signal comes as the function begins, as good as any other moment."""


def interrupted(place: Path, out: str, phase: str, number: int, call: int) -> tuple[int, float, str]:
    """One run of the comparison that sends itself a signal; its exit code, seconds until it left, and what it said."""
    stamp = place / "stamp"
    stamp.unlink(missing_ok=True)

    def work() -> None:
        _signal_at(phase, number, call, stamp)
        command(place, "compare", "compare.yaml", "-o", out)()

    child = in_child(work, place / "said.txt")
    code = child.wait()
    seconds = time.monotonic() - float(stamp.read_text()) if stamp.exists() else 0.0
    return code, seconds, child.text()


def _signal_at(phase: str, number: int, call: int, stamp: Path) -> None:
    import importlib

    module_name, name, _ = PHASES[phase]
    module = importlib.import_module(module_name)
    plain, calls = getattr(module, name), []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            stamp.write_text(str(time.monotonic()))
            os.kill(os.getpid(), number)
        return plain(*arguments, **named)

    setattr(module, name, counted)


def finish(place: Path, out: str) -> None:
    """Run the same command to its end."""
    child = in_child(command(place, "compare", "compare.yaml", "-o", out), place / "said.txt")
    assert child.wait() == 0, child.text()
    assert not leftovers(place / out)


def campaign(place: Path, phase: str, times: int, seed: int = 0) -> dict[str, Any]:
    """Interrupt comparisons in one phase, with all four signals in turn, finish each, and compare the results."""
    rng, slowest = random.Random(seed), 0.0
    if not (place / "whole").exists():
        finish(place, "whole")
    whole = results(place / "whole")
    for turn in range(times):
        number = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)[turn % 4]
        out = f"{phase}-{turn}".replace(" ", "-")
        code, seconds, said = interrupted(place, out, phase, number, rng.randint(1, PHASES[phase][2]))
        assert code == 128 + number, f"{phase}: {code}\n{said}"
        assert "Traceback" not in said, said
        assert f"stopped by {signal.Signals(number).name}" in said, said
        slowest = max(slowest, seconds)
        finish(place, out)
        assert results(place / out) == whole, f"{phase}: what was made after the stop differs"
    return {"phase": phase, "signals": times, "slowest exit, s": round(slowest, 2), "results that differ": 0}


def from_outside(place: Path, out: str, number: int, delay: float) -> Child:
    """Send a signal to a running comparison from here, so many seconds after its first meta-iteration."""
    child = in_child(
        command(place, "compare", "compare.yaml", "training.iterations=1000", "-o", out), place / "said.txt"
    )
    journal = place / out / "abmll" / "seed-0" / "journal.jsonl"
    while not journal.exists():
        assert child.code is None
        time.sleep(0.005)
    time.sleep(delay)
    child.send(number)
    return child
