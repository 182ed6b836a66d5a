"""From a configuration to runs that can begin: resolved, with their tasks, each in a folder of its own.

Everything that could be wrong with a configuration and its tasks is looked at here, before a model is loaded.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from abmll.adapters.peft import read_peft
from abmll.config import CompareConfig, RunConfig, TaskSource
from abmll.errors import AbmllError
from abmll.question import CONTENT_FREE, Task
from abmll.runs.overrides import check_systems, of_system
from abmll.runs.roles import RunTasks, check_roles, without_leaks, without_leaks_of_trained
from abmll.runs.tracking import Tracking, check_trackers
from abmll.scoring.registered import METRICS
from abmll.systems.meta_rows import spread_tasks
from abmll.systems.plans import ResolvedRun, resolve
from abmll.tasks.episodes import Episodes
from abmll.tasks.sources import load_tasks
from abmll.training.checkpoints import RunDirectory

log = logging.getLogger(__name__)

PYTHON = "python"
"""The source of tasks that were given as Python objects: they are in no file."""


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

    @property
    def target(self) -> str:
        """Its name among the targets of a comparison: SYSTEM.seed-N."""
        return f"{self.name}.seed-{self.seed}"

    def tracking(self) -> Tracking:
        """Its trackers, which begin with its first numbers."""
        title, to = f"{self.name}-seed-{self.seed}", self.config.tracking
        return Tracking(to.tracker, self.folder, to.project, title, self.config.model_dump(mode="json"))

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
        points = [0] * (len(self.curve) - 1) + [self.folds(steps)]
        adapted = sum(self.evaluation_units(task, steps, folds) for task in unseen for folds in points) * draws
        meta = self.meta_units() * len(spread_tasks(self.tasks.train))
        meta += self.pooling_units * len(spread_tasks(self.tasks.train)) * len(points)
        return training + meta + adapted + sum(self.evaluation_units(task, 0, self.folds(0)) for task in unseen)

    def folds(self, steps: int) -> int:
        """Into which examples are dealt that so many steps learn from; 0 where nothing is learned to be held out of."""
        return self.config.adaptation.folds if steps or self.shows_examples else 0

    def meta_units(self) -> int:
        """Question forward passes of adapting to a training task and answering `adaptation.meta_rows` of its rows."""
        rows = self.config.adaptation.meta_rows
        return 3 * self.adaptation.steps * self.adaptation.batch_size + rows * self._passes if rows else 0

    @property
    def pooling_units(self) -> int:
        """The same of adapting to a training task for `posterior.precision: pooled`, and of its examples' curvature."""
        a = self.adaptation
        examples = max(len(task.train) for task in self.tasks.train) if a.examples is None else a.examples
        return 3 * (a.steps * a.batch_size + examples) if self.pools_precision else 0

    def evaluation_units(self, task: Task, steps: int, folds: int) -> int:
        """Question forward passes of adapting to a task and predicting; a backward pass counts as two."""
        a = self.config.adaptation
        examples = len(task.train) if a.examples is None else a.examples
        questions = len(self.scored(task)) + examples * (2 if folds else 1)
        questions += len(CONTENT_FREE) if a.content_free and task.fixed_labels is not None else 0
        return 3 * steps * a.batch_size * (folds + 1) + questions * self._passes

    @property
    def _passes(self) -> int:
        """Forward passes of a question, by all rows."""
        return (self.config.adaptation.samples if len(self.rows) > 1 else 0) + 1


def check_run(run: ResolvedRun, *folders: Path) -> None:
    """Refuse settings of a run that is to be trained that cannot work, together or here.

    Args:
        run: its configuration.
        folders: where it is to be trained; what one that has begun needs no more is not looked at.

    Raises:
        AbmllError: names the field and its value; says what to do.
    """
    config = run.config
    run.check_machine()
    check_trackers(config.tracking.tracker)
    if not folders or not all((folder / "checkpoints").is_dir() for folder in folders):
        _check_start(config)
    every, iterations = run.training.validate_every, run.training.iterations
    if every is not None and iterations and every > iterations:
        log.warning("%s: training.validate_every=%d never comes in %d iterations", config.name, every, iterations)


def _check_start(config: RunConfig) -> None:
    """The LoRA to start from is there and has the rank of the run."""
    if config.adapter.start is None:
        return
    lora = read_peft(Path(config.adapter.start).expanduser())
    if lora.rank != config.adapter.rank:
        raise AbmllError(
            f"adapter.rank is {config.adapter.rank}, but the LoRA of adapter.start ({config.adapter.start}) has rank "
            f"{lora.rank}: set adapter.rank={lora.rank}"
        )


OTHERS = {
    "train": '"tasks.train={source: builtin, names: null}" takes others',
    "validation": "tasks.validation=null leaves them out",
    "unseen": "tasks.unseen=null leaves them out",
}
"""What to set where tasks of a role were Python objects."""


def tasks_of(source: TaskSource | None, role: str = "train") -> tuple[Task, ...]:
    """The tasks that a configuration names; none for None.

    Args:
        source: of the tasks.
        role: `train`, `validation` or `unseen`, for messages.

    Raises:
        AbmllError: a task cannot be read, or is in no file, as it was a Python object; says what to do.
    """
    if source is None:
        return ()
    if source.source == PYTHON:
        raise AbmllError(
            f"tasks.{role}: the run was trained with tasks that were Python objects ({', '.join(source.names or ())}), "
            f"which no file holds: {OTHERS[role]}, tasks.{role}.source=FOLDER reads them as files (docs/tasks.md)"
        )
    return load_tasks(source.source, source.names, merge_choices=source.merge_choices, on_bad_row=source.on_bad_row)


