"""Commands as jobs of Slurm, by submitit. What it pickles is `JobCommand`, a command; our work is in a child process.

A job that gets SIGUSR2, as submitit has it before the time limit or when it is preempted, asks its command to stop,
waits for that, and is queued again: it is then the same command. SIGTERM stops the command and ends the job.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from abmll.errors import AbmllError
from abmll.process.threads import THREADS, threads_are_given

SECONDS_BETWEEN_LOOKS = 0.2


class JobCommand:
    """A command that submitit runs in a job, as a child process with signals of its own.

    Args:
        command: the program and its arguments.
        log: to which its output is added.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command, self.log = tuple(command), log
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Run it to its end.

        Raises:
            AbmllError: it failed, or was stopped.
        """
        signal.signal(signal.SIGTERM, self._pass_on)  # submitit lets it pass without effect
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        while self._process.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if code := self._process.returncode:
            raise AbmllError(f"exit code {code}: {self.log}")

    def checkpoint(self) -> Any:
        """What submitit queues again: this command, which goes on from what it has saved when this returns."""
        from submitit.helpers import DelayedSubmission  # optional extra

        self._pass_on(signal.SIGTERM, None)
        if self._process is not None:
            with suppress(ChildProcessError):  # no `wait`: this is called by a signal, in the middle of `poll` perhaps
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(JobCommand(self.command, self.log))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)


def slurm_executor(folder: Path, parameters: Mapping[str, Any]) -> Any:
    """What submits jobs to Slurm.

    Args:
        folder: of submitit's own files.
        parameters: of `submitit.SlurmExecutor`: partition, time (minutes), gpus_per_node, ...

    Raises:
        AbmllError: submitit is not installed, there is no Slurm here, or it does not know a parameter.
    """
    try:
        import submitit  # optional extra
    except ImportError as error:
        raise AbmllError("--launcher slurm needs submitit: pip install submitit") from error
    try:
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=1000)  # of times that a job is queued again
        executor.update_parameters(**{"job_name": "abmll", "stderr_to_stdout": True, **parameters})
    except (RuntimeError, ValueError, TypeError) as error:
        raise AbmllError(f"--launcher slurm: {error}") from error
    return executor


def submit_commands(commands: Mapping[str, Sequence[str]], executor: Any, logs: Path) -> dict[str, str]:
    """Submit commands as jobs, and wait for none of them.

    Args:
        commands: by name.
        executor: of submitit.
        logs: folder of `NAME.log`, to which a command's output is added.

    Returns:
        The number of each one's job, by name.
    """
    if not threads_are_given():
        os.environ.pop(THREADS, None)  # else a job would have as many as this machine has cores
    logs.mkdir(parents=True, exist_ok=True)
    with executor.batch():
        jobs = {
            name: executor.submit(JobCommand(command, logs.absolute() / f"{name}.log"))
            for name, command in commands.items()
        }
    return {name: job.job_id for name, job in jobs.items()}
