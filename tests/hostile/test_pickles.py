"""No pickle is reachable: planted wherever files are read from, none is ever opened."""

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from abmll.errors import AbmllError
from tests.hostile.targets import TARGETS

NAMES = ("adapter_model.bin", "rng_state.pth", "optimizer.pt", ".metadata", "training_args.bin", "state.pkl")


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", sorted(TARGETS.keys() - {"reports"}))
def test_trust_41_pickles_in_every_folder_that_is_read_are_never_opened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, canary = tmp_path / "good", tmp_path / "canary"
    folder.mkdir()
    TARGETS[kind].build(folder)
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in NAMES:
            (place / name).write_bytes(pickle.dumps(Canary(canary)))

    def opened(*args: Any, **options: Any) -> Any:
        raise AssertionError("a pickle was opened")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, opened)
    with contextlib.suppress(AbmllError):
        TARGETS[kind].read(folder)
    assert not canary.exists()


def test_the_canary_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
