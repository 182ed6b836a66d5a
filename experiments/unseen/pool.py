"""The whole protocol in processes side by side: ranking, searches, runs, questions, each when what it needs is there.

A step of a small model leaves most of a GPU idle: several processes share it where NVIDIA's MPS daemon runs, and take
turns otherwise. `abmll compare --processes` does not replace this: jobs here wait for each other (ranking, rungs of a
search, what was chosen), stop at `--minutes`, and pack their predictions instead of leaving a comparison.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Typed

import yaml

from abmll.files import write_json
from experiments.unseen.bundles import Bundles
from experiments.unseen.protocol import Protocol
from experiments.unseen.questions import Point
from experiments.unseen.run import LOG, failures

RANK = "rank"
JOIN = "join"
WAITING, RUNNING, DONE, SKIPPED = "waiting", "running", "done", "skipped"
TASKS = Path("tasks")
"""Where the protocol has its tasks if nothing else is said."""
OVER = 75
"""Exit code of what stopped because time was over."""


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        name: of its log.
        arguments: after `python -m experiments.unseen`.
        needs: jobs that must have ended well before.
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()


class Process(Typed):
    """What is needed of a started process."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def terminate(self) -> None:
        """Ask it to stop."""


Start = Callable[[Job, str], Process]
"""A job and the GPU it is to see -> its process."""


def jobs(
    protocol: Protocol,
    questions: Sequence[Point],
    out: Path,
    common: Sequence[str],
    logs: Sequence[Path],
    *,
    shares: int,
    packed: Path,
    tasks: Path = TASKS,
    chosen: Path | None = None,
    run: Sequence[str] = (),
    ask: Sequence[str] = (),
    only: str = "*",
) -> Iterator[Job]:
    """Everything there is to do, most important first.

    Args:
        protocol: what is searched and run.
        questions: asked when all is chosen.
        out: where jobs put what they make: `search-SYSTEM`, `run-SYSTEM.seed-N`, `questions`.
        common: arguments of every job.
        logs: trials that are known already.
        shares: processes among which the first rung of each search is divided.
        run, ask: further arguments of runs, and of questions.
        packed: of the runs; `further` ones have theirs beside it.
        tasks: stands for `{tasks}` in what is laid on the base.
        chosen: what an earlier search chose; no search is made then.
        only: patterns of `system.seed-N`, separated by commas: what is run, of all that there is in order.
    """
    yield Job(RANK, ("rank", *common, "--ranking", str(out / "ranking.json")))
    for system in protocol.search["spaces"] if chosen is None else ():
        yield from _search_jobs(system, protocol, out, common, logs, shares)

    def target(kind: str, system: str, seed: int, *more: str) -> Job:
        """One target, after the search that it takes its settings from."""
        parent, name = protocol.like.get(system, system), f"{system}.seed-{seed}"
        searched = chosen is None and parent in protocol.search["spaces"]
        found = out / f"search-{parent}" / "chosen.yaml" if searched else chosen
        settings = ("--chosen", str(found)) if found else ()
        arguments = ("run", *common, *settings, "--only", name, "--out", str(out / f"{kind}-{name}"), *run, *more)
        return Job(f"{kind}-{name}", arguments, (f"search-{parent}",) if searched else (RANK,))

    for system, seed in protocol.selected(only):
        yield target("run", system, seed, "--packed", str(packed))
    if chosen is None:
        searches = [f"search-{system}" for system in protocol.search["spaces"]]
        folders = tuple(str(out / name) for name in searches)
        yield Job(JOIN, ("join", *folders, *_protocol_of(common), "--out", str(out)), tuple(searches))
    for point in questions:
        where = ("--out", str(out / "questions"), "--work", str(out / "work" / point.name))
        settings = ("--chosen", str(chosen or out / "chosen.yaml"))
        arguments = ("questions", *common, *settings, *where, *ask, "--only", point.name)
        yield Job(f"question-{point.name}", arguments, (JOIN if chosen is None else RANK,))
    for name, asked in protocol.further.items():
        laid = [part for text in asked["set"] for part in ("--set", text.format(tasks=tasks))]
        for system, seed in protocol.selected(asked["targets"]):
            yield target(name, system, seed, *laid, "--packed", str(packed.parent / name / "packed"))


def is_made(job: Job, out: Path) -> bool:
    """Whether what a job makes was made by an earlier call: it is not started again, which would take its seconds."""
    if job.name == RANK:
        return (out / "ranking.json").exists()
    folder = Path(job.arguments[job.arguments.index("--out") + 1])
    if job.arguments[0] == "search":
        chosen = out / f"search-{job.arguments[job.arguments.index('--only') + 1]}" / "chosen.yaml"
        return chosen.exists() and bool(yaml.safe_load(chosen.read_text(encoding="utf-8")))
    return job.arguments[0] == "run" and bool(Bundles(folder).names() or failures(folder / LOG))


def _protocol_of(common: Sequence[str]) -> Sequence[str]:
    at = common.index("--protocol")
    return common[at : at + 2]


