"""Targets in their order until the time is over: train, adapt, predict, pack; what is packed is never run again."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abmll.config import RunConfig
from abmll.errors import NonFiniteError
from abmll.files import append_line, remove_folder
from abmll.models import LanguageModel
from abmll.process.stopping import Stopped
from abmll.process.world import World
from abmll.runs.compare import complete_run
from abmll.runs.prepare import prepare_run
from abmll.runs.roles import RunTasks
from abmll.systems.build import build_system, renew
from abmll.systems.plans import resolve
from abmll.systems.system import System
from experiments.unseen.bundles import Bundles
from experiments.unseen.cells import names_in
from experiments.unseen.clock import deadline, since_start
from experiments.unseen.packing import pack, read_target
from experiments.unseen.protocol import Protocol

Tell = Callable[[str], None]
LOG = "log.jsonl"


@dataclass
class Renewing:
    """One system on the base model, renewed from target to target where its captured steps can stay.

    Attributes:
        base: the base model.
        system: the one that is attached now.
        built: how many were built.
    """

    base: LanguageModel
    system: System | None = None
    built: int = 0

    def get(self, config: RunConfig) -> System:
        """A system of this configuration, as new."""
        if self.system is None or not renew(self.system, config):
            self.close()
            self.system = build_system(config, self.base)
            self.built += 1
        return self.system

    def close(self) -> None:
        """Take it off the base model."""
        if self.system is not None:
            self.system.close()
        self.system = None


def target_name(protocol: Protocol, system: str, seed: int) -> str:
    """The name of a target's packed file."""
    return f"{system}.{protocol.config.likelihood.kind}.seed-{seed}.parquet"


def done_targets(folders: Iterable[Path], bundles: Bundles) -> set[str]:
    """Names of packed files that exist, in folders (the committed ones) or in bundles."""
    return set().union(*map(names_in, folders)) | bundles.names()


def run(
    protocol: Protocol,
    tasks: RunTasks,
    load: Callable[[], LanguageModel],
    out: Path,
    *,
    packed: Path,
    work: Path,
    minutes: float | None = None,
    only: str = "*",
    commit: str = "",
    keep: bool = False,
    tell: Tell = print,
) -> bool:
    """Run what is missing, most important first.

    Args:
        protocol: what to run.
        tasks: the tasks, loaded.
        load: loads the base model, once.
        out: bundles of packed files and `log.jsonl` with what each target took.
        packed: the committed files.
        work: run directories; one that is not finished is gone on with if it is there.
        minutes: age of this process at which it stops by itself.
        only: patterns of `system.seed-N`, separated by commas.
        commit: named in packed files where no git says it.
        keep: leave run directories of finished targets in `work`, for what needs their adapters.
        tell: hears of progress.

    Returns:
        Whether all is done, or else time was over.
    """
    bundles = Bundles(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with deadline(minutes):
            failed = set(failures(out / LOG))
            for told, name, data in _targets(
                protocol, tasks, load, work, packed, bundles, failed, only, commit, keep, tell
            ):
                if data:
                    bundles.add(name, data)
                append_line(out / LOG, json.dumps({"target": name, "bytes": len(data), **told}))
                tell(f"{name}: {json.dumps(told)}, {len(data):,} bytes; {since_start():.0f} s old")
    except Stopped as stopped:
        tell(f"stopped at {since_start():.0f} s: {stopped}")
        return False
    return True


def _targets(
    protocol: Protocol,
    tasks: RunTasks,
    load: Callable[[], LanguageModel],
    work: Path,
    packed: Path,
    bundles: Bundles,
    failed: set[str],
    only: str,
    commit: str,
    keep: bool,
    tell: Tell,
) -> Iterator[tuple[dict[str, Any], str, bytes]]:
    done = done_targets([packed], bundles) | failed
    todo = [(s, n) for s, n in protocol.selected(only) if target_name(protocol, s, n) not in done]
    tell(f"{len(todo)} targets to run, {len(protocol.selected(only)) - len(todo)} done")
    if not todo:
        return
    renewing = Renewing(load())
    tell(f"base model loaded; {since_start():.0f} s old")
    try:
        for system, seed in todo:
            began, config = time.perf_counter(), protocol.run(system, seed)
            resolved = resolve(config)
            predictions = [work / row / f"seed-{seed}" / "predictions" for row in resolved.rows]
            validation = tasks.validation if config.training.validate_every else ()
            roles = RunTasks(tasks.train, validation, tasks.unseen)
            folder, curve = work / system / f"seed-{seed}", protocol.config.curve
            target = prepare_run(resolved, roles, folder, curve=curve, predictions=predictions)
            made = renewing.get(config)
            try:
                complete_run(target, made, lambda event: None, World())
            except NonFiniteError as error:  # a result, too, and no reason to leave out all that follow
                renewing.close()
                yield {"why": str(error)[:300]}, target_name(protocol, system, seed), b""
                continue
            found = read_target(work, system, target.rows, seed)
            about = {**found.about, "commit": commit, "graphs": made.graphs.report()}
            if commit:
                about["environment"] = {**about["environment"], "commit": commit}
            data = pack(type(found)(about, found.found))
            seconds = {k: round(v, 2) for k, v in found.about["cost"].items() if k.endswith("_seconds")}
            yield (
                {"seconds": round(time.perf_counter() - began, 2), **seconds},
                target_name(protocol, system, seed),
                data,
            )
            if not keep:
                _forget(work, target.rows, seed)
    finally:
        renewing.close()


def _forget(work: Path, rows: Iterable[str], seed: int) -> None:
    for row in rows:
        folder = work / row / f"seed-{seed}"
        if folder.exists():
            remove_folder(folder)


def failures(log: Path) -> dict[str, str]:
    """Targets whose loss or gradient was not finite, and what was said; they are not run again."""
    return {line["target"]: line["why"] for line in told_seconds(log) if "why" in line}


def told_seconds(log: Path) -> list[dict[str, Any]]:
    """The lines of a `log.jsonl`."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