def load_run_tasks(config: RunConfig, runs: Sequence[RunConfig] = ()) -> RunTasks:
    """Every task that a configuration names.

    Args:
        config: names them.
        runs: of a comparison's systems, which may be chosen by validation tasks each for itself.

    Raises:
        AbmllError: a source cannot be read, or training is to be chosen by validation tasks that are not named.
    """
    if config.training.validate_every is not None and config.tasks.validation is None:
        raise AbmllError("training.validate_every is set, but tasks.validation names no tasks to choose by")
    chosen = [run for run in (runs or (config,)) if run.training.validate_every is not None]
    if not chosen and config.tasks.validation is not None:
        log.warning("tasks.validation is named, but not used: training.validate_every is not set")
    return _every_role((config, *runs), config.tasks.unseen)


def tasks_to_score(config: RunConfig, source: TaskSource | None) -> RunTasks:
    """The tasks of a run that was trained, to be scored on its unseen ones or on others, with `tasks.leak_check` done.

    Of tasks that it was not trained against, a row that leaks is what `drop` leaves out: training is past.

    Args:
        config: of the run.
        source: of the tasks to score; None: its own unseen tasks.

    Raises:
        AbmllError: as `without_leaks`.
    """
    tasks = _every_role((config,), source or config.tasks.unseen)
    return without_leaks_of_trained(tasks, config.tasks.leak_check, others=source is not None)


def _every_role(configs: Sequence[RunConfig], unseen: TaskSource | None) -> RunTasks:
    """The tasks that the first names; the others are its systems."""
    t, answers_test = configs[0].tasks, any(config.adaptation.meta_rows > 0 for config in configs)
    return RunTasks(tasks_of(t.train), tasks_of(t.validation, "validation"), tasks_of(unseen, "unseen"), answers_test)


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
        episodes=resolved.episodes_of(tasks.train),
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


def comparison_runs(config: CompareConfig, out: Path | None = None, *, strict: bool = False) -> list[Run]:
    """The runs of a comparison, after a look at everything that can be wrong with it before a model is loaded.

    Args:
        config: what to compare.
        out: its folder, where some of it may be done; None: all is to be done, in `runs/NAME`.
        strict: refuse to go back behind a damaged checkpoint.

    Returns:
        For each system, a run for each seed; all have the same tasks.

    Raises:
        AbmllError: a setting, a tracker or a name is wrong, or a task has two roles, is too small, leaks, ...
    """
    for metric in config.metrics:
        METRICS.lookup(metric)
    configs = {name: [config.run(name, seed) for seed in config.seeds] for name in config.systems}
    check_systems(config.model_dump(mode="json"), {n: seeds[0].model_dump(mode="json") for n, seeds in configs.items()})
    resolved: dict[str, list[ResolvedRun]] = {}
    for name, seeds in configs.items():
        folders = () if out is None else tuple(out / name / f"seed-{seed}" for seed in config.seeds)
        with of_system(name):
            resolved[name] = [resolve(run) for run in seeds]
            check_run(resolved[name][0], *folders)
    _check_rows([seeds[0] for seeds in resolved.values()])
    tasks = _comparison_tasks(config, [seeds[0] for seeds in configs.values()])
    runs = []
    for name, run in ((name, run) for name, seeds in resolved.items() for run in seeds):
        with of_system(name):
            runs.append(_prepare(run, tasks, out or Path("runs") / config.name, config.curve, strict))
    return runs


def _comparison_tasks(config: CompareConfig, runs: Sequence[RunConfig]) -> RunTasks:
    """The tasks, none with two roles or too small, and without leaks."""
    tasks = load_run_tasks(config, runs)
    if not tasks.unseen:
        raise AbmllError("tasks.unseen names no task to compare on")
    check_roles(tasks, config.adaptation.examples)  # first: a task in two roles leaks every row
    tasks = without_leaks(tasks, config.tasks.leak_check)
    check_roles(tasks, config.adaptation.examples)
    return tasks


def _prepare(resolved: ResolvedRun, tasks: RunTasks, out: Path, curve: int, strict: bool) -> Run:
    """A system and seed, with what it asks of the tasks by settings of its own.

    Its row of mean weights lies beside it, as if it were a system of its own.
    """
    every, seed = resolved.training.validate_every, f"seed-{resolved.seed}"
    predictions = [out / row / seed / "predictions" for row in resolved.rows]
    folder, options = out / resolved.name / seed, {"strict": strict, "record_non_finite": True}
    run = prepare_run(resolved, tasks, folder, curve=curve, predictions=predictions, **options)
    check_roles(tasks, resolved.adaptation.examples)
    if every is not None and not tasks.validation:
        raise AbmllError(
            f"training.validate_every={every}, but tasks.validation names no tasks to choose by; name some for the "
            "comparison, or leave it out"
        )
    return run


def _check_rows(runs: Sequence[ResolvedRun]) -> None:
    """Refuse a system whose name is that of another's row of mean weights: they would share a folder."""
    rows = [row for run in runs for row in run.rows]
    twice = sorted({row for row in rows if rows.count(row) > 1})
    if twice:
        raise AbmllError(f"systems: {', '.join(twice)} is also the row of another system's mean weights; rename it")
