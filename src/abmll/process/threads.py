"""How many threads compute on the CPU, and how they wait: one for each core that this process may use, by affinity and
by quota, and each asleep after a short spin.

Libraries count the cores of the machine. In a container with a quota, or beside other processes, more threads than
cores wait for each other, actively, which takes longer than one thread does. Importing this module loads no model
library: OpenMP reads the environment once, when torch is imported.
"""

import math
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import psutil

THREADS, WAITING, SPINS = "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
SHORT_SPIN = "1000"
"""Looks at the flag that a thread waits for, some 10 microseconds, before it sleeps; GNU OpenMP's own are 300,000."""
HIERARCHY = "sys/fs/cgroup"


class _State:
    """One per process, as its environment is."""

    default: str | None = None


def set_thread_defaults(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the number of threads and how long they spin, each where the environment does not say so already.

    It is called by the command `abmll`, before torch is imported, and by nothing else: a program that imports the
    library has the threads that it chose. What is set is inherited by the processes that a command starts.

    Threads of GNU OpenMP, which torch brings on Linux, spin for milliseconds before they sleep, so two processes on the
    same cores keep each other from working: two at once took 2.1 times as long as one alone. With 1,000 spins that is
    1.3 times, and one alone is as fast as before; with 10,000 or 100,000 one alone is a twentieth faster, and two at
    once take 2.9 and 16 times as long. Without any spin (OMP_WAIT_POLICY=PASSIVE) one alone takes 2.5 times as long.
    (Meta-iterations of SmolLM2-135M on two idle cores, AMD EPYC, torch 2.13.0.) Other OpenMP libraries do not read
    GOMP_SPINCOUNT.

    Args:
        environment: is changed; read by OpenMP once, when torch is imported.
    """
    if THREADS not in environment:
        environment[THREADS] = str(default_threads())
        if environment is os.environ:
            _State.default = environment[THREADS]
    if WAITING not in environment:
        environment.setdefault(SPINS, SHORT_SPIN)


def threads_are_given() -> bool:
    """Whether somebody else than `set_thread_defaults` chose the number of threads, before or after it was called."""
    return os.environ.get(THREADS, _State.default) != _State.default


def how_threads_wait() -> str:
    """What the environment says of it; where both are set, GNU OpenMP goes by the number of spins."""
    if SPINS in os.environ:
        return f"asleep after {os.environ[SPINS]} spins"
    return os.environ.get(WAITING, "as OpenMP likes").lower()


def default_threads() -> int:
    """One thread for each whole core that this process may use, and at least one."""
    return max(1, math.floor(min(core_limits().values())))


def core_limits(root: Path = Path("/")) -> dict[str, float]:
    """What limits the cores that this process may use: name of the limit -> cores; what is not known is left out.

    Args:
        root: of the file system in which the kernel tells of control groups.

    >>> core_limits()["affinity"] >= 1
    True
    """
    limits: dict[str, float | None] = {
        "machine": psutil.cpu_count(logical=False),
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "quota": min(_quotas(root), default=None),
    }
    return {name: float(cores) for name, cores in limits.items() if cores}


def _quotas(root: Path) -> Iterator[float]:
    """The quotas of this process's control groups, and of those that they are in."""
    for group in _groups(root):
        for folder in (group, *group.parents):
            if folder.is_relative_to(root / HIERARCHY) and (quota := _quota(folder)) is not None:
                yield quota


def _quota(folder: Path) -> float | None:
    """Cores that a control group may use; None: as many as there are ("max" in version 2, -1 in version 1)."""
    pair = _words(folder / "cpu.max") or [
        w for name in ("quota", "period") for w in _words(folder / f"cpu.cfs_{name}_us")
    ]
    if len(pair) != 2 or not all(word.isdecimal() for word in pair) or int(pair[1]) == 0:
        return None
    return int(pair[0]) / int(pair[1])


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the groups that limit the processor: of version 2 (no controller is named), or of version 1."""
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounted = ["", "unified"]
        elif "cpu" in controllers.split(","):
            mounted = [controllers, "cpu"]
        else:
            continue
        yield from (root / HIERARCHY / name / path.strip("/") for name in mounted)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not on Linux, or not allowed
        return []


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()
