"""What a comparison left on disk, read into values: the first half of a report.

The layout is `OUT/comparison.json` and, for every system and training seed, `OUT/SYSTEM/seed-N/` with
`cost.json`, `environment.json`, `journal.jsonl` and `predictions/CHECKPOINT/draw-D/TASK.jsonl`. CHECKPOINT is
`examples-00000360` (meta-trained on so many examples, then adapted) or `before-adaptation`. Where numbers are not
finite, `TASK.not-finite.json` stands in the place of a predictions file.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError
from abmll.files import MOST_JSON, check_regular, read_sealed_json
from abmll.metrics.not_finite import END, TRAINING, NotFinite, read_not_finite
from abmll.metrics.predictions import Predictions, read_predictions
from abmll.runs.record import COST, ENVIRONMENT, owner
from abmll.scoring.registered import METRICS, score_with
from abmll.scoring.scores import Scores

Cell = tuple[int, str]
"""An adaptation draw and the name of a task: what one predictions file is about."""

MOST_DRAWS = 10_000
MOST_COST = 1e18
NUMBERS = ("_seconds", "_bytes", "_parameters", "examples_consumed", "final_step")
"""Ends of the names in `cost.json` that are numbers."""
_FOLDER = re.compile(r"[^/\\\x00-\x1f]{1,255}")
_LISTED = 3  # names spelt out in a message before it says how many more there are


@dataclass(frozen=True)
class ScoredRun:
    """One system trained with one seed, as far as it got.

    Attributes:
        system: name of the system.
        seed: training seed.
        checkpoints: examples consumed -> cell -> scores, after adaptation.
        final: the predictions of the checkpoint with the most examples.
        before: scores of the final checkpoint without adaptation; empty if they were not made.
        cost: `cost.json`, None if there is none.
        environment: `environment.json`, None if there is none.
        ended: whether the journal says that training came to its end; None without a journal.
        not_finite: examples consumed -> cell -> what stands there instead of scores; no checkpoint without any.
        before_not_finite: the same of those without adaptation.
    """

    system: str
    seed: int
    checkpoints: Mapping[int, Mapping[Cell, Scores]]
    final: Mapping[Cell, Predictions]
    before: Mapping[Cell, Scores]
    cost: Mapping[str, Any] | None
    environment: Mapping[str, Any] | None
    ended: bool | None
    not_finite: Mapping[int, Mapping[Cell, NotFinite]] = field(default_factory=dict)
    before_not_finite: Mapping[Cell, NotFinite] = field(default_factory=dict)

    @property
    def broken(self) -> Mapping[Cell, NotFinite]:
        """Cells of the final checkpoint that are not finite."""
        return self.not_finite.get(self.examples, {})

    @property
    def examples(self) -> int:
        """Examples consumed at the final checkpoint; -1 without any."""
        return max(self.checkpoints, default=-1)


@dataclass(frozen=True)
class Comparison:
    """Everything that a report is made from.

    Attributes:
        name: what the comparison is called.
        note: a sentence that its readers must see first; may be empty.
        systems: names in the order of the tables.
        seeds: training seeds that were asked for.
        draws: adaptation draws that were asked for.
        reference: the system that the others are tested against.
        tasks: names of the unseen tasks.
        runs: system -> its counted runs: those with every task and draw, finite or not, at the system's last
            checkpoint.
        missing: one sentence for everything that is not there.
        metrics: names of registered metrics that the tables show.
    """

    name: str
    note: str
    systems: tuple[str, ...]
    seeds: tuple[int, ...]
    draws: int
    reference: str
    tasks: tuple[str, ...]
    runs: Mapping[str, tuple[ScoredRun, ...]]
    missing: tuple[str, ...]
    metrics: tuple[str, ...] = ()

    def cells(self) -> list[Cell]:
        """Every draw of every task, in the order of the tables."""
        return [(draw, task) for task in self.tasks for draw in range(self.draws)]

    def finite_runs(self) -> dict[str, tuple[ScoredRun, ...]]:
        """The systems that have scores: one that is not finite in any seed, draw or task has none."""
        return {system: runs for system, runs in self.runs.items() if not any(run.broken for run in runs)}


def collect(folder: Path) -> Comparison:
    """Read a comparison folder. What is not there yet is named in `missing`; what is damaged is an error.

    Raises:
        AbmllError: `comparison.json` is missing, or a file is damaged or in the wrong place; names the file.

    >>> collect(Path("runs/quickstart")).missing  # doctest: +SKIP
    ('abmll seed 2: no predictions yet',)
    """
    settings = _read_settings(folder / "comparison.json")
    missing: list[str] = []
    counted: dict[str, tuple[ScoredRun, ...]] = {}
    for system in settings["systems"]:
        runs = [_read_run(folder / system / f"seed-{seed}", system, seed, settings) for seed in settings["seeds"]]
        furthest = max((run.examples for run in runs), default=-1)
        reasons = [_shortfall(run, furthest, settings) for run in runs]
        for run, reason in zip(runs, reasons, strict=True):
            missing += [f"{system} seed {run.seed}: {text}" for text in (reason or _remark(run),) if text]
        good = tuple(run for run, reason in zip(runs, reasons, strict=True) if not reason)
        counted |= {system: good} if good else {}
    return Comparison(**settings, runs=counted, missing=tuple(missing))


def _read_settings(path: Path) -> dict[str, Any]:
    """The fields of `comparison.json`, checked, lists as tuples."""
    value = _read_object(path)
    out: dict[str, Any] = {}
    for key, kind in {"name": str, "note": str, "systems": list, "seeds": list, "draws": int}.items():
        out[key] = _checked(path, value, key, kind)
    value.setdefault("metrics", [])  # comparisons of before there were registered ones
    for key, kind in {"reference": str, "tasks": list, "metrics": list}.items():
        out[key] = _checked(path, value, key, kind)
    for key, kind in {"systems": str, "seeds": int, "tasks": str, "metrics": str}.items():
        if not all(isinstance(item, kind) for item in out[key]):
            raise AbmllError(f"{path}: {key!r} is {out[key]!r}, expected a list of {kind.__name__}")
        out[key] = tuple(dict.fromkeys(out[key]))
    if not 1 <= out["draws"] <= MOST_DRAWS:
        raise AbmllError(f"{path}: 'draws' is {out['draws']!r}, expected 1 to {MOST_DRAWS:,}")
    for name in out["systems"]:
        if name in (".", "..") or not _FOLDER.fullmatch(name):
            raise AbmllError(f"{path}: {name!r} cannot name a system: it is no name of a folder")
    for name in out["metrics"]:
        METRICS.lookup(name)
    if out["reference"] not in out["systems"]:
        raise AbmllError(f"{path}: the reference {out['reference']!r} is not among {', '.join(out['systems'])}")
    return out


def _checked(path: Path, value: dict[str, Any], key: str, kind: type) -> Any:
    if not isinstance(value.get(key), kind):
        raise AbmllError(f"{path}: {key!r} is {value.get(key)!r}, expected {kind.__name__}")
    return value[key]


def _read_object(path: Path, of: str | None = None) -> dict[str, Any]:
    if not path.exists():
        raise AbmllError(f"{path}: not found; is {path.parent} the folder of a comparison?")
    return read_sealed_json(path, of, most=MOST_JSON)


def _read_run(folder: Path, system: str, seed: int, settings: Mapping[str, Any]) -> ScoredRun:
    tasks, metrics = settings["tasks"], settings["metrics"]
    checkpoints: dict[int, dict[Cell, Scores]] = {}
    not_finite: dict[int, Mapping[Cell, NotFinite]] = {}
    final: dict[Cell, Predictions] = {}
    for examples, path in sorted(_checkpoint_folders(folder)):
        # rows are kept of the last checkpoint only: a long curve over many tasks would fill the memory
        final, broken = _read_cells(path, system, seed, tasks, examples)
        checkpoints[examples] = {cell: _score(path, predictions, metrics) for cell, predictions in final.items()}
        not_finite |= {examples: broken} if broken else {}
    path = folder / "predictions" / "before-adaptation"
    before, before_broken = _read_cells(path, system, seed, tasks, None)
    return ScoredRun(
        system=system,
        seed=seed,
        checkpoints=checkpoints,
        final=final,
        before={cell: _score(path, predictions, metrics) for cell, predictions in before.items()},
        cost=_read_cost(folder / COST, owner(COST, system, seed)),
        environment=_read_if_there(folder / ENVIRONMENT, owner(ENVIRONMENT, system, seed)),
        ended=_journal_ended(folder / "journal.jsonl"),
        not_finite=not_finite,
        before_not_finite=before_broken,
    )


def _checkpoint_folders(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for path in (folder / "predictions").glob("examples-*"):
        number = path.name.removeprefix("examples-")
        if not number.isdecimal():
            raise AbmllError(f"{path}: expected a number after 'examples-'")
        found.append((int(number), path))
    return found


def _read_cells(
    folder: Path, system: str, seed: int, tasks: tuple[str, ...], examples: int | None
) -> tuple[dict[Cell, Predictions], dict[Cell, NotFinite]]:
    """The predictions of a checkpoint, and what stands in the place of some; `examples` is None before adaptation."""
    expected: dict[str, Any] = {"system": system, "seed": seed, "adapted": examples is not None}
    expected |= {} if examples is None else {"examples_consumed": examples}
    out: dict[Cell, Predictions] = {}
    broken: dict[Cell, NotFinite] = {}
    for path in sorted(folder.glob("draw-*/*.jsonl")):
        found = read_predictions(path)
        out[_cell_of(found, path, expected, tasks, out)] = found
    for path in sorted(folder.glob(f"draw-*/*{END}")):
        marker = read_not_finite(path)
        broken[_cell_of(marker.asked, path, expected, tasks, {**out, **broken})] = marker
    return out, broken


def _cell_of(
    found: Predictions, path: Path, expected: Mapping[str, Any], tasks: tuple[str, ...], known: Mapping[Cell, object]
) -> Cell:
    """The cell of a file; one whose header says that it belongs elsewhere is an error."""
    draw = re.fullmatch(r"draw-(\d+)", path.parent.name)
    for key, value in {**expected, "draw": int(draw[1]) if draw else path.parent.name}.items():
        said = getattr(found, key)
        if said != value and not (key == "adapted" and said is None):  # early versions did not say
            raise AbmllError(f"{path}:1: its {key} is {said!r}, but it lies where {value!r} belongs")
    if found.task not in tasks:
        raise AbmllError(f"{path}:1: task {found.task!r} is not in comparison.json, which has {', '.join(tasks)}")
    if (found.draw, found.task) in known:
        raise AbmllError(f"{path}: a second file for task {found.task!r}, draw {found.draw}; delete one of them")
    return found.draw, found.task


def _score(folder: Path, predictions: Predictions, metrics: Sequence[str]) -> Scores:
    try:
        return score_with(predictions, metrics)
    except AbmllError as error:
        raise AbmllError(f"{folder}, draw {predictions.draw}, task {predictions.task!r}: {error}") from error


def _read_if_there(path: Path, of: str) -> dict[str, Any] | None:
    return _read_object(path, of) if path.exists() else None


def _read_cost(path: Path, of: str) -> dict[str, Any] | None:
    cost = _read_if_there(path, of)
    for name, value in (cost or {}).items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST_COST
        if name.endswith(NUMBERS) and value is not None and not number:
            raise AbmllError(f"{path}: {name!r} is {value!r}, not a number; the file is damaged, delete it")
    return cost


def _journal_ended(path: Path) -> bool | None:
    """Whether an "end" event is there. A torn last line is what a killed run leaves, any other is damage."""
    if not path.exists():
        return None
    ended = False
    try:
        check_regular(path)
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AbmllError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines[:-1], start=1):
        try:
            ended = json.loads(line)["event"] == "end"
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AbmllError(f"{path}:{number}: not a journal event ({error!r}); the file is damaged") from error
    return ended


def _shortfall(run: ScoredRun, furthest: int, settings: Mapping[str, Any]) -> str:
    """Why a run cannot be averaged with the others; empty if it can."""
    if run.examples < 0:
        return "no predictions yet"
    if run.examples < furthest:
        return f"stands at {run.examples:,} examples where another seed reached {furthest:,}; not counted"
    cells = [(draw, task) for task in settings["tasks"] for draw in range(settings["draws"])]
    absent = [f"{task} draw {draw}" for draw, task in cells if (draw, task) not in {**run.final, **run.broken}]
    if not absent:
        return ""
    names = ", ".join(absent[:_LISTED]) + (", ..." if len(absent) > _LISTED else "")
    return f"{len(absent)} of {len(cells)} predictions files are missing ({names}); not counted"


def _remark(run: ScoredRun) -> str:
    stopped = any(found.stage == TRAINING for found in run.broken.values())
    unended = run.ended is False and not stopped
    return "training has not ended; its last checkpoint so far is shown" if unended else ""
