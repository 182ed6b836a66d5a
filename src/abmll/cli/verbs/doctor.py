"""`abmll doctor`: what this machine and installation can do; or where a batch stopped being finite."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from abmll import kernels
from abmll.cli.lazy import command_app
from abmll.cli.verbs.doctor_batch import show_batch
from abmll.diagnosis.machine import Diagnosis, diagnose

app = command_app()


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The same facts as JSON.")] = False,
    batch: Annotated[
        Path | None,
        typer.Option(help="Replay the batch.json (or its folder) of a loss that was not finite.", show_default=False),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(help="Run the kernels and compare them with float64; on CUDA a minute or two, once."),
    ] = True,
) -> None:
    """Tell versions, devices, which kernels run, why and whether right, free memory, the hub, and what to do.

    With --batch, replay a batch whose loss or gradient was not finite, and name the first term, layer and factor that
    is not. Example: `abmll doctor --batch runs/mine/non-finite/step-000012-position-0/batch.json`
    """
    if batch is not None:
        show_batch(batch)
        return
    if check and torch.cuda.is_available() and kernels.triton_error() is None:
        slow = "checking the kernels: the first time they are compiled, a minute or two; --no-check leaves it out"
        Console(stderr=True).print(slow, highlight=False, soft_wrap=True)
    found, console = diagnose(check=check), Console()
    if as_json:
        console.print(json.dumps(found.to_dict(), indent=1), highlight=False, markup=False, soft_wrap=True)
        return
    for line in lines(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def lines(found: Diagnosis) -> list[str]:
    """The facts as lines of text."""
    told = _section("Versions", {name: version or "missing" for name, version in found.versions.items()})
    for name, facts in found.devices.items():
        told += _section(f"Device {name}", {key: _shown(key, value) for key, value in facts.items()})
        told += _section(f"Kernels on {name}", {**found.kernels[name], "captured steps": found.capture[name]})
        told += _section(f"Check of the kernels on {name}", checks) if (checks := found.checks.get(name)) else []
    told += _section("Free", {key.removesuffix("_bytes"): _shown("free", value) for key, value in found.free.items()})
    told += _section("Hub", found.hub)
    told += _section("Optional", found.extras)
    return [*told, "", *(found.advice or ("Nothing is wrong.",))]


def _section(title: str, facts: dict[str, str]) -> list[str]:
    width = max(map(len, facts), default=0)
    return ["", title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())]


def _shown(key: str, value: Any) -> str:
    return f"{value / 2**30:.1f} GiB" if key in ("free", "total") else str(value)
