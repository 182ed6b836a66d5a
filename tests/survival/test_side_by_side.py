"""`abmll compare --processes` and jobs of submitit: the bytes that one process makes, also after kills and signals."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from threadpoolctl import threadpool_limits

from abmll.process.lock import OWNER
from abmll.process.slurm import submit_commands
from abmll.report import write_report
from tests.survival.children import Child, command, in_child
from tests.survival.places import leftovers, place_comparison, results

LONG = "training.iterations=60"
"""So that a target takes long enough to be stopped in it."""
COMPARE = ("compare", "compare.yaml", LONG)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny comparison of two targets, made by one process into `whole`, on one thread as everything here."""
    folder = place_comparison(tmp_path_factory.mktemp("targets"))
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        patch.setenv("OMP_NUM_THREADS", "1")
        assert run(folder, "whole") == (0, "")
        yield folder


def start(place: Path, out: str, *more: str) -> Child:
    return in_child(command(place, *COMPARE, "-o", out, *more), place / f"{out}.txt")


def run(place: Path, out: str, *more: str) -> tuple[int, str]:
    """Its exit code, and what it printed if that is not 0."""
    child = start(place, out, *more)
    return child.wait(120), child.text() if child.code else ""


def worker(run: Path, child: Child | None = None, done: int = 0) -> int:
    """The process that is training in a run directory, once it has done a meta-iteration more than are `done`."""
    while not (iterations(run) > done and (run / OWNER).exists()):
        assert child is None or (not os.waitpid(child.pid, os.WNOHANG)[0]), child.text()
        time.sleep(0.005)
    return int(json.loads((run / OWNER).read_text())["pid"])


def iterations(run: Path) -> int:
    journal = run / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def scores(out: Path) -> dict[str, Any]:
    """What a report says, without what it cost and where it was made."""
    told = json.loads(json.dumps(write_report(out)))
    told.pop("environment")
    for entry in told["systems"].values():
        entry.pop("cost")
    return dict(told)


def test_two_processes_stopped_and_killed_make_what_one_makes_byte_by_byte(place: Path) -> None:
    """A child that is killed is named; a stop ends the children with all saved; the same command goes on from there."""
    parent = start(place, "two", "--processes", "2")
    run_folder, logs = place / "two" / "abmll" / "seed-0", place / "two" / "logs"
    os.kill(worker(run_folder, parent), signal.SIGKILL)
    assert parent.wait() == 2, parent.text()
    assert "2 targets, 2 to be made, 2 at a time" in parent.text()
    assert "abmll.seed-0: killed by SIGKILL" in parent.text()
    assert "1 of 2 targets are not there" in parent.text()
    assert (place / "two" / "lora" / "seed-0" / "cost.json").exists(), "the others go on"

    parent = start(place, "two", "--processes", "2")
    pid = worker(run_folder, parent, done=iterations(run_folder))
    parent.send(signal.SIGTERM)
    assert parent.wait() == 143, parent.text()
    assert "1 of 2 targets are there; the same command goes on from there" in parent.text()
    assert not psutil.pid_exists(pid)
    assert "is saved" in (logs / "abmll.seed-0.log").read_text()
    assert sorted(path.name for path in logs.iterdir()) == ["abmll.seed-0.log", "lora.seed-0.log"]

    assert run(place, "two", "--processes", "2") == (0, "")
    assert results(place / "two") == results(place / "whole")
    assert scores(place / "two") == scores(place / "whole")
    assert not leftovers(place / "two")


def jobs(place: Path, out: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A job of submitit that makes the target of `abmll`, as `--launcher slurm` submits it, on this machine."""
    submitit = pytest.importorskip("submitit")
    monkeypatch.chdir(place)
    line = [sys.executable, "-m", "abmll", *COMPARE, "-o", out, "--only", "abmll"]
    executor = submitit.LocalExecutor(folder=place / out / "logs" / "slurm")
    executor.update_parameters(timeout_min=5)
    numbers = submit_commands({"abmll.seed-0": line}, executor, place / out / "logs")
    return submitit.local.local.LocalJob(executor.folder, numbers["abmll.seed-0"])


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_job_of_submitit_stops_with_all_saved_and_goes_on(
    number: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR2: it is queued again by itself, as the same command; SIGTERM: the same command is given again."""
    out = signal.Signals(number).name
    job = jobs(place, out, monkeypatch)
    run_folder, log = place / out / "abmll" / "seed-0", place / out / "logs" / "abmll.seed-0.log"
    task = psutil.Process(worker(run_folder)).parent()
    assert task is not None
    assert "submitit" in " ".join(task.cmdline())
    task.send_signal(number)
    while not job.paths.result_pickle.exists():
        time.sleep(0.02)
    assert "is saved" in log.read_text()
    if number == signal.SIGTERM:
        assert not (run_folder / "cost.json").exists()
        assert run(place, out, "--only", "abmll") == (0, "")
    mine = {name: data for name, data in results(place / "whole").items() if name.startswith("abmll")}
    assert results(place / out) == mine
