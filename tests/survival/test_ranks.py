"""Two ranks: a signal to one stops both at the same step, and what ends one ends the other, with the cause."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from abmll.errors import AbmllError, NonFiniteError
from abmll.process.agreement import agree_on_failure
from abmll.process.stopping import Stopped
from abmll.process.world import World
from abmll.training.checkpoints import RunDirectory
from tests.survival.children import UNCAUGHT, in_child
from tests.survival.places import assert_same_run, rows
from tests.survival.ranks import start_ranks
from tests.systems import run_config, system_of, train

SETTINGS: dict[str, Any] = {"inner_steps": 2}
SYSTEMS = {
    "reptile": ("reptile", "default", {**SETTINGS, "outer_schedule": "constant"}, 2),
    "carries everything": (
        "abmll",
        "paper",
        {**SETTINGS, "phi": "persistent", "inner_optimizer_state": "persistent"},
        1,
    ),
}


def training(system: str, folder: Path, iterations: int, world: World = World(), **options: Any) -> None:  # noqa: B008
    """Train a system, its tasks shared by the ranks; checkpoints at the ends only."""
    method, preset, settings, batch = SYSTEMS[system]
    sections = {"training": {"iterations": iterations, "meta_batch": batch, "checkpoint_every": 1000}}
    train(run_config(method, preset, **settings, **sections), folder, world=world, **options)


@pytest.mark.parametrize(("system", "which"), [("reptile", 1), ("carries everything", 0)])
def test_trust_13_a_signal_to_one_rank_stops_both_at_the_same_step(system: str, which: int, tmp_path: Path) -> None:
    def work(world: World) -> None:
        training(system, tmp_path / "run", 10**6, world)

    ranks = start_ranks(work, tmp_path)
    journal = tmp_path / "run" / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert [rank.code for rank in ranks] == [None, None]
        time.sleep(0.01)
    ranks[which].send(signal.SIGTERM)
    assert [rank.wait(60) for rank in ranks] == [143, 143], "\n".join(rank.text() for rank in ranks)
    assert ranks[0].text() == ranks[1].text(), "they stopped at different steps"
    step = RunDirectory(tmp_path / "run").steps()[-1]
    assert f"stopped by SIGTERM: step {step} of 1000000 is saved" in ranks[0].text()
    assert step >= 3
    resumed = start_ranks(lambda world: training(system, tmp_path / "run", step + 2, world), tmp_path)
    assert [rank.wait(60) for rank in resumed] == [0, 0], "\n".join(rank.text() for rank in resumed)
    whole = start_ranks(lambda world: training(system, tmp_path / "whole", step + 2, world), tmp_path)
    assert [rank.wait(60) for rank in whole] == [0, 0]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("how", ["an exception", "in saving", "killed"])
def test_trust_29_a_rank_that_fails_ends_the_others_with_the_cause(how: str, tmp_path: Path) -> None:
    """Through training itself; the ranks' patience is a minute, they end in seconds."""
    failing = 0 if how == "in saving" else 1

    def work(world: World) -> None:
        system = system_of("reptile", **SETTINGS)
        nll, calls = system.method.nll, []

        def fails(batch: Any) -> Any:
            calls.append(1)
            if how == "an exception" and len(calls) == 5 and world.rank == 1:
                raise AbmllError("question q17 has no answer")
            if how == "killed" and len(calls) == 5 and world.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return nll(batch)

        def full(directory: RunDirectory, checkpoint: Any) -> None:
            raise OSError(28, "No space left on device", "state.json")

        system.method.nll = fails
        if how == "in saving":
            RunDirectory.save = full  # type: ignore[method-assign]
        config = run_config("reptile", **SETTINGS, training={"iterations": 100, "meta_batch": 2})
        train(config, tmp_path / "run", system=system, world=world)

    began = time.monotonic()
    ranks = start_ranks(work, tmp_path)
    codes = [rank.wait(60) for rank in ranks]
    assert time.monotonic() - began < 30
    assert codes[1 - failing] == UNCAUGHT
    expected = {
        "an exception": "AbmllError: rank 1: question q17 has no answer",
        "in saving": "AbmllError: rank 0: [Errno 28] No space left on device: 'state.json'",
        "killed": "AbmllError: another rank died, or did not answer in time",
    }
    assert expected[how] in ranks[1 - failing].text()


