"""One target of a comparison: a system and a training seed in a run directory of their own."""

import itertools
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from abmll.adapters.folder import write_adapter
from abmll.adapters.peft import start_from
from abmll.config import RunConfig
from abmll.errors import AbmllError, NonFiniteError
from abmll.files import read_sealed_json, write_sealed_json
from abmll.methods import method_class
from abmll.methods.noise import VALIDATION
from abmll.metrics.not_finite import TRAINING
from abmll.metrics.scores import mean_nll, mean_nll_scaled
from abmll.models import LanguageModel
from abmll.process.environment import environment, peak_memory
from abmll.process.stopping import gently
from abmll.process.timer import Timer
from abmll.process.together import together
from abmll.process.world import World
from abmll.question import Task
from abmll.runs.card import about_run, rewrite_run_card, write_card
from abmll.runs.cells import BEFORE, Cell, Cells
from abmll.runs.origin import keep_origin, origin_of
from abmll.runs.record import COST, ENVIRONMENT, Record, keep_record, mean_scores, owner, place_of, task_facts
from abmll.runs.tracking import Tracking
from abmll.systems.build import build_episodes, build_system, iterations_of, method_settings, training_plan
from abmll.systems.plans import AdaptationPlan, PredictionPlan, adaptation_plan
from abmll.systems.system import System
from abmll.training.checkpoints import RunDirectory
from abmll.training.optimizers import rates_at
from abmll.training.resume import restore_theta
from abmll.training.train import meta_train

log = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]


def row_names(name: str, config: RunConfig) -> list[str]:
    """The rows that a system makes in a table: itself, and its mean weights where predictions draw others."""
    draws = method_class(config.method.name).has_std or getattr(method_settings(config), "dropout", 0.0) > 0
    return [name, f"{name}_mean"] if draws else [name]


