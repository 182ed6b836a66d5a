"""What the engine's open ends cost: wide adapters, draws, the first task of a shape, a step beside its arithmetic.

    python -m benchmarks.engine --out benchmarks/results/engine.json [--parts rank64 draws ...] [--profiles FOLDER]

`rank64`: ABMLL's and our LoRA's step at rank 64, q+v, four layers of the Llama-3-8B shape, captured, in alternation;
KL and noise of such layers alone, and their errors against float64.
`floor`: the same at rank 8 and 32 layers, beside the step's matrix products alone; `all`: of all linear layers, with
the core posterior's adaptation beside 10 steps of our LoRA.
`draws`: adapting (10 steps of batch 2) and predicting 256 questions of 128 tokens by mean weights and by 10 draws.
`small`: one question of 64 tokens at a time at the SmolLM2-135M shape, by mean weights and by 10 draws.
`rows`: 1,000 rows of some 30 tokens by 5 draws at a shape of 1.5 billion weights, encoding and captures included.
`first`: the first task of a process, that is `draws`' by mean weights, with kernels compiled before: a process of its
own, twice. The shape and the questions are those of `benchmarks.tasks`. `--profiles` keeps where the time goes.
"""

import argparse
import cProfile
import io
import json
import os
import pstats
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from abmll.config import RunConfig, check
from abmll.kernels import Factors, Variance, eager, fallbacks
from abmll.kernels.wide import divergence
from abmll.kernels.wide import output as wide_output
from abmll.models import LanguageModel, random_model
from abmll.models.shapes import SHAPES
from abmll.question import Question
from abmll.systems.build import build_system
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from benchmarks import kernel_kl, kernel_output
from benchmarks.common import describe, write_result
from benchmarks.steps import TARGETS, Rounds, drop, letter_batch, our_step, our_system
from benchmarks.tasks import seconds, system_on, task

QWEN = {  # Qwen2.5-1.5B's sizes, as a Llama
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "tie_word_embeddings": True,
}
STREAM: list[torch.cuda.Stream] = []


def shape(name: str, layers: int | None = None) -> LanguageModel:
    """A model of a shape, on the GPU in bfloat16, of so many layers."""
    SHAPES["1.5b"] = QWEN
    whole = SHAPES[name]["num_hidden_layers"]
    try:
        SHAPES[name]["num_hidden_layers"] = layers or whole
        return random_model(name, dtype="bfloat16", device="cuda")
    finally:
        SHAPES[name]["num_hidden_layers"] = whole


class Profiles:
    """Tables of the kernels that take most of a run, one file each, if a folder was given."""

    def __init__(self, folder: str | None) -> None:
        self.folder = Path(folder) if folder else None

    def of(self, name: str, run: Callable[[], object], rows: int = 32) -> None:
        """Profile a run that has been done before."""
        if self.folder is None:
            return
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            run()
            torch.cuda.synchronize()
        lines = [
            (event.self_device_time_total, event.count, event.key)
            for event in found.key_averages()
            if event.device_type == torch.autograd.DeviceType.CUDA
        ]
        total = sum(time for time, _, _ in lines)
        text = "\n".join(f"{time / 1e3:9.3f} ms {count:6} x  {key[:150]}" for time, count, key in sorted(lines)[::-1])
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.txt").write_text(f"{total / 1e3:9.3f} ms in all\n{text}\n", encoding="utf-8")
        print(f"-- {name}: {total / 1e3:.3f} ms of kernels", *text.splitlines()[:rows], sep="\n", flush=True)


def captured_steps(
    base: LanguageModel, which: str, rank: int, methods: dict[str, tuple[str, dict[str, Any]]], profiles: Profiles
) -> dict[str, Any]:
    """Milliseconds of a step of 2 x 256 tokens, each method in two blocks that alternate."""
    targets, times = TARGETS[which], {name: [] for name in methods}
    batch = letter_batch(2, 256, base.model.config.vocab_size, seed=1)
    for block in range(2):
        for name, (method, settings) in methods.items():
            system = our_system(base, method, targets, rank, **settings)
            rounds, step = Rounds(), our_step(system, batch, base.device)
            rounds.add(name, step, 4)
            rounds.time(12)
            times[name] += rounds.times[name]
            if block == 0:
                profiles.of(f"{which}_rank{rank}_{name}", step)
            system.close()
            del system, step, rounds
            drop()
    found = {name: {"ms": statistics.median(t), "spread_ms": [min(t), max(t)]} for name, t in times.items()}
    print(which, rank, found, dict(fallbacks), flush=True)
    return found


