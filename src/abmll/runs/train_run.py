"""Training a run into its folder: configuration and provenance, the loop, the adapter with its card.

`train` does it from Python, on tasks that are Python objects.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from abmll.adapters.folder import write_adapter
from abmll.adapters.peft import start_from
from abmll.config import RunConfig, check
from abmll.errors import AbmllError, NonFiniteError
from abmll.methods.noise import VALIDATION
from abmll.metrics.scores import mean_nll, mean_nll_scaled
from abmll.process.agreement import agree_on_failure
from abmll.process.stopping import gently
from abmll.process.timer import Timer
from abmll.process.world import World
from abmll.question import Question, Task
from abmll.runs.card import about_run, write_card
from abmll.runs.cells import Cells
from abmll.runs.prepare import PYTHON, Run, check_run, prepare_run
from abmll.runs.provenance import provenance_of, record_provenance
from abmll.runs.record import TrainingRecord, task_facts, write_training_record
from abmll.runs.roles import RunTasks, check_roles, without_leaks
from abmll.runs.tracking import Tracking
from abmll.scoring.posterior import mean_nll_posterior
from abmll.systems.build import renew
from abmll.systems.folds import Answered
from abmll.systems.meta_rows import META_DRAW, held_back_episode, rows_trained_on, spread_tasks
from abmll.systems.plans import PredictionPlan, resolve
from abmll.systems.posteriors.laplace import Laplace
from abmll.systems.posteriors.laplace.pooled import learn_precision, read_precision, write_precision
from abmll.systems.scale import (
    FEWEST_TASKS,
    MEAN,
    OWN,
    SCALE_FILE,
    Scale,
    drop_stale_scale,
    has_scale,
    learn_scale,
    write_scale,
)
from abmll.systems.system import System
from abmll.tasks.episodes import check_answers
from abmll.training.finite import without_folders
from abmll.training.optimizers import rates_at
from abmll.training.train import meta_train

log = logging.getLogger(__name__)

VALIDATE_BY = {"nll_posterior": mean_nll_posterior, "nll": mean_nll, "nll_scaled": mean_nll_scaled}
"""What the validation tasks can be scored by: of `training.validate_by`."""
Listener = Callable[[dict[str, Any]], None]


def train_run(
    run: Run,
    build: Callable[[], System],
    listener: Listener = lambda event: None,
    world: World = World(),  # noqa: B008 - frozen
    allow_change: Collection[str] | None = None,
) -> int:
    """Meta-train a run into its folder, going on from its last checkpoint if it was stopped.

    Args:
        run: what is trained, and where.
        build: makes its system; called when no other process is in the folder.
        listener: is called with an event after each meta-iteration.
        world: the ranks that train together.
        allow_change: fields that may differ from those of the run that goes on; see `record_provenance`.

    Returns:
        The step whose weights the adapter holds: the last, or the best by the validation tasks.

    Raises:
        AbmllError: another process is in the folder, or a run of another configuration or other data lies there.
        NonFiniteError: a loss, a gradient or a weight is not finite.
        Stopped: the process was asked to stop, and the state is saved.
    """
    with run.directory.locked(world), run.tracking() as tracking:
        return train_in_folder(run, build(), listener, world, tracking, Timer(), allow_change)


def train_in_folder(
    run: Run,
    system: System,
    listener: Listener,
    world: World,
    tracking: Tracking,
    timer: Timer,
    allow_change: Collection[str] | None = None,
) -> int:
    """As `train_run`, in a folder that the caller has locked; the system is left with the trained weights."""

    def report(event: dict[str, Any]) -> None:
        units = 3 * run.training.meta_batch * run.episodes.examples
        listener({"event": "step", "system": run.name, "iterations": iterations, "units": units, **event})
        if world.is_main and tracking.is_on:
            tracking.step(event, rates_at(system.method, event["step"] - 1, iterations))

    iterations = run.training.iterations
    _check_pooling(run)
    with agree_on_failure(world):
        if world.is_main:
            provenance = provenance_of(system.language_model, run.tasks.train, run.tasks.validation)
            record_provenance(run.folder, run, provenance, allow_change)
        _start_from_lora(run, system)
    with timer("train_seconds"):
        final = _meta_train(run, system, report, world)
    with agree_on_failure(world, long=True):
        if world.is_main:
            _write_adapter(run, system, final)
            learn_run_precision(run, system, final, listener, timer, store=True)
            learn_run_scale(run, system, final, listener, timer)
    return final


def _start_from_lora(run: Run, system: System) -> None:
    """Take the means of an ordinary LoRA, if one is to be the start; a run that goes on has its own already."""
    if run.config.adapter.start is not None and run.directory.latest() is None:
        folder = Path(run.config.adapter.start).expanduser()
        start_from(system.method.adapters, system.alpha, folder, system.language_model.name)


def _meta_train(run: Run, system: System, report: Listener, world: World) -> int:
    validate = (lambda: validation_nll(run, system)) if run.tasks.validation else None
    return meta_train(system.learner, run.episodes, run.training, run.directory, world, validate, report)


def validation_nll(run: Run, system: System) -> float:
    """Mean NLL over the validation tasks after adapting to each, by the mean weights; phi is used up by it.

    `training.validate_by` says which NLL: at the posterior temperature given the other half of the task's rows
    (`nll_posterior`), as it is stated (`nll`), or at the temperature that suits the very rows best (`nll_scaled`).

    Raises:
        NonFiniteError: an adaptation or prediction is not finite; the message names no folder of the user's.
    """
    nll = VALIDATE_BY[run.config.training.validate_by]
    plan, cells = PredictionPlan("mean", 1, run.prediction.batch_tokens), Cells(run)
    nlls = []
    for task in run.tasks.validation:
        try:
            cells.adapt(system, task, run.adaptation, 0)
            nlls.append(nll(system.predict(run.scored(task), plan, VALIDATION)))
        except NonFiniteError as error:  # the journal says why
            why = without_folders(str(error), (*task.train, *task.test), run.folder)
            raise NonFiniteError(why, error.batch) from error
    return sum(nlls) / len(nlls)


def _write_adapter(run: Run, system: System, final: int) -> None:
    """The adapter with its model card, and the record that the card goes by."""
    train, validation = (tuple(map(task_facts, tasks)) for tasks in (run.tasks.train, run.tasks.validation))
    record = TrainingRecord(step=final, examples=run.examples(final), train=train, validation=validation)
    write_training_record(run.folder, record)
    stored = system.stored("shared")
    about = about_run(run.folder, stored.facts)
    write_adapter(stored, run.folder / "adapter", lambda beside: write_card(beside, about))


def _check_pooling(run: Run) -> None:
    """Refuse, before anything is trained, a precision that no training task has the rows to be learned from."""
    if run.pools_precision and not any(_episodes(run, frozenset()).values()):
        raise AbmllError(
            f"posterior.precision=pooled: no training task has adaptation.examples={run.adaptation.examples} rows to "
            "adapt to and one more, so there is nothing to learn it from; give fewer examples, a number, or null"
        )


def _episodes(run: Run, drawn: Collection[Question], rows: int = 1) -> dict[str, Task | None]:
    """Of each training task an episode as at test time."""
    tasks = spread_tasks(run.tasks.train)
    return {task.name: held_back_episode(task, run.adaptation, rows, drawn) for task in tasks}


def learn_run_precision(
    run: Run, system: System, step: int, listener: Listener, timer: Timer, *, store: bool = False
) -> None:
    """Let the posterior go by a precision that is learned over the training tasks, if it asks for that.

    It is taken from the run directory, if it was stored for these weights and settings.

    Args:
        run: its training tasks are adapted to.
        system: holds the weights of `step`; phi is used up by it.
        step: a meta-iteration.
        listener: is called with an event after each task.
        timer: adds up the seconds.
        store: keep what is learned in the run directory, whose adapter holds the weights of `step`.

    Raises:
        AbmllError: no training task is left to learn it from, or the file is damaged.
        Stopped: the process was asked to stop; the next call begins with the first task again.
    """
    posterior = system.posterior
    if not isinstance(posterior, Laplace) or not run.pools_precision:
        return
    stored = read_precision(run.folder)
    if stored is not None and stored.is_of(run.folder, run, step):
        posterior.pooled = stored.learned.precision
        return
    cells, event = Cells(run), {"event": "evaluated", "system": run.name, "draw": META_DRAW, "step": step}

    def adapt(episode: Task) -> None:
        cells.adapt(system, episode, run.adaptation, META_DRAW)
        listener({**event, "task": episode.name, "adapted": True, "units": run.pooling_units})

    with timer("precision_seconds"), gently():
        drawn = rows_trained_on(run.episodes, step, run.training.meta_batch)
        learned = learn_precision(posterior, _episodes(run, drawn), adapt)
    posterior.pooled = learned.precision
    if store:
        write_precision(run.folder, run, step, learned)
    for task, why in learned.left_out.items():
        log.warning("posterior.precision=pooled: task %s is not among those that it was learned from: %s", task, why)


def learn_run_scale(run: Run, system: System, final: int, listener: Listener, timer: Timer) -> None:
    """Learn the prior of the temperature into the run directory, if `adaptation.meta_rows` asks for it and it lacks.

    Args:
        run: its training tasks are answered, with what its meta-training drew told apart.
        system: holds the weights of `final`, those in the run's adapter; phi is used up by it.
        final: the meta-iteration whose weights are the result.
        listener: is called with an event after each task.
        timer: adds up the seconds.

    Raises:
        Stopped: the process was asked to stop; the next call begins with the first task again.
    """
    rows = run.config.adaptation.meta_rows
    if not rows:
        drop_stale_scale(run.folder)
        return
    if has_scale(run, run.folder):
        return
    cells, event = Cells(run), {"event": "evaluated", "system": run.name, "draw": META_DRAW, "step": final}

    def answer(episode: Task) -> list[Answered]:
        answered = cells.answer_episode(system, episode)
        listener({**event, "task": episode.name, "adapted": True, "units": run.meta_units()})
        return answered

    with timer("scale_seconds"), gently():
        drawn = rows_trained_on(run.episodes, final, run.training.meta_batch)
        scale = learn_scale(_episodes(run, drawn, rows), answer, (OWN, MEAN)[: len(run.rows)])
    write_scale(run.folder, run, final, scale)
    _tell(run.folder, scale)


def _tell(folder: Path, scale: Scale) -> None:
    """Name the tasks that were left out, and say where so few are left that the prior is the weak one or near it."""
    for task, why in scale.left_out.items():
        log.warning("%s: task %s is not among those that it was learned from: %s", folder / SCALE_FILE, task, why)
    if scale.fitted_tasks < FEWEST_TASKS:
        log.warning(
            "%s: learned from %d tasks, so the temperature's prior is %s",
            folder / SCALE_FILE,
            scale.fitted_tasks,
            "nearly the weak one" if scale.fitted_tasks else "the weak one",
        )


def train(
    system: System,
    tasks: Sequence[Task],
    folder: Path | str,
    *,
    validation: Sequence[Task] = (),
    iterations: int | None = None,
    listener: Listener = lambda event: None,
) -> int:
    """Meta-train a system from its start: theta is then a prior learned over the tasks.

    Each meta-iteration draws a task, makes phi from theta, takes inner steps on phi, and one outer step on theta
    (docs/method.md, section 2). The folder becomes a run directory as `abmll train` leaves it, which `abmll adapt`,
    `abmll predict` and `abmll export` take; where it is one already, the same training goes on from its checkpoint.
    No file holds the tasks: what reads them again, as `abmll adapt` does to score unseen tasks, needs
    `"tasks.train={source: builtin, names: null}"` and, with validation tasks, `tasks.validation=null`.

    Args:
        system: of `build_system`; whatever theta and phi were, training begins anew.
        tasks: to learn from; their train rows are used.
        folder: the run directory.
        validation: tasks whose mean NLL after adaptation chooses the step whose weights are taken.
        iterations: meta-iterations in all; None: the configuration's `training.iterations`.
        listener: hears of every step, as the line of the journal.

    Returns:
        The step whose weights theta holds: the last, or the best on the validation tasks.

    Raises:
        AbmllError: a task is too small or has a row without an answer, `tasks` and `validation` share rows, or the
            folder holds another run; says which.
        NonFiniteError: a loss or gradient is not finite; nothing was updated by it.
        Stopped: the process was asked to stop; calling it again goes on.
        OSError: the disk is full, ...; earlier checkpoints are as they were.

    >>> import tempfile
    >>> from abmll.models import random_model
    >>> from abmll.systems.build import build_system
    >>> from abmll.tasks.sources import load_tasks
    >>> system = build_system("reptile", random_model("tiny-llama", device="cpu"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     train(system, load_tasks("builtin:capitals"), f"{folder}/run", iterations=1)
    1
    """
    resolved = resolve(_configured(system.config, tasks, validation, iterations))
    config = resolved.config
    check_run(resolved, Path(folder))
    for task in (*tasks, *validation):
        check_answers(task, test=True)
    by_role = RunTasks(tuple(tasks), tuple(validation), (), scale_from_test=config.adaptation.meta_rows > 0)
    given = without_leaks(by_role, config.tasks.leak_check)
    check_roles(given, config.adaptation.examples)

    def as_new() -> System:
        renewed = renew(system, config)
        assert renewed, "tasks and iterations are no part of a captured step"
        return system

    own = system.config
    try:
        return train_run(prepare_run(resolved, given, Path(folder)), as_new, listener)
    finally:
        system.config = own  # what this training was given is no default of the next


def _configured(
    config: RunConfig, tasks: Sequence[Task], validation: Sequence[Task], iterations: int | None
) -> RunConfig:
    """The configuration with these tasks, by name, and so many iterations."""
    training = config.training.model_dump()
    if iterations is not None:
        training["iterations"] = iterations
    every = training["validate_every"]
    if every is not None and not validation:
        raise AbmllError("training.validate_every is set, but there are no validation tasks to choose by")
    if validation and every is None:
        training["validate_every"] = max(1, training["iterations"] // 10)
    roles = {"train": tasks, "validation": validation}
    sources = {
        role: {"source": PYTHON, "names": [task.name for task in given]} for role, given in roles.items() if given
    }
    values = config.model_dump() | {"training": training, "tasks": {**config.tasks.model_dump(), **sources}}
    return check(RunConfig, values, "training from Python")