class Target:
    """One system and seed of a comparison, in a run directory of its own.

    Args:
        name: of the system in the comparison.
        config: its run configuration.
        folder: its run directory.
        train, unseen, validation: the tasks.
        curve: points of the learning curve.
        strict: refuse to go back behind a damaged checkpoint.
        allow_change: fields of the configuration that may differ from those of the run that goes on; see `keep_origin`.
        predictions: where predictions go; None: `predictions/` in the run directory.
        mean_predictions: where those by the mean weights go, if the system has stds; None: `mean/` in `predictions`.
        record_non_finite: a training, adaptation or prediction that is not finite is a result, which is kept as such
            and not tried again (`metrics.not_finite`); else it is an error.
    """

    def __init__(
        self,
        name: str,
        config: RunConfig,
        folder: Path,
        train: tuple[Task, ...],
        unseen: tuple[Task, ...],
        validation: tuple[Task, ...] = (),
        curve: int = 1,
        *,
        strict: bool = False,
        allow_change: Collection[str] | None = None,
        predictions: Path | None = None,
        mean_predictions: Path | None = None,
        record_non_finite: bool = False,
    ) -> None:
        self.name, self.config, self.folder = name, config, folder
        self.train, self.unseen, self.validation = train, unseen, validation
        self.run, self.allow_change = RunDirectory(folder, strict=strict), allow_change
        self.tracking = Tracking(config, folder)
        self.iterations = iterations_of(config)
        self.points = curve_steps(self.iterations, curve)
        self.episodes = build_episodes(config, train)
        self.names = row_names(name, config)
        drawn = predictions or folder / "predictions"
        places = (drawn, mean_predictions or drawn / "mean")[: len(self.names)]
        self.cells = Cells(config, self.names, folder, places, record_non_finite)

    def _of(self, file: str) -> str:
        return owner(file, self.name, self.config.training.seed)

    def done(self) -> bool:
        """Whether every file is there: `cost.json`, written last, says where training ended.

        A cell that is not finite has a file too, and is not tried again.
        """
        try:
            final = read_sealed_json(self.folder / COST, self._of(COST))["final_step"]
            read_sealed_json(self.folder / ENVIRONMENT, self._of(ENVIRONMENT))
        except (AbmllError, KeyError):
            return False
        draws = range(self.config.adaptation.draws)
        places = [(place_of(self.examples(step)), draw) for step in self._curve(final) for draw in draws]
        return all(self.cells.exist(where, draw, self.unseen) for where, draw in [*places, (BEFORE, 0)])

    def make(self, base: LanguageModel, listener: Listener, world: World, renewed: System | None = None) -> None:
        """Train, then adapt and predict at every point of the curve and, at the end, without adaptation.

        Args:
            base: the base model.
            listener: told of progress.
            world: the ranks that train together.
            renewed: a system on this base that was renewed to this target's configuration, and stays open; None: one
                is built, and closed.

        Raises:
            NonFiniteError: something is not finite, and that is not to be kept as a result.
            Stopped: the process was asked to stop; what is done is on disk.
        """
        with self.run.locked(world), self.tracking:
            self._make(base, listener, world, renewed)

    def _make(self, base: LanguageModel, listener: Listener, world: World, renewed: System | None) -> None:
        system = build_system(self.config, base) if renewed is None else renewed
        timer = Timer(self._spent())
        if base.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(base.device)
        try:
            try:
                final = self.meta_train(system, listener, world, timer)
            except NonFiniteError as error:
                if not self.cells.record_non_finite:
                    raise
                with together(world):
                    if world.is_main:
                        self._mark_training(error)
                        self._write_cost(system, self.iterations, timer)
                return
            with together(world, long=True):
                if world.is_main:
                    self._unmark_training()
                    self.evaluate(system, final, listener, timer)
                    self._tell_scores(final)
                    self._write_cost(system, final, timer)
        finally:
            if renewed is None:
                system.close()

    def _write_cost(self, system: System, final: int, timer: Timer) -> None:
        """What there is to tell of the whole target; written last."""
        device, cost = system.language_model.device, {"final_step": final, **self._cost(system, timer)}
        write_sealed_json(self.folder / ENVIRONMENT, environment(device), self._of(ENVIRONMENT))
        write_sealed_json(self.folder / COST, cost, self._of(COST))

    def _mark_training(self, error: NonFiniteError) -> None:
        """Where training came to no end, no cell has predictions."""
        for cell in self._every_cell(self.iterations):
            if not self.cells.exist(cell.where, cell.draw, (cell.task,)):
                self.cells.mark(cell, TRAINING, error)

    def _unmark_training(self) -> None:
        """What an earlier training did not come to is not true any more."""
        for path, found in self.cells.markers():
            if found.stage == TRAINING:
                path.unlink()

    def meta_train(self, system: System, listener: Listener, world: World, timer: Timer) -> int:
        """Meta-train into the run directory and write the adapter; returns the step whose weights theta holds."""

        def tell(event: dict[str, Any]) -> None:
            units = 3 * self.config.training.meta_batch * self.episodes.examples
            listener({"event": "step", "system": self.name, "iterations": self.iterations, "units": units, **event})
            if world.is_main and self.tracking.wanted:
                self.tracking.step(event, rates_at(system.method, event["step"] - 1, self.iterations))

        with self.run.locked(world), self.tracking:
            with together(world):
                if world.is_main:
                    origin = origin_of(system.language_model, self.train, self.validation)
                    keep_origin(self.folder, self.config, origin, self.allow_change)
                self._start(system)
            return self._train(system, tell, world, timer)

    def _train(self, system: System, tell: Listener, world: World, timer: Timer) -> int:
        validate = (lambda: self.validation_nll(system)) if self.validation else None
        with timer("train_seconds"):
            plan = training_plan(self.config, self.points)
            final = meta_train(system.learner, self.episodes, plan, self.run, world, validate, tell)
        with together(world, long=True):
            if world.is_main:
                self._write_adapter(system, final)
        return final

    def _write_adapter(self, system: System, final: int) -> None:
        """The adapter with its model card, and the record that the card goes by."""
        train, validation = (tuple(map(task_facts, tasks)) for tasks in (self.train, self.validation))
        record = Record(step=final, examples=self.examples(final), train=train, validation=validation)
        keep_record(self.folder, record)
        stored = system.stored("shared")
        about = about_run(self.folder, stored.facts)
        write_adapter(stored, self.folder / "adapter", lambda beside: write_card(beside, about))

    def _start(self, system: System) -> None:
        """The means of an ordinary LoRA, if one is to be the start; a run that goes on has its own already."""
        if self.config.adapter.start is not None and self.run.latest() is None:
            folder = Path(self.config.adapter.start).expanduser()
            start_from(system.method.adapters, system.alpha, folder, system.language_model.name)

    def evaluate(self, system: System, final: int, listener: Listener, timer: Timer) -> None:
        """Adapt to every unseen task and predict, at each point of the curve up to `final`."""
        with gently():
            self._evaluate_curve(system, final, listener, timer)

    def _evaluate_curve(self, system: System, final: int, listener: Listener, timer: Timer) -> None:
        for step, cells in itertools.groupby(self._every_cell(final), lambda cell: cell.step):
            restore_theta(system.method, self.run, step)
            for cell in cells:
                self.cells.make(system, cell, timer)
                listener(self._told(cell.task, cell.draw, step, cell.plan.steps))

    def _every_cell(self, final: int) -> Iterator[Cell]:
        """Each point of the curve up to `final`, draw and task; at the end those without adaptation."""
        plan = adaptation_plan(self.config)
        for step in self._curve(final):
            for draw, task in itertools.product(range(self.config.adaptation.draws), self.unseen):
                yield self._cell(task, draw, step, place_of(self.examples(step)), plan)
        for task in self.unseen:
            yield self._cell(task, 0, final, BEFORE, replace(plan, steps=0))

    def _cell(self, task: Task, draw: int, step: int, where: str, plan: AdaptationPlan) -> Cell:
        return Cell(task, draw, step, self.examples(step), where, plan)

    def _tell_scores(self, final: int) -> None:
        """Put the scores on the model card and, as means over tasks and draws, to the trackers."""
        rewrite_run_card(self.folder)
        if self.tracking.wanted:
            where, draws = place_of(self.examples(final)), range(self.config.adaptation.draws)
            places = [(where, draw, task) for draw, task in itertools.product(draws, self.unseen)]
            files = {name: [self.cells.file(name, *place) for place in places] for name in self.names}
            finite = {name: mean_scores(each) for name, each in files.items() if all(file.exists() for file in each)}
            self.tracking.summary({"unseen": finite}, final)

    def predict_at(self, system: System, step: int, listener: Listener, timer: Timer) -> list[Path]:
        """Adapt to every unseen task from theta as it is now, and predict; returns the files of this system."""
        with self.run.locked(), gently():
            return self._predict_at(system, step, listener, timer)

    def _predict_at(self, system: System, step: int, listener: Listener, timer: Timer) -> list[Path]:
        files = []
        for draw, task in itertools.product(range(self.config.adaptation.draws), self.unseen):
            where = place_of(self.examples(step))
            self.cells.remove(where, draw, task)
            self.cells.make(system, self._cell(task, draw, step, where, adaptation_plan(self.config)), timer)
            listener(self._told(task, draw, step, self.config.adaptation.steps))
            files += [self.cells.file(name, where, draw, task) for name in self.names]
        if (self.folder / "adapter").is_dir():
            rewrite_run_card(self.folder)
        return files

    def _told(self, task: Task, draw: int, step: int, steps: int) -> dict[str, Any]:
        where = {"system": self.name, "task": task.name, "draw": draw, "step": step, "adapted": steps > 0}
        return {"event": "evaluated", "units": self._evaluation_units(task, steps), **where}

    def _evaluation_units(self, task: Task, steps: int) -> int:
        """Question forward passes of adapting to a task and predicting; a backward pass counts as two."""
        a = self.config.adaptation
        folds = a.folds if steps or a.in_context else 0
        questions = len(self.cells.scored(task)) + a.examples * (2 if folds else 1)
        return 3 * steps * a.batch_size * (folds + 1) + questions * ((a.samples if len(self.names) > 1 else 0) + 1)

    def units(self) -> int:
        """Question forward passes of the whole target: the measure of progress."""
        steps, draws = self.config.adaptation.steps, self.config.adaptation.draws
        training = 3 * self.examples(self.iterations)
        adapted = sum(self._evaluation_units(task, steps) for task in self.unseen) * draws * len(self.points)
        return training + adapted + sum(self._evaluation_units(task, 0) for task in self.unseen)

    def validation_nll(self, system: System) -> float:
        """Mean NLL over the validation tasks after adapting to each, by the mean weights; phi is used up by it.

        With `training.validate_by` `nll_scaled`, at the temperature that suits each task best.
        """
        judge = {"nll": mean_nll, "nll_scaled": mean_nll_scaled}[self.config.training.validate_by]
        plan = PredictionPlan("mean", 1, self.config.adaptation.batch_tokens)
        found = []
        for task in self.validation:
            self.cells.adapt(system, task, adaptation_plan(self.config), 0)
            found.append(judge(system.predict(self.cells.scored(task), plan, VALIDATION)))
        return sum(found) / len(found)

    def examples(self, step: int) -> int:
        """Examples consumed after so many meta-iterations."""
        return step * self.config.training.meta_batch * self.episodes.examples

    def _curve(self, final: int) -> list[int]:
        """Steps to evaluate: the curve's points, but early stopping may have ended it sooner."""
        return sorted({step for step in self.points if step < final} | {final})

    def _spent(self) -> dict[str, Any]:
        """The cost of an earlier call, which made most of what is there."""
        try:
            return read_sealed_json(self.folder / COST, self._of(COST)) if (self.folder / COST).exists() else {}
        except AbmllError as error:
            log.warning("%s; what was spent before is forgotten", error)
            return {}

    def _cost(self, system: System, timer: Timer) -> dict[str, Any]:
        adapters = system.method.adapters
        return {
            **timer.seconds,
            "peak_memory_bytes": peak_memory(system.language_model.device),
            "shared_parameters": sum(p.numel() for p in adapters.parameters("shared")),
            "task_parameters": sum(p.numel() for p in adapters.parameters("task")),
            "truncated_questions": len(system.batcher.encoder.truncated),
            "device": str(environment(system.language_model.device)["device"]),
        }


def curve_steps(iterations: int, points: int) -> tuple[int, ...]:
    """Steps at which the curve is evaluated: the end, and others evenly spaced from the start.

    >>> curve_steps(30, 2), curve_steps(30, 1), curve_steps(0, 2)
    ((0, 30), (30,), (0,))
    """
    if points == 1:
        return (iterations,)
    return tuple(sorted({round(iterations * i / (points - 1)) for i in range(points)}))
