"""What is interrupted: a tiny run directory, and a tiny comparison on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from abmll.files import OLD, PART
from abmll.training.checkpoints import Checkpoint, RunDirectory
from tests.systems import run_config, same, train
from tests.tiny import save_tiny, tiny_tasks, write_tasks

COSTS = ("seconds", "tasks_per_second", "peak_memory_bytes", "ranks", "graphs")
SYSTEMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "abmll": ("abmll", "default", {"mean_prior_weight": 1e-9}),
    "carries everything": ("abmll", "paper", {"phi": "persistent", "inner_optimizer_state": "persistent"}),
    "lora": ("lora", "default", {}),
    "reptile": ("reptile", "default", {"outer_schedule": "constant", "training": {"meta_batch": 2}}),
}


def trainer(system: str, folder: Path, iterations: int, **options: Any) -> Callable[[], object]:
    """Training of a system on the tiny model, with a checkpoint after every meta-iteration."""
    method, preset, settings = SYSTEMS[system]
    training = {"iterations": iterations, "checkpoint_every": 1, **settings.get("training", {})}
    config = run_config(method, preset, **{"inner_steps": 2, **settings, "training": training})
    return lambda: train(config, folder, **options)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The journal without what a call cost."""
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in COSTS} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """The last checkpoint, tensor by tensor and bit by bit, and the journal."""
    first, second = (_last(folder) for folder in (one, other))
    assert first.step == second.step
    assert first.state == second.state
    assert same(first.shared, second.shared), "theta differs"
    assert same(first.optimizer, second.optimizer), "moments differ"
    assert rows(one) == rows(other), "the journals differ"


def _last(folder: Path) -> Checkpoint:
    found = RunDirectory(folder, strict=True).latest()
    assert found is not None
    return found


def leftovers(folder: Path) -> list[Path]:
    """Half-written files and folders."""
    return [p for p in folder.rglob(".*") if p.suffix in (PART, OLD)]


def place_comparison(folder: Path) -> Path:
    """A folder with a tiny model, tasks, `train.yaml` and `compare.yaml`, with validation, for the command line."""
    save_tiny(folder / "model")
    tasks = tiny_tasks(5, n_rows=20, n_test=6)
    for name, chosen in (("train", tasks[:3]), ("validation", tasks[3:4]), ("unseen", tasks[4:])):
        write_tasks(folder / name, chosen)
    base: dict[str, Any] = {
        "model": {"source": "model", "device": "cpu", "dtype": "float32"},
        "adapter": {"rank": 3, "alpha": 6.0},
        "tasks": {name: {"source": name} for name in ("train", "validation", "unseen")} | {"leak_check": "off"},
        "training": {"iterations": 4, "checkpoint_every": 2, "validate_every": 2},
        "adaptation": {"steps": 2, "examples": 6, "samples": 2, "test_questions": 4},
    }
    method = {"name": "abmll", "inner_steps": 2}
    lora = {"method": {"name": "lora", "inner_steps": 1}}
    for name, values in {
        "train": {**base, "name": "tiny", "method": method},
        "compare": {
            **base,
            "name": "tiny-compare",
            "systems": {"abmll": {"method": method}, "lora": lora},
            "reference": "lora",
        },
    }.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder


def results(out: Path) -> dict[str, bytes]:
    """Every predictions file of a comparison, and every adapter's weights, by place."""
    files = [*out.glob("*/seed-*/predictions/**/*.jsonl"), *out.glob("*/seed-*/adapter/*.safetensors")]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(files)}
