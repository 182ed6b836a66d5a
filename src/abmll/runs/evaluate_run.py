"""Evaluating a run: adapt to every unseen task, predict its test rows, and say in the folder what all of it cost."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError, NonFiniteError
from abmll.files import read_sealed_json, write_sealed_json
from abmll.metrics.not_finite import TRAINING
from abmll.process.environment import environment, peak_memory
from abmll.process.stopping import gently
from abmll.process.timer import Timer
from abmll.process.world import World
from abmll.question import Task
from abmll.runs.card import rewrite_run_card
from abmll.runs.cells import BEFORE, Cell, Cells
from abmll.runs.prepare import Run
from abmll.runs.record import COST, ENVIRONMENT, folder_name, mean_scores, owner
from abmll.runs.tracking import Tracking
from abmll.runs.train_run import learn_run_precision
from abmll.systems.scale import has_scale
from abmll.systems.system import System
from abmll.training.resume import restore_theta

log = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]


def evaluate_run(
    run: Run,
    system: System,
    final: int,
    listener: Listener,
    timer: Timer,
    world: World = World(),  # noqa: B008 - frozen
) -> None:
    """Adapt to every unseen task and predict, at each point of the curve up to `final` and there without adaptation.

    Cells that have their file are not made again. The caller has locked the run's folder. Ranks take the cells of a
    point in turn, each its own; they do not meet here.

    Args:
        run: was trained.
        system: its system; theta is read from the checkpoints of the curve.
        final: the step whose weights are the result.
        listener: is called with an event after each cell.
        timer: adds up the seconds.
        world: the ranks that evaluate together.

    Raises:
        NonFiniteError: an adaptation or prediction is not finite, and the run does not record that.
        Stopped: the process was asked to stop; what is done is on disk.
    """
    cells = Cells(run)
    with gently():
        for step, of_step in itertools.groupby(_every_cell(run, final), lambda cell: cell.step):
            restore_theta(system.method, run.directory, step)
            at_step = list(of_step)
            if not all(cells.exist(cell.where, cell.draw, (cell.task,)) for cell in at_step[world.rank :: world.size]):
                learn_run_precision(run, system, step, listener, timer)
            for start in range(0, len(at_step), world.size):
                at_once = at_step[start : start + world.size]
                for cell in at_once[world.rank : world.rank + 1]:
                    cells.make(system, cell, timer)
                for cell in at_once if world.is_main else ():  # whose progress is shown for all
                    listener(_evaluated(run, cell))


def evaluate_once(run: Run, system: System, step: int, listener: Listener, timer: Timer) -> list[Path]:
    """Adapt to every unseen task from theta as it is now, and predict, replacing predictions that are there.

    Those of a task stay until the new ones are made: a stop, or what is not finite, loses none.

    Args:
        run: names the unseen tasks.
        system: its system, with the weights of `step`.
        step: names the folder of the predictions.
        listener: is called with an event after each cell.
        timer: adds up the seconds.

    Returns:
        The files, for each draw and task one for every row of the system.

    Raises:
        AbmllError: another process is in the run directory.
        NonFiniteError: an adaptation or prediction is not finite, and the run does not record that.
        Stopped: the process was asked to stop.
    """
    files, cells, draws = [], Cells(run), range(run.config.adaptation.draws)
    with run.directory.locked(), gently():
        learn_run_precision(run, system, step, listener, timer)
        for draw, task in itertools.product(draws, run.tasks.unseen):
            cell = _adapted_cell(run, task, draw, step, run.folds(run.adaptation.steps))
            cells.make(system, cell, timer, anew=True)
            listener(_evaluated(run, cell))
            files += [cells.file(name, cell.where, draw, task) for name in run.rows]
        if (run.folder / "adapter").is_dir():
            rewrite_run_card(run.folder)
    return files


def _every_cell(run: Run, final: int) -> Iterator[Cell]:
    """Each point of the curve up to `final`, draw and task; at the end those without adaptation.

    Examples are answered held out at the end alone: a point before it would take as much longer as there are folds, and
    has no learned prior of the temperature.
    """
    for step in run.evaluated_steps(final):
        folds = run.folds(run.adaptation.steps) if step == final else 0
        for draw, task in itertools.product(range(run.config.adaptation.draws), run.tasks.unseen):
            yield _adapted_cell(run, task, draw, step, folds)
    unadapted = replace(run.adaptation, steps=0)
    for task in run.tasks.unseen:
        yield Cell(task, 0, final, run.examples(final), BEFORE, unadapted, run.folds(0))


def _adapted_cell(run: Run, task: Task, draw: int, step: int, folds: int) -> Cell:
    examples = run.examples(step)
    return Cell(task, draw, step, examples, folder_name(examples), run.adaptation, folds)


def _evaluated(run: Run, cell: Cell) -> dict[str, Any]:
    """The event after a cell."""
    steps = cell.plan.steps
    names = {
        "system": run.name,
        "task": cell.task.name,
        "draw": cell.draw,
        "step": cell.step,
        "adapted": steps > 0,
    }
    return {"event": "evaluated", "units": run.evaluation_units(cell.task, steps, cell.folds), **names}


def is_complete(run: Run) -> bool:
    """Whether every file is there: `cost.json`, written last, says where training ended.

    A cell that is not finite has a file too, and is not tried again. Where `adaptation.meta_rows` asks for the prior of
    the temperature, it is there and in the predictions, unless training did not come to its end.
    """
    try:
        final = read_sealed_json(run.folder / COST, _owner(run, COST))["final_step"]
        read_sealed_json(run.folder / ENVIRONMENT, _owner(run, ENVIRONMENT))
    except (AbmllError, KeyError):
        return False
    cells, every = Cells(run), list(_every_cell(run, final))
    if not all(cells.exist(cell.where, cell.draw, (cell.task,)) for cell in every):
        return False
    if not run.config.adaptation.meta_rows or any(marker.stage == TRAINING for _, marker in cells.markers()):
        return True
    return has_scale(run, run.folder) and all(map(cells.have_priors, every))


def mark_training(run: Run, error: NonFiniteError) -> None:
    """Training did not come to its end: write for each cell without predictions that there are none, and why."""
    cells = Cells(run)
    for cell in _every_cell(run, run.training.iterations):
        if not cells.exist(cell.where, cell.draw, (cell.task,)):
            cells.remove(cell.where, cell.draw, cell.task)
            cells.mark(cell, TRAINING, error)


def unmark_training(run: Run) -> None:
    """Training came to its end: remove the markers of an earlier one that did not."""
    for path, marker in Cells(run).markers():
        if marker.stage == TRAINING:
            path.unlink()


def report_scores(run: Run, final: int, tracking: Tracking) -> None:
    """Put the scores on the model card and, as means over tasks and draws, to the trackers."""
    rewrite_run_card(run.folder)
    if not tracking.is_on:
        return
    cells, where, draws = Cells(run), folder_name(run.examples(final)), range(run.config.adaptation.draws)
    pairs = list(itertools.product(draws, run.tasks.unseen))
    files = {name: [cells.file(name, where, draw, task) for draw, task in pairs] for name in run.rows}
    finite = {name: mean_scores(each) for name, each in files.items() if all(file.exists() for file in each)}
    tracking.summary({"unseen": finite}, final)


def spent_before(run: Run) -> dict[str, Any]:
    """The cost of an earlier call, which made most of what is there; empty if there was none."""
    try:
        return read_sealed_json(run.folder / COST, _owner(run, COST)) if (run.folder / COST).exists() else {}
    except AbmllError as error:
        log.warning("%s; what was spent before is forgotten", error)
        return {}


def write_cost(
    run: Run, system: System, final: int, timer: Timer, ranks: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """What the whole run took, and on what; written last.

    Args:
        run: was evaluated.
        system: its system.
        final: the step whose weights are the result.
        timer: has its seconds: those of the main rank.
        ranks: the peak memory of each; None: this one is alone.
    """
    made_with, adapters = environment(system.language_model.device), system.method.adapters
    cost = {
        "final_step": final,
        **timer.seconds,
        "peak_memory_bytes": peak_memory(system.language_model.device),
        **({"ranks": ranks} if ranks else {}),
        "shared_parameters": sum(p.numel() for p in adapters.parameters("shared")),
        "task_parameters": sum(p.numel() for p in adapters.parameters("task")),
        "truncated_questions": len(system.batcher.encoder.truncated),
        "device": str(made_with["device"]),
    }
    write_sealed_json(run.folder / ENVIRONMENT, made_with, _owner(run, ENVIRONMENT))
    write_sealed_json(run.folder / COST, cost, _owner(run, COST))


def _owner(run: Run, file: str) -> str:
    return owner(file, run.name, run.seed)