def _search_jobs(
    system: str, protocol: Protocol, out: Path, common: Sequence[str], logs: Sequence[Path], shares: int
) -> Iterator[Job]:
    """Shares of each rung, `shares` of the first and one a trial of the later ones; then what joins them."""
    earlier = sorted(out.glob(f"search-{system}-*/search.json"))  # of a call with another number of shares, too
    read = list(dict.fromkeys([*map(str, logs), *map(str, earlier)]))
    needs: tuple[str, ...] = (RANK,)
    rungs = protocol.search["rungs"] if shares > 1 else ()
    for number in range(len(rungs)):
        count = rungs[number - 1]["keep"] if number else shares
        places = [out / f"search-{system}-{number}-{share}" for share in range(1, count + 1)]
        for share, place in enumerate(places, start=1):
            arguments = ("search", *common, "--only", system, "--out", str(place))
            yield Job(place.name, (*arguments, "--part", f"{number}:{share}/{count}", "--logs", *read), needs)
        needs = (RANK, *(place.name for place in places))
        read = list(dict.fromkeys([*read, *(str(place / "search.json") for place in places)]))
    arguments = ("search", *common, "--only", system, "--out", str(out / f"search-{system}"), "--logs", *read)
    yield Job(f"search-{system}", arguments, needs)


def run_jobs(
    todo: Sequence[Job],
    start: Start,
    gpus: Sequence[str],
    processes: int,
    *,
    tell: Callable[[dict[str, str]], None] = lambda state: None,
    over: Callable[[], bool] = lambda: False,
    pause: float = 0.2,
) -> dict[str, str]:
    """Run jobs in their order, so many at a time on each GPU; one whose need failed is skipped.

    Args:
        todo: the jobs.
        start: starts one.
        gpus: names; a job goes to the one with the fewest.
        processes: at a time on each.
        tell: hears the state of all jobs after each change.
        over: whether no more may be started.
        pause: seconds between looks.

    Returns:
        Name -> `done`, `skipped`, `waiting` (time was over) or `exit N`.
    """
    state = {job.name: WAITING for job in todo}
    running: dict[str, tuple[Process, str]] = {}
    try:
        while WAITING in state.values() or running:
            before = dict(state)
            _collect(running, state)
            _start_what_can(todo, state, running, start, gpus, 0 if over() else processes)
            if state != before:
                tell(state)
            if not running and over():
                break
            time.sleep(pause)
    finally:  # of an exception: whoever started processes ends them
        for process, _ in running.values():
            process.terminate()
    return state


def _collect(running: dict[str, tuple[Process, str]], state: dict[str, str]) -> None:
    for name, (process, _) in list(running.items()):
        if (code := process.poll()) is not None:
            state[name] = DONE if code == 0 else f"exit {code}"
            del running[name]


def _start_what_can(
    todo: Sequence[Job],
    state: dict[str, str],
    running: dict[str, tuple[Process, str]],
    start: Start,
    gpus: Sequence[str],
    processes: int,
) -> None:
    for job in todo:
        if state[job.name] != WAITING:
            continue
        needs = [state.get(need, DONE) for need in job.needs]
        counts = {gpu: sum(where == gpu for _, where in running.values()) for gpu in gpus}
        gpu = min(counts, key=lambda one: counts[one])
        if any(s not in (WAITING, RUNNING, DONE) for s in needs):
            state[job.name] = SKIPPED
        elif all(s == DONE for s in needs) and counts[gpu] < processes:
            running[job.name] = (start(job, gpu), gpu)
            state[job.name] = RUNNING


def exit_code(state: dict[str, str]) -> int:
    """0: all is done; 75: time was over and something is left; 1: a job failed for another reason."""
    stopped = {f"exit {OVER}", WAITING}
    left = {value for value in state.values() if value != DONE}
    if not left:
        return 0
    return OVER if left <= stopped | {SKIPPED} and left & stopped else 1


def starter(logs: Path, age: Callable[[], float], minutes: float | None, at_once: int) -> Start:
    """Starts jobs as processes of this Python; those that can stop by themselves are told in how many minutes.

    Unless OMP_NUM_THREADS says otherwise, the cores are shared by as many as run at once.
    """
    logs.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // at_once))

    def start(job: Job, gpu: str) -> subprocess.Popen[bytes]:
        left = ("--minutes", f"{max(0.0, minutes - age() / 60):.2f}") if minutes is not None else ()
        stops = left if job.arguments[0] in ("search", "run", "questions") else ()
        seen = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        environment = {"OMP_NUM_THREADS": threads, **os.environ, **seen}
        command = [sys.executable, "-m", "experiments.unseen", *job.arguments, *stops]
        with (logs / f"{job.name}.log").open("wb") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    return start


def told(path: Path, age: Callable[[], float]) -> Callable[[dict[str, str]], None]:
    """Writes the state of all jobs, and since when each has it, to a file."""
    since: dict[str, Any] = {}

    def tell(state: dict[str, str]) -> None:
        for name, value in state.items():
            if since.get(name, {}).get("state") != value:
                since[name] = {"state": value, "seconds": round(age())}
        write_json(path, since)
        counts = {value: list(state.values()).count(value) for value in dict.fromkeys(state.values())}
        print(f"{age():.0f} s: {json.dumps(counts)}", flush=True)

    return tell
