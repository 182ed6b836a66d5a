"""Write requirements.lock: what `pip install abmll` brings besides torch, by the pins of constraints.txt, with hashes.

    .venv/bin/python .ci/lock.py

The hashes are of the wheels for Linux on x86-64 under Python 3.11 to 3.14; elsewhere constraints.txt pins versions.
torch and what it alone asks for are left out: which of its builds is wanted (CPU, CUDA) is the user's to say, first.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)] + ["manylinux2014_x86_64", "linux_x86_64"]
HEAD = """\
# What `pip install abmll` brings besides torch, with the SHA-256 of each wheel: Linux on x86-64, Python 3.11 to 3.14.
# First torch, at the version of constraints.txt; then pip install --no-deps --require-hashes -r requirements.lock
# Written by .ci/lock.py from constraints.txt.
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: set[str], left_out: set[str]) -> set[str]:
    """The packages, and all that they ask for."""
    found: set[str] = set()
    while names := {normal(name) for name in names} - found - left_out:
        found |= names
        names = {need for name in names for need in needs(name)}
    return found


def needs(name: str) -> set[str]:
    try:
        asked = [Requirement(text) for text in requires(name) or ()]
    except PackageNotFoundError:
        return set()
    return {r.name for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})}


def wheels(pins: list[str], python: str) -> dict[str, str]:
    """Pinned requirement -> SHA-256 of its wheel for one Python; nothing for those that it does not take."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        where = [part for platform in PLATFORMS for part in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", python, *where]
        command += ["--target", folder, "--report", str(report), *pins]
        subprocess.run(command, check=True)
        entries = json.loads(report.read_text(encoding="utf-8"))["install"]
    by_name = {normal(entry["metadata"]["name"]): entry["download_info"]["archive_info"]["hashes"] for entry in entries}
    return {pin: by_name[normal(pin.partition("==")[0])]["sha256"] for pin in pins}


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {Requirement(text).name for text in project["dependencies"]}
    kept = closure(asked - {"torch"}, left_out={"torch"})
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if normal(line.partition("==")[0]) in kept]
    missing = kept - {normal(pin.partition("==")[0]) for pin in pins}
    assert not missing, f"not in constraints.txt: {missing}"
    hashes: dict[str, set[str]] = {pin: set() for pin in pins}
    for python in PYTHONS:
        for pin, digest in wheels(pins, python).items():
            hashes[pin].add(digest)
    text = "".join(
        f"{pin} \\\n" + " \\\n".join(f"    --hash=sha256:{digest}" for digest in sorted(found)) + "\n"
        for pin, found in hashes.items()
    )
    (ROOT / "requirements.lock").write_text(HEAD + text, encoding="utf-8")


if __name__ == "__main__":
    main()
