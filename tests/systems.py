"""Whole systems on the tiny model, built as the library builds them, for the tests of methods and of running."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abmll.config import RunConfig
from abmll.kernels.noise import key_tensor, noise_key
from abmll.models import LanguageModel
from abmll.process.world import World
from abmll.question import Question, Task
from abmll.systems.build import build_system
from abmll.systems.plans import resolve
from abmll.systems.system import System
from abmll.training.checkpoints import RunDirectory
from abmll.training.train import Learner, meta_train
from tests.tiny import tiny_model, tiny_tasks, tiny_tokenizer

TASKS = tiny_tasks(4)


def tiny_base(seed: int = 0) -> LanguageModel:
    """The tiny model as a loaded base model."""
    return LanguageModel(
        model=tiny_model(seed=seed),
        tokenizer=tiny_tokenizer(),
        name="tiny",
        revision=None,
        dtype=torch.float32,
        device=torch.device("cpu"),
        fingerprint="tiny",
        tokenizer_hash="tiny",
    )


def run_config(
    method: str,
    preset: str = "default",
    *,
    likelihood: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    adaptation: dict[str, Any] | None = None,
    **settings: Any,
) -> RunConfig:
    """A configuration for the tiny model; `settings` are the method's."""
    return RunConfig.model_validate(
        {
            "model": {"shape": "tiny"},
            "adapter": {"rank": 3, "alpha": 6.0},
            "method": {"name": method, "preset": preset, **settings},
            "likelihood": likelihood or {},
            "training": {"iterations": 3, **(training or {})},
            "adaptation": adaptation or {},
        }
    )


def system_of(method: str, preset: str = "default", **options: Any) -> System:
    """A system on a tiny model of its own; `options` as for `run_config`."""
    return build_system(run_config(method, preset, **options), tiny_base())


def train(
    config: RunConfig,
    folder: Path,
    *,
    tasks: Sequence[Task] = TASKS,
    system: System | None = None,
    snapshots: tuple[int, ...] = (),
    validate: Callable[[], float] | None = None,
    listener: Callable[[dict[str, Any]], None] = lambda event: None,
    world: World | None = None,
) -> tuple[System, int]:
    """Meta-train as a configuration says, in new objects unless `system` is given."""
    system, run = system or build_system(config, tiny_base()), resolve(config)
    final = meta_train(
        replace(Learner.of(system.method, system.batcher), graphs=system.graphs),
        run.episodes_of(tuple(tasks)),
        replace(run.training, snapshots=snapshots),
        RunDirectory(folder),
        world or World(),
        validate,
        listener,
    )
    return system, final


def key_of(*place: int) -> Tensor:
    """The noise key that the loops make of a place."""
    return key_tensor(noise_key(*place))[0]


def questions(count: int = 4, task: int = 0, start: int = 0) -> tuple[Question, ...]:
    """Some train questions of one tiny task."""
    return TASKS[task].train[start : start + count]


def values(system: System, slot: str) -> dict[str, Tensor]:
    """Copies of the factors of a slot, by name."""
    return {name: tensor.clone() for name, tensor in system.method.adapters.state_dict(slot).items()}


def gradients(system: System, slot: str) -> dict[str, Tensor | None]:
    """Copies of the gradients of a slot's factors, by the names of `values`."""
    parameters = system.method.adapters.parameters(slot)
    names = system.method.adapters.state_dict(slot)
    return {n: None if p.grad is None else p.grad.clone() for n, p in zip(names, parameters, strict=True)}


@torch.no_grad()
def scramble(system: System, seed: int = 0, size: float = 0.1) -> None:
    """Make every factor of theta and phi a random one, so that nothing is zero or equal by luck."""
    generator = torch.Generator().manual_seed(seed)
    for slot in ("shared", "task"):
        for parameter in system.method.adapters.parameters(slot):
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest absolute difference between two sets of tensors."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
