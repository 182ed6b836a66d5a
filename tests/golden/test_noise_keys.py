"""Every key of noise, as it was when runs were first published: another key is another run.

Nothing here is rounded: the keys are equal, or the noise is another one. They are written anew as the loss curves are.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from abmll.adapters.layer import AdapterSet
from abmll.config import CompareConfig
from abmll.runs.compare import run_comparison
from tests.systems import TASKS, run_config, system_of, tiny_base, train
from tests.tiny import write_tasks

KEYS = Path(__file__).with_name("noise_keys.json")
REGENERATE = os.environ.get("ABMLL_REGENERATE_GOLDEN") == "1"


@contextmanager
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is drawn inside, and by which key: 64 bits in hexadecimal."""
    heard: list[str] = []

    def note(what: str, keys: Tensor | None) -> None:
        heard.extend(
            f"{what} {int(key) & 0xFFFFFFFFFFFFFFFF:016x}" for key in (() if keys is None else keys.reshape(-1))
        )

    def spy(name: str, keys_of: Any) -> None:
        plain = getattr(AdapterSet, name)

        def spied(self: AdapterSet, *args: Any, **options: Any) -> Any:
            note(name, keys_of(*args, **options))
            return plain(self, *args, **options)

        patch.setattr(AdapterSet, name, spied)

    with monkeypatch.context() as patch:
        spy("drawing", lambda sampler, keys=None, *more: None if sampler == "mean" else keys)
        spy("dropping", lambda rate, keys: keys if rate else None)
        spy("kl", lambda **options: options.get("key"))
        yield heard


def comparison(folder: Path) -> CompareConfig:
    """One untrained system, two draws of examples, folds: every key that an unseen task is adapted and asked by."""
    return CompareConfig.model_validate(
        {
            "model": {"shape": "tiny"},
            "tasks": {
                "train": {"source": str(write_tasks(folder / "train", TASKS[:2]))},
                "unseen": {"source": str(write_tasks(folder / "unseen", TASKS[3:]))},
                "leak_check": "off",
            },
            "training": {"iterations": 0},
            "adaptation": {"examples": 4, "steps": 2, "samples": 2, "folds": 2, "draws": 2, "seed": 7},
            "systems": {"abmll": {"method": {"name": "abmll"}}},
            "seeds": [5],
            "reference": "abmll",
        }
    )


def keys_of_everything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The keys of training, of adaptation, and of each kind of prediction, in the order in which they are used."""
    heard: dict[str, list[str]] = {}
    config = run_config("abmll", inner_steps=2, training={"iterations": 2, "meta_batch": 2, "seed": 3})
    with listening(monkeypatch) as heard["training"]:
        system, _ = train(config, folder / "run")
    with listening(monkeypatch) as heard["training by token noise"]:
        train(run_config("abmll", inner_steps=1, training_sampler="activation", training_samples=2), folder / "tokens")
    with listening(monkeypatch) as heard["training with dropout"]:
        train(run_config("lora", inner_steps=1, dropout=0.5), folder / "dropout")
    with listening(monkeypatch) as heard["a comparison"]:
        run_comparison(comparison(folder), folder / "comparison", tiny_base)
    with listening(monkeypatch) as heard["a user's rows"]:
        system.answer(TASKS[3].test[:2])
    dropping = system_of("lora", dropout=0.5)
    with listening(monkeypatch) as heard["a user's rows, dropout"]:
        dropping.answer(TASKS[3].test[:2])
    return heard


def test_the_keys_of_noise_are_those_of_the_first_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = keys_of_everything(tmp_path, monkeypatch)
    assert all(found.values())
    if REGENERATE:
        KEYS.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(KEYS.read_text())
