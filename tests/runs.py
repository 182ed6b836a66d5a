"""Whole run directories on a tiny model that lies in a folder, for the tests of adapters and exports."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abmll.config import RunConfig
from abmll.models import LanguageModel
from abmll.question import Question, Task
from abmll.runs import train_run as training
from abmll.runs.prepare import Run, prepare_run, tasks_of
from abmll.runs.roles import RunTasks
from abmll.systems.build import build_system, load_base
from abmll.systems.plans import resolve
from abmll.systems.system import System
from tests.tiny import save_tiny, tiny_tasks, write_tasks

UNSEEN = tiny_tasks(6, seed=2)[4]  # no row is one of those of `place_tiny`
WIDE = {"std_init": 0.05, "outer_lr": 1.0, "inner_lr": 1e-2}
"""Stds that a draw can be told from the mean by, and rates that move the mean in a few steps."""


def silent(event: dict[str, Any]) -> None:
    """Nobody listens."""


def never() -> LanguageModel:
    """A loader of a base model that must not be called."""
    raise AssertionError("the model was loaded")


def place_tiny(folder: Path) -> Path:
    """A folder with `model/` and the tasks `train/`; the global generator is left as it was."""
    save_tiny(folder / "model")
    write_tasks(folder / "train", tiny_tasks(3, n_rows=16))
    return folder


def config_in(folder: Path, system: str = "abmll", **sections: Any) -> RunConfig:
    """A configuration for what `place_tiny` made; `sections` are laid on it."""
    settings = WIDE if system == "abmll" else {}
    values: dict[str, Any] = {
        "model": {"source": str(folder / "model"), "device": "cpu", "dtype": "float32"},
        "adapter": {"rank": 3, "alpha": 6.0},
        "method": {"name": system, "inner_steps": 2, **settings},
        "tasks": {"train": {"source": str(folder / "train")}},
        "training": {"iterations": 3},
        "adaptation": {"samples": 4, "steps": 3, "examples": 6},
    }
    merged = {name: {**values.get(name, {}), **sections.get(name, {})} for name in {**values, **sections}}
    return RunConfig.model_validate(merged)


def system_in(config: RunConfig) -> System:
    """A system of a configuration, on a base model of its own."""
    return build_system(config, load_base(config.model))


def train_run(config: RunConfig, run: Path) -> System:
    """Train into a run directory and return the system."""
    system = system_in(config)
    training.train_run(run_in(run, config), lambda: system)
    return system


def run_in(
    folder: Path,
    config: RunConfig,
    train: Sequence[Task] | None = None,
    unseen: Sequence[Task] = (),
    validation: Sequence[Task] = (),
    **options: Any,
) -> Run:
    """A run in a folder; the tasks to train on are those of the configuration if none are given."""
    tasks = tasks_of(config.tasks.train) if train is None else tuple(train)
    return prepare_run(resolve(config), RunTasks(tasks, tuple(validation), tuple(unseen)), folder, **options)


@torch.no_grad()
def plain_probabilities(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[Tensor]:
    """Choice probabilities of a bare Hugging Face model, one choice at a time and no padding: an oracle for cloze."""
    found = []
    for question in questions:
        context = f"{question.context}\n\n" if question.context else ""
        prompt = f"{context}Question: {question.question}\nAnswer:"
        start = len(tokenizer(prompt)["input_ids"])
        scores = []
        for choice in question.choices:
            ids = torch.tensor([tokenizer(f"{prompt} {choice}")["input_ids"]])
            logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
            answer = ids[0, start:]
            scores.append(logs[start - 1 : -1].gather(1, answer[:, None]).mean())
        found.append(torch.stack(scores).softmax(0))
    return found