LORA = ("structured", {"inner_optimizer_state": "fresh"})


def rank64(profiles: Profiles) -> dict[str, Any]:
    base = shape("llama-3-8b", 4)
    found: dict[str, Any] = captured_steps(base, "qv", 64, {"lora": LORA, "abmll": ("abmll", {})}, profiles)
    found["overhead"] = found["abmll"]["ms"] / found["lora"]["ms"]
    device = base.device
    del base
    drop()
    found |= {"kl": wide_kl(device, profiles), "noise": wide_noise(profiles)}
    return found


def wide_kl(device: torch.device, profiles: Profiles, rank: int = 64, layers: int = 4) -> dict[str, Any]:
    """The KL of q and v in four layers alone."""
    torch.manual_seed(0)
    shared = [kernel_kl.factors(size, rank, device) for _ in range(layers) for size in kernel_kl.QV.values()]
    task_of = [Factors(*(x.requires_grad_() for x in kernel_kl.moved(f, 1e-6))) for f in shared]
    variances = [Variance("square", 2.06e-9**0.5, 1e-6, 2.0)] * len(shared)
    flat = [x for f in task_of for x in f]

    def inner() -> object:
        return torch.autograd.grad(divergence.task_kl(task_of, shared, variances), flat)

    times = kernel_kl.graph_times(inner)
    profiles.of("kl_rank64", inner)
    found: dict[str, Any] = {"ms": statistics.median(times), "spread_ms": [min(times), max(times)], "errors": {}}
    for size in {*kernel_kl.QV.values()}:
        for step in (1e-6, None):
            errors = kernel_kl.errors(size, rank, step, device, phi_alone=True)
            name = f"{size[0]}x{size[1]}_{'adam_step' if step else 'apart'}"
            found["errors"][name] = {
                kind: max(v for k, v in errors.items() if k.startswith(kind)) for kind in ("triton", "eager_float32")
            }
    print("kl alone", found, flush=True)
    return found


def wide_noise(profiles: Profiles, rank: int = 64) -> dict[str, Any]:
    """Activation noise of one q and one v layer alone, 2 x 256 tokens, forward and backward, captured."""
    found = {}
    for name in ("q", "v"):
        case = kernel_output.Case(kernel_output.SHAPES[name], 512, rank)
        leaves = case.leaves("activation_output", None)
        times = kernel_kl.graph_times(lambda: case.run(wide_output, "activation_output", leaves))  # noqa: B023
        profiles.of(f"noise_rank64_{name}", lambda: case.run(wide_output, "activation_output", leaves))  # noqa: B023
        mine = case.run(wide_output, "activation_output", leaves)
        exact = case.run(eager, "activation_output", case.leaves("activation_output", torch.float64))
        errors = {
            what: float((a.double() - b).norm() / b.norm())
            for what, a, b in zip(kernel_output.NAMES, mine, exact, strict=True)
        }
        found[name] = {"ms": statistics.median(times), "errors": errors}
        print("noise alone", name, found[name], flush=True)
        del exact
        drop()
    return found


def products_alone(base: LanguageModel, tokens: int) -> float:
    """Milliseconds of the matrix products of a step, forward and by inputs, one after the other, in one graph."""
    weights = [p for n, p in base.model.named_parameters() if p.dim() == 2 and "embed" not in n and "lm_head" not in n]
    x = {p.shape[1]: torch.randn(tokens, p.shape[1], device=p.device, dtype=p.dtype) for p in weights}
    g = {p.shape[0]: torch.randn(tokens, p.shape[0], device=p.device, dtype=p.dtype) for p in weights}

    def run() -> None:
        with torch.no_grad():
            for p in weights:
                x[p.shape[1]] @ p.T
            for p in weights:
                g[p.shape[0]] @ p

    return statistics.median(kernel_kl.graph_times(run, 10))


