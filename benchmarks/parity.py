"""A captured run on Triton kernels against an eager one, same data and seeds: do they end alike?

    python -m benchmarks.parity --tasks FOLDER [--source MODEL] [--iterations 200] [--out FILE]

ABMLL and structured LoRA are meta-trained on one GPU three times: captured with kernels, eager, and eager from another
training seed. Kernels and eager differ by rounding, which training amplifies; the other seed says how much two runs
differ anyway. Compared are the mean query NLL of the last quarter, theta's distance from its start, and how far apart
the runs' thetas end.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from abmll.config import RunConfig, check
from abmll.runs.prepare import load_run_tasks
from abmll.systems.build import build_system, load_base
from abmll.systems.plans import resolve
from abmll.training.checkpoints import RunDirectory
from abmll.training.resume import theta
from abmll.training.train import meta_train
from benchmarks.common import describe, write_result

SETTINGS = {"structured": {"inner_optimizer_state": "fresh"}}
"""What was a default when the results were made."""
LAST_LAYERS = r".*layers\.(24|25|26|27|28|29)\.self_attn\.(q|v)_proj"


def run(base: Any, config: RunConfig) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """The run's end in numbers, and theta before and after as one vector each."""
    tasks = load_run_tasks(config).train
    system = build_system(config, base)
    before = torch.cat([t.flatten().double().clone() for t in theta(system.method).values()])
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder))
        run = resolve(config)
        plan = replace(run.training, snapshots=(config.training.iterations,))
        meta_train(system.learner, run.episodes_of(tasks), plan, directory)
        events = [json.loads(line) for line in directory.journal.read_text().splitlines()]
    after = torch.cat([t.flatten().double().clone() for t in theta(system.method).values()])
    steps = [event for event in events if event["event"] == "step"]
    name = "query_nll" if "query_nll" in steps[-1] else "nll_first"
    late = [event[name] for event in steps[-len(steps) // 4 :]]
    seconds = sum(event["seconds"] for event in steps)
    system.close()
    return {"late_nll": sum(late) / len(late), "seconds": seconds, "graphs": events[-1]["graphs"]}, before, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--source", default="smollm2-135m-instruct")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=["abmll", "structured"])
    parser.add_argument("--out", default="benchmarks/results/parity.json")
    arguments = parser.parse_args()
    values = {
        "model": {"source": arguments.source, "dtype": "bfloat16", "device": "cuda"},
        "adapter": {"targets": LAST_LAYERS},
        "likelihood": {"kind": "cloze", "max_tokens": 96},
        "tasks": {"train": {"source": arguments.tasks, "merge_choices": True}, "leak_check": "off"},
        "training": {"iterations": arguments.iterations},
    }
    base = load_base(check(RunConfig, {**values, "method": {"name": "lora"}}, "benchmark").model)
    result: dict[str, Any] = {**describe(), "iterations": arguments.iterations, "layers": LAST_LAYERS}
    for method in arguments.methods:
        ends = {}
        for name, engine, seed in (
            ("captured", {}, 0),
            ("eager", {"kernels": "eager", "capture": False}, 0),
            ("other_seed", {}, 1),
        ):
            training = {**values["training"], "seed": seed}
            settings = {"name": method, **SETTINGS.get(method, {})}
            config = check(
                RunConfig, {**values, "training": training, "engine": engine, "method": settings}, "benchmark"
            )
            ends[name] = run(base, config)
            result.setdefault(method, {})[name] = ends[name][0]
            print(method, name, ends[name][0], flush=True)
        captured, eager, other = (ends[name] for name in ("captured", "eager", "other_seed"))
        result[method] |= {
            "moved": float((eager[2] - eager[1]).norm()),
            "captured_from_eager": float((captured[2] - eager[2]).norm()),
            "other_seed_from_eager": float(((other[2] - other[1]) - (eager[2] - eager[1])).norm()),
        }
        write_result(arguments.out, result)


if __name__ == "__main__":
    main()
