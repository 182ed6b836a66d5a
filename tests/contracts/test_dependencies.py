"""What is declared about Python and packages, and that it can be true."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ASKED = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
PINNED = [
    line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] not in ("#", "")
]
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
READ_ALL = """
import pathlib, sys
for path in pathlib.Path(sys.argv[1]).rglob("*.py"):
    compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)
print(sys.version_info[:2])
"""


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_trust_48_every_version_is_pinned_exactly_and_every_dependency_is_pinned() -> None:
    assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", line) for line in PINNED)
    optional = {
        "bitsandbytes",
        *(
            name_of(r)
            for extra in ("quantised", "lm-eval", "vectors", "slurm")
            for r in PROJECT["optional-dependencies"][extra]
        ),
    }
    assert {name_of(r) for r in ASKED} - {name_of(line) for line in PINNED} <= optional


def test_trust_48_nothing_asks_for_lightning() -> None:
    assert not [r for r in ASKED if name_of(r) in ("lightning", "pytorch-lightning")]
    assert not [line for line in PINNED if name_of(line) in ("lightning", "pytorch-lightning")]


def test_trust_48_the_audit_fails_where_it_cannot_ask() -> None:
    """Without --strict, pip-audit calls packages clean that it could ask nobody about."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\naudit:")[2].partition("\n\n")[0]
    assert "pip-audit" in recipe
    assert "--strict" in recipe
    assert "constraints.txt" in recipe


def test_trust_52_python_3_11_and_newer_are_declared() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.11" in PROJECT["classifiers"]


@pytest.mark.parametrize("python", PYTHONS)
def test_trust_52_every_file_is_python_of_each_interpreter_that_is_at_hand(python: str) -> None:
    found = shutil.which(python)
    if found is None:
        pytest.skip(f"no {python} here")
    command = [found, "-W", "error", "-I", "-c", READ_ALL, str(ROOT / "src")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "command not found" in done.stderr:  # a stand-in of pyenv, for a version that is not switched on
        pytest.skip(f"no {python} here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str((3, int(python.partition(".")[2])))
