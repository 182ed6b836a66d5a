"""The second section's settings, its licences, and its training tasks by form and fold."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from abmll.config import merge
from abmll.errors import AbmllError
from abmll.files import write_json
from abmll.question import Task
from abmll.tasks.sources import load_tasks
from benchmarks.own.draws import Cell, LabelledSet, read_set
from experiments.unseen.prepare import write_task
from experiments.user_tasks.prepare import Protocol, read_protocol, tasks_of, without_scored

PROTOCOL = Path(__file__).with_name("protocol.yaml")
PERMITTED, ALL = "permitted", "all"
"""The forms: trained on permitted rows alone, or on all."""
EVERY = "every"
"""The fold of a run that is trained on all permitted sets and scored on none."""
Reading = Literal["letter", "cloze"]
READINGS: tuple[Reading, ...] = ("cloze", "letter")
"""The one that takes longer to train first."""


@dataclass(frozen=True)
class Second:
    """The settings of protocol.yaml, see there; `first` are those of the first section."""

    first: Protocol
    system: str
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    cloze: Mapping[str, tuple[int, ...]]
    shipped: Mapping[str, Any]
    open: frozenset[str]
    licences: Mapping[str, str]
    doubtful: Mapping[str, str]

    @property
    def folds(self) -> dict[str, tuple[str, ...]]:
        """Names of the folds, and the sets that are scored in each."""
        return {f"fold-{i}": fold for i, fold in enumerate(self.first.folds)}

    @property
    def sets(self) -> tuple[str, ...]:
        """All labelled sets."""
        return tuple(name for fold in self.first.folds for name in fold)

    def is_permitted(self, name: str) -> bool:
        """Whether a package may pass on what is made from the rows of a set.

        Raises:
            AbmllError: no licence is known.
        """
        if name not in self.licences:
            raise AbmllError(f"{name}: its licence stands nowhere in the protocol; add it to `licences`")
        return self.licences[name] in self.open and name not in self.doubtful

    def reading(self, cell: Cell) -> Reading:
        """What a cell is answered by."""
        return "cloze" if cell.draw in self.cloze.get(cell.name, ()) else "letter"

    def run(self, reading: Reading, seed: int, tasks: Path, fold: str) -> dict[str, Any]:
        """The configuration of a run."""
        system = self.first.systems[self.system]
        own: dict[str, Any] = {
            "name": self.system,
            "likelihood": {"kind": reading},
            "training": {"seed": seed},
            "tasks": {"train": {"source": str(tasks)}},
        }
        values: dict[str, Any] = dict(self.first.run)
        for more in (system, own, self.shipped if fold == EVERY else {}):
            values = merge(values, more)
        return values


def read_second(path: Path = PROTOCOL) -> Second:
    """Read it, and the first section's beside it."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Second(
        first=read_protocol(path.parent / values["first"]),
        system=values["system"],
        seeds=tuple(values["seeds"]),
        rates=tuple(values["rates"]),
        cloze={name: tuple(draws) for name, draws in values["cloze"].items()},
        shipped=values["shipped"],
        open=frozenset(values["open"]),
        licences=values["licences"],
        doubtful=values["doubtful"],
    )


def prepare(second: Second, own: Path, questions: Path, out: Path) -> dict[str, Any]:
    """Write the training tasks of every form and fold.

    Args:
        own: folder of the labelled sets.
        questions: folder of the question sets to train on.
        out: gets `tasks/FORM.FOLD`.

    Returns:
        Numbers of tasks and rows by folder, the sets that they are of, and the rows left out as they are nearly rows
        that are scored; also in `prepared.json`.
    """
    sets = {name: read_set(own, name) for name in second.sets}
    asked = [Task(task.name, task.train) for task in load_tasks(str(questions), merge_choices=True)]
    told: dict[str, Any] = {}
    for form, fold in forms(second):
        scored = second.folds.get(fold, ())
        trained = [n for n in (*sets, *(task.name for task in asked)) if n not in scored]
        trained = [name for name in trained if form == ALL or second.is_permitted(name)]
        tasks = [*(task for task in asked if task.name in trained), *_tasks(second, sets, trained)]
        kept, left_out = without_scored(tasks, sets, scored) if scored else (tasks, 0)
        for task in kept:
            write_task(task, out / "tasks" / f"{form}.{fold}")
        rows = sum(len(task.train) for task in kept)
        told[f"{form}.{fold}"] = {"tasks": len(kept), "rows": rows, "left_out": left_out, "sets": trained}
    write_json(out / "prepared.json", told)
    return told


def forms(second: Second) -> Iterator[tuple[str, str]]:
    """Every form and fold."""
    yield from ((form, fold) for form in (PERMITTED, ALL) for fold in second.folds)
    yield PERMITTED, EVERY


def _tasks(second: Second, sets: Mapping[str, LabelledSet], trained: list[str]) -> Iterator[Task]:
    for name, data in sets.items():
        if name in trained:
            yield from tasks_of(data, **second.first.tasks)