def floor(base: LanguageModel, profiles: Profiles) -> dict[str, Any]:
    found: dict[str, Any] = captured_steps(base, "qv", 8, {"lora": LORA, "abmll": ("abmll", {})}, profiles)
    found["products_ms"] = products_alone(base, 512)
    print("products alone", found["products_ms"], flush=True)
    return found


def adapting(
    base: LanguageModel, method: str, targets: tuple[str, ...], rounds: int = 4, **settings: Any
) -> list[float]:
    """Seconds of adapting to 20 rows of 128 tokens, a task of its own each time, after two."""
    values = {
        "model": {"shape": "tiny-llama", "dtype": "bfloat16", "device": "cuda"},
        "adapter": {"targets": list(targets)},
        "likelihood": {"kind": "letter", "max_tokens": 128},
        "method": {"name": method, **settings},
    }
    system = build_system(check(RunConfig, values, "benchmark"), base)
    tasks = [task(f"a{i}", 20, 0, system, 128) for i in range(5)]
    found = [seconds(lambda: system.adapt(t, AdaptationPlan(), 0)) for t in tasks]  # noqa: B023
    system.close()
    del system
    drop()
    return found[2:]


def all_linear(base: LanguageModel, profiles: Profiles) -> dict[str, Any]:
    found: dict[str, Any] = captured_steps(base, "all", 8, {"lora": LORA, "abmll": ("abmll", {})}, profiles)
    found["overhead"] = found["abmll"]["ms"] / found["lora"]["ms"]
    found["adapt_s"] = {}
    for name, (method, settings) in {
        "lora": LORA,
        "abmll": ("abmll", {}),
        "core": ("core", {}),
        "core_blocks": ("core", {"covariance": "blocks"}),
    }.items():
        try:
            found["adapt_s"][name] = adapting(base, method, TARGETS["all"], **settings)
        except Exception as error:  # the rest is still wanted
            found["adapt_s"][name] = str(error)[:200]
            traceback.print_exc()
        print("adapt, all linear", name, found["adapt_s"][name], flush=True)
    return found


MEAN, DRAWN = PredictionPlan("mean", 1, 4096), PredictionPlan("weight", 10, 4096)


def draws(base: LanguageModel, profiles: Profiles, tokens: int = 128, rounds: int = 1) -> dict[str, Any]:
    system = system_on(base, "abmll", tokens)
    tasks = [task(f"t{i}", 20, 256, system, tokens) for i in range(4)]
    found: dict[str, Any] = {"adapt_s": [], "mean_s": [], "drawn_s": []}
    system.adapt(tasks[0], AdaptationPlan(), 0)
    for plan in (MEAN, DRAWN):
        seconds(lambda: system.predict(tasks[0].test[:64], plan, (0, "t")))  # noqa: B023
    for t in tasks[1:]:
        found["adapt_s"].append(seconds(lambda: system.adapt(t, AdaptationPlan(), 0)))  # noqa: B023
        found["mean_s"].append(seconds(lambda: system.predict(t.test, MEAN, (0, t.name))))  # noqa: B023
        if len(found["drawn_s"]) < rounds:
            found["drawn_s"].append(seconds(lambda: system.predict(t.test, DRAWN, (0, t.name))))  # noqa: B023
    of = {name: statistics.median(times) for name, times in found.items()}
    found["ratio"] = (of["adapt_s"] + of["drawn_s"]) / (of["adapt_s"] + of["mean_s"])
    found["encode_s"] = seconds(lambda: system.batcher.encode(task("e", 0, 256, system, tokens).test))
    print("draws", found, flush=True)
    few = tasks[1].test[:64]
    profiles.of("predict_mean", lambda: system.predict(few, MEAN, (0, "t")))
    profiles.of("predict_10_draws", lambda: system.predict(few, DRAWN, (0, "t")))
    profiles.of("adapt", lambda: system.adapt(tasks[1], AdaptationPlan(), 0))
    system.close()
    return found


def small(profiles: Profiles, tokens: int = 64) -> dict[str, Any]:
    system = system_on(shape("smollm2-135m"), "abmll", tokens)
    t = task("s", 20, 60, system, tokens)
    system.adapt(t, AdaptationPlan(), 0)
    found: dict[str, Any] = {}
    for name, plan in (("mean", MEAN), ("drawn", DRAWN)):
        times = [seconds(lambda: system.predict([q], plan, (0, "s"))) for q in t.test]  # noqa: B023
        found[f"{name}_ms"] = 1e3 * statistics.median(times[10:])
        profiles.of(f"one_question_{name}", lambda: system.predict(t.test[:1], plan, (0, "s")))  # noqa: B023
    found["ratio"] = found["drawn_ms"] / found["mean_ms"]
    print("small", found, flush=True)
    system.close()
    return found


