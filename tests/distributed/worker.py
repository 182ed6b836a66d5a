"""What each of two ranks runs: started by test_two_ranks.py in two forks.

Writes `FOLDER/CASE-RANK.safetensors` with theta for every case, and `FOLDER/outcome-RANK.json`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from abmll.adapters.folder import write_adapter
from abmll.process.world import World, leave_world
from abmll.training.inner import NonFiniteError
from abmll.training.resume import theta
from tests.systems import run_config, system_of, train

SHORT: dict[str, Any] = {"inner_steps": 2}
LEARNED = {"likelihood": {"learn_temperature": True}}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "reptile": ("reptile", SHORT, 2),
    "abmll": ("abmll", {**SHORT, "mean_prior_weight": 1e-9, "precision_prior_weight": 1e-9, **LEARNED}, 2),
    "lora": ("lora", SHORT, 2),
    "abmll-persistent": ("abmll", {**SHORT, "phi": "persistent"}, 2),
    "fomaml-three-tasks": ("fomaml", SHORT, 3),
    "lift": ("lift", SHORT, 2),
    "structured": ("structured", SHORT, 2),
    "structured-one-task": ("structured", {**SHORT, "inner_optimizer_state": "fresh"}, 1),
}
"""Name -> method, settings, tasks of a meta-batch; the last two do not divide by two ranks."""

TRAINING = {"iterations": 4, "checkpoint_every": 2}


def run_case(name: str, folder: Path, world: World) -> dict[str, torch.Tensor]:
    """Train a case and return theta."""
    method, settings, meta_batch = CASES[name]
    config = run_config(method, **settings, training={**TRAINING, "meta_batch": meta_batch})
    system, _ = train(config, folder, world=world)
    return {n: t.clone() for n, t in theta(system.method).items()}


def poisoned_query(folder: Path, world: World) -> str:
    """Training where the query batch of the second rank's task has an infinite loss; returns the error's name."""
    system = system_of("fomaml", **SHORT)
    nll, calls = system.method.nll, []

    def poisoned(batch: Any) -> torch.Tensor:
        calls.append(1)
        return nll(batch) + (float("inf") if world.rank == 1 and len(calls) == 6 else 0.0)  # in its second iteration

    system.method.nll = poisoned
    config = run_config("fomaml", **SHORT, training={"iterations": 3, "meta_batch": 2, "checkpoint_every": 1})
    try:
        train(config, folder, system=system, world=world)
    except NonFiniteError as error:
        return type(error).__name__
    return "none"


def write_run_adapter(folder: Path, world: World) -> None:
    """Train, and let the main rank write theta as an adapter, as a run does; each rank keeps theta beside it."""
    config = run_config("abmll", **SHORT, training={"iterations": 2, "meta_batch": 2})
    system, _ = train(config, folder / f"adapter-run-{world.rank}", world=world)
    save_file(theta(system.method), folder / f"adapter-{world.rank}.safetensors")
    if world.is_main:
        write_adapter(system.stored("shared"), folder / "adapter")
    world.tell(0)  # ranks meet


def every_case(folder: Path, world: World) -> None:
    """Every case, then the poisoned one."""
    for name in CASES:
        # each rank has a folder of its own, so that a test sees who wrote
        save_file(
            run_case(name, folder / f"{name}-run-{world.rank}", world), folder / f"{name}-{world.rank}.safetensors"
        )
    write_run_adapter(folder, world)
    outcome = {"rank": world.rank, "size": world.size, "error": poisoned_query(folder / f"bad-run-{world.rank}", world)}
    (folder / f"outcome-{world.rank}.json").write_text(json.dumps(outcome))
    leave_world()
