"""A run's configuration with everything that follows from it, worked out once; and a run, which adds tasks.

What trains, evaluates and reports takes one of them, and resolves nothing again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from abmll.config import MethodConfig, RunConfig
from abmll.methods import method_class
from abmll.methods.base import Settings
from abmll.question import Question, Task
from abmll.runs.roles import RunTasks
from abmll.systems.build import build_episodes, method_settings, training_plan
from abmll.systems.plans import AdaptationPlan, PredictionPlan, adaptation_plan, prediction_plan
from abmll.tasks.episodes import Episodes
from abmll.training.checkpoints import RunDirectory
from abmll.training.train import TrainingPlan


@dataclass(frozen=True)
class ResolvedRun:
    """A run's configuration, and what follows from it.

    Attributes:
        name: of the system.
        seed: of the training.
        config: as it was given.
        pinned: the same with every setting of its method by name: what a later version's defaults cannot change.
        settings: of the method: its defaults, its preset, and what was given.
        training: how long it trains and how often it saves; no iterations where there is nothing to train.
        adaptation: how unseen tasks are adapted to.
        prediction: how their probabilities are made.
        rows: names of the rows that it makes in a table: its own and, where predictions draw weights, that of its mean
            weights.
    """

    name: str
    seed: int
    config: RunConfig
    pinned: RunConfig
    settings: Settings
    training: TrainingPlan
    adaptation: AdaptationPlan
    prediction: PredictionPlan
    rows: tuple[str, ...]

    def scored(self, task: Task) -> tuple[Question, ...]:
        """The test questions of a task that are scored: all, or the first so many."""
        return task.test[: self.config.adaptation.test_questions]


def resolve(config: RunConfig) -> ResolvedRun:
    """Work out everything that follows from a configuration alone.

    Raises:
        AbmllError: the method's settings are unknown or impossible, alone or together.

    >>> run = resolve(RunConfig.model_validate({"model": {"shape": "tiny-llama"}, "method": {"name": "reptile"}}))
    >>> run.training.iterations, run.settings.outer_lr, run.rows
    (100, 0.22, ('run',))
    """
    settings = method_settings(config)
    draws = method_class(config.method.name).has_std or getattr(settings, "dropout", 0.0) > 0
    rows = (config.name, f"{config.name}_mean") if draws else (config.name,)
    return ResolvedRun(
        name=config.name,
        seed=config.training.seed,
        config=config,
        pinned=_pinned(config, settings),
        settings=settings,
        training=training_plan(config),
        adaptation=adaptation_plan(config),
        prediction=prediction_plan(config),
        rows=rows,
    )


def _pinned(config: RunConfig, settings: Settings) -> RunConfig:
    method = {**config.method.model_dump(mode="json"), **settings.model_dump(mode="json")}
    return config.model_copy(update={"method": MethodConfig(**method)})


@dataclass(frozen=True)
class Run(ResolvedRun):
    """One system and training seed in a folder of its own: what training and evaluating it take.

    The plan of its training has the steps of the curve as snapshots.

    Attributes:
        tasks: by their roles.
        folder: its run directory.
        directory: the same, as what is read and written there.
        episodes: of the tasks to train on.
        curve: steps after which it is evaluated; the last is the end of training.
        predictions: by row of the table, the folder of its files.
        record_non_finite: a training, adaptation or prediction that is not finite is a result, which is recorded and
            not tried again (`metrics.not_finite`); else it is an error.
    """

    tasks: RunTasks
    folder: Path
    directory: RunDirectory
    episodes: Episodes
    curve: tuple[int, ...]
    predictions: tuple[Path, ...]
    record_non_finite: bool

    def examples(self, step: int) -> int:
        """Examples consumed after so many meta-iterations."""
        return step * self.training.meta_batch * self.episodes.examples

    def evaluated_steps(self, final: int) -> list[int]:
        """Steps to evaluate: the curve's, but early stopping may have ended it sooner, at `final`."""
        return sorted({step for step in self.curve if step < final} | {final})

    def units(self) -> int:
        """Question forward passes of training and evaluating: the measure of progress."""
        steps, draws, unseen = self.adaptation.steps, self.config.adaptation.draws, self.tasks.unseen
        training = 3 * self.examples(self.training.iterations)
        adapted = sum(self.evaluation_units(task, steps) for task in unseen) * draws * len(self.curve)
        return training + adapted + sum(self.evaluation_units(task, 0) for task in unseen)

    def evaluation_units(self, task: Task, steps: int) -> int:
        """Question forward passes of adapting to a task and predicting; a backward pass counts as two."""
        a = self.config.adaptation
        folds = a.folds if steps or a.in_context else 0
        questions = len(self.scored(task)) + a.examples * (2 if folds else 1)
        return 3 * steps * a.batch_size * (folds + 1) + questions * ((a.samples if len(self.rows) > 1 else 0) + 1)


def prepare_run(
    resolved: ResolvedRun,
    tasks: RunTasks,
    folder: Path,
    *,
    curve: int = 1,
    strict: bool = False,
    predictions: Sequence[Path] | None = None,
    record_non_finite: bool = False,
) -> Run:
    """A run in a folder. Nothing is written yet.

    Args:
        resolved: its configuration.
        tasks: by their roles.
        folder: its run directory.
        curve: points of the learning curve.
        strict: refuse to go back behind a damaged checkpoint.
        predictions: where predictions go, and where those by the mean weights do; None: `predictions/` in the run
            directory, and `mean/` in that.
        record_non_finite: see `Run`.

    Raises:
        AbmllError: the tasks to train on are too few or too small.
    """
    points = curve_steps(resolved.training.iterations, curve)
    folders = predictions or (folder / "predictions", folder / "predictions" / "mean")
    return Run(
        **{**vars(resolved), "training": replace(resolved.training, snapshots=points)},
        tasks=tasks,
        folder=folder,
        directory=RunDirectory(folder, strict=strict),
        episodes=build_episodes(resolved.config, tasks.train, resolved.settings),
        curve=points,
        predictions=tuple(folders)[: len(resolved.rows)],
        record_non_finite=record_non_finite,
    )


def curve_steps(iterations: int, points: int) -> tuple[int, ...]:
    """Steps at which the curve is evaluated: the end, and others evenly spaced from the start.

    >>> curve_steps(30, 2), curve_steps(30, 1), curve_steps(0, 2)
    ((0, 30), (30,), (0,))
    """
    if points == 1:
        return (iterations,)
    return tuple(sorted({round(iterations * i / (points - 1)) for i in range(points)}))
