"""abmll.train: meta-training from Python, on tasks that are Python objects, into a run directory like any other."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from abmll.config import RunConfig, check
from abmll.errors import AbmllError
from abmll.process.timer import Timer
from abmll.process.world import World
from abmll.question import Task
from abmll.runs.overrides import check_run
from abmll.runs.roles import RunTasks, without_leaks
from abmll.runs.target import Target
from abmll.systems.build import PYTHON, check_tasks, renew
from abmll.systems.system import System
from abmll.tasks.episodes import check_answers

Listener = Callable[[dict[str, Any]], None]


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
    config = _configured(system.config, tasks, validation, iterations)
    check_run(config, Path(folder))
    for task in (*tasks, *validation):
        check_answers(task, test=True)
    given = without_leaks(config, RunTasks(tuple(tasks), tuple(validation), ()))
    check_tasks(config, given.train, given.validation)
    target = Target(config.name, config, Path(folder), given.train, (), given.validation)
    renewed = renew(system, config)
    assert renewed, "tasks and iterations are no part of a captured step"
    return target.meta_train(system, listener, World(), Timer())


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
