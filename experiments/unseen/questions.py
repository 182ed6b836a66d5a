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
from abmll.files import write_bytes, write_text
from abmll.metrics.baselines import LABEL_FREQUENCY, UNIFORM
from abmll.models import LanguageModel
from abmll.report.tables import TextTable, markdown, number, percent, signed
from abmll.runs.prepare import load_run_tasks
from experiments.short_json import write_gzipped
from experiments.unseen.bundles import Bundles, unpack
from experiments.unseen.cells import read_targets
from experiments.unseen.clock import since_start
from experiments.unseen.evidence import SOURCE, Values, paired
from experiments.unseen.figures import sensitivity
from experiments.unseen.protocol import HERE, Protocol
from experiments.unseen.results import Results, read_results
from experiments.unseen.run import LOG, failures, run

QUESTIONS = HERE / "questions.yaml"
TOLD = ("nll_scaled", "accuracy", "nll", "brier")
HEAD = """# Questions: one setting at a time

Written by `python -m experiments.unseen answers`. One training seed, two adaptation draws. Minus chosen: the point less
the same system and seed at the settings that the search chose, on the same questions and draws, with a 95 % interval
over draws and questions alone. There is no p: another seed may answer otherwise, and of nine points that are the chosen
settings trained again, on a GPU not to the bit, two had intervals that left 0 out. Structured LoRA begins each task
without moments of the inner steps (`inner_optimizer_state: fresh`)."""


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


def answers(chosen: tuple[Point, ...], out: Path, base: Path) -> dict[str, Any]:
    """Scores of the points whose bundles are there, and their differences to the same seed at the chosen settings.

    Returns:
        question -> system -> [{value, nll_scaled, accuracy, nll, brier, minus_chosen}]; `minus_chosen` is a metric's
        {difference, interval, p} over draws and questions, where `base` has that system's packed file; p is None, as
        there is one seed.
    """
    found: dict[str, Any] = {}
    for point in chosen:
        told, folder = found.setdefault(point.question, {}), out / point.name
        if failures(folder / LOG):  # a setting that breaks training is an answer
            told.setdefault(point.system, []).append({"value": point.value, "failed": True})
        bundles = Bundles(folder)
        if not bundles.paths():
            continue
        unpack(bundles.paths(), folder / "packed")
        results = read_results(read_targets(folder / "packed"), reference=point.system)
        values = Values(results.final, results.tasks, results.draws)
        tests = _minus_chosen(point, results, base)
        for name in results.final:
            if any(one["value"] == point.value for one in told.get(name, ())):
                continue  # a baseline, which stands beside each system
            entry = {"value": point.value, **_means(values, name)}
            told.setdefault(name, []).append({**entry, "minus_chosen": tests} if name == point.system else entry)
    return {question: told for question, told in found.items() if told}


def _means(values: Values, name: str) -> dict[str, float]:
    cells = [(draw, task) for task in values.tasks for draw in range(values.draws)]
    scores = [values.scores(name, seed, cell) for seed in values.final[name] for cell in cells]
    return {metric: float(np.mean([one[SOURCE.get(metric, metric)] for one in scores])) for metric in TOLD}


def _minus_chosen(point: Point, results: Results, base: Path) -> dict[str, Any]:
    same = (point.system, point.seed)
    targets = [one for one in read_targets(base) if (one.about["system"], one.about["seed"]) == same]
    if not targets:
        return {}
    chosen = read_results(targets, reference=point.system)
    table = {"point": results.final[point.system], "chosen": chosen.final[point.system]}
    values = Values(table, results.tasks, min(results.draws, chosen.draws))
    told = {}
    for metric in ("nll_scaled", "accuracy"):
        if (test := paired(values, "point", "chosen", metric, results.tasks)) is not None:
            told[metric] = {"difference": test.difference, "interval": [test.low, test.high], "p": test.p_value}
    return told


def answer_table(found: Mapping[str, Any]) -> str:
    """The answers as Markdown, baselines and mean weights left out."""
    header = (
        "Question",
        "System",
        "Value",
        "NLL scaled",
        "minus chosen",
        "95 %",
        "Accuracy %",
        "minus chosen",
        "95 %",
        "NLL",
    )
    rows = []
    for question, systems in found.items():
        for name, points in systems.items():
            if name in (UNIFORM, LABEL_FREQUENCY) or name.endswith("_mean"):
                continue
            for one in sorted(points, key=lambda e: float(e["value"])):
                start = (question, name, f"{one['value']:g}")
                if "failed" in one:
                    rows.append((*start, "not finite", *["-"] * 6))
                    continue
                nll, accuracy = (one.get("minus_chosen", {}).get(metric) for metric in ("nll_scaled", "accuracy"))
                rows.append(
                    (
                        *start,
                        number(one["nll_scaled"]),
                        *_test(nll),
                        percent(one["accuracy"]),
                        *_test(accuracy),
                        number(one["nll"]),
                    )
                )
    return markdown(TextTable("", header, tuple(rows)))


def _test(test: Mapping[str, Any] | None) -> tuple[str, str]:
    if not test:
        return "-", "-"
    low, high = map(signed, test["interval"])
    return signed(test["difference"]), f"[{low}, {high}]"


def write_answers(chosen: tuple[Point, ...], out: Path, place: Path = HERE, base: Path | None = None) -> dict[str, Any]:
    """Write `questions.json.gz`, `questions.md` and the figure from bundles.

    `base` has the packed files to compare with.

    Raises:
        AbmllError: there are none.
    """
    found = answers(chosen, out, base or place / "packed")
    if not found:
        raise AbmllError(f"{out}: nothing of any question is there; run `questions` with --out {out} first")
    write_gzipped(place / "questions.json.gz", found)
    write_text(place / "questions.md", f"{HEAD}\n\n{answer_table(found)}\n")
    write_bytes(place / "figures" / "questions.png", sensitivity(found))
    return found
