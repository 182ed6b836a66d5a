"""What one setting does: the same harness at points around the chosen settings, each a folder of bundles of its own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from abmll.errors import AbmllError
from abmll.files import write_bytes, write_json
from abmll.models import LanguageModel
from abmll.running.roles import load_run_tasks
from experiments.unseen.bundles import Bundles, unpack
from experiments.unseen.clock import since_start
from experiments.unseen.evidence import SOURCE, Values
from experiments.unseen.figures import sensitivity
from experiments.unseen.protocol import HERE, Protocol
from experiments.unseen.results import read_results
from experiments.unseen.run import LOG, failures, run

QUESTIONS = HERE / "questions.yaml"
TOLD = ("nll_scaled", "accuracy", "nll", "brier")


@dataclass(frozen=True)
class Point:
    """One system at one value of one setting.

    Attributes:
        question: the setting's name.
        value: what the axis of a figure shows.
        overrides: laid on the protocol.
        system: measured there.
        seed: of training.
    """

    question: str
    value: float
    overrides: tuple[str, ...]
    system: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.question}-{self.value:g}.{self.system}"


def points(given: Mapping[str, Any]) -> Iterator[Point]:
    """The points of a `questions.yaml`, in its order."""
    for question, asked in given["questions"].items():
        for value in asked["values"]:
            parts = value if isinstance(value, list) else [value]
            overrides = (*given["set"], *(text.format(*parts) for text in asked["set"]))
            for system in asked["systems"]:
                yield Point(question, float(parts[0]), overrides, system, given["seed"])


def read_points(path: Path = QUESTIONS) -> tuple[Point, ...]:
    """The points of a file."""
    return tuple(points(yaml.safe_load(path.read_text(encoding="utf-8"))))


def ask(
    chosen: tuple[Point, ...],
    protocol: Callable[[tuple[str, ...]], Protocol],
    load: Callable[[Protocol], LanguageModel],
    out: Path,
    *,
    work: Path,
    only: str = "*",
    minutes: float | None = None,
    commit: str = "",
) -> bool:
    """Run the points whose names fit the patterns; False if time was over. What is there is not run again."""
    loaded: list[LanguageModel] = []

    def base(of: Protocol) -> LanguageModel:
        if not loaded:
            loaded.append(load(of))
        return loaded[0]

    for point in chosen:
        if not any(fnmatchcase(point.name, pattern) for pattern in only.split(",")):
            continue
        laid, folder = protocol(point.overrides), out / point.name
        target = f"{point.system}.seed-{point.seed}"
        options: dict[str, Any] = {"only": target, "minutes": minutes, "commit": commit}
        options |= {"packed": folder / "packed", "work": work / point.name}
        if minutes is not None and since_start() > 60 * minutes:
            return False
        if not run(laid, load_run_tasks(laid.config), partial(base, laid), folder, **options):
            return False
    return True


def answers(chosen: tuple[Point, ...], out: Path) -> dict[str, Any]:
    """Scores of the points whose bundles are there: question -> system -> [{value, nll_scaled, accuracy, ...}]."""
    found: dict[str, Any] = {}
    for point in chosen:
        told, folder = found.setdefault(point.question, {}), out / point.name
        if failures(folder / LOG):  # a setting that breaks training is an answer
            told.setdefault(point.system, []).append({"value": point.value, "failed": True})
        bundles = Bundles(folder)
        if not bundles.paths():
            continue
        unpack(bundles.paths(), folder / "packed")
        results = read_results((folder / "packed").glob("*.parquet"), reference=point.system)
        values = Values(results.final, results.tasks, results.draws)
        for name in results.final:
            if any(one["value"] == point.value for one in told.get(name, ())):
                continue  # a baseline, which stands beside each system
            scores = [
                [values.scores(name, seed, (draw, task)) for task in results.tasks for draw in range(results.draws)]
                for seed in results.final[name]
            ]
            means = {
                metric: float(np.mean([[one[SOURCE.get(metric, metric)] for one in each] for each in scores]))
                for metric in TOLD
            }
            told.setdefault(name, []).append({"value": point.value, **means})
    return {question: told for question, told in found.items() if told}


def write_answers(chosen: tuple[Point, ...], out: Path, place: Path = HERE) -> dict[str, Any]:
    """Write `questions.json` and its figure from bundles.

    Raises:
        AbmllError: there are none.
    """
    found = answers(chosen, out)
    if not found:
        raise AbmllError(f"{out}: nothing of any question is there; run `questions` with --out {out} first")
    write_json(place / "questions.json", found)
    write_bytes(place / "figures" / "questions.png", sensitivity(found))
    return found
