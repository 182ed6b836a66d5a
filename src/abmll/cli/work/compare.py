"""The work of `abmll compare`."""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from abmll.cli.console import err_console, note
from abmll.cli.progress import ProgressDisplay
from abmll.cli.work.report import show_report
from abmll.config import CompareConfig
from abmll.errors import AbmllError
from abmll.files import tidy
from abmll.process.lock import locked_folder
from abmll.process.pool import GPUS, Ended, run_commands, share_machine, visible_gpus
from abmll.process.slurm import slurm_executor, submit_commands
from abmll.process.stopping import Stopped
from abmll.process.world import join_world, leave_world
from abmll.runs.compare import begin_comparison, run_comparison, warn_of_non_finite
from abmll.runs.evaluate_run import is_complete
from abmll.runs.prepare import Run
from abmll.systems.build import load_base


@dataclass(frozen=True)
class Launch:
    """Which processes make the targets.

    Attributes:
        processes: at a time; None: this one, or with a launcher as many as that starts.
        launcher: `slurm`: jobs of Slurm.
        parameters: of its jobs.
    """

    processes: int | None
    launcher: str | None
    parameters: Mapping[str, Any]

    @property
    def is_here(self) -> bool:
        """Whether this process makes them."""
        return self.launcher is None and self.processes in (None, 1)


def compare_systems(
    config: CompareConfig, folder: Path, launch: Launch, *, only: Collection[str], strict: bool
) -> None:
    """Make whatever is missing of a comparison, and report."""
    if not launch.is_here:
        done = _launch(config, folder, launch, only, strict)
    else:
        done = _make_here(config, folder, only, strict)
    if not done:
        return
    if only:
        note(f"{folder}: {', '.join(only)}: is there. The command without --only makes the rest and the report")
        return
    with locked_folder(folder, wait=True, deep=False):
        tidy(folder / "figures")  # what a process left that was killed as it wrote them
        show_report(folder)


def _make_here(config: CompareConfig, folder: Path, only: Collection[str], strict: bool) -> bool:
    """Make what is missing in this process; whether it is the one that speaks."""
    world = join_world()
    with ProgressDisplay(err_console) as display:
        run_comparison(
            config, folder, partial(load_base, config.model, world), display, world, only=only, strict=strict
        )
    leave_world()
    return world.is_main


def _launch(config: CompareConfig, folder: Path, launch: Launch, only: Collection[str], strict: bool) -> bool:
    """Make what is missing by a command for each target; whether all is there."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AbmllError("torchrun's ranks train one target together: give --processes or --launcher without torchrun")
    if config.model.shards not in (1, "auto"):
        raise AbmllError(
            f"model.shards={config.model.shards} spreads the base over torchrun's processes: give that command without "
            "--processes and --launcher"
        )
    runs = begin_comparison(config, folder, only=only, strict=strict)
    missing = [run.target for run in runs if not is_complete(run)]
    commands = {target: _command(folder, target, strict) for target in missing}
    if missing and launch.launcher:
        _submit(commands, folder, launch)
        return False
    if missing:
        gpus = visible_gpus() if config.model.device in ("auto", "cuda") else []
        slots = share_machine(min(launch.processes or 1, len(missing)), gpus)
        _run_side_by_side(runs, commands, slots, folder / "logs")
    warn_of_non_finite(runs)
    return True


def _command(folder: Path, target: str, strict: bool) -> list[str]:
    """What makes one target, from the configuration that this process wrote: the recipe may have changed meanwhile."""
    arguments = [str(folder / "config.yaml"), "-o", str(folder), "--only", target]
    return [sys.executable, "-m", "abmll", "compare", *arguments, *(["--strict"] if strict else [])]


def _submit(commands: Mapping[str, Sequence[str]], folder: Path, launch: Launch) -> None:
    at_a_time = {} if launch.processes is None else {"array_parallelism": launch.processes}
    executor = slurm_executor(folder / "logs" / "slurm", {**at_a_time, **launch.parameters})
    for target, job in submit_commands(commands, executor, folder / "logs").items():
        note(f"{target}: job {job}, {folder / 'logs' / target}.log")
    note("When they have ended, the same command makes the report, or submits what is missing")


def _run_side_by_side(
    runs: Sequence[Run], commands: Mapping[str, Sequence[str]], slots: Sequence[Mapping[str, str]], logs: Path
) -> None:
    """Run the commands; raise an error that names every target that is not there afterwards."""

    def began(target: str, slot: Mapping[str, str]) -> None:
        note(f"{target}: begins{f' on GPU {slot[GPUS]}' if GPUS in slot else ''}, {logs / target}.log")

    def ended(target: str, how: Ended) -> None:
        note(f"{target}: {f'failed: {how}' if how.code else 'is there'}")

    note(f"{len(runs)} targets, {len(commands)} to be made, {len(slots)} at a time")
    try:
        done = run_commands(commands, slots, logs, began, ended)
    except Stopped as stopped:
        there = sum(map(is_complete, runs))
        raise Stopped(stopped.signal, f"{there} of {len(runs)} targets are there") from stopped
    if missing := [run.target for run in runs if not is_complete(run)]:
        lines = [f"{target}: {done.get(target, 'was removed meanwhile')}" for target in missing]
        raise AbmllError(f"{len(missing)} of {len(runs)} targets are not there:\n" + "\n".join(lines))
