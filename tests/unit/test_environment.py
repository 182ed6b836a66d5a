"""What runs from a checkout on the path, without being installed, runs all the same."""

import importlib.metadata
from pathlib import Path

import pytest
import torch

from abmll.models import random_model
from abmll.process.environment import environment
from abmll.systems.adapters import load_adapter
from abmll.systems.build import build_system


def test_an_adapter_is_written_where_abmll_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = importlib.metadata.version

    def version(name: str) -> str:
        if name == "abmll":
            raise importlib.metadata.PackageNotFoundError(name)
        return asked(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert environment(torch.device("cpu"))["abmll"] is None
    base = random_model("tiny-llama", device="cpu")
    system = build_system("reptile", base)
    system.save(tmp_path / "run")
    system.close()
    load_adapter(tmp_path / "run", base)
