"""Labelled sets as training tasks, in folders by fold; and the configuration of every run. Rows are never committed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from abmll.config import merge
from abmll.files import write_json, write_text
from abmll.question import Question, Task
from abmll.tasks.leaks import ComparedRow, overlaps, rows_of
from abmll.tasks.sources import load_tasks
from benchmarks.own.draws import LabelledSet, read_set
from experiments.unseen.prepare import write_task

PROTOCOL = Path(__file__).with_name("protocol.yaml")
WORDS = (
    *("amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "heron", "ivory", "jade", "kelp", "lotus"),
    *("maple", "north", "onyx", "pearl", "quartz", "raven", "slate", "tulip", "umber", "violet", "willow", "zinc"),
)
"""What labels are renamed to: words that say nothing about any text."""
QUESTIONS = "questions"
"""The folder of the question sets alone."""


@dataclass(frozen=True)
class Protocol:
    """The settings of protocol.yaml, see there."""

    folds: tuple[tuple[str, ...], ...]
    tasks: Mapping[str, int]
    run: Mapping[str, Any]
    systems: Mapping[str, Mapping[str, Any]]


def read_protocol(path: Path = PROTOCOL) -> Protocol:
    """Read it; every set is in one fold."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Protocol(tuple(map(tuple, values["folds"])), values["tasks"], values["run"], values["systems"])


def prepare(protocol: Protocol, own: Path, questions: Path, out: Path) -> dict[str, Any]:
    """Write the training tasks of the question sets alone and of each fold, and a configuration of every run.

    Args:
        own: folder of the labelled sets.
        questions: folder of the question sets to train on.
        out: gets `tasks/FOLDER` and `runs/SYSTEM.FOLDER.yaml`; FOLDER is `questions` or `fold-0`, ...

    Returns:
        Numbers of tasks and rows by folder, and the rows left out as they are nearly rows that are scored; also in
        `prepared.json`.
    """
    sets = {name: read_set(own, name) for fold in protocol.folds for name in fold}
    told: dict[str, Any] = {}
    for folder, tasks in _training_tasks(protocol, sets, load_tasks(str(questions), merge_choices=True)):
        kept, left_out = without_scored(tasks, sets, _scored(protocol, folder, sets))
        for task in kept:
            write_task(task, out / "tasks" / folder)
        told[folder] = {"tasks": len(kept), "rows": sum(len(t.train) for t in kept), "left_out": left_out}
        for system, settings in protocol.systems.items():
            config = merge(protocol.run, settings)
            config |= {"name": system, "tasks": {"train": {"source": str(out / "tasks" / folder)}}}
            write_text(out / "runs" / f"{system}.{folder}.yaml", yaml.safe_dump(config))
    write_json(out / "prepared.json", told)
    return told


def _training_tasks(
    protocol: Protocol, sets: Mapping[str, LabelledSet], questions: Sequence[Task]
) -> Iterator[tuple[str, list[Task]]]:
    plain = [replace(task, test=()) for task in questions]
    yield QUESTIONS, plain
    for i, fold in enumerate(protocol.folds):
        others = [data for name, data in sets.items() if name not in fold]
        yield f"fold-{i}", plain + [task for data in others for task in tasks_of(data, **protocol.tasks)]


def _scored(protocol: Protocol, folder: str, sets: Mapping[str, LabelledSet]) -> Sequence[str]:
    return tuple(sets) if folder == QUESTIONS else protocol.folds[int(folder.removeprefix("fold-"))]


def tasks_of(data: LabelledSet, labels: int, most: int, renamed: int) -> Iterator[Task]:
    """The training tasks of one labelled set, made of its train rows.

    Args:
        data: the set.
        labels: of a task, at most; the labels of a set with more are dealt into several tasks.
        most: such tasks.
        renamed: tasks beside each, of the same rows, with labels that are words of `WORDS`.
    """
    rng = np.random.default_rng(len(data.labels))
    dealt = rng.permutation(len(data.labels))
    parts = np.array_split(dealt, -(-len(dealt) // labels))[:most]
    for i, part in enumerate(parts):
        chosen = sorted(int(label) for label in part)
        rows = tuple(_with_labels(row, chosen) for row in data.train if row.answer in chosen)
        yield Task(f"{data.name}-{i}", rows)
        for j in range(renamed):
            words = tuple(str(word) for word in rng.choice(WORDS, len(chosen), replace=False))
            yield Task(f"{data.name}-{i}-renamed-{j}", tuple(replace(row, choices=words) for row in rows))


def _with_labels(row: Question, labels: Sequence[int]) -> Question:
    """The same row with some of its choices only, the right one among them."""
    return replace(row, choices=tuple(row.choices[i] for i in labels), answer=labels.index(row.answer or 0))


def without_scored(
    tasks: Sequence[Task], sets: Mapping[str, LabelledSet], scored: Sequence[str]
) -> tuple[list[Task], int]:
    """The training tasks without rows whose text is nearly that of a row that is adapted to or scored; and how many.

    Texts are compared alone: a labelled set's question is the same for all of its rows, and labels are renamed.
    """
    asked = _texts("scored", [row for name in scored for row in (*sets[name].train, *sets[name].test)])
    kept, left_out = [], 0
    for task in tasks:
        seen = {pair.first.question.id for pair in overlaps(_texts(task.name, task.train), asked)}
        rows = tuple(row for row in task.train if row.id not in seen)
        left_out += len(task.train) - len(rows)
        kept.append(replace(task, train=rows))
    return kept, left_out


def _texts(name: str, rows: Sequence[Question]) -> tuple[ComparedRow, ...]:
    """Rows as their texts alone, with nothing that a set gives all of its rows."""
    return rows_of(name, [Question(row.id, row.context or row.question, ("", "-"), None) for row in rows])
