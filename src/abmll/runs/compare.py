"""Systems x seeds x adaptation draws as build targets: whatever has its file already is not done again."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from abmll.config import CompareConfig, RunConfig, load_config
from abmll.errors import AbmllError
from abmll.files import read_sealed_json, write_sealed_json, write_text
from abmll.metrics.registered import METRICS
from abmll.models import LanguageModel
from abmll.process.lock import FolderLock
from abmll.process.together import together
from abmll.process.world import World
from abmll.runs.origin import advice, configuration_of_run, differences, task_hash, told
from abmll.runs.overrides import check_fit, check_run, check_systems, of_system
from abmll.runs.roles import RunTasks, load_run_tasks, without_leaks
from abmll.runs.target import Target, row_names
from abmll.systems.build import build_episodes, check_tasks

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
    system whose training, adaptation or prediction is not finite is a result: kept as such and told, and others go on.

    Args:
        config: what to compare.
        out: the comparison's folder; see the layout in docs/layout.md.
        load: loads the base model; called only if something is missing.
        listener: told of progress.
        world: the ranks that train together.
        strict: refuse to go back behind a damaged checkpoint.

    Raises:
        AbmllError: something is wrong with the configuration or the tasks, results of another configuration are there,
            or another process is at work in `out`.
        Stopped: the process was asked to stop; what is done is on disk.
    """
    runs = [(name, seed, config.run(name, seed)) for name, seed in itertools.product(config.systems, config.seeds)]
    tasks = comparison_tasks(config, out)
    targets = [(seed, _target(name, run, out, tasks, config.curve, strict)) for name, seed, run in runs]
    with _locked(out, world):
        with together(world):
            if world.is_main:
                _keep_configuration(config, out, runs, tasks)
        _make_missing(config, targets, load, listener, world)
        with together(world):
            if world.is_main:
                _warn_of_non_finite(targets)


def _warn_of_non_finite(targets: Sequence[tuple[int, Target]]) -> None:
    """Name every system and seed whose numbers are not finite, and say how to try again."""
    for seed, target in targets:
        found = list(target.cells.markers())
        if found:
            path, first = found[0]
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            log.warning(
                "%s seed %d is not finite, and so in the report (task %s, draw %d%s): %s. It is not tried again by "
                "itself: to do so delete %s%s; or compare with another model.dtype into another folder (--out)",
                *(target.name, seed, first.asked.task, first.asked.draw, more, first.why, path, more),
            )


def _target(name: str, run: RunConfig, out: Path, tasks: RunTasks, curve: int, strict: bool) -> Target:
    """A system and seed; its row of mean weights lies beside it, as if it were a system of its own."""
    seed = f"seed-{run.training.seed}"
    means = out / f"{name}_mean" / seed / "predictions"
    roles = (tasks.train, tasks.unseen, tasks.validation)
    folder = out / name / seed
    return Target(name, run, folder, *roles, curve, strict=strict, mean_predictions=means, record_non_finite=True)


@contextmanager
def _locked(out: Path, world: World) -> Iterator[None]:
    """The main rank holds the folder for all of them."""
    with ExitStack() as stack:
        with together(world):
            if world.is_main:
                stack.enter_context(FolderLock(out).held())
        yield


def _make_missing(
    config: CompareConfig,
    targets: list[tuple[int, Target]],
    load: Callable[[], LanguageModel],
    listener: Listener,
    world: World,
) -> None:
    missing = [(seed, target) for seed, target in targets if not target.done()]
    listener({"event": "plan", "units": sum(t.units() for _, t in missing), "done": len(targets) - len(missing)})
    if not missing:
        return
    listener({"event": "loading", "model": config.model.source or config.model.shape})
    base = load()
    for _, target in missing:  # all of them before the first is trained, which may take days
        with of_system(target.name):
            check_fit(target.config, base, (*target.train, *target.validation, *target.unseen))
    for seed, target in missing:
        listener({"event": "target", "system": target.name, "seed": seed, "iterations": target.iterations})
        target.make(base, listener, world)


