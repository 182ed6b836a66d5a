"""One process in a run directory: a second one is refused, the lock of a dead one is taken over."""

import json
import logging
import os
import signal
import socket
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from abmll.errors import AbmllError
from abmll.process.lock import OWNER, locked_folder
from abmll.process.timer import Timer
from abmll.process.world import World
from abmll.runs import compare
from abmll.runs.compare import complete_run
from abmll.runs.evaluate_run import evaluate_once
from abmll.runs.train_run import train_run
from abmll.training import checkpoints
from abmll.training.checkpoints import RunDirectory
from tests.runs import config_in, place_tiny, run_in, system_in
from tests.survival.children import Child, command, in_child
from tests.survival.places import leftovers, place_comparison, trainer


def holder(folder: Path, output: Path) -> Child:
    """A process that has a run directory, until it is killed."""

    def work() -> None:
        with RunDirectory(folder).locked():
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / ".step-000009.abc.abmll-part").mkdir()
            (folder / ".cost.json.xyz.abmll-part").write_text("half")
            (output.parent / "ready").write_text("")
            time.sleep(60)

    child = in_child(work, output)
    while not (output.parent / "ready").exists():
        time.sleep(0.005)
    return child


def test_trust_10_a_second_process_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = holder(run, tmp_path / "out.txt")
    with pytest.raises(AbmllError, match=f"in use by process {child.pid} on {socket.gethostname()} .since 20"):
        trainer("lora", run, 2)()
    assert leftovers(run), "a process that is refused must leave another's work alone"
    assert not (run / "journal.jsonl").exists()
    child.send(signal.SIGKILL)
    child.wait()


def test_trust_10_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    child = holder(run, tmp_path / "out.txt")
    child.send(signal.SIGKILL)
    child.wait()
    assert json.loads((run / OWNER).read_text())["pid"] == child.pid
    with caplog.at_level(logging.INFO):
        trainer("lora", run, 2)()
    assert f"taken over from process {child.pid}" in caplog.text
    assert "half written" in caplog.text
    assert not leftovers(run)
    assert not (run / OWNER).exists()
    assert RunDirectory(run).steps()[-1] == 2


def test_trust_10_on_the_command_line_before_the_model_is_loaded(tmp_path: Path) -> None:
    place = place_comparison(tmp_path / "place")
    for verb, held, *only in (("train", "run"), ("compare", "out/abmll/seed-0", "--only", "abmll")):
        (tmp_path / "ready").unlink(missing_ok=True)
        owner = holder(place / held, tmp_path / "out.txt")
        arguments = (verb, f"{verb}.yaml", "-o", held.split("/")[0], *only)
        child = in_child(command(place, *arguments), tmp_path / "said.txt")
        assert child.wait() == 2
        assert f"in use by process {owner.pid}" in child.text()
        assert "Traceback" not in child.text()
        assert "loading" not in child.text()
        owner.send(signal.SIGKILL)
        owner.wait()


def test_trust_10_targets_of_others_are_left_to_them_and_the_configuration_stays(tmp_path: Path) -> None:
    place = place_comparison(tmp_path / "place")
    owner = holder(place / "out" / "abmll" / "seed-0", tmp_path / "out.txt")
    child = in_child(command(place, "compare", "compare.yaml", "-o", "out"), tmp_path / "said.txt")
    assert child.wait() == 2
    assert f"in use by process {owner.pid}" in child.text()
    assert (place / "out" / "lora" / "seed-0" / "cost.json").exists()
    assert leftovers(place / "out" / "abmll"), "another's work must be left alone"
    changed = ("compare", "compare.yaml", "adaptation.steps=3", "-o", "out", "--only", "lora")
    before = (place / "out" / "config.yaml").read_bytes()
    (place / "out" / "lora" / "seed-0" / "config.yaml").unlink()  # else that would be what is refused
    child = in_child(command(place, *changed), tmp_path / "said.txt")
    assert child.wait() == 2
    assert f"in use by process {owner.pid}" in child.text()
    assert (place / "out" / "config.yaml").read_bytes() == before
    owner.send(signal.SIGKILL)
    owner.wait()


def test_a_folder_is_locked_once_and_is_free_afterwards(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.locked(), run.locked_by_caller_or(World()):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
        for again in (run, RunDirectory(tmp_path)):
            with pytest.raises(AbmllError, match=f"in use by process {os.getpid()}"), again.locked():
                pass
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid(), "a refused one takes nothing away"
    with locked_folder(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    with run.locked_by_caller_or(World()), pytest.raises(AbmllError, match="in use"), locked_folder(tmp_path):
        pass


def test_every_way_into_a_run_directory_locks_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Path] = []

    def counted(folder: Path, world: World = World()) -> AbstractContextManager[None]:  # noqa: B008 - frozen
        taken.append(folder)
        return locked_folder(folder, world)

    for module in (checkpoints, compare):
        monkeypatch.setattr(module, "locked_folder", counted)
    place = place_tiny(tmp_path)
    config, world = config_in(place), World()
    train_run(run_in(tmp_path / "trained", config), lambda: system_in(config))
    complete_run(run_in(tmp_path / "completed", config), system_in(config), lambda event: None, world)
    evaluate_once(run_in(tmp_path / "evaluated", config), system_in(config), 0, lambda event: None, Timer())
    trainer("lora", tmp_path / "alone", 1)()
    assert [folder.name for folder in taken] == ["trained", "completed", "evaluated", "alone"]
