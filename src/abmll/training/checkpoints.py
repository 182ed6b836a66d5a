"""What a run leaves on disk: configuration, journal, checkpoints.

A checkpoint is a folder written under another name, flushed, renamed, and complete only once `COMPLETE` holds the
SHA-256 of every file in it. Whatever is damaged or half written is passed over with a warning.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from abmll.errors import AbmllError
from abmll.files import (
    OLD,
    append_line,
    folder_beside,
    naming,
    recover,
    refuse_non_finite,
    remove_folder,
    replaced_by,
    write_bytes,
)
from abmll.process.lock import locked_folder
from abmll.process.world import World

log = logging.getLogger(__name__)

MARKER = "COMPLETE"
FORMAT = 1
"""Of checkpoints. A version that reads another one says so, instead of guessing."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` meta-iterations.

    Attributes:
        step: meta-iterations done.
        shared: theta and the log-temperature.
        optimizer: moments and counters that training goes on with; empty for a snapshot that is only evaluated.
        state: everything else that is resumed, as JSON.
    """

    step: int
    shared: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


class OtherFormatError(AbmllError):
    """A whole checkpoint that another version of this library wrote."""


class RunDirectory:
    """The folder of one run.

    Args:
        path: the folder; made when something is first written.
        strict: refuse to go back behind a damaged checkpoint.

    Attributes:
        known_good: steps of checkpoints that this object wrote or verified.
    """

    def __init__(self, path: Path, *, strict: bool = False) -> None:
        self.path, self.strict = path, strict
        self.known_good: set[int] = set()
        self._is_locked = False

    @contextmanager
    def locked(self, world: World = World()) -> Iterator[None]:  # noqa: B008 - frozen
        """Keep other processes out in the block; see `locked_folder`.

        Raises:
            AbmllError: another process is in it; on every rank.
        """
        with locked_folder(self.path, world):
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def locked_by_caller_or(self, world: World) -> AbstractContextManager[None]:
        """Nothing inside a block of `locked`, else `locked` itself: for `meta_train`, which a user may call alone."""
        return nullcontext() if self._is_locked else self.locked(world)

    @property
    def journal(self) -> Path:
        """JSON lines, one event each."""
        return self.path / "journal.jsonl"

    def log(self, event: dict[str, Any]) -> None:
        """Add one line to the journal: all of it, or nothing.

        Raises:
            NonFiniteError: a number in it is NaN or infinite, which JSON has not.
            OSError: the disk is full, ...
        """
        refuse_non_finite(self.journal, event)
        append_line(self.journal, json.dumps(event, ensure_ascii=False, allow_nan=False))

    def cut_journal(self, step: int) -> None:
        """Drop what the journal says of steps after `step`: they will be done again. It says so if training ends.

        What the checkpoint of that step sealed is compared with what is there; damage is only warned of, as there
        is no second copy to go back to.
        """
        data = self.journal.read_bytes() if self.journal.exists() else b""
        size, expected = self._sealed(step)
        if size is None:
            shorter = self._lines_until(data, step)
        elif hashlib.sha256(data[:size]).hexdigest() == expected:
            shorter = data[:size]
        else:
            shorter = self._lines_until(data, step)
            log.warning(
                "%s: damaged before step %d, where training goes on; do not rely on its lines up to there (the weights "
                "are not concerned)",
                self.journal,
                step,
            )
        if shorter != data:
            write_bytes(self.journal, shorter)

    def _sealed(self, step: int) -> tuple[int | None, str]:
        """Bytes of the journal when the checkpoint of a step was written, and their SHA-256."""
        try:
            seal = json.loads((self.checkpoint_path(step) / "journal.json").read_bytes())
            return int(seal["bytes"]), str(seal["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None, ""

    def _lines_until(self, data: bytes, step: int) -> bytes:
        """The lines that can be read and speak of steps up to `step`."""
        readable, unreadable = [], []
        lines = data.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line) if line else None
                if event is not None and event.get("event") != "end" and event.get("step", 0) <= step:
                    readable.append(line + b"\n")
            except (ValueError, AttributeError, TypeError):
                unreadable += [number] if number < len(lines) else []  # a stop cuts the last one short
        if unreadable:
            log.warning("%s: lines %s cannot be read and are dropped", self.journal, unreadable)
        return b"".join(readable)

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint after `step` meta-iterations is."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; a complete one of the same step is replaced.

        Raises:
            OSError: the disk is full, ...; every earlier checkpoint, one of the same step too, is as it was.
        """
        contents = {
            "shared.safetensors": save_tensors(_contiguous(checkpoint.shared)),
            "optimizer.safetensors": save_tensors(_contiguous(checkpoint.optimizer)),
            "state.json": _as_json({"format": FORMAT, "step": checkpoint.step, **checkpoint.state}),
            "journal.json": _as_json(self._seal_journal()),
        }
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        with folder_beside(self.checkpoint_path(checkpoint.step)) as beside:  # it flushes and renames
            for name, data in {**contents, MARKER: _as_json(sums)}.items():
                with naming(beside / name):
                    (beside / name).write_bytes(data)
        self.known_good.add(checkpoint.step)

    def _seal_journal(self) -> dict[str, Any]:
        if not self.journal.exists():
            return {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        with self.journal.open("rb") as file:
            data = file.read()
            os.fsync(file.fileno())
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def load(self, step: int) -> Checkpoint:
        """Read and verify a checkpoint.

        Raises:
            AbmllError: it is missing, incomplete or damaged; says which file.
        """
        folder = self.checkpoint_path(step)
        try:
            sums = json.loads((folder / MARKER).read_bytes())
            if not isinstance(sums, dict):
                raise ValueError(f"{MARKER} is no table")
            if strange := [name for name in sums if Path(name).name != name or not (folder / name).is_file()]:
                raise ValueError(f"{MARKER} names {strange[0]!r}, which is no file in this folder")
            data = {name: (folder / name).read_bytes() for name in sums}
        except (OSError, ValueError, RecursionError) as error:
            raise AbmllError(f"{folder}: not a complete checkpoint ({error})") from error
        for name, expected in sums.items():
            if hashlib.sha256(data[name]).hexdigest() != expected:
                raise AbmllError(f"{folder / name}: damaged (its SHA-256 is not the one in {MARKER})")
        try:
            state = json.loads(data["state.json"])
            if not isinstance(state, dict) or type(state.get("step")) is not int:
                raise ValueError("state.json is no state")
            tensors = [load_tensors(data[f"{part}.safetensors"]) for part in ("shared", "optimizer")]
            version, its_step = state.pop("format", FORMAT), state.pop("step")
        except (SafetensorError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise AbmllError(f"{folder}: not a checkpoint of this version ({error})") from error
        if version != FORMAT:
            raise OtherFormatError(
                f"{folder}: a checkpoint of format {version}, this version reads format {FORMAT}: use the version of "
                "abmll that wrote it (environment.json of a comparison says which)"
            )
        if its_step != step:
            raise AbmllError(f"{folder}: holds the checkpoint of step {its_step}; somebody renamed it")
        self.known_good.add(step)
        return Checkpoint(step, tensors[0], tensors[1], state)

    def steps(self, *, incomplete: bool = False) -> list[int]:
        """Steps of the checkpoints that look complete, or of all that are there, oldest first."""
        folder = self.path / "checkpoints"
        for old in folder.glob(f".step-*{OLD}"):  # a replacement that was stopped between its two renames
            recover(replaced_by(old))
        complete = [path for path in folder.glob("step-*") if incomplete or (path / MARKER).exists()]
        numbers = [path.name.removeprefix("step-") for path in complete]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def latest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies (and can be trained on from), or None.

        Raises:
            AbmllError: the newest is damaged, and this is `strict`.
        """
        for step in reversed(self.steps(incomplete=True)):
            if at_most is not None and step > at_most:
                continue
            try:
                return self.load(step)
            except OtherFormatError:
                raise
            except AbmllError as error:
                if self.strict:
                    raise AbmllError(f"{error}; --strict goes back to no earlier one") from error
                log.warning("%s; going back to an earlier one", error)
        return None

    def prune(self, keep: set[int]) -> None:
        """Remove checkpoints of other steps; one that cannot be removed is only mentioned."""
        for step in self.steps(incomplete=True):
            if step not in keep:
                try:
                    remove_folder(self.checkpoint_path(step))
                except OSError as error:
                    log.warning("%s could not be removed (%s)", self.checkpoint_path(step), error)


def _as_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
