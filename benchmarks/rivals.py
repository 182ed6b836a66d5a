"""What each rival costs beside LoRA: a step of training, an adaptation to 20 examples, an answer; time and peak memory.

    python -m benchmarks.rivals --model.source FOLDER [--out FILE] [--rounds 5] [--systems laplace tfb]
    python -m benchmarks.rivals --shape llama-3-8b [--short]
    python -m benchmarks.rivals --dry-run           # a tiny model on the CPU, one round: does everything run?

The systems are those of the recipe `rivals` (but `in_context`, which a comparison alone does), on built-in questions:
one after the other, and all of them again in every round, so that what drifts, drifts for all. Of each the median over
rounds, divided by that of `structured` (LoRA by task). A training step is a meta-iteration's time over the gradient
steps in it, whatever they descend; an adaptation is made of ten of them and of the posterior; an answer is one
question's of a batch, with the draws that the recipe says. What does not fit in memory has no numbers.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from abmll.config import CompareConfig, RunConfig, check, load_config
from abmll.config.recipes import find_recipe
from abmll.models import LanguageModel, load_model, random_model
from abmll.question import Task
from abmll.runs.train_run import train
from abmll.systems.build import build_system
from abmll.systems.plans import resolve
from abmll.systems.system import System
from abmll.tasks.sources import load_tasks
from benchmarks.common import describe, write_result

RECIPE = find_recipe(Path("rivals"))
REFERENCE = "structured"
PHASES = ("train_step", "meta_iteration", "adapt", "answer")


def systems_of(names: list[str] | None, tokens: int) -> dict[str, RunConfig]:
    """The recipe's systems on built-in tasks, the reference first."""
    recipe = load_config(CompareConfig, RECIPE, ["model.source=smollm2-135m-instruct"])
    wanted = dict.fromkeys([REFERENCE, *(names or recipe.systems)])
    out = {}
    for name in wanted:
        values = recipe.run(name, 0).model_dump(mode="json")
        values["likelihood"]["max_tokens"] = tokens
        values["tasks"] = {"train": {"source": "builtin"}}
        if values["adaptation"]["in_context"]:
            continue
        out[name] = check(RunConfig, values, name)
    return out


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds, and peak bytes on CUDA."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return seconds, float(torch.cuda.max_memory_allocated()) if device.type == "cuda" else 0.0


def measure(system: System, tasks: tuple[Task, ...], iterations: int, questions: int) -> dict[str, tuple[float, float]]:
    """Seconds and peak bytes of each phase, once."""
    run, device = resolve(system.config), system.language_model.device
    steps: list[float] = []

    def listen(event: dict[str, Any]) -> None:
        steps.extend([event["seconds"]] if event["event"] == "step" else [])

    found = {}
    if run.training.iterations:
        with tempfile.TemporaryDirectory() as above:
            folder = Path(above) / "run"
            _, peak = timed(lambda: train(system, tasks, folder, iterations=iterations, listener=listen), device)
        found["meta_iteration"] = statistics.median(steps), peak
        found["train_step"] = statistics.median(steps) / (run.settings.inner_steps + 1), peak
    task = tasks[-1]
    found["adapt"] = timed(lambda: system.adapt(task, run.adaptation), device)
    asked = task.test[:questions]
    seconds, peak = timed(lambda: system.answer(asked), device)
    found["answer"] = seconds / len(asked), peak
    return found


def round_of(configs: dict[str, RunConfig], base: LanguageModel, options: argparse.Namespace) -> dict[str, Any]:
    """Every system once, each after a warm-up of its own."""
    tasks, out = load_tasks("builtin"), {}
    for name, config in configs.items():
        system = build_system(config, base)
        try:
            if not options.dry_run:
                measure(system, tasks, 3, options.questions)
            out[name] = measure(system, tasks, options.iterations, options.questions)
        except torch.cuda.OutOfMemoryError:
            out[name] = {}
        finally:
            system.close()
        said = {phase: f"{s:.4f} s, {peak / 2**30:.2f} GiB" for phase, (s, peak) in out[name].items()}
        print(f"{name}: {said or 'out of memory'}", flush=True)
    return out


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each system and phase the median over rounds, its extremes, and how many times the reference it is."""
    found: dict[str, Any] = {}
    for name in rounds[0]:
        found[name] = {}
        for phase in PHASES:
            pairs = [one[name][phase] for one in rounds if phase in one[name]]
            if not pairs:
                continue
            seconds = [pair[0] for pair in pairs]
            values = {"ms": 1e3 * statistics.median(seconds), "spread_ms": [1e3 * min(seconds), 1e3 * max(seconds)]}
            found[name][phase] = {**values, "peak_gib": max(pair[1] for pair in pairs) / 2**30}
    for phases in found.values():
        for phase, values in phases.items():
            values["times_lora"] = values["ms"] / found[REFERENCE][phase]["ms"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model.source", dest="source", help="a folder, hub id or packaged name")
    parser.add_argument("--shape", default="llama-3-8b", help="random weights, where no source is given")
    parser.add_argument("--systems", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--out", help="default: benchmarks/results/rivals.json, but for a dry run")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--short", action="store_true", help="two rounds of three meta-iterations and eight questions")
    options = parser.parse_args()
    if options.short:
        options.rounds, options.iterations, options.questions = 2, 3, 8
    if options.dry_run:
        options.rounds, options.iterations, options.questions, options.tokens = 1, 1, 2, 256
        base = random_model("tiny-llama", device="cpu")
    elif options.source:
        base = load_model(options.source)
    else:
        base = random_model(options.shape, dtype="bfloat16", device="cuda")
    configs = systems_of(options.systems, options.tokens)
    out = options.out or (None if options.dry_run else "benchmarks/results/rivals.json")
    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        rounds.append(round_of(configs, base, options))
        result = {**describe(), "model": base.name, "tokens": options.tokens, "rounds": len(rounds)}
        result["systems"] = summary(rounds)
        if out is not None:  # after each round: what ends the next one leaves these
            write_result(out, result)
    if options.dry_run:
        for name, phases in result["systems"].items():
            print(name, {phase: round(values["times_lora"], 2) for phase, values in phases.items()})


if __name__ == "__main__":
    main()
