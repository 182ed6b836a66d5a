"""One target of a comparison: a system and a training seed in a run directory of their own."""

import itertools
import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from abmll.adapters.folder import write_adapter
from abmll.adapters.peft import start_from
from abmll.config import RunConfig
from abmll.errors import AbmllError
from abmll.files import read_sealed_json, write_sealed_json
from abmll.methods import method_class
from abmll.metrics.predictions import Prediction, Predictions
from abmll.models import LanguageModel
from abmll.running.adapt import AdaptationPlan, PredictionPlan, examples_of, mean_nll, mean_nll_scaled
from abmll.running.adapters import adapter_of
from abmll.running.build import (
    System,
    adaptation_plan,
    build_episodes,
    build_system,
    iterations_of,
    method_settings,
    prediction_plan,
    training_plan,
)
from abmll.running.card import about_run, rewrite_run_card, write_card
from abmll.running.environment import environment, peak_memory
from abmll.running.failed_batch import save_batch
from abmll.running.faults import NonFiniteError, together
from abmll.running.folds import Predict, held_out
from abmll.running.optimizers import rates_at
from abmll.running.origin import keep_origin, origin_of
from abmll.running.record import Record, keep_record, mean_scores, place_of, task_facts
from abmll.running.resume import restore_theta
from abmll.running.rundir import RunDirectory
from abmll.running.stopping import gently
from abmll.running.timer import Timer
from abmll.running.tracking import Tracking
from abmll.running.train import meta_train
from abmll.running.world import World
from abmll.tasks.question import Question, Task
from abmll.tasks.shots import with_examples

log = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]

