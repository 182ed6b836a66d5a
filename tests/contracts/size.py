"""Counts that keep the code base readable: `python -m tests.contracts.size` prints them beside their limits.

Modules of a package, lines of files and functions, parameters, and the bytes that git tracks. Nothing is imported: the
source is parsed. Lines are those from `def` to the end; a nested function counts in its outer one and by itself.
"""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from statistics import median, quantiles
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "abmll"
MODULES = 12
"""Of a package, `__init__` and `__main__` not counted; sub-packages of `WITHOUT_LIMIT` may have more."""
WITHOUT_LIMIT = {"verbs", "rivals"}
FILE_LINES = 450
LONG_FILES = {"triton_kl.py"}
"""One kernel with its launch: it reads better whole."""
MEDIAN_LINES, P90_LINES, MOST_LINES = 12, 30, 110
PARAMETERS = 7
MANY_PARAMETERS = {"kernels", "cli"}
"""A kernel takes pointers, strides and sizes; a command one parameter for each option."""
TREE_MEGABYTES = 7.2
"""Tracked files besides the shipped adapters: code, tests and documents are 4.5 of it, results of experiments 1.7."""
SHIPPED = "src/abmll/shipped/"


class Function(NamedTuple):
    """A function of the package.

    Attributes:
        where: file:line, relative to `src/abmll`.
        name: its own.
        lines: from `def` to its end.
        parameters: without `self` and `cls`.
        is_estimator: the constructor of a scikit-learn estimator, whose parameters are stored one by one.
    """

    where: str
    name: str
    lines: int
    parameters: int
    is_estimator: bool

    @property
    def package(self) -> str:
        return self.where.split("/")[0]


def modules_of_packages() -> dict[str, int]:
    """Package -> its modules; those without a limit are left out."""
    packages = [path for path in (SOURCE, *SOURCE.rglob("*")) if (path / "__init__.py").exists()]
    counts = {path: sum(p.stem not in ("__init__", "__main__") for p in path.glob("*.py")) for path in packages}
    return {
        str(path.relative_to(SOURCE.parent)): count for path, count in counts.items() if path.name not in WITHOUT_LIMIT
    }


def lines_of_files() -> dict[str, int]:
    """File -> its lines; the long ones that are allowed are left out."""
    paths = [path for path in SOURCE.rglob("*.py") if path.name not in LONG_FILES]
    return {str(path.relative_to(SOURCE)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}


def functions() -> list[Function]:
    """Every function and method of the package, longest first."""
    found = [one for path in sorted(SOURCE.rglob("*.py")) for one in functions_in(path.read_text("utf-8"), path)]
    return sorted(found, key=lambda function: -function.lines)


def functions_in(text: str, path: Path) -> Iterator[Function]:
    """The functions of one file."""
    tree = ast.parse(text)
    estimators = {id(node) for c in ast.walk(tree) if _is_estimator(c) for node in ast.iter_child_nodes(c)}
    label = str(path.relative_to(SOURCE)) if path.is_relative_to(SOURCE) else path.name
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            parameters = sum(name not in ("self", "cls") for name in named)
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            is_estimator = node.name == "__init__" and id(node) in estimators
            yield Function(f"{label}:{node.lineno}", node.name, lines, parameters, is_estimator)


def _is_estimator(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and "BaseEstimator" in {ast.unparse(base) for base in node.bases}


def with_many_parameters(found: list[Function]) -> list[Function]:
    """Those above the limit, where there is one."""
    return [f for f in found if f.parameters > PARAMETERS and f.package not in MANY_PARAMETERS and not f.is_estimator]


def tracked_bytes() -> dict[str, int] | None:
    """Tracked file -> bytes, shipped adapters left out; None where there is no git or no repository."""
    if which("git") is None or not (ROOT / ".git").exists():
        return None
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    names = [name for name in listed.stdout.decode().split("\0") if name and not name.startswith(SHIPPED)]
    return {name: (ROOT / name).lstat().st_size for name in names if (ROOT / name).exists()} or None


def main() -> None:
    found, tracked = functions(), tracked_bytes()
    lines = [function.lines for function in found]
    package, modules = max(modules_of_packages().items(), key=lambda item: item[1])
    file, most = max(lines_of_files().items(), key=lambda item: item[1])
    print(f"modules of a package   {modules} in {package} (at most {MODULES})")
    print(f"lines of a file        {most} in {file} (at most {FILE_LINES})")
    print(f"functions              {len(found)}")
    print(f"  lines, median        {median(lines):g} (at most {MEDIAN_LINES})")
    print(f"  lines, p90           {quantiles(lines, n=10)[-1]:g} (at most {P90_LINES})")
    print(f"  lines, most          {found[0].lines} in {found[0].where} {found[0].name} (at most {MOST_LINES})")
    many = with_many_parameters(found)
    print(f"  above {PARAMETERS} parameters   {len(many)} outside {' and '.join(sorted(MANY_PARAMETERS))} (none)")
    for function in many:
        print(f"    {function.where} {function.name}: {function.parameters}")
    if tracked is not None:
        print(f"tracked, megabytes     {sum(tracked.values()) / 1e6:.2f} (at most {TREE_MEGABYTES:g})")


if __name__ == "__main__":
    main()