def short_rows(profiles: Profiles, count: int = 1000) -> dict[str, Any]:
    system = system_on(shape("1.5b"), "abmll", 128)
    rows = tuple(Question(f"r{i}", f"row {i} " + "x" * (i % 23), ("yes", "no"), i % 2) for i in range(count))
    system.adapt(task("r", 20, 0, system, 48), AdaptationPlan(), 0)
    plan = PredictionPlan("weight", 5, 4096)
    lengths = [len(system.batcher.encoder(q).prefix) for q in rows]
    found: dict[str, Any] = {"tokens": [min(lengths), max(lengths)]}
    found["s"] = [seconds(lambda: system.predict(rows, plan, (0, "r"))) for _ in range(3)]
    print("rows", found, flush=True)
    profiles.of("rows", lambda: system.predict(rows[:200], plan, (0, "r")))
    system.close()
    return found


def first_task(tokens: int = 128) -> None:
    """What the child process does: prints its seconds and where they went."""
    torch.cuda.set_stream(torch.cuda.Stream())
    base = shape("llama-3-8b")
    system = system_on(base, "abmll", tokens)
    tasks = [task(f"t{i}", 20, 256, system, tokens) for i in range(3)]
    found = []
    for i, t in enumerate(tasks):
        profiler = cProfile.Profile()
        if i == 0 and os.environ.get("PROFILE_FIRST"):
            profiler.enable()
        adapted = seconds(lambda: system.adapt(t, AdaptationPlan(), 0))  # noqa: B023
        predicted = seconds(lambda: system.predict(t.test, MEAN, (0, t.name)))  # noqa: B023
        profiler.disable()
        found.append([adapted, predicted])
        if i == 0 and os.environ.get("PROFILE_FIRST"):
            text = io.StringIO()
            pstats.Stats(profiler, stream=text).sort_stats("cumulative").print_stats(70)
            print("\n".join(line[:150] for line in text.getvalue().splitlines()), file=sys.stderr)
    print(json.dumps({"s": found, "graphs": system.graphs.report()}), flush=True)


def first(profiles: Profiles) -> dict[str, Any]:
    """Of two processes, of which the second finds its kernels compiled."""
    found: dict[str, Any] = {"runs": []}
    for run in range(2):
        began = time.perf_counter()
        environment = {**os.environ, **({"PROFILE_FIRST": "1"} if run == 0 and profiles.folder else {})}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.engine", "--first"], capture_output=True, text=True, env=environment
        )
        if done.returncode:
            print(done.stderr[-3000:], flush=True)
            return found
        found["runs"].append(json.loads(done.stdout.splitlines()[-1]))
        if run == 0 and profiles.folder:
            print(done.stderr[-9000:], flush=True)
        print("first", run, done.stdout[-400:], f"process {time.perf_counter() - began:.1f} s", flush=True)
    found["s"] = sum(found["runs"][-1]["s"][0])
    return found


PARTS = ("rank64", "small", "rows", "floor", "draws", "first", "all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/engine.json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--profiles")
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.first:
        first_task()
        return
    torch.cuda.set_stream(torch.cuda.Stream())  # nothing can be captured on the default stream
    profiles, result = Profiles(arguments.profiles), describe()
    base: LanguageModel | None = None
    for part in PARTS:
        if part not in arguments.parts:
            continue
        began = time.perf_counter()
        if part in ("floor", "draws", "all") and base is None:
            base = shape("llama-3-8b")
        alone = {"rank64": rank64, "small": small, "rows": short_rows, "first": first}
        with_base = {"floor": floor, "draws": draws, "all": all_linear}
        try:
            result[part] = alone[part](profiles) if part in alone else with_base[part](base, profiles)
        except Exception:  # the other parts are still wanted
            traceback.print_exc()
        drop()
        print(f"== {part}: {time.perf_counter() - began:.1f} s", flush=True)
        write_result(arguments.out, result)


if __name__ == "__main__":
    main()
