"""A process that trains runs and answers cells, the most important first; several share the work."""

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from abmll.everyday.shipped import CONFIG_FILE
from abmll.files import folder_beside, strict_json, write_json
from abmll.runs.record import RECORD
from abmll.systems.scale import SCALE_FILE
from benchmarks.common import describe
from benchmarks.own.draws import Cell
from experiments.user_tasks.second.protocol import ALL, EVERY, PERMITTED, READINGS, Reading, Second
from experiments.user_tasks.second.rates import Rates, choose_rates, folder, read_by_folder
from experiments.user_tasks.work import PAUSE, Worker, alone, not_finite

TRAINING = 150.0
"""Seconds that must be left where a training is begun."""
CHOICE = "rates.json"
ADAPTER = "adapter"


@dataclass(frozen=True)
class Unit:
    """A run, and the cells that it answers at a rate.

    Attributes:
        form, fold, reading, seed: of the run.
        rate: of adapting; None: the one that is chosen.
        cells: of sets that it was not trained on; of `every` none, whose run itself is what is wanted.
    """

    form: str
    fold: str
    reading: Reading
    seed: int
    rate: float | None
    cells: tuple[Cell, ...] = ()

    @property
    def tasks(self) -> str:
        """The folder of the tasks that its run is trained on."""
        return f"{self.form}.{self.fold}"

    @property
    def run(self) -> str:
        """The name of its run."""
        return f"{self.tasks}.{self.reading}.{self.seed}"


def units_of(second: Second, cells: Sequence[Cell]) -> list[Unit]:
    """All units, most important first.

    Args:
        second: the protocol.
        cells: of all sets.
    """

    def units(form: str, seed: int, rate: float | None) -> list[Unit]:
        found = []
        for reading in READINGS:
            for fold, scored in second.folds.items():
                mine = tuple(c for c in cells if c.name in scored and second.reading(c) == reading)
                found += [Unit(form, fold, reading, seed, rate, mine)] if mine else []
        return found

    first, *others = second.seeds
    trained_at, *rates = second.rates
    return [
        *units(PERMITTED, first, trained_at),
        *units(ALL, first, trained_at),
        *(Unit(PERMITTED, EVERY, reading, first, None) for reading in READINGS),
        *(unit for rate in rates for unit in units(PERMITTED, first, rate)),
        *(unit for seed in others for unit in units(PERMITTED, seed, None)),
        *(unit for seed in others for unit in units(ALL, seed, trained_at)),
        *(unit for seed in others for unit in units(PERMITTED, seed, trained_at)),
    ]


@dataclass
class Turns:
    """The work of one process.

    Attributes:
        second: the protocol.
        prepared: what `prepare` wrote; runs are trained in it.
        worker: the process.
    """

    second: Second
    prepared: Path
    worker: Worker

    def work(self) -> None:
        """Do what is most important and nobody else is at, until all is done or the time is over."""
        out = self.worker.out
        write_json(out / "about.json", describe())
        units = units_of(self.second, self.worker.cells_of_sets(self.second.sets))
        while not self.worker.is_late:
            if any(self._do(unit) for unit in units):
                continue
            if all(self.is_done(unit) for unit in units):
                return
            self._choose(units)
            time.sleep(PAUSE)

    def is_done(self, unit: Unit) -> bool:
        """Whether nothing of a unit is left to do; a run that is not finite has no answers."""
        if not_finite(self._run(unit)).exists():
            return True
        if unit.fold == EVERY:
            return (self._shipped(unit) / ADAPTER).is_dir()
        rate = self._rate(unit)
        return rate is not None and not self._left(unit, rate)

    def _do(self, unit: Unit) -> bool:
        """Do some of a unit; whether there was anything to do."""
        if self.worker.is_late or self.is_done(unit):
            return False
        run, last = self._run(unit), SCALE_FILE if unit.fold == EVERY else ADAPTER
        if not (run / last).exists():
            if time.monotonic() + TRAINING > self.worker.until:
                return False
            tasks = self.prepared / "tasks" / unit.tasks
            return self.worker.train(run, self.second.run(unit.reading, unit.seed, tasks, unit.fold), last)
        if unit.fold == EVERY:
            return _copy_run(run, self._shipped(unit))
        if (rate := self._rate(unit)) is None:
            return False
        cells = self._left(unit, rate)
        return self.worker.answer(folder(unit.form, rate, unit.seed), cells, run, {"inner_lr": rate}) > 0

    def _left(self, unit: Unit, rate: float) -> list[Cell]:
        """The cells that have no answers."""
        there = self.worker.out / folder(unit.form, rate, unit.seed)
        return [cell for cell in unit.cells if not (there / cell.file).exists()]

    def _rate(self, unit: Unit) -> float | None:
        """The rate of a unit; None as long as it is not chosen."""
        if unit.rate is not None:
            return unit.rate
        rates = read_rates(self.worker.out)
        return rates and rates[unit.fold][unit.reading]

    def _choose(self, units: Iterable[Unit]) -> None:
        """Choose the rates as soon as all that they are chosen by is there."""
        first = self.second.seeds[0]
        deciding = [u for u in units if u.form == PERMITTED and u.fold != EVERY and u.seed == first]
        if (self.worker.out / CHOICE).exists() or not all(self.is_done(unit) for unit in deciding):
            return
        with alone(self.worker.out / "rates.claim") as mine:
            if mine:
                rates = choose_rates(self.second, read_by_folder(self.worker.out))
                write_json(self.worker.out / CHOICE, rates)
                print(f"rates {rates}", flush=True)

    def _run(self, unit: Unit) -> Path:
        return self.prepared / "runs" / unit.run

    def _shipped(self, unit: Unit) -> Path:
        return self.worker.out / "runs" / unit.run


def read_rates(out: Path) -> Rates | None:
    """The rates that were chosen; None as long as they were not."""
    path = out / CHOICE
    if not path.exists():
        return None
    rates: Rates = strict_json(path.read_text(encoding="utf-8"))
    return rates


def _copy_run(run: Path, to: Path) -> bool:
    """Copy what `abmll.everyday.ship` needs of a run, unless another process does; whether this one did."""
    with alone(to.with_name(f"{to.name}.claim")) as mine:
        if not mine or to.exists():
            return False
        with folder_beside(to) as beside:
            shutil.copytree(run / ADAPTER, beside / ADAPTER)
            for name in (CONFIG_FILE, RECORD, SCALE_FILE):
                if (run / name).is_file():
                    shutil.copyfile(run / name, beside / name)
        return True
