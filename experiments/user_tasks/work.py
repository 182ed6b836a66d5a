"""A process that trains runs and answers cells until all is done or its time is over; several share the work."""

import fcntl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from abmll.config import ModelConfig, RunConfig, load_config
from abmll.errors import NonFiniteError
from abmll.files import write_json, write_text
from abmll.models import LanguageModel
from abmll.runs.train_run import train
from abmll.systems.build import build_system, load_base
from abmll.tasks.sources import load_tasks
from benchmarks.common import describe
from benchmarks.own.cells import ask, claimed, write_cell
from benchmarks.own.draws import Cell, LabelledSet, cells_of, read_set
from benchmarks.own.models import ADAPTED, Bench, answers_of, own_config, run_config
from experiments.user_tasks.prepare import QUESTIONS, Protocol

NEW = "new"
"""The unit of a LoRA that begins at zero, as `abmll adapt BASE` has it."""
PAUSE = 2.0
"""Seconds until it is looked again whether another process has trained a run."""


@dataclass(frozen=True)
class Unit:
    """A run, and the sets that are answered by it: none of them was trained on.

    Attributes:
        answers: folder of its cells; the folds of a system share one, as each set is in one fold.
        sets: names.
        config: file of the run's configuration; None: nothing is trained, a LoRA begins at zero.
    """

    answers: str
    sets: tuple[str, ...]
    config: Path | None = None

    @property
    def run(self) -> Path | None:
        """The run directory."""
        return self.config and self.config.with_suffix("")

    @property
    def is_ready(self) -> bool:
        """Whether the run is trained to its end."""
        return self.run is None or (self.run / "adapter").is_dir()


def units_of(protocol: Protocol, prepared: Path) -> list[Unit]:
    """All units, most important first: the folds of each system, question sets alone, the new LoRA."""
    runs, every = prepared / "runs", tuple(name for fold in protocol.folds for name in fold)
    folds = [
        Unit(f"{system}.own", fold, runs / f"{system}.fold-{i}.yaml")
        for system in protocol.systems
        for i, fold in enumerate(protocol.folds)
    ]
    plain = [Unit(f"{system}.{QUESTIONS}", every, runs / f"{system}.{QUESTIONS}.yaml") for system in protocol.systems]
    return [*folds, *plain, Unit(NEW, every)]


@dataclass
class Worker:
    """What one process needs.

    Attributes:
        source: of the base model; None: a tiny random one on the CPU.
        own: folder of the labelled sets.
        out: where cells go.
        draws: of labelled rows, at the smaller size.
        test_rows: of each set.
        until: by the monotonic clock, when nothing new is begun.
    """

    source: str | None
    own: Path
    out: Path
    draws: int
    test_rows: int
    until: float
    sets: dict[str, LabelledSet] = field(default_factory=dict)

    @property
    def model(self) -> ModelConfig:
        """The section of the base model."""
        if self.source is None:
            return ModelConfig(shape="tiny-llama", device="cpu")
        return ModelConfig(source=self.source, dtype="bfloat16" if torch.cuda.is_available() else "auto")

    @cached_property
    def base(self) -> LanguageModel:
        """The base model."""
        return load_base(self.model)

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self.until

    def work(self, units: Sequence[Unit]) -> None:
        """Train the runs that nobody trains and answer the cells that nobody answers, in this order."""
        write_json(self.out / "about.json", describe())
        for unit in units:
            if not self.is_late:
                self._train(unit)
                self._answer(unit)
        left = [unit for unit in units if not unit.is_ready]
        while left and not self.is_late:  # others are at them
            time.sleep(PAUSE)
            for unit in [unit for unit in left if unit.is_ready]:
                self._answer(unit)
                left.remove(unit)

    def _train(self, unit: Unit) -> None:
        if unit.config is not None and unit.run is not None and not unit.is_ready:
            self.train(unit.run, load_config(RunConfig, unit.config).model_dump())

    def train(self, run: Path, settings: Mapping[str, Any], last: str = "adapter") -> bool:
        """Train a run, unless another process is at it or it is trained; whether this one was at it.

        Where a number is not finite, `RUN.not_finite` says so: that is a result, and the run has no answers.

        Args:
            run: its directory.
            settings: its configuration, but for the base model.
            last: what is written at the end, by which it is known that it is trained.
        """
        with alone(run.with_name(f"{run.name}.claim")) as mine:
            if not mine or (run / last).exists():
                return False
            began = time.monotonic()
            config = RunConfig(**{**settings, "model": self.model})
            system = build_system(config, self.base)
            try:
                train(system, load_tasks(config.tasks.train.source), run)
                print(f"{run.name} trained {time.monotonic() - began:.1f} s", flush=True)
            except NonFiniteError as error:
                write_text(not_finite(run), f"{error}\n")
                print(f"{run.name}: {error}", flush=True)
            finally:
                system.close()
            return True

    def _answer(self, unit: Unit) -> None:
        if unit.is_ready:
            self.answer(unit.answers, self._cells(unit), unit.run)

    def answer(self, folder: str, cells: Sequence[Cell], run: Path | None, method: Mapping[str, Any] = {}) -> int:
        """Answer cells that no other process answers, as long as there is time; how many this one answered.

        Args:
            folder: of the answers.
            cells: to be answered.
            run: which adapts; None: a LoRA that begins at zero.
            method: settings of its method that are others while it adapts.
        """
        settings: dict[str, object] = {"method": dict(method)} if method else {}
        config = run_config(run, self.model, settings) if run else own_config(self.model, settings)
        bench, count = Bench(self.base, config, run=run), 0
        try:
            for cell in cells:
                began = time.monotonic()
                with claimed(self.out / folder, cell) as mine:
                    if mine and not self.is_late:
                        asked = ask(self.sets[cell.name], cell)
                        write_cell(self.out / folder, cell, answers_of(bench, asked, [ADAPTED]))
                        count += 1
                        print(f"{folder} {cell.file} {time.monotonic() - began:.1f} s", flush=True)
        finally:
            bench.close()
        return count

    def _cells(self, unit: Unit) -> list[Cell]:
        """The cells of a unit at the smaller size, one draw of all sets after the other."""
        return self.cells_of_sets(unit.sets)

    def cells_of_sets(self, names: Sequence[str]) -> list[Cell]:
        """The cells of sets at the smaller size, one draw of all of them after the other."""
        for name in names:
            if name not in self.sets:
                self.sets[name] = read_set(self.own, name, self.test_rows)
        sets = {name: self.sets[name] for name in names}
        return [cell for cell in cells_of(list(sets.values()), self.draws) if cell.size == sets[cell.name].sizes[0]]


def not_finite(run: Path) -> Path:
    """The file beside a run that says that it could not be trained."""
    return run.with_name(f"{run.name}.not_finite")


@contextmanager
def alone(claim: Path) -> Iterator[bool]:
    """Whether no other living process has this claim."""
    claim.parent.mkdir(parents=True, exist_ok=True)
    with claim.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