BEFORE = "before-adaptation"


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
    ) -> None:
        self.name, self.config, self.folder = name, config, folder
        self._predictions = predictions or folder / "predictions"
        self._mean_predictions = mean_predictions or self._predictions / "mean"
        self.train, self.unseen, self.validation = train, unseen, validation
        self.run, self.allow_change = RunDirectory(folder, strict=strict), allow_change
        self.tracking = Tracking(config, folder)
        self.iterations = iterations_of(config)
        self.points = curve_steps(self.iterations, curve)
        self.episodes = build_episodes(config, train)
        self.names = row_names(name, config)

    def done(self) -> bool:
        """Whether every file is there: `cost.json`, written last, says where training ended."""
        try:
            final = read_sealed_json(self.folder / "cost.json")["final_step"]
        except (AbmllError, KeyError):
            return False
        draws = range(self.config.adaptation.draws)
        places = [(place_of(self.examples(step)), draw) for step in self._curve(final) for draw in draws]
        return all(self._files_exist(where, draw, self.unseen) for where, draw in [*places, (BEFORE, 0)])

    def make(self, base: LanguageModel, listener: Listener, world: World, renewed: System | None = None) -> None:
        """Train, then adapt and predict at every point of the curve and, at the end, without adaptation.

        Args:
            base: the base model.
            listener: told of progress.
            world: the ranks that train together.
            renewed: a system on this base that was renewed to this target's configuration, and stays open; None: one
                is built, and closed.

        Raises:
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
            final = self.meta_train(system, listener, world, timer)
            with together(world, long=True):
                if world.is_main:
                    self.evaluate(system, final, listener, timer)
                    self._tell_scores(final)
                    write_sealed_json(self.folder / "environment.json", environment(base.device))
                    write_sealed_json(self.folder / "cost.json", {"final_step": final, **self._cost(system, timer)})
        finally:
            if renewed is None:
                system.close()

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
            final = meta_train(
                system.method,
                self.episodes,
                system.batcher,
                plan,
                self.run,
                world,
                validate,
                tell,
                system.graphs,
                system.training,
            )
        with together(world, long=True):
            if world.is_main:
                self._write_adapter(system, final)
        return final

    def _write_adapter(self, system: System, final: int) -> None:
        """The adapter with its model card, and the record that the card goes by."""
        train, validation = (tuple(map(task_facts, tasks)) for tasks in (self.train, self.validation))
        record = Record(step=final, examples=self.examples(final), train=train, validation=validation)
        keep_record(self.folder, record)
        stored = adapter_of(self.config, system, "shared")
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
        plan = adaptation_plan(self.config)
        for step in self._curve(final):
            restore_theta(system.method, self.run, step)
            for draw, task in itertools.product(range(self.config.adaptation.draws), self.unseen):
                self._evaluate(system, task, draw, step, place_of(self.examples(step)), plan, timer)
                listener(self._told(task, draw, step, plan.steps))
        for task in self.unseen:  # theta is that of the final step now
            self._evaluate(system, task, 0, final, BEFORE, replace(plan, steps=0), timer)
            listener(self._told(task, 0, final, 0))

    def _tell_scores(self, final: int) -> None:
        """Put the scores on the model card and, as means over tasks and draws, to the trackers."""
        rewrite_run_card(self.folder)
        if self.tracking.wanted:
            where, draws = place_of(self.examples(final)), range(self.config.adaptation.draws)
            places = [(where, draw, task) for draw, task in itertools.product(draws, self.unseen)]
            scores = {name: mean_scores([self._file(name, *place) for place in places]) for name in self.names}
            self.tracking.summary({"unseen": scores}, final)

    def predict_at(self, system: System, step: int, listener: Listener, timer: Timer) -> list[Path]:
        """Adapt to every unseen task from theta as it is now, and predict; returns the files of this system."""
        with self.run.locked(), gently():
            return self._predict_at(system, step, listener, timer)

    def _predict_at(self, system: System, step: int, listener: Listener, timer: Timer) -> list[Path]:
        files = []
        for draw, task in itertools.product(range(self.config.adaptation.draws), self.unseen):
            where = place_of(self.examples(step))
            for name in self.names:
                self._file(name, where, draw, task).unlink(missing_ok=True)
            self._evaluate(system, task, draw, step, where, adaptation_plan(self.config), timer)
            listener(self._told(task, draw, step, self.config.adaptation.steps))
            files += [self._file(name, where, draw, task) for name in self.names]
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
        questions = len(self._scored(task)) + a.examples * (2 if folds else 1)
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
            self._adapt(system, task, adaptation_plan(self.config), 0)
            rows = self._scored(task)
            found.append(judge(system.predict(rows, plan, (0,))))
        return sum(found) / len(found)

    def _evaluate(
        self, system: System, task: Task, draw: int, step: int, where: str, plan: AdaptationPlan, timer: Timer
    ) -> None:
        """Adapt to one task and write the predictions of this system and, where it has stds, of its mean weights."""
        if self._files_exist(where, draw, (task,)):
            return
        predict = partial(self._predict, system, (self.config.training.seed, draw, task.name))
        with timer("adapt_seconds"):
            held = self._held_out(system, task, draw, plan, predict)
            examples = self._adapt(system, task, plan, draw)
        with timer("predict_seconds"):
            scored, learned = (predict(questions, examples) for questions in (self._scored(task), examples))
        for number, name in enumerate(self.names):
            Predictions(
                system=name,
                task=task.name,
                seed=self.config.training.seed,
                draw=draw,
                examples_consumed=self.examples(step),
                rows=scored[number],
                adaptation_rows=learned[number],
                label_counts=_label_counts(task, examples),
                held_out_rows=held[number] if held else (),
            ).write(self._file(name, where, draw, task))

    def _predict(
        self,
        system: System,
        place: tuple[int | str, ...],
        questions: tuple[Question, ...],
        examples: tuple[Question, ...],
    ) -> list[tuple[Prediction, ...]]:
        """Predictions by each row of the system: drawn and, where it has stds, by the mean weights."""
        if self.config.adaptation.in_context:
            questions = tuple(with_examples(q, examples, system.batcher.encoder) for q in questions)
        drawn = prediction_plan(self.config)
        kinds = [drawn, PredictionPlan("mean", 1, drawn.batch_tokens)][: len(self.names)]
        return [system.predict(questions, kind, place) for kind in kinds]

    def _held_out(
        self, system: System, task: Task, draw: int, plan: AdaptationPlan, predict: Predict
    ) -> list[tuple[Prediction, ...]]:
        """Predictions of the examples by folds; nothing where nothing is learned that they could be held out of."""
        a = self.config.adaptation
        if not a.folds or not (plan.steps or a.in_context):
            return []
        examples = examples_of(task, plan, draw)
        return held_out(lambda part, of: self._adapt(system, part, of, draw), predict, task, examples, plan, a.folds)

    def _adapt(self, system: System, task: Task, plan: AdaptationPlan, draw: int) -> tuple[Question, ...]:
        """As `System.adapt`; a batch that is not finite is kept in the run directory."""
        try:
            return system.adapt(task, plan, draw)
        except NonFiniteError as error:
            text = self.config.to_sealed_yaml()
            raise save_batch(error, self.folder, system.method, system.batcher, task.name, text) from error

    def _scored(self, task: Task) -> tuple[Question, ...]:
        """The test questions that are scored: all, or the first so many."""
        return task.test[: self.config.adaptation.test_questions]

    def _file(self, name: str, where: str, draw: int, task: Task) -> Path:
        folder = self._predictions if name == self.name else self._mean_predictions
        return folder / where / f"draw-{draw}" / f"{task.name}.jsonl"

    def _files_exist(self, where: str, draw: int, tasks: tuple[Task, ...]) -> bool:
        return all(self._file(name, where, draw, task).exists() for name in self.names for task in tasks)

    def examples(self, step: int) -> int:
        """Examples consumed after so many meta-iterations."""
        return step * self.config.training.meta_batch * self.episodes.examples

    def _curve(self, final: int) -> list[int]:
        """Steps to evaluate: the curve's points, but early stopping may have ended it sooner."""
        return sorted({step for step in self.points if step < final} | {final})

    def _spent(self) -> dict[str, Any]:
        """The cost of an earlier call, which made most of what is there."""
        try:
            return read_sealed_json(self.folder / "cost.json") if (self.folder / "cost.json").exists() else {}
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


def _label_counts(task: Task, examples: tuple[Question, ...]) -> tuple[int, ...] | None:
    if task.fixed_labels is None:
        return None
    return tuple(sum(q.answer == k for q in examples) for k in range(len(task.fixed_labels)))
