"""Loading a GGUF model on a CPU: dequantised into an empty cache, then from the cache; time, and peak private memory.

    python -m benchmarks.gguf FILE [--dtype bfloat16] [--out FILE]

Each load is a process of its own. Memory is of Linux's smaps_rollup, looked at five times a second: `private` has the
pages of mapped files that no other process maps, the weights in the cache among them, `anonymous` has not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from abmll.models import load_model
from abmll.models.language_model import weight_bytes
from benchmarks.common import describe, write_result

LOAD = "import sys; from benchmarks.gguf import load; load(*sys.argv[1:])"


def load(file: str, dtype: str) -> None:
    """Load a model, and print how long it took and how many bytes its weights have."""
    torch.set_num_threads(1)
    wall, seconds = time.perf_counter(), time.process_time()
    model = load_model(file, dtype=dtype, device="cpu").model
    took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - seconds}
    print(json.dumps({**took, "weight_bytes": weight_bytes(model)}))


def measured(file: Path, dtype: str, cache: str) -> dict[str, Any]:
    """One load in a process of its own: seconds after the imports, and the most memory of the whole process."""
    environment = os.environ | {"ABMLL_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD, str(file), dtype]
    peak = {"Private": 0, "Anonymous": 0}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None:
            now = memory_of(child.pid)
            peak = {name: max(peak[name], now[name]) for name in peak}
            time.sleep(0.2)
        assert child.stdout is not None
        found = json.loads(child.stdout.read().splitlines()[-1])
    bytes_ = found["weight_bytes"]
    return {
        "wall_s": round(found["wall_s"], 1),
        "cpu_s": round(found["cpu_s"], 1),
        "weight_bytes": bytes_,
        "peak_private_bytes": peak["Private"],
        "peak_anonymous_bytes": peak["Anonymous"],
        "private_over_weights": round(peak["Private"] / bytes_, 2),
    }


def memory_of(pid: int) -> dict[str, int]:
    """Bytes of a process that no other shares, and those of them that belong to no file."""
    out = {"Private": 0, "Anonymous": 0}
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # it has just ended
        return out
    for line in lines:
        name, _, rest = line.partition(":")
        kind = name.partition("_")[0]
        if kind in out and "Hugetlb" not in name:
            out[kind] += int(rest.split()[0]) * 1024
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--out", default="benchmarks/results/gguf.json")
    arguments = parser.parse_args()
    result: dict[str, Any] = {**describe(), "cores": os.cpu_count(), "rows": []}
    for file in arguments.files:
        for dtype in arguments.dtype:
            with tempfile.TemporaryDirectory() as cache:
                row = {"file": file.name, "file_bytes": file.stat().st_size, "dtype": dtype}
                row |= {name: measured(file, dtype, cache) for name in ("dequantised", "from_cache")}
            row["load_average"] = round(os.getloadavg()[0], 1)
            result["rows"].append(row)
            print(json.dumps(row), flush=True)
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
