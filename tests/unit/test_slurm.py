"""What is submitted to Slurm: the batch file that `sbatch` gets, here a program that keeps it."""

import os
import sys
from pathlib import Path

import pytest

from abmll.errors import AbmllError
from abmll.process import threads
from abmll.process.slurm import slurm_executor, submit_commands

SBATCH = """#!/bin/sh
cp "$1" "$(dirname "$0")/batch.sh"
echo "$OMP_NUM_THREADS" > "$(dirname "$0")/threads"
echo "Submitted batch job 42"
"""


@pytest.fixture
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with `sbatch` and `srun`."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_an_array_of_jobs_with_what_was_asked_for(bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.THREADS, "64")  # of the machine that submits
    monkeypatch.setattr(threads._State, "default", "64")
    asked = {"partition": "gpu", "time": 240, "gpus_per_node": 1, "array_parallelism": 2}
    executor = slurm_executor(tmp_path / "out", asked)
    found = submit_commands({f"t{n}": [sys.executable, "-c", ""] for n in range(3)}, executor, tmp_path / "logs")
    assert found == {"t0": "42_0", "t1": "42_1", "t2": "42_2"}
    lines = (bin / "batch.sh").read_text().splitlines()
    wanted = ("partition=gpu", "time=240", "gpus-per-node=1", "array=0-2%2", "signal=USR2@90", "job-name=abmll")
    assert {f"#SBATCH --{line}" for line in wanted} <= set(lines)
    assert (bin / "threads").read_text() == "\n", "jobs have the threads of their own machines"


def test_mistakes_are_told(bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AbmllError, match="'gpus'"):
        slurm_executor(tmp_path / "out", {"gpus": 1})
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AbmllError, match="srun"):
        slurm_executor(tmp_path / "out", {})


def test_without_submitit_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(AbmllError, match="pip install submitit"):
        slurm_executor(tmp_path, {})
