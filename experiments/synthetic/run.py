"""One run: a setting and a seed to a small JSON."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abmll.files import write_json
from abmll.process.environment import environment
from experiments.synthetic.problem import make_problem
from experiments.synthetic.scores import of_system, reference
from experiments.synthetic.settings import SEEDS, Setting
from experiments.synthetic.system import System, build, train

RESULTS = Path(__file__).parent / "results"
POINTS_OF_CURVE = 20


def missing(settings: tuple[Setting, ...], folder: Path, only: str = "") -> list[tuple[Setting, int]]:
    """Runs whose result is not there or is of other settings.

    First one seed of everything, then the other seeds of what has five, of what has two, and of what is `late`.
    """
    jobs = [(seed, setting) for setting in settings for seed in setting.seeds if only in f"{setting.path}-{seed}"]
    return [(s, seed) for seed, s in sorted(jobs, key=_turn) if not _is_done(s, seed, folder)]


def _turn(job: tuple[int, Setting]) -> tuple[bool, bool, int]:
    seed, setting = job
    return setting.late, seed > 0 and len(setting.seeds) < len(SEEDS), seed


def result_path(setting: Setting, seed: int, folder: Path) -> Path:
    """Where a run's result goes."""
    return folder / f"{setting.path}-{seed}.json"


def _is_done(setting: Setting, seed: int, folder: Path) -> bool:
    path = result_path(setting, seed, folder)
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["setting"] == describe(setting)


def describe(setting: Setting) -> dict[str, Any]:
    """What decides a run's outcome, its seed apart."""
    names = ("spread", "method", "rank", "iterations", "settings")
    described = {name: getattr(setting, name) for name in names}
    return {**described, "true_theta": True} if setting.true_theta else described


def run(setting: Setting, seed: int, folder: Path = RESULTS) -> dict[str, Any]:
    """Meta-train, adapt to the unseen tasks, score, and write the result."""
    problem = make_problem(setting.spread, seed)
    system = build(problem, setting.method, setting.settings, rank=setting.rank, seed=seed)
    curve = _learn(system, setting, seed)
    result = {
        "setting": describe(setting),
        "seed": seed,
        "environment": environment(torch.device("cpu")),
        "scores": rounded(of_system(system)),
        "reference": rounded(reference(setting.spread, seed)),
        "log_ratio_curve": rounded(curve),
    }
    write_json(result_path(setting, seed, folder), result)
    return result


def _learn(system: System, setting: Setting, seed: int) -> list[tuple[int, float]]:
    """Give theta its values; how var_theta came about, at some twenty steps."""
    curve: list[tuple[int, float]] = []
    every = max(1, setting.iterations // POINTS_OF_CURVE)

    def watch(step: int) -> None:
        if step % every == 0:
            curve.append(_point(system, step))

    if setting.true_theta:
        system.set_theta(system.problem.mean, system.problem.spread)
    else:
        train(system, setting.iterations, seed, watch)
    return curve


def _point(system: System, step: int) -> tuple[int, float]:
    """Median of log10 (var_theta / truth) over the weights that vary."""
    std: Tensor | None = system.theta[1]
    free = system.problem.spread > 0
    return step, float("nan") if std is None else float(2 * (std / system.problem.spread)[free].log10().median())


def rounded(value: Any) -> Any:
    """Numbers to five digits, those that are not finite as null: files that can be read and compared."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
