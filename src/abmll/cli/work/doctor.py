"""The work of `abmll doctor`: facts about this machine and installation, as text or JSON."""

import json
from typing import Any

import torch

from abmll import kernels
from abmll.cli.console import note, say
from abmll.diagnosis.machine import Diagnosis, diagnose


def show_diagnosis(*, as_json: bool, check: bool) -> None:
    """Print what is there, what runs on it and whether it is right."""
    if check and torch.cuda.is_available() and kernels.triton_error() is None:
        note("checking the kernels: the first time they are compiled, a minute or two; --no-check leaves it out")
    diagnosis = diagnose(check=check)
    if as_json:
        say(json.dumps(diagnosis.to_dict(), indent=1))
        return
    for line in _lines(diagnosis):
        say(line)


def _lines(diagnosis: Diagnosis) -> list[str]:
    lines = _section("Versions", {name: version or "missing" for name, version in diagnosis.versions.items()})
    for name, facts in diagnosis.devices.items():
        lines += _section(f"Device {name}", {key: _value(key, value) for key, value in facts.items()})
        lines += _section(f"Kernels on {name}", {**diagnosis.kernels[name], "captured steps": diagnosis.capture[name]})
        if checks := diagnosis.checks.get(name):
            lines += _section(f"Check of the kernels on {name}", checks)
    free = {key.removesuffix("_bytes"): _value("free", value) for key, value in diagnosis.free.items()}
    for title, facts in (("Free", free), ("Hub", diagnosis.hub), ("Optional", diagnosis.extras)):
        lines += _section(title, facts)
    return [*lines, "", *(diagnosis.advice or ("Nothing is wrong.",))]


def _section(title: str, facts: dict[str, str]) -> list[str]:
    width = max(map(len, facts), default=0)
    return ["", title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())]


def _value(key: str, value: Any) -> str:
    return f"{value / 2**30:.1f} GiB" if key in ("free", "total") else str(value)
