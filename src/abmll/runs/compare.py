"""Systems x seeds x adaptation draws as build targets: whatever has its file already is not done again.

Several processes share the targets: each, a system with a seed, has a lock; that of the comparison is for its
configuration and report.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from abmll.config import CompareConfig, load_config
from abmll.errors import AbmllError, NonFiniteError
from abmll.files import read_sealed_json, tidy, write_sealed_json, write_text
from abmll.models import LanguageModel
from abmll.process.agreement import agree_on_failure
from abmll.process.environment import memory_of_ranks
from abmll.process.lock import LOCK, InUseError, locked_folder
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
from abmll.runs.overrides import check_encoded, is_shared, of_system
from abmll.runs.prepare import Run, comparison_runs
from abmll.runs.provenance import (
    configuration_of_run,
    describe_differences,
    differences,
    overrides_to_restore,
    task_hash,
)
from abmll.runs.roles import RunTasks
from abmll.runs.train_run import train_in_folder
from abmll.systems.build import build_system
from abmll.systems.plans import resolve
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
    only: Collection[str] = (),
    strict: bool = False,
) -> None:
    """Train, adapt and predict whatever is missing under `out`.

    Everything that could be wrong with the configuration and the tasks is looked at before the model is loaded. A
    system whose training, adaptation or prediction is not finite is a result: recorded as such, while others go on.
    Each target, a system with a seed, has a lock of its own: several processes share the targets of one comparison, and
    one that another process is at work on is left to that.

    Args:
        config: what to compare.
        out: the comparison's folder; see the layout in docs/layout.md.
        load: loads the base model; called only if something is missing.
        listener: is called with each event of progress.
        world: the ranks that train together.
        only: targets to make, SYSTEM or SYSTEM.seed-N; none: all.
        strict: refuse to go back behind a damaged checkpoint.

    Raises:
        InUseError: another process is at work on a target, and has not made it when all others are there.
        AbmllError: something is wrong with the configuration or the tasks, or results of another configuration are
            there.
        Stopped: the process was asked to stop; what is done is on disk.
    """
    runs = begin_comparison(config, out, world, only=only, strict=strict)
    _complete_missing(config, out, runs, load, listener, world)
    with agree_on_failure(world):
        if world.is_main:
            warn_of_non_finite(runs)


def begin_comparison(
    config: CompareConfig,
    out: Path,
    world: World = World(),  # noqa: B008 - frozen
    *,
    only: Collection[str] = (),
    strict: bool = False,
) -> list[Run]:
    """Look at everything that could be wrong, and write what is compared; see `run_comparison`.

    Returns:
        The runs of the targets that are to be made, those that are there too.
    """
    runs = comparison_runs(config, out, strict=strict)
    chosen = select_targets(runs, only)
    with locked_folder(out, world, wait=True, deep=False), agree_on_failure(world):
        if world.is_main:
            _write_configuration(config, out, runs)
    return chosen


def select_targets(runs: Sequence[Run], only: Collection[str]) -> list[Run]:
    """The runs that are meant by SYSTEM or SYSTEM.seed-N; all, if none is named.

    Raises:
        AbmllError: a name is none of a system or a target.
    """
    known = list(dict.fromkeys([*(run.name for run in runs), *(run.target for run in runs)]))
    if unknown := [name for name in only if name not in known]:
        raise AbmllError(f"{unknown[0]!r} is no target of this comparison; there are {', '.join(known)}")
    return [run for run in runs if not only or run.name in only or run.target in only]


def warn_of_non_finite(runs: Sequence[Run]) -> None:
    """Log every system and seed whose numbers are not finite, and say how to try again."""
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


def _complete_missing(
    config: CompareConfig,
    out: Path,
    runs: Sequence[Run],
    load: Callable[[], LanguageModel],
    listener: Listener,
    world: World,
) -> None:
    missing = [run for run in runs if not _is_there(run, world)]
    listener({"event": "plan", "units": sum(run.units() for run in missing), "done": len(runs) - len(missing)})
    base: LanguageModel | None = None
    in_use: list[tuple[Run, InUseError]] = []
    for run in missing:
        with ExitStack() as stack:
            try:
                stack.enter_context(run.directory.locked(world))
            except InUseError as error:
                if world.size > 1:  # the other ranks have ended
                    raise
                log.info("%s; it is left to that", error)
                in_use.append((run, error))
                continue
            _refuse_configuration_changed_since(config, out, world)
            if _is_there(run, world):  # another process has made it meanwhile
                continue
            base = base or _load_checked(missing, load, listener)
            iterations = run.training.iterations
            listener({"event": "target", "system": run.name, "seed": run.seed, "iterations": iterations})
            with _built(run, base) as system:
                complete_run(run, system, listener, world)
    for run, refusal in in_use:
        if not is_complete(run):
            raise refusal


def _is_there(run: Run, world: World) -> bool:
    """Whether a target is made, as the main rank sees it: others may see the disk a moment later."""
    there = False
    with agree_on_failure(world):
        there = world.is_main and is_complete(run)
    return bool(world.tell(int(there)))


def _load_checked(runs: Sequence[Run], load: Callable[[], LanguageModel], listener: Listener) -> LanguageModel:
    """The base model. Every system is built on it before the first is trained, which may take days."""
    model = runs[0].config.model
    listener({"event": "loading", "model": model.source or model.shape})
    base = load()
    for run in {run.name: run for run in runs}.values():
        with of_system(run.name), _built(run, base) as system:
            check_encoded(run.tasks.every, system.batcher.encoder, in_context=run.shows_examples)
    return base


@contextmanager
def _built(run: Run, base: LanguageModel) -> Iterator[System]:
    """The system of a run on the base model, until the block ends."""
    system = build_system(run.config, base, run.settings)
    try:
        yield system
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
    with run.directory.locked_by_caller_or(world), run.tracking() as tracking:
        if world.is_main:
            for folder in run.predictions:  # that of the mean weights lies outside the folder that is locked
                tidy(folder)
        timer = Timer(spent_before(run))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            final = train_in_folder(run, system, listener, world, tracking, timer)
        except NonFiniteError as error:
            if not run.record_non_finite:
                raise
            ranks = memory_of_ranks(world, device)
            with agree_on_failure(world):
                if world.is_main:
                    mark_training(run, error)
                    write_cost(run, system, run.training.iterations, timer, ranks)
            return
        with agree_on_failure(world):
            if world.is_main:
                unmark_training(run)
        with agree_on_failure(world, long=True):
            evaluate_run(run, system, final, listener, timer, world)
        ranks = memory_of_ranks(world, device)
        with agree_on_failure(world, long=True):
            if world.is_main:
                report_scores(run, final, tracking)
                write_cost(run, system, final, timer, ranks)


def _skipped(tasks: RunTasks) -> str:
    """Says in the report how many bad rows were left out."""
    counts = ", ".join(f"{task.name} {task.skipped:,}" for task in tasks.every if task.skipped)
    return f"Bad rows left out: {counts}." if counts else ""


def _write_configuration(config: CompareConfig, out: Path, runs: Sequence[Run]) -> None:
    """Write what is compared, refusing to mix with results of another configuration."""
    _refuse_lost_files(out, [run.folder for run in runs])
    if (out / "config.yaml").exists() and not _is_configuration(config, out):
        for lock in sorted(out.glob(f"*/seed-*/{LOCK}")):
            with locked_folder(lock.parent):  # refused where another process is at work by the one that is there
                pass
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


def _is_configuration(config: CompareConfig, out: Path) -> bool:
    """Whether a configuration is what the folder's `config.yaml` says, to the letter."""
    return (out / "config.yaml").read_text(encoding="utf-8") == config.to_sealed_yaml()


def _refuse_configuration_changed_since(config: CompareConfig, out: Path, world: World) -> None:
    """Another process may have written its own since this one has; not from here on, as a target is locked."""
    with locked_folder(out, world, wait=True, deep=False), agree_on_failure(world):
        if world.is_main and not _is_configuration(config, out):
            raise AbmllError(
                f"{out}: another process has changed its configuration since this one began. Give another folder with "
                "--out, or the same configuration"
            )


def _refuse_other_configuration(run: Run) -> None:
    """Results that are there belong to the configuration that they were made with."""
    file = run.folder / "config.yaml"
    changed = differences(resolve(configuration_of_run(file)), run) if file.exists() else {}
    if changed:
        own = {name if is_shared(name) else f"systems.{run.name}.{name}": pair for name, pair in changed.items()}
        raise AbmllError(
            f"{run.folder} was made with another configuration: {describe_differences(changed)}. Go back to it"
            f"{overrides_to_restore(own)}, give another folder with --out, or remove it"
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
