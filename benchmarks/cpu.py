"""The quickstart's training on a CPU, by this checkout and an earlier one in turn: how much faster, and is it equal?

    python -m benchmarks.cpu EARLIER_CHECKOUT [--iterations 6] [--rounds 3] [--out FILE]

Each round meta-trains every method with each checkout in a process of its own, on the recipe's model and tasks.
Compared are the median seconds of a meta-iteration and the losses in the journals; only ratios are written.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import describe, write_result

HERE = Path(__file__).parent.parent
FIRST_ORDER = ("method.outer_step=identity", "method.std_start=copy", "method.std_init=4.5e-5")  # default of both, once
METHODS = {"lora": ("method.name=lora",), "abmll": ("method.name=abmll", *FIRST_ORDER)}
METHODS["abmll_eighth"] = METHODS["abmll"]
ONLY_NOW = {"abmll_eighth": ("method.kl_entries=0.125",)}  # an eighth of the rows in each KL, unbiased
QUICKSTART = ("model.source=smollm2-135m-instruct", "tasks.train.source=builtin", "likelihood.max_tokens=64")


def _recipe(checkout: Path) -> Path:
    """The recipe that trains on the built-in tasks, which earlier checkouts have outside of the package."""
    here = checkout / "src" / "abmll" / "recipes" / "builtin.yaml"
    return here if here.is_file() else checkout / "recipes" / "train.yaml"


def journal(checkout: Path, values: tuple[str, ...], iterations: int) -> list[dict[str, Any]]:
    """The steps of a run of `abmll train` by the code of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        given = (*QUICKSTART, *values, f"training.iterations={iterations}")
        command = [sys.executable, "-m", "abmll", "train", str(_recipe(checkout)), *given]
        environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "HF_HUB_OFFLINE": "1"}
        subprocess.run([*command, "-o", f"{folder}/run"], check=True, env=environment, capture_output=True)
        lines = (Path(folder) / "run" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "step"]


def compare(earlier: Path, method: str, iterations: int, rounds: int) -> dict[str, Any]:
    """Seconds of now over those of earlier, and how far the losses are apart."""
    found: dict[str, list[list[dict[str, Any]]]] = {"now": [], "earlier": []}
    for _ in range(rounds):
        found["earlier"].append(journal(earlier, METHODS[method], iterations))
        found["now"].append(journal(HERE, (*METHODS[method], *ONLY_NOW.get(method, ())), iterations))
    # the first iteration of a process makes what later ones use
    each = {name: [statistics.median(e["seconds"] for e in run[1:]) for run in runs] for name, runs in found.items()}
    ratios = [now / before for now, before in zip(each["now"], each["earlier"], strict=True)]
    pairs = zip(found["now"][0], found["earlier"][0], strict=True)
    apart = max(abs(now["nll"] - before["nll"]) / before["nll"] for now, before in pairs)
    return {"time_ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)], "nll_apart_at_most": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earlier", type=Path)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="benchmarks/results/cpu.json")
    arguments = parser.parse_args()
    git = ["git", "-C", str(arguments.earlier), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    result: dict[str, Any] = {**describe(), "cores": os.cpu_count(), "earlier_commit": commit}
    for method in METHODS:
        result[method] = compare(arguments.earlier, method, arguments.iterations, arguments.rounds)
        print(method, result[method], flush=True)
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
