"""Checkpoints that verify or are passed over, the journal after a stop, and one configuration per folder."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from abmll.errors import AbmllError
from abmll.training.checkpoints import MARKER, Checkpoint, RunDirectory


def checkpoint(step: int) -> Checkpoint:
    """A checkpoint whose numbers say which one it is."""
    shared = {"layer.mean_b": torch.full((4, 2), float(step)), "layer.mean_a": torch.arange(6.0).reshape(2, 3)}
    optimizer = {"outer.mean.0.step": torch.tensor(float(step)), "outer.std.0.master": torch.ones(3).double()}
    return Checkpoint(step, shared, optimizer, {"best_step": 0, "distance": 0.1 + 0.2})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Three checkpoints."""
    directory = RunDirectory(tmp_path / "run")
    for step in (0, 2, 4):
        directory.save(checkpoint(step))
    return directory


def test_a_checkpoint_comes_back_as_it_was(run: RunDirectory) -> None:
    found, wanted = run.load(4), checkpoint(4)
    assert (found.step, found.state) == (4, wanted.state)
    for mine, theirs in ((found.shared, wanted.shared), (found.optimizer, wanted.optimizer)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[n], theirs[n]) and mine[n].dtype == theirs[n].dtype for n in mine)


def test_saving_a_step_again_replaces_it_and_leaves_nothing_else(run: RunDirectory) -> None:
    run.save(Checkpoint(4, {"x": torch.zeros(1)}, {}, {}))
    assert list(run.load(4).shared) == ["x"]
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["step-000000", "step-000002", "step-000004"]


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    """Lose the last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    """Lose everything but the name, as a full disk leaves it."""
    path.write_bytes(b"")


FILES = ("shared.safetensors", "optimizer.safetensors", "state.json", "journal.json", MARKER)


DAMAGES = [
    (file, damage)
    for file in FILES
    for damage in (flip, truncate, empty, Path.unlink)
    if (file, damage) != (MARKER, truncate)  # its last byte is a line break: nothing is lost
]


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_trust_09_a_damaged_checkpoint_is_passed_over_with_a_warning(
    run: RunDirectory, file: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(run.checkpoint_path(4) / file)
    with caplog.at_level(logging.WARNING):
        found = run.latest()
    assert found is not None
    assert found.step == 2
    assert "step-000004" in caplog.text
    with pytest.raises(AbmllError, match="step-000004"):
        run.load(4)


def test_trust_09_swapped_files_are_noticed(run: RunDirectory) -> None:
    one, two = (run.checkpoint_path(step) / "shared.safetensors" for step in (2, 4))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    found = run.latest()
    assert found is not None
    assert found.step == 0


def test_a_half_written_checkpoint_is_no_checkpoint(run: RunDirectory) -> None:
    beside = run.path / "checkpoints" / ".step-000006.abmll-part"
    beside.mkdir()
    (beside / "shared.safetensors").write_bytes(b"half")
    found = run.latest()
    assert found is not None
    assert found.step == 4
    run.save(checkpoint(6))
    assert run.load(6).step == 6
    with run.locked():
        assert not beside.exists()


def test_nothing_good_is_left(run: RunDirectory) -> None:
    for step in run.steps():
        flip(run.checkpoint_path(step) / "state.json")
    assert run.latest() is None


def test_latest_up_to_a_step(run: RunDirectory) -> None:
    assert [getattr(run.latest(at_most=n), "step", None) for n in (0, 1, 3, 9)] == [0, 0, 2, 4]
    assert RunDirectory(run.path / "none").latest() is None


def test_prune_keeps_what_it_is_told(run: RunDirectory) -> None:
    run.prune({0, 4, 99})
    assert run.steps() == [0, 4]


def test_journal_is_cut_where_training_goes_on(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.log({"event": "step", "step": step})
    run.log({"event": "end", "step": 3})
    with run.journal.open("a") as file:
        file.write('{"event": "step", "st')  # a stop in the middle of a line
    run.cut_journal(2)
    assert [json.loads(line)["step"] for line in run.journal.read_text().splitlines()] == [1, 2]
    run.log({"event": "step", "step": 3})
    run.cut_journal(3)
    assert [json.loads(line)["step"] for line in run.journal.read_text().splitlines()] == [1, 2, 3]


def test_an_ended_journal_that_goes_on_has_not_ended(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.log({"event": "step", "step": 1})
    run.log({"event": "end", "step": 1})
    run.cut_journal(1)
    assert [json.loads(line)["event"] for line in run.journal.read_text().splitlines()] == ["step"]


def test_a_folder_of_another_name_is_no_checkpoint(run: RunDirectory) -> None:
    (run.path / "checkpoints" / "step-old").mkdir(parents=True, exist_ok=True)
    assert run.steps(incomplete=True) == run.steps()
