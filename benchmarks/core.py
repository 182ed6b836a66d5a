"""ABMLL in a core beside LoRA on a CPU: adapting to real tasks in one batch and in pieces, and the memory that takes.

    python -m benchmarks.core --tasks FOLDER [--names creak ...] [--rounds 2] [--out FILE]
    python -m benchmarks.core --dry-run         # a tiny model, built-in tasks, one round: does everything run?

Every task is adapted to by every system in turn (20 rows; LoRA in ten steps of two), and all of them again in every
round. Times are processor seconds of one thread, divided by those of `structured` on the same task in the same round.
Peaks are of tensors, above what there was before. `rivals` is what `benchmarks.rivals` measures, for the core alone: a
step of training, an adaptation, an answer of ten draws.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from abmll.config import CompareConfig, RunConfig, check, load_config
from abmll.models import LanguageModel, load_model, random_model
from abmll.question import Task
from abmll.systems.build import build_system
from abmll.systems.plans import AdaptationPlan
from abmll.systems.system import System
from abmll.tasks.sources import load_tasks
from benchmarks.common import describe, peak_bytes, write_result
from benchmarks.rivals import PHASES, RECIPE, measure

CORE = {"name": "core", "start": "singular"}  # LoRA's start has B = 0, by which no observation moves anything
SYSTEMS: dict[str, dict[str, Any]] = {
    "structured": {"name": "structured"},
    "lora": {"name": "lora"},
    "core": CORE,
    "core_256": {**CORE, "fit_tokens": 256},
    "core_1024": {**CORE, "fit_tokens": 1024},
    "core_whole": {**CORE, "fit_tokens": None},
}
REFERENCE = "structured"
ROWS = (5, 10, 20, 40)


def system_of(base: LanguageModel, method: dict[str, Any]) -> System:
    """On the base model; it is warm: the weights are laid out, and every library has been used."""
    values = {"model": {"source": "smollm2-135m-instruct"}, "likelihood": {"kind": "cloze", "max_tokens": 256}}
    system = build_system(check(RunConfig, {**values, "method": method}, "benchmark"), base)
    system.adapt(load_tasks("builtin", ["capitals"])[0], AdaptationPlan(2, 1))
    return system


def seconds(run: Callable[[], object]) -> float:
    """Of the processor."""
    began = time.process_time()
    run()
    return time.process_time() - began


def adapting(base: LanguageModel, tasks: tuple[Task, ...], rounds: int) -> dict[str, Any]:
    """Of each task and system the seconds, and times the reference's."""
    found: dict[str, Any] = {}
    for number in range(rounds):
        for task in tasks:
            row = found.setdefault(task.name, {"seconds": {name: [] for name in SYSTEMS}})
            for name, method in SYSTEMS.items():
                system = system_of(base, method)
                rows: list[Any] = []
                row["seconds"][name].append(seconds(lambda: rows.extend(system.adapt(task, AdaptationPlan()))))  # noqa: B023
                row["choices"] = sorted({len(question.choices) for question in rows})
                row["tokens"] = statistics.fmean(question.tokens for question in system.batcher.encode(rows))
                system.close()
            print(number, task.name, {name: round(s[-1], 2) for name, s in row["seconds"].items()}, flush=True)
    for row in found.values():
        one = row["seconds"][REFERENCE]
        row["times_structured"] = {
            name: statistics.median(s / r for s, r in zip(each, one, strict=True))
            for name, each in row["seconds"].items()
        }
    return found


def over_tasks(found: dict[str, Any], above: str, below: str) -> dict[str, float]:
    """Of a ratio of times the median, least and most over tasks, each from its rounds."""
    ratios = [
        statistics.median(a / b for a, b in zip(row["seconds"][above], row["seconds"][below], strict=True))
        for row in found.values()
    ]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def peaks(base: LanguageModel, task: Task) -> dict[str, list[float]]:
    """MiB of adapting to more and more rows; one batch is left out: it did not end in 23 GiB."""
    out: dict[str, list[float]] = {}
    for name in (REFERENCE, "core"):
        system, out[name] = system_of(base, SYSTEMS[name]), []
        for count in ROWS:
            out[name].append(peak_bytes(lambda: system.adapt(task, AdaptationPlan(count, -(-count // 2)))) / 2**20)  # noqa: B023
        system.close()
        print(name, out[name], flush=True)
    return out


def as_rivals(base: LanguageModel, rounds: int, iterations: int, questions: int) -> dict[str, Any]:
    """The phases of `benchmarks.rivals` on built-in tasks, and how many times those of `structured` they are."""
    recipe = load_config(CompareConfig, RECIPE, ["model.source=smollm2-135m-instruct"])
    values = recipe.run(REFERENCE, 0).model_dump(mode="json") | {"tasks": {"train": {"source": "builtin"}}}
    of_core = {"method": {"name": "core"}, "posterior": {"name": "core"}}
    configs = {REFERENCE: check(RunConfig, values, REFERENCE), "core": check(RunConfig, values | of_core, "core")}
    times: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in PHASES} for name in configs}
    for _ in range(rounds):
        for name, config in configs.items():
            system = build_system(config, base)
            for phase, (each, _) in measure(system, load_tasks("builtin"), iterations, questions).items():
                times[name][phase].append(each)
            system.close()
            print(name, {phase: round(each[-1], 3) for phase, each in times[name].items()}, flush=True)
    ratios = {
        phase: statistics.median(c / r for c, r in zip(times["core"][phase], times[REFERENCE][phase], strict=True))
        for phase in PHASES
    }
    return {"seconds": times, "times_structured": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="builtin", help="a folder of tasks")
    parser.add_argument("--names", nargs="+", help="of the tasks; default: all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", help="default: benchmarks/results/core.json, but for a dry run")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.dry_run:
        base, options.names, options.rounds = random_model("tiny-llama", device="cpu"), ["capitals"], 1
    else:
        base = load_model("smollm2-135m-instruct", device="cpu")
    out = options.out or (None if options.dry_run else "benchmarks/results/core.json")
    tasks = load_tasks(options.tasks, options.names, merge_choices=True)
    most = max(tasks, key=lambda task: len(task.train[0].choices))
    result: dict[str, Any] = {**describe(), "model": base.name, "rounds": options.rounds}
    steps: dict[str, Callable[[], Any]] = {
        "adapt": lambda: adapting(base, tasks, options.rounds),
        "rivals": lambda: as_rivals(base, options.rounds, 2, 8),
        "peak_mib": lambda: {"task": most.name, "rows": ROWS, **peaks(base, most)},
    }
    for name, step in steps.items():
        result[name] = step()
        if name == "adapt":
            pairs = [(a, b) for a in SYSTEMS for b in (REFERENCE, "lora", "core_whole") if a != b]
            result["over_tasks"] = {f"{a}/{b}": over_tasks(result["adapt"], a, b) for a, b in pairs}
        if out is not None:  # after each part: what ends the next one leaves these
            write_result(out, result)


if __name__ == "__main__":
    main()
