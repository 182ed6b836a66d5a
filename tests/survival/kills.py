"""kill -9: at random moments, and at each point of a save."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from abmll.files import whole
from abmll.training.checkpoints import RunDirectory
from tests.survival.children import in_child
from tests.survival.places import assert_same_run, leftovers, rows, trainer

POINTS = {
    "before the first file": ("_seal_journal", 0),
    "after one file": ("write_bytes", 1),
    "after two files": ("write_bytes", 2),
    "after three files": ("write_bytes", 3),
    "after four files": ("write_bytes", 4),
    "after the marker": ("write_bytes", 5),
    "after the old one of this step was set aside": ("rename", 1),
    "after it got its name": ("_swap", 1),
    "while an old one is being removed": ("unlink", 2),
}

AFTER = ("rename", "_swap", "unlink")
"""By then the checkpoint is there."""


def kill_at_random(folder: Path, system: str, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill one run again and again at random moments, then let it end, and compare with one that was left alone.

    Returns:
        Facts: kills, meta-iterations lost in all, the most lost by one kill, leftovers found and removed.
    """
    rng, lost, found = random.Random(seed), [], 0
    run = folder / "killed"
    for number in range(kills):
        child = in_child(trainer(system, run, 10**6), folder / "out.txt")
        _until_it_moves(run)
        time.sleep(rng.uniform(0.0, 0.3))
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, child.text()
        found += len(leftovers(run))
        lost.append(_check(run, number))
    last = RunDirectory(run).steps()[-1] + 2
    for place in (run, folder / "whole"):
        child = in_child(trainer(system, place, last), folder / "out.txt")
        assert child.wait(300) == 0, child.text()
    assert_same_run(run, folder / "whole")
    assert not leftovers(run)
    return {
        "kills": kills,
        "meta-iterations": last,
        "lost in all": sum(lost),
        "most lost by one": max(lost),
        "leftovers": found,
    }


def _until_it_moves(run: Path) -> None:
    """Until the child holds the lock and has something to lose."""
    before = _size(run)
    while _size(run) == before:
        time.sleep(0.005)


def _size(run: Path) -> int:
    journal = run / "journal.jsonl"
    return journal.stat().st_size if journal.exists() else -1


def _check(run: Path, number: int) -> int:
    """Every checkpoint is whole, and what the journal knows beyond the last is what was lost: at most one iteration."""
    directory = RunDirectory(run, strict=True)
    latest = directory.latest()
    assert latest is not None
    assert all(directory.load(step).step == step for step in directory.steps(incomplete=True))
    told = [line for line in (run / "journal.jsonl").read_bytes().split(b"\n")[:-1] if line]
    done = len(told)
    assert latest.step <= done <= latest.step + 1, (number, latest.step, done)
    return done - latest.step


def kill_in_save(folder: Path, point: str) -> None:
    """Kill a process at one point of the save after meta-iteration 3, then go on, and compare."""
    run, (name, count) = folder / "killed", POINTS[point]

    def work() -> None:
        trainer("abmll", run, 2)()
        save = RunDirectory.save

        def saving(directory: RunDirectory, checkpoint: Any) -> None:
            if checkpoint.step == 3:
                if name == "rename":
                    save(directory, checkpoint)  # so that there is an old one
                _die_after(name, count)
            save(directory, checkpoint)

        RunDirectory.save = saving  # type: ignore[method-assign]
        trainer("abmll", run, 4)()

    child = in_child(work, folder / "out.txt")
    assert child.wait() == -signal.SIGKILL, child.text()
    latest = RunDirectory(run, strict=True).latest()
    assert latest is not None
    assert all(RunDirectory(run).load(step) for step in RunDirectory(run).steps(incomplete=True))
    assert latest.step == (3 if name in AFTER else 2)
    for place in (run, folder / "whole"):
        child = in_child(trainer("abmll", place, 4), folder / "out.txt")
        assert child.wait() == 0, child.text()
    assert_same_run(run, folder / "whole")
    assert not leftovers(run)
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 4]


def _die_after(name: str, count: int) -> None:
    """From here on the process kills itself with the count-th call of a function that saving uses."""
    owners = {"write_bytes": Path, "rename": Path, "_swap": whole, "_seal_journal": RunDirectory, "unlink": os}
    owner: Any = owners[name]
    plain, calls = getattr(owner, name), []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(*arguments, **named)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)