def test_trust_29_a_rank_that_hangs_ends_the_others_after_their_patience(tmp_path: Path) -> None:
    def work(world: World) -> None:
        if world.rank == 1:
            time.sleep(30)
        with agree_on_failure(world):
            pass

    ranks = start_ranks(work, tmp_path, patience=1.0)
    began = time.monotonic()
    assert ranks[0].wait(20) == UNCAUGHT
    assert time.monotonic() - began < 15
    assert "another rank died, or did not answer in time" in ranks[0].text()
    ranks[1].send(signal.SIGKILL)
    ranks[1].wait()


def test_trust_19_what_is_not_finite_on_one_rank_is_skipped_on_both(tmp_path: Path) -> None:
    def work(world: World) -> None:
        settings = {"inner_steps": 1, "training": {"iterations": 3, "meta_batch": 2, "on_non_finite": "skip"}}
        system = system_of("fomaml", **settings)
        nll, calls = system.method.nll, []

        def poisoned(batch: Any) -> Any:
            calls.append(1)
            return nll(batch) + (float("nan") if len(calls) == 3 and world.rank == 1 else 0.0)

        system.method.nll = poisoned
        train(run_config("fomaml", **settings), tmp_path / "run", system=system, world=world)

    ranks = start_ranks(work, tmp_path)
    assert [rank.wait() for rank in ranks] == [0, 0], "\n".join(rank.text() for rank in ranks)
    events = rows(tmp_path / "run")
    assert [row["event"] for row in events] == ["step", "skipped", "step", "end"]
    assert "rank 1" in events[1]["why"]
    assert (tmp_path / "run" / "non-finite" / "step-000001-position-1" / "batch.json").exists()


def test_trust_10_ranks_are_one_owner_and_are_refused_together(tmp_path: Path) -> None:
    def owner() -> None:
        with RunDirectory(tmp_path / "run").locked():
            (tmp_path / "ready").write_text("")
            time.sleep(60)

    child = in_child(owner, tmp_path / "owner.txt")
    while not (tmp_path / "ready").exists():
        time.sleep(0.005)
    ranks = start_ranks(lambda world: training("reptile", tmp_path / "run", 2, world), tmp_path)
    assert [rank.wait() for rank in ranks] == [UNCAUGHT, UNCAUGHT]
    for rank in ranks:
        assert f"in use by process {child.pid}" in rank.text()
    child.send(signal.SIGKILL)
    child.wait()
    ranks = start_ranks(lambda world: training("reptile", tmp_path / "run", 2, world), tmp_path)
    assert [rank.wait() for rank in ranks] == [0, 0], "\n".join(rank.text() for rank in ranks)


def test_the_worst_of_what_ranks_ran_into_is_raised_on_all(tmp_path: Path) -> None:
    problems: list[list[BaseException | None]] = [
        [None, Stopped(signal.SIGTERM)],
        [Stopped(signal.SIGTERM), NonFiniteError("a loss")],
        [NonFiniteError("a loss"), ValueError("a bug")],
    ]

    def work(world: World) -> None:
        for pair in problems:
            try:
                with agree_on_failure(world):
                    mine = pair[world.rank]
                    if mine is not None:
                        raise mine
            except (Stopped, Exception) as error:
                print(type(error).__name__, error)

    ranks = start_ranks(work, tmp_path)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].text()
    said = [rank.text().splitlines() for rank in ranks]
    assert said[0] == ["Stopped stopped by SIGTERM", "NonFiniteError rank 1: a loss", "AbmllError rank 1: a bug"]
    assert said[1] == ["Stopped stopped by SIGTERM", "NonFiniteError a loss", "ValueError a bug"]
