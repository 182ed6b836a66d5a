"""Systems x seeds x adaptation draws as build targets: whatever has its file already is not done again."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from abmll.adapters.attach import find_targets
from abmll.config import CompareConfig, RunConfig, load_config
from abmll.errors import AbmllError, NonFiniteError
from abmll.files import read_sealed_json, write_sealed_json, write_text
from abmll.metrics.registered import METRICS
from abmll.models import LanguageModel
from abmll.process.agreement import agree_on_failure
from abmll.process.lock import locked_folder
from abmll.process.timer import Timer
from abmll.process.world import World
from abmll.runs.cells import Cells
from abmll.runs.evaluate_run import (
    evaluate_run,
    is_complete,
    mark_training,
    report_scores,
    spent_before,
    unmark_training,
    write_cost,
)
from abmll.runs.overrides import check_encoded, check_run, check_systems, of_system
from abmll.runs.provenance import (
    configuration_of_run,
    describe_differences,
    differences,
    overrides_to_restore,
    task_hash,
)
from abmll.runs.resolved import ResolvedRun, Run, prepare_run, resolve
from abmll.runs.roles import RunTasks, check_roles, load_run_tasks, without_leaks
from abmll.runs.tracking import Tracking
from abmll.runs.train_run import train_in_folder
from abmll.systems.build import build_batcher, build_system
from abmll.systems.system import System

log = logging.getLogger(__name__)

COMPARISON = "comparison.json"
_ADVICE = "put it back from a copy, or give another folder with --out"

Listener = Callable[[dict[str, Any]], None]


def run_comparison(
    config: CompareConfig,
    out: Path,
    load: Callable[[], LanguageModel],
    listener: Listener = lambda event: None,
    world: World = World(),  # noqa: B008 - frozen
    *,
    strict: bool = False,
) -> None:
    """Train, adapt and predict whatever is missing under `out`.

    Everything that could be wrong with the configuration and the tasks is looked at before the model is loaded. A
    system whose training, adaptation or prediction is not finite is a result: recorded as such, while others go on.

    Args:
        config: what to compare.
        out: the comparison's folder; see the layout in docs/layout.md.
        load: loads the base model; called only if something is missing.
        listener: is called with each event of progress.
        world: the ranks that train together.
        strict: refuse to go back behind a damaged checkpoint.

    Raises:
        AbmllError: something is wrong with the configuration or the tasks, results of another configuration are there,
            or another process is at work in `out`.
        Stopped: the process was asked to stop; what is done is on disk.
    """
    runs = comparison_runs(config, out, strict=strict)
    with locked_folder(out, world):
        with agree_on_failure(world):
            if world.is_main:
                _write_configuration(config, out, runs)
        _complete_missing(runs, load, listener, world)
        with agree_on_failure(world):
            if world.is_main:
                _warn_of_non_finite(runs)


def _warn_of_non_finite(runs: Sequence[Run]) -> None:
    """Name every system and seed whose numbers are not finite, and say how to try again."""
    for run in runs:
        markers = list(Cells(run).markers())
        if markers:
            path, first = markers[0]
            more = f" and {len(markers) - 1} more" if len(markers) > 1 else ""
            log.warning(
                "%s seed %d is not finite, and so in the report (task %s, draw %d%s): %s. It is not tried again by "
                "itself: to do so delete %s%s; or compare with another model.dtype into another folder (--out)",
                *(
                    run.name,
                    run.seed,
                    first.asked.task,
                    first.asked.draw,
                    more,
                    first.why,
                    path,
                    more,
                ),
            )


def _complete_missing(runs: Sequence[Run], load: Callable[[], LanguageModel], listener: Listener, world: World) -> None:
    missing = [run for run in runs if not is_complete(run)]
    listener({"event": "plan", "units": sum(run.units() for run in missing), "done": len(runs) - len(missing)})
    if not missing:
        return
    model = missing[0].config.model
    listener({"event": "loading", "model": model.source or model.shape})
    base = load()
    for run in missing:  # all of them before the first is trained, which may take days
        with of_system(run.name):
            find_targets(base.model, run.config.adapter.targets)
            encoder = build_batcher(run.config, base).encoder
            check_encoded(run.tasks.every, encoder, in_context=run.config.adaptation.in_context)
    for run in missing:
        iterations = run.training.iterations
        listener({"event": "target", "system": run.name, "seed": run.seed, "iterations": iterations})
        system = build_system(run.config, base, run.settings)
        try:
            complete_run(run, system, listener, world)
        finally:
            system.close()


def complete_run(run: Run, system: System, listener: Listener, world: World) -> None:
    """Train, then adapt and predict at every point of the curve and, at the end, without adaptation.

    Args:
        run: what is trained and evaluated, and where.
        system: its system, as new; it stays open.
        listener: is called with an event after each step and cell.
        world: the ranks that train together.

    Raises:
        NonFiniteError: something is not finite, and the run does not record that as a result.
        Stopped: the process was asked to stop; what is done is on disk.
    """
    device = system.language_model.device
    with run.directory.locked(world), Tracking(run.config, run.folder) as tracking:
        timer = Timer(spent_before(run))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            final = train_in_folder(run, system, listener, world, tracking, timer)
        except NonFiniteError as error:
            if not run.record_non_finite:
                raise
            with agree_on_failure(world):
                if world.is_main:
                    mark_training(run, error)
                    write_cost(run, system, run.training.iterations, timer)
            return
        with agree_on_failure(world, long=True):
            if world.is_main:
                unmark_training(run)
                evaluate_run(run, system, final, listener, timer)
                report_scores(run, final, tracking)
                write_cost(run, system, final, timer)


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
    check_systems(config, {name: seeds[0] for name, seeds in configs.items()})
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


def _skipped(tasks: RunTasks) -> str:
    """Says in the report how many bad rows were left out."""
    counts = ", ".join(f"{task.name} {task.skipped:,}" for task in tasks.every if task.skipped)
    return f"Bad rows left out: {counts}." if counts else ""


def _check_rows(runs: Sequence[ResolvedRun]) -> None:
    """Refuse a system whose name is that of another's row of mean weights: they would share a folder."""
    rows = [row for run in runs for row in run.rows]
    twice = sorted({row for row in rows if rows.count(row) > 1})
    if twice:
        raise AbmllError(f"systems: {', '.join(twice)} is also the row of another system's mean weights; rename it")


