"""What a run leaves on disk: configuration, journal, checkpoints.

A checkpoint is a folder written beside its place, flushed, renamed, and complete only once `COMPLETE` holds the
SHA-256 of every file in it. Whatever is damaged or half written is passed over with a warning.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from abmll.errors import AbmllError
from abmll.files import write_bytes, write_text

log = logging.getLogger(__name__)

MARKER = "COMPLETE"


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


class RunDirectory:
    """The folder of one run.

    Args:
        path: the folder; made when something is first written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def journal(self) -> Path:
        """JSON lines, one event each."""
        return self.path / "journal.jsonl"

    def write_config(self, text: str) -> None:
        """Keep the configuration.

        Raises:
            AbmllError: the folder already holds a run of another configuration.
        """
        file = self.path / "config.yaml"
        if file.exists() and file.read_text(encoding="utf-8") != text:
            raise AbmllError(
                f"{self.path} holds a run of another configuration (see {file}). Choose another folder, remove this "
                "one, or go back to its configuration"
            )
        write_text(file, text)

    def log(self, event: dict[str, Any]) -> None:
        """Add one line to the journal."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")

    def cut_journal(self, step: int) -> None:
        """Drop what the journal says of steps after `step`: they will be done again. It says so if training ends."""
        if not self.journal.exists():
            return
        kept = []
        for line in self.journal.read_text(encoding="utf-8").splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                break  # a line that a stop cut short: nothing after it counts
            if event.get("event") != "end" and event.get("step", 0) <= step:
                kept.append(line)
        write_text(self.journal, "".join(line + "\n" for line in kept))

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint after `step` meta-iterations is."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; a complete one of the same step is replaced."""
        final = self.checkpoint_path(checkpoint.step)
        beside = final.with_name(f".{final.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        contents = {
            "shared.safetensors": save_tensors(_contiguous(checkpoint.shared)),
            "optimizer.safetensors": save_tensors(_contiguous(checkpoint.optimizer)),
            "state.json": json.dumps({"step": checkpoint.step, **checkpoint.state}, indent=1).encode(),
        }
        for name, data in contents.items():
            write_bytes(beside / name, data)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        write_text(beside / MARKER, json.dumps(sums, indent=1) + "\n")
        if final.exists():
            shutil.rmtree(final)
        beside.replace(final)

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
        except (SafetensorError, ValueError, KeyError, RecursionError) as error:
            raise AbmllError(f"{folder}: not a checkpoint of this version ({error})") from error
        return Checkpoint(state.pop("step"), tensors[0], tensors[1], state)

    def steps(self, *, incomplete: bool = False) -> list[int]:
        """Steps of the checkpoints that look complete, or of all that are there, oldest first."""
        found = (self.path / "checkpoints").glob("step-*")
        ours = [p for p in found if p.name.removeprefix("step-").isdecimal() and (incomplete or (p / MARKER).exists())]
        return sorted(int(p.name.removeprefix("step-")) for p in ours)

    def latest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies (and can be trained on from), or None."""
        for step in reversed(self.steps(incomplete=True)):
            if at_most is not None and step > at_most:
                continue
            try:
                return self.load(step)
            except AbmllError as error:
                log.warning("%s; going back to an earlier one", error)
        return None

    def prune(self, keep: set[int]) -> None:
        """Remove checkpoints of other steps; one that cannot be removed is only mentioned."""
        for step in self.steps(incomplete=True):
            if step not in keep:
                try:
                    shutil.rmtree(self.checkpoint_path(step))
                except OSError as error:
                    log.warning("%s could not be removed (%s)", self.checkpoint_path(step), error)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
