"""What `abmll doctor` tells: versions, devices, which kernels run where, why, and whether right, memory, the hub."""

import importlib.metadata
import importlib.util
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import torch
from huggingface_hub import constants, get_token

from abmll import kernels
from abmll.kernels import onednn
from abmll.kernels.check import check_kernels, is_bad
from abmll.process.environment import environment
from abmll.process.threads import THREADS, core_limits, default_threads, how_threads_wait

PACKAGES = ("numpy", "scikit-learn", "safetensors", "gguf", "huggingface-hub", "pydantic")
EXTRAS = {
    "triton": "fused kernels on CUDA; comes with PyTorch's CUDA builds",
    "bitsandbytes": "base models in 4 or 8 bits: pip install bitsandbytes",
    "lm_eval": "runs as a model of lm-evaluation-harness: pip install lm_eval",
    "pandas": "data frames for abmll.Classifier",
    "tensorboard": "tracking.tracker=tensorboard: pip install tensorboard",
    **{name: f"tracking.tracker={name}: pip install {name}" for name in ("wandb", "mlflow", "trackio")},
}
LIMITS = {  # what the fused kernels leave to eager, whatever the device: see `kernels.fallbacks` for what happened
    "task_kl": "eager for std_form=log_std",
    "precision_penalty": "eager for std_form=log_std",
    "mean_output": "eager above rank 64",
    "activation_output": "eager above rank 64",
    "weight_output": "eager above rank 64",
}
HUB_SECONDS = 3.0


@dataclass(frozen=True)
class Diagnosis:
    """The facts, as text and numbers only: `to_dict` is JSON.

    Attributes:
        versions: of Python, abmll (and its commit) and what it stands on; None where a package is missing.
        devices: name -> what is known of it; memory in bytes.
        kernels: device -> op -> what runs, and why not something faster.
        checks: device -> op -> how a kernel compares with eager in float64; empty if not checked.
        capture: device -> whether steps are captured as CUDA graphs, or why not.
        free: bytes of free memory and, of the folder of work and the cache, free disk.
        hub: whether the model hub answers; whether a token is set, never which.
        extras: optional packages: their version or what they would give.
        advice: what to do about what is wrong; empty if nothing is.
    """

    versions: dict[str, str | None]
    devices: dict[str, dict[str, Any]]
    kernels: dict[str, dict[str, str]]
    checks: dict[str, dict[str, str]]
    capture: dict[str, str]
    free: dict[str, int]
    hub: dict[str, str]
    extras: dict[str, str]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON holds them."""
        return asdict(self)


def diagnose(hub: str | None = None, seconds: float = HUB_SECONDS, check: bool = True) -> Diagnosis:
    """Look at this machine and installation. Nothing is changed, and nothing but the hub's front page is asked for.

    Args:
        hub: address of the model hub; None: the one that huggingface_hub uses.
        seconds: how long to wait for it.
        check: run the kernels of each device and compare; on CUDA they are compiled for it, once.
    """
    devices = _devices()
    reached = _hub(constants.ENDPOINT if hub is None else hub, seconds)
    free = {
        "memory_bytes": psutil.virtual_memory().available,
        "disk_bytes": shutil.disk_usage(Path.cwd()).free,
    }
    checks = {name: check_kernels(torch.device(name)) for name in devices} if check else {}
    return Diagnosis(
        versions=_versions(),
        devices=devices,
        kernels={name: _ops(torch.device(name)) for name in devices},
        checks=checks,
        capture={name: _capture(name) for name in devices},
        free=free,
        hub=reached,
        extras={name: _version(name) or f"missing: {use}" for name, use in EXTRAS.items()},
        advice=(*_advice_on_kernels(checks), *_advice(devices, free, reached)),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    known = environment(torch.device("cpu"))
    return {
        name: known[name] for name in ("python", "abmll", "commit", "platform", "torch", "transformers", "peft")
    } | {name: _version(name) for name in PACKAGES}


def _devices() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {
        "cpu": {
            "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "may use": ", ".join(f"{cores:g} by {limit}" for limit, cores in core_limits().items()),
            "threads": torch.get_num_threads(),
            "threads wait": how_threads_wait(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }
    }
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"{facts.major}.{facts.minor}"
        found[f"cuda:{index}"] = {"name": facts.name, "capability": capability, "free": free, "total": total}
    if torch.backends.mps.is_available():
        found["mps"] = {"total": torch.mps.recommended_max_memory()}
    return found


def _ops(device: torch.device) -> dict[str, str]:
    return {name: _what_runs(name, device) for name in kernels.OPS}


def _what_runs(name: str, device: torch.device) -> str:
    try:
        kernels.op(name, device)
    except Exception as error:  # a version of Triton that the kernels do not even load in: the check says what to do
        return f"nothing: {kernels.backend_for(device)} cannot be loaded ({type(error).__name__})"
    runs = kernels.implementation(name, device)
    if runs == "triton":
        return f"triton ({LIMITS[name]})" if name in LIMITS else "triton"
    if runs == "onednn":
        return "onednn, in float32"
    if device.type == "cuda" and name in LIMITS:
        return f"eager: Triton cannot be used ({kernels.triton_error()})"
    if device.type == "cpu" and name == "frozen_linear" and (reason := onednn.why_not()) is not None:
        return f"eager: {reason}"
    return "eager"


def _capture(device: str) -> str:
    captured = "yes, per batch shape, but for outer gradients through the inner steps (second_order)"
    return captured if device.startswith("cuda") else "no: CUDA graphs are for CUDA devices"


def _hub(address: str, seconds: float) -> dict[str, str]:
    token = "not set" if get_token() is None else "set"
    found = {"address": address, "token": token}
    if constants.HF_HUB_OFFLINE:
        return {**found, "reached": "not tried: HF_HUB_OFFLINE is set"}
    if not address.startswith(("http://", "https://")):
        return {**found, "reached": "not tried: no address of the web"}
    try:
        with urlopen(address, timeout=seconds):
            return {**found, "reached": "yes"}
    except HTTPError as error:
        return {**found, "reached": f"yes (it answers {error.code})"}
    except OSError as error:
        return {**found, "reached": f"no ({getattr(error, 'reason', error)})"}


def _advice_on_kernels(checks: dict[str, dict[str, str]]) -> list[str]:
    verdicts = [(device, op, verdict) for device, told in checks.items() for op, verdict in told.items()]
    return [f"Kernel {op} on {device}: {verdict}" for device, op, verdict in verdicts if is_bad(verdict)]


def _advice(devices: dict[str, dict[str, Any]], free: dict[str, int], hub: dict[str, str]) -> list[str]:
    told = []
    if len(devices) > 1 and any(name.startswith("cuda") for name in devices) and kernels.triton_error() is not None:
        told.append("There is a CUDA device without Triton: a step will be several times slower. pip install triton")
    if (threads := devices["cpu"].get("threads", 1)) > (best := default_threads()):
        told.append(
            f"{threads} threads for {best} {'core' if best == 1 else 'cores'} that this process may use: they wait for "
            f"each other. Leave {THREADS} out, or set it to {best}"
        )
    if free["memory_bytes"] < 2 << 30:
        told.append("Less than 2 GiB of memory are free: SmolLM2-135M needs about 1.5 GiB")
    if free["disk_bytes"] < 1 << 30:
        told.append("Less than 1 GiB of disk is free here: checkpoints may not fit")
    if hub["reached"].startswith("no ("):
        told.append("The hub does not answer: give a local folder as model.source, or files as tasks")
    return told
