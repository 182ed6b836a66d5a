"""The work of `abmll adapt` without --save: unseen tasks, adapted to from a checkpoint and scored."""

from collections.abc import Mapping
from typing import Any

from abmll.cli.console import err_console
from abmll.cli.progress import ProgressDisplay
from abmll.cli.work.scores import print_scores
from abmll.config import TaskSource
from abmll.errors import AbmllError
from abmll.everyday.session import settings_of
from abmll.everyday.shipped import find_run
from abmll.process.timer import Timer
from abmll.runs.evaluate_run import evaluate_once
from abmll.runs.prepare import prepare_run, tasks_to_score
from abmll.runs.roles import RunTasks, check_roles
from abmll.systems.build import build_system, load_base
from abmll.systems.plans import resolve
from abmll.training.checkpoints import RunDirectory
from abmll.training.resume import restore_theta


def score_unseen(run: str, tasks: str | None, overrides: Mapping[str, Any], step: int | None) -> None:
    """Adapt to unseen tasks from a checkpoint, predict their test rows, print scores."""
    folder = find_run(run)
    config = settings_of(folder, overrides, fixed={})
    resolved = resolve(config)
    roles = tasks_to_score(config, TaskSource(source=tasks) if tasks else None)
    if not roles.unseen:
        raise AbmllError(f"{folder} names no unseen tasks: give a folder, a file or builtin:NAME")
    if bare := [task.name for task in roles.unseen if not task.test]:
        raise AbmllError(f"{', '.join(bare)}: no test rows to score; `--save NAME` keeps a task adapted to its rows")
    check_roles(RunTasks((), (), roles.unseen), config.adaptation.examples)
    compared = (folder.parent.parent / "comparison.json").is_file()  # its predictions are results there
    folders = (folder / "adapted", folder / "adapted" / "mean") if compared else None
    prepared = prepare_run(resolved, RunTasks(roles.train, (), roles.unseen), folder, predictions=folders)
    checkpoint = _checkpoint_step(prepared.directory, step)
    with ProgressDisplay(err_console) as display:
        display({"event": "loading", "model": config.model.source or config.model.shape})
        system = build_system(config, load_base(config.model), resolved.settings)
        restore_theta(system.method, prepared.directory, checkpoint)
        files = evaluate_once(prepared, system, checkpoint, display, Timer())
    print_scores(files)


def _checkpoint_step(run: RunDirectory, step: int | None) -> int:
    """The checkpoint to adapt from: that of `step`, or else of the best by validation, or else the latest."""
    checkpoint = run.latest(step)
    if checkpoint is None and step is None:
        raise AbmllError(
            f"{run.path}: has no checkpoints to score tasks from; `abmll adapt {run.path} ROWS --save NAME` adapts to "
            "labelled rows, and needs its adapter/ alone"
        )
    if checkpoint is None or (step is not None and checkpoint.step != step):
        raise AbmllError(f"{run.path}: no checkpoint of step {step}; there are {run.steps() or 'none'}")
    return checkpoint.step if step is not None else int(checkpoint.state.get("best_step", 0)) or checkpoint.step
