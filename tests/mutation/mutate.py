"""A group's mutants by mutmut: laid out in a folder of their own, drawn by a seed, run one by one.

mutmut does the work: it writes all mutants of a function beside it, learns by a clean run which tests call which
function, and runs those for one mutant, the fastest first, in a fork that has everything imported. What is added here
is the draw, and a folder for each group (below build/mutation), so that nothing is written into the source tree.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import mutmut.configuration
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

from tests.mutation.groups import ROOT, SOURCE, Group

DETECTED = ("killed", "timeout", "segfault")
"""A test failed, did not end, or took the interpreter down."""
CACHES = shutil.ignore_patterns("__pycache__", "*.pyc", ".hypothesis")
MUTMUT = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = {modules}
also_copy = {beside}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["--disable-warnings", "-k", {without}]
timeout_constant = 10.0
timeout_multiplier = 6.0
use_git_change_detection = false
"""


@dataclass(frozen=True)
class Mutant:
    """A mutant.

    Attributes:
        name: mutmut's.
        file, line: where it is, relative to src/abmll; the line is the first that differs.
        function: that it is in.
        was, now: lines that differ.
    """

    name: str
    file: str
    line: int
    function: str
    was: str
    now: str


def lay_out(group: Group, beside: list[str], without: str) -> Path:
    """The group's folder with the present sources and tests, and mutmut's settings."""
    folder = ROOT / "build" / "mutation" / group.name
    shutil.rmtree(folder / "mutants" / "tests", ignore_errors=True)  # mutmut leaves there what is no more
    for name in ("src", "tests", *beside):
        shutil.rmtree(folder / name, ignore_errors=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=CACHES)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    own = (ROOT / "pyproject.toml").read_text(encoding="utf-8") + MUTMUT.format(
        modules=json.dumps([str(path) for path in group.module_files()]),
        tests=json.dumps([str(path) for path in group.test_files()]),
        beside=json.dumps(beside),
        without=json.dumps(f"not ({without})"),
    )
    (folder / "pyproject.toml").write_text(own, encoding="utf-8")
    return folder


def names_in(folder: Path, group: Group) -> list[str]:
    """Names of all mutants of a group, in the order of files and lines."""
    with chdir(folder):
        mutmut.configuration.reset_config()
        return [
            get_mutant_name(path, name)
            for path in group.module_files()
            for name in mutate_file_contents(str(path), path.read_text(encoding="utf-8")).mutant_names
        ]


def draw(group: Group, names: list[str], count: int, seed: int) -> list[str]:
    """A sample without replacement; each mutant is as likely as another."""
    return sorted(random.Random(f"{group.name}/{seed}").sample(names, min(count, len(names))))


def run(folder: Path, names: list[str], jobs: int = 1) -> None:
    """Run the mutants of these names, `jobs` at once; what mutmut says goes to `mutmut.log`.

    Raises:
        RuntimeError: mutmut did not get to its end.
    """
    paths = [path for path in sys.path if path and Path(path).resolve() not in (ROOT, ROOT / "src")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*paths, "."]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs), *names]
    with (folder / "mutmut.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        raise RuntimeError(f"mutmut ended with {done.returncode}, see {folder / 'mutmut.log'}")


def verdicts(folder: Path, group: Group, names: list[str]) -> dict[str, str]:
    """What became of the mutants of these names, in mutmut's words."""
    codes: dict[str, int | None] = {}
    for path in group.module_files():
        meta = json.loads((folder / "mutants" / f"{path}.meta").read_text(encoding="utf-8"))
        codes |= meta["exit_code_by_key"]
    return {name: status_by_exit_code[codes[name]] for name in names}


def describe(folder: Path, group: Group, names: list[str]) -> list[Mutant]:
    """Where mutants are and what they change, in the order of files and lines."""
    chosen, out = set(names), []
    with chdir(folder):
        mutmut.configuration.reset_config()
        for path in group.module_files():
            meta = json.loads(Path("mutants", f"{path}.meta").read_text(encoding="utf-8"))
            out += [_mutant(name, path) for name in meta["exit_code_by_key"] if name in chosen]
    return out


def _mutant(name: str, path: Path) -> Mutant:
    lines = get_diff_for_mutant(name, path=path).splitlines()[2:]
    was = [line[1:].strip() for line in lines if line[:1] == "-"]
    now = [line[1:].strip() for line in lines if line[:1] == "+"]
    function = name.rpartition(".")[2].partition("__mutmut_")[0].removeprefix("x").lstrip("_ǁ").replace("ǁ", ".")
    line = _line(path, function, was)
    return Mutant(name, str(path.relative_to(SOURCE)), line, function, " ".join(was), " ".join(now))


def _line(path: Path, function: str, was: list[str]) -> int:
    """The first changed line's number in the file; the function's, where it cannot be told."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = f"def {function.rpartition('.')[2]}("
    start = next((number for number, line in enumerate(lines) if line.strip().startswith(head)), 0)
    return next((n for n in range(start, len(lines)) if was and lines[n].strip() == was[0]), start) + 1
