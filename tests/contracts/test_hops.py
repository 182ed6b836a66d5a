"""Call paths stay short: `tests/contracts/hops.py` walks them, and says what a hop is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.hops import PATHS, Walk, of_types

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def walks() -> dict[str, Any]:
    """In a process of its own: in this one annotations are enforced, by functions that would be counted."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "tests.contracts.hops", "--json"]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # which is slow
    env |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PATHS)
def test_every_path_meets_the_objects_that_it_follows(name: str, walks: dict[str, Any]) -> None:
    """A class that gets another name would shorten its path: name it in `PATHS`."""
    assert not walks[name]["unseen"]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("beta", "methods/abmll.py"),
        ("row to probability", "likelihood.py"),
        ("checkpoint", "files/whole.py"),
        ("own rows to verdict", "metrics/usefulness.py"),
        ("compare's configuration", "methods/abmll.py"),
    ],
)
def test_paths_go_all_the_way(name: str, end: str, walks: dict[str, Any]) -> None:
    assert end in [file for file, _ in walks[name]["stays"][-6:]]


@pytest.mark.parametrize("name", [name for name, path in PATHS.items() if path.limit is not None])
def test_paths_stay_short(name: str, walks: dict[str, Any]) -> None:
    assert len(walks[name]["stays"]) <= (PATHS[name].limit or 0), walks[name]["stays"]


def test_stays_are_counted_as_said() -> None:
    walk = Walk(of_types("Question"))
    a, b, c = ("a.py", "f"), ("b.py", "g"), ("c.py", "h")
    walk.passes = dict.fromkeys([(a, b), (a, c), (("c.py", "other"), b)])
    assert [file for file, _ in walk.stays] == ["a.py", "b.py", "a.py", "c.py", "b.py"]
