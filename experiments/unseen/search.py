"""Successive halving on the validation tasks: the same number of trials, rungs and examples for every system."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import qmc

from abmll.config import RunConfig, check, merge
from abmll.errors import AbmllError, NonFiniteError
from abmll.files import remove_folder, write_json, write_text
from abmll.metrics.predictions import read_predictions
from abmll.models import LanguageModel
from abmll.process.stopping import Stopped
from abmll.process.world import World
from abmll.runs.compare import complete_run
from abmll.runs.prepare import prepare_run
from abmll.runs.roles import RunTasks
from abmll.scoring.scores import score
from abmll.systems.plans import resolve
from experiments.unseen.clock import deadline, since_start
from experiments.unseen.protocol import Protocol
from experiments.unseen.run import Renewing

Space = Mapping[str, Any]


def trials(system: str, spaces: list[Space], count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Settings to try: the method's defaults, then points of a scrambled Sobol sequence, alternatives in turn.

    >>> [sorted(t) for t in trials("reptile", [{"inner_lr": {"log": [1e-4, 1e-2]}}], 3)]
    [[], ['inner_lr'], ['inner_lr']]
    """
    key = [seed, *system.encode()]
    points = [
        qmc.Sobol(
            max(1, sum(isinstance(v, dict) for v in space.values())), rng=np.random.default_rng([*key, i])
        ).random_base2(max(1, count.bit_length()))
        for i, space in enumerate(spaces)
    ]
    out: list[dict[str, Any]] = [{}]
    while len(out) < count:
        which, place = (len(out) - 1) % len(spaces), (len(out) - 1) // len(spaces)
        out.append(_settings(spaces[which], points[which][place]))
    return out[:count]


def _settings(space: Space, point: np.ndarray) -> dict[str, Any]:
    searched = [name for name, value in space.items() if isinstance(value, dict)]
    found = {name: _value(space[name], float(u)) for name, u in zip(searched, point, strict=False)}
    return {name: found.get(name, value) for name, value in space.items()}


def _value(spec: Mapping[str, Any], u: float) -> Any:
    ((kind, given),) = spec.items()
    if kind == "choice":
        return given[min(int(u * len(given)), len(given) - 1)]
    low, high = given
    if kind == "log":
        return float(f"{low * (high / low) ** u:.3g}")
    if kind == "uniform":
        return float(f"{low + (high - low) * u:.3g}")
    raise AbmllError(f"protocol: search.spaces: {kind!r} is none of log, uniform, choice")


@dataclass(frozen=True)
class Search:
    """What trials are run with.

    Attributes:
        protocol, tasks: of the experiment; its unseen tasks are never looked at.
        work: where trials leave their files, which are removed.
    """

    protocol: Protocol
    tasks: RunTasks
    work: Path

    def config(self, system: str, settings: Mapping[str, Any], rung: Mapping[str, Any], seed: int) -> RunConfig:
        """The configuration of a trial: the base and the system's own part, not what was chosen before."""
        own, chosen = self.protocol.config.systems[system], self.protocol.chosen.get(system, {})
        method = {**{name: value for name, value in own["method"].items() if name not in chosen}, **settings}
        systems = {system: {**own, "method": method}}
        config = self.protocol.config.model_copy(update={"systems": systems})
        run = config.run(system, seed).model_dump(mode="json")
        wanted = {
            "training": {"iterations": rung["iterations"], "checkpoint_every": 10_000},
            "adaptation": {"draws": rung["draws"], "test_questions": rung["test_questions"]},
        }
        return check(RunConfig, merge(run, wanted), f"trial of {system}")

    def trial(
        self, renewing: Renewing, system: str, settings: Mapping[str, Any], rung: Mapping[str, Any], seed: int
    ) -> dict[str, Any]:
        """Scores of one trial with one training seed, as its line of the log."""
        began = time.perf_counter()
        found: dict[str, Any] = {"settings": dict(settings), **rung, "seed": seed}
        try:
            scores = self._trained(renewing, self.config(system, settings, rung, seed), system)
        except NonFiniteError as error:  # a rate too high is an answer, not an accident
            renewing.close()
            return {**found, "score": None, "why": str(error)[:200], "seconds": round(time.perf_counter() - began, 2)}
        by_task = {
            task: float(np.mean([s[self.protocol.search["criterion"]] for s in each])) for task, each in scores.items()
        }
        others = {
            name: float(np.mean([np.mean([s[name] for s in each]) for each in scores.values()]))
            for name in ("accuracy", "nll", "nll_scaled", "ece", "nll_over_uniform")
        }
        seconds = round(time.perf_counter() - began, 2)
        return {
            **found,
            "score": float(np.mean(list(by_task.values()))),
            "tasks": by_task,
            **others,
            "seconds": seconds,
        }

    def _trained(self, renewing: Renewing, config: RunConfig, system: str) -> dict[str, list[dict[str, Any]]]:
        """Task -> scores of its draws."""
        folder = self.work / "trial" / system / "seed-search"
        rows = self.work / "trial" / f"{system}_mean" / folder.name
        for rest in (folder, rows):
            if rest.exists():
                remove_folder(rest)
        tasks, predictions = RunTasks(self.tasks.train, (), self.tasks.validation), (folder, rows)
        run = prepare_run(resolve(config), tasks, folder, predictions=[row / "predictions" for row in predictions])
        complete_run(run, renewing.get(config), lambda event: None, World())
        return _scores(folder)


