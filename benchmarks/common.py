"""What every benchmark says of where it ran, and how it writes its result."""

import json
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def describe() -> dict[str, Any]:
    """Device, versions and commit."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "versions": {name: _version(name) for name in ("torch", "triton", "transformers", "peft")},
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout; in a copy of the tree, benchmarks/commit says it."""
    here = Path(__file__).parent
    if (here / "commit").exists():
        return (here / "commit").read_text().strip()
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write_result(path: str | Path, result: dict[str, Any]) -> None:
    """Write a result as JSON."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that tensors took on the CPU at any time of a run, above what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
