"""Commands side by side, each in a process of its own with a log; a signal to this process ends them all."""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from abmll.process.stopping import gently, stop_if_asked
from abmll.process.threads import THREADS, default_threads, threads_are_given

SECONDS_BETWEEN_LOOKS = 0.1
GPUS = "CUDA_VISIBLE_DEVICES"


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: its exit code, or minus the signal that killed it.
        log: what it printed, after what was in that file.
    """

    code: int
    log: Path

    def __str__(self) -> str:
        """Its code and the last line that it printed."""
        how = f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"{how}; {self.log} ends: {last}"


def run_commands(
    commands: Mapping[str, Sequence[str]],
    slots: Sequence[Mapping[str, str]],
    logs: Path,
    began: Callable[[str, Mapping[str, str]], None] = lambda name, slot: None,
    ended: Callable[[str, Ended], None] = lambda name, how: None,
) -> dict[str, Ended]:
    """Run commands, at most one at a time in each slot; one that fails leaves the others alone.

    Where this process is asked to stop (`abmll.process.stopping`) or fails, the commands that run get SIGTERM, and are
    waited for.

    Args:
        commands: by name, in the order in which they begin.
        slots: what the environment of a command has besides that of this process.
        logs: folder of `NAME.log`, to which a command's output is added.
        began: is called with the name of a command that begins, and its slot.
        ended: is called with the name of a command that ended, and how it did.

    Raises:
        Stopped: this process was asked to stop, and no command runs any more.
        OSError: a process cannot be started, or a log not written.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(commands)
    running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
    done: dict[str, Ended] = {}
    with gently():  # a signal must not come between the start of a process and its entry in `running`
        try:
            while waiting or running:
                stop_if_asked()
                for slot in [number for number in range(len(slots)) if number not in running][: len(waiting)]:
                    name = waiting.pop(0)
                    running[slot] = name, _start(commands[name], slots[slot], logs / f"{name}.log")
                    began(name, slots[slot])
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for slot, (name, process) in list(running.items()):
                    if (code := process.poll()) is not None:
                        del running[slot]
                        done[name] = Ended(code, logs / f"{name}.log")
                        ended(name, done[name])
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
    return done


def _start(command: Sequence[str], slot: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        return subprocess.Popen(
            command, env={**os.environ, **slot}, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process sees, for CUDA_VISIBLE_DEVICES; CUDA is not begun."""
    given = os.environ.get(GPUS)
    if given is not None:
        return [name for name in given.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def share_machine(processes: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """A slot for each of so many processes: GPUs go round, and threads are shared where the environment names none.

    Args:
        processes: at a time.
        gpus: names for CUDA_VISIBLE_DEVICES; none: the processes see what this one sees.

    >>> [slot["CUDA_VISIBLE_DEVICES"] for slot in share_machine(3, ["0", "1"])]
    ['0', '1', '0']
    """
    threads = {} if threads_are_given() else {THREADS: str(max(1, default_threads() // processes))}
    seen = itertools.cycle([{GPUS: gpu} for gpu in gpus] or [{}])
    return [{**threads, **gpu} for gpu in itertools.islice(seen, processes)]