def _scores(folder: Path) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((folder / "predictions").glob("examples-*/draw-*/*.jsonl")):
        predictions = read_predictions(path)
        out.setdefault(predictions.task, []).append(score(predictions).to_dict())
    return out


@dataclass(frozen=True)
class Part:
    """A share of one rung of a search.

    Attributes:
        rung: counted from 0.
        share, shares: which of how many, counted from 1.

    >>> Part(0, 2, 3).of([(0, 100), (1, 100), (2, 100), (3, 100)])
    [(1, 100)]
    """

    rung: int
    share: int
    shares: int

    def of(self, asked: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Its trials and seeds: neighbours, since those can share captured steps."""
        first, last = (len(asked) * i // self.shares for i in (self.share - 1, self.share))
        return list(asked[first:last])


def join(protocol: Protocol, folders: Sequence[Path], out: Path) -> None:
    """One `search.json` and `chosen.yaml` from those of searches side by side."""
    log = _known(protocol.search, [path for folder in folders if (path := folder / "search.json").exists()])
    log.sort(key=lambda entry: (entry["system"], entry["rung"], entry["trial"], entry["seed"]))
    _write(log, out / "search.json", protocol)
    _choose(protocol, log, out / "chosen.yaml")


def best(log: list[dict[str, Any]], system: str, rung: int, keep: int) -> list[int]:
    """Numbers of the best trials of a rung, best first, by their mean over seeds; one that failed never counts."""
    scores: dict[int, list[float]] = {}
    for entry in log:
        if (entry["system"], entry["rung"]) == (system, rung):
            score = math.inf if entry["score"] is None else entry["score"]
            scores.setdefault(entry["trial"], []).append(score)
    means = {trial: mean for trial, each in scores.items() if (mean := float(np.mean(each))) < math.inf}
    return sorted(means, key=lambda trial: (means[trial], trial))[:keep]


def search(
    protocol: Protocol,
    tasks: RunTasks,
    load: Callable[[], LanguageModel],
    log_file: Path,
    chosen_file: Path,
    *,
    work: Path,
    systems: list[str] | None = None,
    part: Part | None = None,
    others: Sequence[Path] = (),
    minutes: float | None = None,
    tell: Callable[[str], None] = print,
) -> bool:
    """Search what is not in the log yet; write the log after each trial and, for finished systems, what was chosen.

    Args:
        protocol, tasks, load: what is searched, on what.
        log_file, chosen_file: where the trials and what was chosen go.
        work: where trials leave their files.
        systems: None: all that have a space.
        part: only a share of one rung, for processes side by side.
        others: logs of such processes, which are taken over.
        minutes: age of this process at which it stops by itself.
        tell: hears of progress.

    Returns:
        Whether all is done, or else time was over.

    Raises:
        AbmllError: a share of a rung is asked for before those under it are in the logs.
    """
    given = protocol.search
    log = _known(given, [path for path in (log_file, *others) if path.exists()])
    loaded: list[Renewing] = []

    def renewing() -> Renewing:
        if not loaded:
            loaded.append(Renewing(load()))
        return loaded[0]

    try:
        with deadline(minutes):
            for system in systems or list(given["spaces"]):
                _halve(
                    Search(protocol, tasks, work),
                    system,
                    log,
                    renewing,
                    lambda: _write(log, log_file, protocol),
                    tell,
                    part,
                )
                _write(log, log_file, protocol)  # what other logs had, too
                _choose(protocol, log, chosen_file)
    except Stopped as stopped:
        tell(f"stopped at {since_start():.0f} s: {stopped}")
        return False
    finally:
        for one in loaded:
            one.close()
    return True


def _known(given: Mapping[str, Any], logs: Iterable[Path]) -> list[dict[str, Any]]:
    """The trials of all logs, each once; those of another criterion, settings or rungs do not count."""
    tried = {
        system: trials(system, spaces, given["trials"], given["seed"]) for system, spaces in given["spaces"].items()
    }

    def fits(entry: Mapping[str, Any]) -> bool:
        system, trial, number = entry["system"], entry["trial"], entry["rung"]
        if system not in tried or trial >= given["trials"] or number >= len(given["rungs"]):
            return False
        rung = given["rungs"][number]
        same = all(entry.get(name) == value for name, value in rung.items() if name not in ("keep", "seeds"))
        seeded = entry["seed"] in _seeds(given, number)
        return same and seeded and bool(entry["settings"] == tried[system][trial])

    read = [json.loads(path.read_text(encoding="utf-8")) for path in logs]
    found = [entry for log in read if log["criterion"] == given["criterion"] for entry in log["trials"]]
    return list({(e["system"], e["rung"], e["trial"], e["seed"]): e for e in found if fits(e)}.values())


def _seeds(given: Mapping[str, Any], rung: int) -> list[int]:
    """Training seeds of a rung's trials."""
    return list(given["rungs"][rung].get("seeds", [given["seed"]]))


def _done(log: list[dict[str, Any]], system: str, rung: int) -> set[tuple[int, int]]:
    """(trial, seed) that a rung has."""
    return {(e["trial"], e["seed"]) for e in log if (e["system"], e["rung"]) == (system, rung)}


def _halve(
    search: Search,
    system: str,
    log: list[dict[str, Any]],
    renewing: Callable[[], Renewing],
    write: Callable[[], None],
    tell: Callable[[str], None],
    part: Part | None,
) -> None:
    given = search.protocol.search
    if part is not None and part.rung >= len(given["rungs"]):
        raise AbmllError(f"--part: there is no rung {part.rung}; the search has {len(given['rungs'])}, the first is 0")
    tried = trials(system, given["spaces"][system], given["trials"], given["seed"])
    going_on = sorted(range(len(tried)), key=lambda i: _captured(tried[i]))
    for number, rung in enumerate(given["rungs"]):
        asked = [(trial, seed) for trial in going_on for seed in _seeds(given, number)]
        todo = asked
        if part is not None:
            todo = part.of(asked) if part.rung == number else []
        settings = {name: value for name, value in rung.items() if name not in ("keep", "seeds")}
        for trial, seed in todo:
            if (trial, seed) not in _done(log, system, number):
                found = search.trial(renewing(), system, tried[trial], settings, seed)
                log.append({"system": system, "rung": number, "trial": trial, **found})
                write()
                told = f"{found['score']} in {found['seconds']} s"
                tell(f"{system} rung {number} trial {trial} seed {seed}: {told}")
        if part is not None and part.rung == number:
            return
        if missing := set(asked) - _done(log, system, number):
            raise AbmllError(
                f"{system}: rung {number} lacks {sorted(missing)} (trial, seed); give the logs of its shares"
            )
        going_on = best(log, system, number, rung["keep"])
        if not going_on:
            raise AbmllError(
                f"{system}: every trial of rung {number} failed; see `why` in the log, and lower its rates"
            )


def _captured(settings: Mapping[str, Any]) -> str:
    """Trials that can share captured steps stand next to each other."""
    return json.dumps({k: v for k, v in settings.items() if not k.endswith("lr")}, sort_keys=True)


def _finished(given: Mapping[str, Any], log: list[dict[str, Any]], system: str) -> bool:
    going_on = list(range(given["trials"]))
    for number, rung in enumerate(given["rungs"]):
        if not {(trial, seed) for trial in going_on for seed in _seeds(given, number)} <= _done(log, system, number):
            return False
        going_on = best(log, system, number, rung["keep"])
    return True


def _write(log: list[dict[str, Any]], path: Path, protocol: Protocol) -> None:
    spent = {
        system: round(sum(e["seconds"] for e in log if e["system"] == system), 1)
        for system in {e["system"] for e in log}
    }
    criterion = protocol.search["criterion"]
    write_json(path, {"criterion": criterion, "search": protocol.search, "seconds": spent, "trials": log})


def _choose(protocol: Protocol, log: list[dict[str, Any]], path: Path) -> None:
    """Settings of the best trial of the last rung, of each system whose search is finished."""
    last = len(protocol.search["rungs"]) - 1
    chosen = {}
    for system in protocol.search["spaces"]:
        for trial in best(log, system, last, 1) if _finished(protocol.search, log, system) else ():
            entry = next(e for e in log if (e["system"], e["rung"], e["trial"]) == (system, last, trial))
            chosen[system] = entry["settings"]
    judged = protocol.search["criterion"]
    head = f"# Written by `python -m experiments.unseen search`: the lowest {judged} over the validation tasks.\n"
    write_text(path, head + yaml.safe_dump(chosen, sort_keys=True))
