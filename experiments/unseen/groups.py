"""Which test questions of the stored predictions share a passage: their files were written before rows had groups."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from abmll.metrics.predictions import Predictions
from abmll.question import Task
from experiments.unseen.packing import Packed
from experiments.unseen.protocol import HERE

GROUPS = HERE / "groups.json"

Groups = Mapping[str, Mapping[str, int]]
"""Task -> id of a question -> number of its group; questions that stand alone are not in it."""


def groups_in(tasks: Iterable[Task], packed: Iterable[Packed]) -> dict[str, dict[str, int]]:
    """The groups of those questions of the tasks that packed files answer."""
    answered: dict[str, set[str]] = {}
    for one in packed:
        for files in one.found.values():
            for (_, _, name), predictions in files.items():
                answered.setdefault(name, set()).update(row.id for row in predictions.rows)
    numbered: dict[str, dict[str, int]] = {}
    for task in tasks:
        names: dict[str, int] = {}
        rows = [q for q in task.test if q.group is not None and q.id in answered.get(task.name, ())]
        numbers = {q.id: names.setdefault(str(q.group), len(names)) for q in rows}
        numbered |= {task.name: numbers} if numbers else {}
    return numbered


def read_groups(path: Path = GROUPS) -> Groups:
    """What `groups_in` returned; nothing if there is no file."""
    groups: Groups = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return groups


def with_groups(packed: Packed, groups: Groups) -> Packed:
    """The same predictions, test questions with their groups."""
    rows = {
        row: {key: _grouped(predictions, groups) for key, predictions in files.items()}
        for row, files in packed.found.items()
    }
    return Packed(packed.about, rows)


def _grouped(predictions: Predictions, groups: Groups) -> Predictions:
    known = groups.get(predictions.task, {})
    rows = [replace(row, group=str(known[row.id])) if row.id in known else row for row in predictions.rows]
    return replace(predictions, rows=tuple(rows))
