"""A full, read-only or failing disk: a clear message, exit code 1, and everything earlier as it was."""

import errno
import os
from pathlib import Path

import pytest

from abmll.files import PART, append_line, explain_failure, write_bytes
from abmll.training.checkpoints import Checkpoint, RunDirectory
from tests.survival.children import Child, command, in_child
from tests.survival.disks import limit_files, small_disk
from tests.survival.places import assert_same_run, leftovers, place_comparison, trainer
from tests.syncing import FSYNC


@pytest.fixture(autouse=True)
def _to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room that is promised and missing shows when a file is synchronised."""
    monkeypatch.setattr(os, "fsync", FSYNC)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny comparison; its train.yaml is run."""
    return place_comparison(tmp_path_factory.mktemp("disks"))


def whole(run: Path) -> list[int]:
    """Steps of the checkpoints, each of which verifies."""
    directory = RunDirectory(run, strict=True)
    return [directory.load(step).step for step in directory.steps(incomplete=True)]


def fill(folder: Path, leave: int) -> Path:
    """Take the room of a file system, but so many bytes."""
    free = os.statvfs(folder)
    ballast = folder / "ballast"
    ballast.write_bytes(b"\0" * max(0, free.f_bavail * free.f_frsize - leave))
    return ballast


def trained(place: Path, run: Path, iterations: int) -> Child:
    """`abmll train` with a checkpoint after every meta-iteration."""
    never = ["tasks.validation=null", "training.validate_every=null"]
    values = [f"training.iterations={iterations}", "training.checkpoint_every=1", *never]
    child = in_child(command(place, "train", "train.yaml", *values, "-o", str(run)), place / "said.txt")
    child.wait()
    return child


@pytest.mark.parametrize("leave", [0, 4096, 30_000])
def test_trust_08_a_full_disk(leave: int, place: Path, tmp_path: Path) -> None:
    """A file system that is full before, in the middle of, or between the files of a checkpoint."""
    with small_disk(tmp_path / "disk", "2m") as mounted:
        if not mounted:
            pytest.skip("only root may mount a file system; test_trust_08_a_file_that_cannot_grow runs in any case")
        run = tmp_path / "disk" / "run"
        assert trained(place, run, 2).code == 0
        ballast = fill(tmp_path / "disk", leave)
        child = trained(place, run, 6)
        assert child.code == 1, child.text()
        assert "No space left on device. Make room; the same command goes on" in child.text()
        assert "Traceback" not in child.text()
        assert whole(run)[-1] >= 2
        ballast.unlink()
        assert trained(place, run, 6).code == 0
        assert whole(run)[-1] == 6
        assert not leftovers(run)


@pytest.mark.parametrize("size", [6_000, 30_000])
def test_trust_08_a_file_that_cannot_grow(size: int, tmp_path: Path) -> None:
    """Without root: the operating system itself refuses bytes beyond a file size, in the middle of a checkpoint."""
    run = tmp_path / "run"
    trainer("carries everything", run, 2)()
    before = whole(run)

    def limited() -> None:
        limit_files(size)
        with pytest.raises(OSError, match="File too large") as caught:
            trainer("carries everything", run, 4)()
        assert "Make room" in str(explain_failure(caught.value))
        assert str(run) in str(caught.value.filename)

    child = in_child(limited, tmp_path / "out.txt")
    assert child.wait() == 0, child.text()
    assert whole(run) == before
    trainer("carries everything", run, 4)()
    trainer("carries everything", tmp_path / "whole", 4)()
    assert_same_run(run, tmp_path / "whole")


def test_trust_08_a_read_only_file_system(place: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as mounted:
        if not mounted:
            pytest.skip("only root may mount a file system")
        run = tmp_path / "disk" / "run"
        assert trained(place, run, 2).code == 0
        assert os.system(f"mount -o remount,ro {tmp_path / 'disk'}") == 0
        child = trained(place, run, 4)
        assert child.code == 1, child.text()
        assert "Read-only file system. Write to another place" in child.text()
        assert "Traceback" not in child.text()
        assert whole(run)[-1] == 2


def test_trust_08_an_input_output_error_in_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO cannot be had from a healthy disk: the system call is made to give it, at each write of a save in turn."""
    run = RunDirectory(tmp_path)
    run.save(Checkpoint(1, {}, {}, {}))
    for number in range(5):
        plain, calls = Path.write_bytes, []

        def failing(path: Path, data: bytes, plain=plain, calls=calls, number=number) -> int:
            calls.append(path)
            if len(calls) == number + 1:
                plain(path, data[: len(data) // 2])
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return plain(path, data)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_bytes", failing)
            with pytest.raises(OSError, match="Input/output error") as caught:
                run.save(Checkpoint(2, {}, {}, {}))
        assert caught.value.filename == str(calls[-1])
        assert "The disk or its connection fails" in str(explain_failure(caught.value))
        assert whole(tmp_path) == [1]
        assert not leftovers(tmp_path)


def test_trust_11_a_checkpoint_that_cannot_be_removed_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(path: Path, target: Path) -> Path:
        if path.name.startswith("step-") and target.suffix == PART:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, target)

    plain = Path.rename
    monkeypatch.setattr(Path, "rename", refused)
    trainer("lora", tmp_path, 5)()
    assert whole(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert "could not be removed" in caplog.text


def test_trust_11_the_best_checkpoint_and_the_last_two_are_kept(tmp_path: Path) -> None:
    from tests.systems import run_config, train

    numbers = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    training = {"iterations": 7, "checkpoint_every": 1, "validate_every": 1, "patience": 99}
    train(run_config("lora", inner_steps=1, training=training), tmp_path, validate=lambda: next(numbers))
    assert whole(tmp_path) == [2, 6, 7]


def test_an_append_that_fails_takes_back_what_it_wrote(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    append_line(file, "first")

    def limited() -> None:
        limit_files(10)
        with pytest.raises(OSError, match="File too large"):
            append_line(file, "x" * 100)
        append_line(file, "ab")

    child = in_child(limited, tmp_path / "out.txt")
    assert child.wait() == 0, child.text()
    assert file.read_text() == "first\nab\n"


def test_a_failed_write_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_bytes(file, b"old")

    def limited() -> None:
        limit_files(10)
        with pytest.raises(OSError, match="File too large") as caught:
            write_bytes(file, b"x" * 100)
        assert caught.value.filename == str(file)

    child = in_child(limited, tmp_path / "out.txt")
    assert child.wait() == 0, child.text()
    assert [p.name for p in tmp_path.iterdir() if p.name != "out.txt"] == ["file"]
    assert file.read_bytes() == b"old"
