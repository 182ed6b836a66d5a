"""The work of `abmll adapt` without --save: unseen tasks, adapted to from a checkpoint and scored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abmll.cli.console import err_console
from abmll.cli.progress import ProgressDisplay
from abmll.cli.work.scores import print_scores
from abmll.config import RunConfig, TaskSource, load_config
from abmll.errors import AbmllError
from abmll.process.timer import Timer
from abmll.runs.evaluate_run import evaluate_once
from abmll.runs.overrides import check_trained
from abmll.runs.prepare import prepare_run, tasks_to_score
from abmll.runs.roles import RunTasks, check_roles
from abmll.systems.build import build_system, load_base
from abmll.systems.plans import resolve
from abmll.training.checkpoints import RunDirectory
from abmll.training.resume import restore_theta


def score_unseen(run: Path, tasks: str | None, overrides: Mapping[str, Any], step: int | None) -> None:
    """Adapt to unseen tasks from a checkpoint, predict their test rows, print scores."""
    config = load_config(RunConfig, run / "config.yaml", overrides)
    check_trained(load_config(RunConfig, run / "config.yaml"), config, run)
    resolved = resolve(config)
    resolved.check_machine()
    roles = tasks_to_score(config, TaskSource(source=tasks) if tasks else None)
    if not roles.unseen:
        raise AbmllError(f"{run} names no unseen tasks: give a folder, a file or builtin:NAME")
    if bare := [task.name for task in roles.unseen if not task.test]:
        raise AbmllError(f"{', '.join(bare)}: no test rows to score; `--save NAME` keeps a task adapted to its rows")
    check_roles(RunTasks((), (), roles.unseen), config.adaptation.examples)
    compared = (run.parent.parent / "comparison.json").is_file()  # its predictions are results there
    folders = (run / "adapted", run / "adapted" / "mean") if compared else None
    prepared = prepare_run(resolved, RunTasks(roles.train, (), roles.unseen), run, predictions=folders)
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
