"""Folders of predictions as rows of tasks: system -> tasks. Packed Parquet files and predictions files alike."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from abmll.calibrators import TaskRows
from abmll.errors import AbmllError
from abmll.metrics.predictions import Predictions, read_predictions
from experiments.unseen.cells import read_targets

BEFORE = "before-adaptation"

Systems = dict[str, list[TaskRows]]
"""System -> its tasks, sorted by name; a task that was predicted after several draws or seeds occurs several times."""


def read_systems(folders: Iterable[Path]) -> Systems:
    """Every system of the folders, at its last checkpoint.

    A system that was neither meta-trained nor adapted has not learned its adaptation examples either: their answers are
    its held-out rows, and it is called `SYSTEM, not adapted`. Others have held-out rows by `adaptation.folds`; what has
    none is left out.

    Raises:
        AbmllError: a file is damaged, or nothing can be calibrated.
    """
    last: dict[tuple[str, str, int, int], tuple[str, Predictions]] = {}
    for folder in folders:
        for checkpoint, predictions in _all(folder):
            usable = _usable(checkpoint, predictions)
            if usable is None:
                continue
            key = usable.system, usable.task, usable.seed, usable.draw
            last[key] = max(last.get(key, ("", usable)), (checkpoint, usable), key=lambda pair: pair[0])
    if not last:
        raise AbmllError("no predictions with held-out rows in these folders; predict with `adaptation.folds`")
    systems: Systems = {}
    for (system, *_), (_, predictions) in sorted(last.items()):
        systems.setdefault(system, []).append(TaskRows.from_predictions(predictions))
    return systems


def _all(folder: Path) -> Iterator[tuple[str, Predictions]]:
    """Every predictions of a folder, with the name of its checkpoint."""
    folders = {path.parent for path in folder.rglob("*.parquet")}
    for target in (one for each in sorted(folders) for one in read_targets(each)):
        for files in target.found.values():
            yield from ((checkpoint, predictions) for (checkpoint, _, _), predictions in files.items())
    for path in sorted(folder.rglob("draw-*/*.jsonl")):
        yield path.parent.parent.name, read_predictions(path)


def _usable(checkpoint: str, predictions: Predictions) -> Predictions | None:
    """Predictions that have held-out rows; None if they have none."""
    if checkpoint != BEFORE:
        return predictions if predictions.held_out_rows else None
    if predictions.system != "pretrained" or not predictions.adaptation_rows:
        return None
    return replace(predictions, system=f"{predictions.system}, not adapted", held_out_rows=predictions.adaptation_rows)