def comparison_tasks(config: CompareConfig, out: Path | None = None) -> RunTasks:
    """A comparison's tasks, after a look at everything that can be wrong with it before a model is loaded.

    Args:
        config: what to compare.
        out: its folder, where some of it may be done; None: all is to be done.

    Raises:
        AbmllError: a setting, a tracker or a name is wrong, or a task has two roles, is too small, leaks, ...
    """
    for metric in config.metrics:
        METRICS.lookup(metric)
    check_systems(config)
    runs = {name: config.run(name, config.seeds[0]) for name in config.systems}
    for name, run in runs.items():
        folders = () if out is None else tuple(out / name / f"seed-{seed}" for seed in config.seeds)
        with of_system(name):
            check_run(run, *folders)
    _check_rows(config)
    tasks = load_run_tasks(config, tuple(runs.values()))
    if not tasks.unseen:
        raise AbmllError("tasks.unseen names no task to compare on")
    tasks = _checked(config, tasks)
    for name, run in runs.items():
        with of_system(name):
            _check_own(run, tasks)
    return tasks


def _check_own(run: RunConfig, tasks: RunTasks) -> None:
    """What a system asks of the tasks by settings of its own."""
    build_episodes(run, tasks.train)
    check_tasks(run, tasks.train, tasks.unseen + tasks.validation)
    if run.training.validate_every is not None and not tasks.validation:
        raise AbmllError(
            f"training.validate_every={run.training.validate_every}, but tasks.validation names no tasks to choose by; "
            "name some for the comparison, or leave it out"
        )


def _checked(config: CompareConfig, tasks: RunTasks) -> RunTasks:
    """The tasks, none with two roles or too small, and without leaks."""
    check_tasks(config, tasks.train, tasks.unseen + tasks.validation)  # first: a task in two roles leaks every row
    clean = without_leaks(config, tasks)
    check_tasks(config, clean.train, clean.unseen + clean.validation)
    return clean


def _skipped(tasks: RunTasks) -> str:
    """Says in the report how many bad rows were left out."""
    every = tasks.train + tasks.validation + tasks.unseen
    counts = ", ".join(f"{task.name} {task.skipped:,}" for task in every if task.skipped)
    return f"Bad rows left out: {counts}." if counts else ""


def _check_rows(config: CompareConfig) -> None:
    """Refuse a system whose name is that of another's row of mean weights: they would share a folder."""
    rows = [row for name in config.systems for row in row_names(name, config.run(name, config.seeds[0]))]
    twice = sorted({row for row in rows if rows.count(row) > 1})
    if twice:
        raise AbmllError(f"systems: {', '.join(twice)} is also the row of another system's mean weights; rename it")


def _keep_configuration(
    config: CompareConfig, out: Path, runs: list[tuple[str, int, RunConfig]], tasks: RunTasks
) -> None:
    """Write what is compared, refusing to mix with results of another configuration."""
    _refuse_lost_files(out, [out / name / f"seed-{seed}" for name, seed, _ in runs])
    before = load_config(CompareConfig, out / "config.yaml") if (out / "config.yaml").exists() else config
    if before.curve != config.curve:
        raise AbmllError(
            f"{out} was made with curve={before.curve}, now it is {config.curve}: its checkpoints were not kept. "
            "Give another folder with --out, or remove it"
        )
    for name, seed, run in runs:
        file = out / name / f"seed-{seed}" / "config.yaml"
        changed = differences(configuration_of_run(file), run) if file.exists() else {}
        if changed:
            raise AbmllError(
                f"{file.parent} was made with another configuration: {told(changed)}. Go back to it"
                f"{advice(changed, f'systems.{name}.')}, give another folder with --out, or remove it"
            )
    data = {task.name: task_hash(task) for task in tasks.train + tasks.validation + tasks.unseen}
    _refuse_other_rows(out, data)
    rows = [row for name, seed, run in runs if seed == config.seeds[0] for row in row_names(name, run)]
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
        change = told({"data": (before, data)}) if isinstance(before, dict) else "data"
        raise AbmllError(f"{out} was made from other rows: {change}. Give another folder with --out, or remove it")
