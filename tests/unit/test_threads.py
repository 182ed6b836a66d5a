"""The number of threads: what the machine, affinity and control groups allow, set by the command alone."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from abmll.diagnosis.machine import diagnose
from abmll.process.threads import core_limits, default_threads, how_threads_wait, set_thread_defaults

GROUPS = {
    "v2": ("0::/a/b", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "max 100000"}, 0.5),
    "v2, of the group around it": ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
    "v2, in a container": ("0::/", {"cpu.max": "200000 100000"}, 2.0),
    "v2 beside v1": ("0::/a", {"unified/a/cpu.max": "300000 100000"}, 3.0),
    "v1": ("4:memory:/x\n3:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000"}, 0.5),
    "v1, another name of the folder": ("3:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "400000"}, 4.0),
    "v1, a path of the machine around it": ("3:cpu:/docker/7f", {"cpu/cpu.cfs_quota_us": "25000"}, 0.25),
    "v1, without limit": ("3:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1"}, None),
    "v2, without limit": ("0::/a", {"a/cpu.max": "max 100000"}, None),
    "another controller": ("4:cpuset:/a", {"cpuset/a/cpu.cfs_quota_us": "50000"}, None),
    "spoilt": ("0::/a\nnothing", {"a/cpu.max": "many of them"}, None),
    "no groups": (None, {}, None),
}


def write_groups(root: Path, cgroup: str | None, files: dict[str, str]) -> None:
    """What the kernel shows of control groups, in folders of our own."""
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
        if file.name == "cpu.cfs_quota_us":
            file.with_name("cpu.cfs_period_us").write_text("100000\n")
    if cgroup is not None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(f"{cgroup}\n")


@pytest.mark.parametrize("case", GROUPS)
def test_quotas_of_control_groups(case: str, tmp_path: Path) -> None:
    cgroup, files, quota = GROUPS[case]
    write_groups(tmp_path, cgroup, files)
    assert core_limits(tmp_path).get("quota") == quota


@pytest.mark.parametrize(("limits", "threads"), [((8, 4, 0.5), 1), ((8, 4, 2.9), 2), ((8, 3, 16), 3), ((2, 4, 9), 2)])
def test_whole_cores_of_the_smallest_limit(
    limits: tuple[float, ...], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = dict(zip(("machine", "affinity", "quota"), limits, strict=True))
    monkeypatch.setattr("abmll.process.threads.core_limits", lambda: named)
    assert default_threads() == threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux tells and sets affinity")
def test_one_core_by_affinity_is_one_thread() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nfrom abmll.process import threads\n"
    code += "print(threads.default_threads(), threads.core_limits()['affinity'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1.0"]


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"OMP_NUM_THREADS", "GOMP_SPINCOUNT"}),
        ({"OMP_NUM_THREADS": "3"}, {"GOMP_SPINCOUNT"}),
        ({"GOMP_SPINCOUNT": "7"}, {"OMP_NUM_THREADS"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_NUM_THREADS"}),
        ({"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}, set()),
    ],
)
def test_what_the_environment_says_stays(given: dict[str, str], added: set[str]) -> None:
    environment = dict(given)
    set_thread_defaults(environment)
    defaults = {"OMP_NUM_THREADS": str(default_threads()), "GOMP_SPINCOUNT": "1000"}
    assert environment == given | {name: defaults[name] for name in added}


def test_how_threads_wait_is_said_as_the_environment_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert how_threads_wait() == "as openmp likes"
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert how_threads_wait() == "passive"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert how_threads_wait() == "asleep after 7 spins"


def test_the_command_sets_threads_before_torch_and_the_library_never_does() -> None:
    """OMP_DISPLAY_ENV makes GNU OpenMP print what it read when it was loaded; other libraries print other names."""
    command = (
        "import sys, os; sys.argv = ['abmll', 'doctor', '--json', '--no-check']\nfrom abmll.cli import main\nmain()"
    )
    library = (
        "import os, abmll.process.threads, abmll.cli\nabmll.load_config\n"
        "print(*(os.environ.get(name) for name in ('OMP_NUM_THREADS', 'GOMP_SPINCOUNT')))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment["OMP_DISPLAY_ENV"] = "VERBOSE"
    said, silent = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        for code in (command, library)
    )
    assert f'"threads": {default_threads()},' in said.stdout
    assert '"threads wait": "asleep after 1000 spins"' in said.stdout
    read = [line.split("=")[1].strip(" '") for line in said.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert set(read) <= {"1000"}, "torch was imported before"
    assert silent.stdout.split() == ["None", "None"]


def test_the_doctor_tells_limits_and_too_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abmll.diagnosis.machine.core_limits", lambda: {"machine": 2.0, "quota": 0.5})
    monkeypatch.setattr("abmll.diagnosis.machine.default_threads", lambda: 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    found = diagnose(check=False)
    assert found.devices["cpu"]["may use"] == "2 by machine, 0.5 by quota"
    assert [line for line in found.advice if "4 threads for 1 core" in line]


def test_the_limits_are_those_of_the_system() -> None:
    limits = core_limits()
    assert limits["affinity"] == len(psutil.Process().cpu_affinity() or [0] * (os.cpu_count() or 1))
    assert limits.get("machine", 1.0) == float(psutil.cpu_count(logical=False) or 1)