def _write_configuration(config: CompareConfig, out: Path, runs: Sequence[Run]) -> None:
    """Write what is compared, refusing to mix with results of another configuration."""
    _refuse_lost_files(out, [run.folder for run in runs])
    before = load_config(CompareConfig, out / "config.yaml") if (out / "config.yaml").exists() else config
    if before.curve != config.curve:
        raise AbmllError(
            f"{out} was made with curve={before.curve}, now it is {config.curve}: its checkpoints were not kept. "
            "Give another folder with --out, or remove it"
        )
    for run in runs:
        _refuse_other_configuration(run)
    tasks = runs[0].tasks
    data = {task.name: task_hash(task) for task in tasks.every}
    _refuse_other_rows(out, data)
    rows = [row for run in runs if run.seed == config.seeds[0] for row in run.rows]
    described = {
        "name": config.name,
        "note": " ".join(filter(None, (config.note, _skipped(tasks)))),
        "systems": rows,
        "seeds": list(config.seeds),
        "draws": config.adaptation.draws,
        "reference": config.reference,
        "tasks": [task.name for task in tasks.unseen],
        "metrics": list(config.metrics),
        "data": data,
    }
    write_text(out / "config.yaml", config.to_sealed_yaml())
    write_sealed_json(out / COMPARISON, described)


def _refuse_other_configuration(run: Run) -> None:
    """Results that are there belong to the configuration that they were made with."""
    file = run.folder / "config.yaml"
    changed = differences(resolve(configuration_of_run(file)), run) if file.exists() else {}
    if changed:
        raise AbmllError(
            f"{run.folder} was made with another configuration: {describe_differences(changed)}. Go back to it"
            f"{overrides_to_restore(changed, f'systems.{run.name}.')}, give another folder with --out, or remove it"
        )


def _refuse_lost_files(out: Path, runs: Sequence[Path]) -> None:
    """What says which rows and points results are of must be there if any results are."""
    lost = [out / name for name in ("config.yaml", COMPARISON) if not (out / name).exists()]
    begun = [run for run in runs if (run / "config.yaml").exists()]
    if lost and begun:
        raise AbmllError(
            f"{lost[0]}: is missing, though {begun[0]} has been begun, so what its results are of cannot be told; "
            f"{_ADVICE}"
        )


def _refuse_other_rows(out: Path, data: dict[str, str]) -> None:
    """Results that are there belong to the rows they were made from; a folder of before rows were hashed is taken."""
    file = out / COMPARISON
    before = read_sealed_json(file, advice=_ADVICE).get("data", data) if file.exists() else data
    if before != data:
        change = describe_differences({"data": (before, data)}) if isinstance(before, dict) else "data"
        raise AbmllError(f"{out} was made from other rows: {change}. Give another folder with --out, or remove it")
