"""The protocol as configurations: base, then what was searched, then what makes a system what it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from abmll.config import CompareConfig, RunConfig, check, merge, parse_override
from abmll.errors import AbmllError

HERE = Path(__file__).parent
PROTOCOL = HERE / "protocol.yaml"
RESULTS = HERE / "results"
SMOLLM2 = RESULTS / "smollm2"
CHOSEN = SMOLLM2 / "chosen.yaml"


@dataclass(frozen=True)
class Protocol:
    """What is compared, in which order, and how it is searched.

    Attributes:
        config: every system with its settings.
        order: (system, seed), most important first.
        search: the section of that name.
        chosen: system -> settings of its method that the search found; empty before it.
        like: control -> the system whose settings it takes.
        further: name -> {set: laid on the base, targets: patterns of system.seed-N}: results of their own.
    """

    config: CompareConfig
    order: tuple[tuple[str, int], ...]
    search: dict[str, Any]
    chosen: dict[str, dict[str, Any]]
    like: dict[str, str]
    further: dict[str, dict[str, Any]]

    def run(self, system: str, seed: int) -> RunConfig:
        """The configuration of one target."""
        return self.config.run(system, seed)

    def selected(self, only: str = "*") -> list[tuple[str, int]]:
        """Targets whose `system.seed-N` fits the pattern, in order."""
        return [(s, n) for s, n in self.order if any(fnmatchcase(f"{s}.seed-{n}", p) for p in only.split(","))]


def load_protocol(path: Path = PROTOCOL, chosen: Path = CHOSEN, overrides: Sequence[str] = ()) -> Protocol:
    """Read the protocol and, if it is there, what the search chose.

    Raises:
        AbmllError: a file or a value is wrong, or a section names an unknown system.
    """
    values = _read(path)
    found = _read(chosen) if chosen.exists() else {}
    base = values["base"]
    for override in overrides:
        base = merge(base, parse_override(override))
    _check_names(values, base["systems"])
    base["systems"] = {
        name: _settled(own, found.get(values["like"].get(name, name), {})) for name, own in base["systems"].items()
    }
    config = check(CompareConfig, base, str(path))
    order = tuple(dict.fromkeys((s, n) for wave in values["order"] for s in wave["systems"] for n in wave["seeds"]))
    return Protocol(config, order, values["search"], found, values["like"], values.get("further", {}))


def _settled(own: dict[str, Any], searched: dict[str, Any]) -> dict[str, Any]:
    """A system's own settings laid on those that were searched for it or its parent."""
    return merge({"method": {"name": own["method"]["name"], **searched}}, own)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise AbmllError(f"{path}: cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise AbmllError(f"{path}: expected sections, found {type(values).__name__}")
    if "extends" in values:
        return merge(_read(path.parent / values.pop("extends")), values)
    return values


def _check_names(values: dict[str, Any], systems: dict[str, Any]) -> None:
    named = {*values["like"], *values["like"].values(), *values["search"]["spaces"]}
    named |= {name for wave in values["order"] for name in wave["systems"]}
    if unknown := sorted(named - set(systems)):
        raise AbmllError(f"protocol: {', '.join(unknown)} are none of the systems")
