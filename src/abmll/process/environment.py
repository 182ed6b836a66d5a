"""What a result was made with: versions, commit, device."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from abmll.process.world import World


def environment(device: torch.device) -> dict[str, str | None]:
    """Versions of what computes, the commit of this library if it runs from a checkout, and the device.

    >>> sorted(environment(torch.device("cpu")))
    ['abmll', 'commit', 'device', 'peft', 'platform', 'python', 'torch', 'transformers']
    """
    return {
        "abmll": version("abmll"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # names the build, as in 2.13.0+cu130, which its package need not
        "transformers": version("transformers"),
        "peft": version("peft"),
        "device": _device_name(device),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def version(name: str) -> str | None:
    """Of an installed package; None for what runs without being installed, as a checkout on the path does."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def _commit() -> str | None:
    """Short hash of the checkout that this file is in, with + if files differ from it; None outside one."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def memory_of_ranks(world: World, device: torch.device) -> list[dict[str, int]]:
    """A row for each rank with its peak memory; none for a process that is alone. Ranks meet here.

    Raises:
        AbmllError: another rank died, or did not answer in time.
    """
    peaks = world.each(peak_memory(device) or 0)
    return [{"rank": rank, "peak_memory_bytes": peak} for rank, peak in enumerate(peaks)] if world.size > 1 else []


def peak_memory(device: torch.device) -> int | None:
    """Most bytes allocated on a CUDA device so far; on the CPU the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # optional extra: not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
