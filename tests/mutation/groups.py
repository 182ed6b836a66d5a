"""What is mutated and by which tests a mutant may die: `groups.toml`, and the reasons of `reasons.toml`."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCE = "src/abmll"


@dataclass(frozen=True)
class Group:
    """Modules whose mutants are drawn together.

    Attributes:
        name, title: of the group, in commands and in tables.
        modules: globs below src/abmll.
        tests: globs below tests.
        reported: no share of its mutants has to die.
    """

    name: str
    title: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]
    reported: bool

    def module_files(self) -> list[Path]:
        """Files that are mutated, relative to the repository.

        Raises:
            FileNotFoundError: a glob matches nothing.
        """
        return _matches(SOURCE, self.modules)

    def test_files(self) -> list[Path]:
        """Files of tests, relative to the repository.

        Raises:
            FileNotFoundError: a glob matches nothing.
        """
        return _matches("tests", self.tests)


def _matches(below: str, globs: tuple[str, ...]) -> list[Path]:
    files: list[Path] = []
    for pattern in globs:
        matches = sorted((ROOT / below).glob(pattern))
        if not matches:
            raise FileNotFoundError(f"{HERE / 'groups.toml'}: {below}/{pattern} matches no file")
        files += [path.relative_to(ROOT) for path in matches]
    return list(dict.fromkeys(files))


def read_groups() -> tuple[dict[str, Any], list[Group]]:
    """The settings for all groups, and the groups."""
    values = tomllib.loads((HERE / "groups.toml").read_text(encoding="utf-8"))
    groups = [
        Group(name, own.get("title", name), tuple(own["modules"]), tuple(own["tests"]), own.get("reported", False))
        for name, own in values.pop("groups").items()
    ]
    return values, groups


def read_reasons() -> list[dict[str, Any]]:
    """Why a survivor is left: `file`, `was` and `now` identify it; `equivalent` names the rule, or is missing."""
    path = HERE / "reasons.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", []) if path.exists() else []
