"""Two GPUs: the base whole on each of them (replicas), or in two parts (shards), beside stock PEFT LoRA in parts.

    python -m benchmarks.shards --out benchmarks/results/shards.json   # two GPUs, under eight minutes
    python -m benchmarks.shards --dry-run                              # the same on two CPU processes, a tiny shape

Each part is a `torchrun` of two processes with a time limit of its own; results are written after each, and inside.

`eight_b`: the Llama-3-8B shape. Meta-iterations of two tasks (ABMLL, q + v, rank 8, batches of 2 x 256 tokens) by one
process alone, then by both with a task each, twice in turn; then by both with the base in two parts, from the same
seed: how far its losses are from the replicas' is reported in nats.
`seventy_b`: the Llama-3-70B shape in two parts, drawn layer by layer on the devices. 20 meta-iterations of two tasks,
then twelve steps of stock transformers + peft + AdamW on the same model in the same parts.
`files`: the 8B shape written as safetensors and read back in two parts: each process reads its own.
"""

import argparse
import contextlib
import gc
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn

from abmll.config import ModelConfig, RunConfig, check
from abmll.models import LanguageModel, shapes
from abmll.process.passes import passes_of
from abmll.process.world import World, join_world, leave_world
from abmll.question import Question, Task
from abmll.systems.build import build_system, load_base, renew
from abmll.systems.system import System
from abmll.tasks.episodes import Episodes
from abmll.training.checkpoints import RunDirectory
from abmll.training.resume import theta
from abmll.training.train import TrainingPlan, meta_train
from benchmarks.common import describe, write_result

SECONDS = {"eight_b": 165, "seventy_b": 200, "files": 95}
"""Time limits of the parts; a part that comes to its end is one of the results."""
SKIPPED = 4
"""Meta-iterations at the start that are not timed: they capture and compile."""


@dataclass
class Bench:
    """What a part is measured with.

    Attributes:
        world: of its processes.
        file: its results.
        dry: a tiny shape on CPUs.
        found: results so far, written after each.
    """

    world: World
    file: Path
    dry: bool
    found: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, value: Any) -> None:
        """Write a result."""
        self.found[name] = value
        if self.world.is_main:
            write_result(self.file, self.found)
            print(name, json.dumps(value)[:300], flush=True)

    def shape(self, name: str) -> str:
        """The shape, or the tiny one that stands for it."""
        return "tiny-llama" if self.dry else name

    @property
    def tokens(self) -> int:
        """Of each question."""
        return 64 if self.dry else 256

    def load(self, name: str, shards: int, world: World) -> tuple[LanguageModel, dict[str, Any]]:
        """A base of random weights, and what having it took."""
        began = _start_counting()
        base = load_base(ModelConfig(shape=self.shape(name), dtype=self.dtype, shards=shards), world)
        return base, {"seconds": round(time.perf_counter() - began, 2), "peak_gib": _peak_gib(world)}

    @property
    def dtype(self) -> Any:
        """Of the base."""
        return "float32" if self.dry else "bfloat16"


@dataclass(frozen=True)
class Trained:
    """A training: seconds of its meta-iterations, its losses, and the peak memory of each rank."""

    seconds: list[float]
    losses: list[list[float]]
    memory: list[Any]
    finite: bool

    def result(self) -> dict[str, Any]:
        """As JSON; the median leaves the first meta-iterations out."""
        timed = self.seconds[SKIPPED:]
        return {
            "iteration_s": statistics.median(timed),
            "iterations_s": [round(s, 4) for s in self.seconds],
            "losses": self.losses,
            "ranks": self.memory,
            "all_finite": self.finite,
        }


def configuration(bench: Bench, inner_steps: int) -> RunConfig:
    """ABMLL at q + v, rank 8, two tasks a meta-iteration."""
    values = {
        "model": {"shape": "tiny-llama"},
        "likelihood": {"kind": "letter", "max_tokens": bench.tokens},
        "method": {"name": "abmll", "inner_steps": inner_steps, "batch_size": 2},
        "training": {"meta_batch": 2},
    }
    return check(RunConfig, values, "benchmark")


def tasks(system: System, tokens: int, count: int = 4) -> tuple[Task, ...]:
    """Two-choice questions whose prompts are all as many tokens long: one shape of batches."""

    def stem(text: str) -> str:
        used = len(system.batcher.encoder(Question(f"probe-{text}", text, ("yes", "no"), 0)).prefix)
        return text + "x" * (tokens - used)

    return tuple(
        Task(f"t{t}", tuple(Question(f"t{t}-{i}", stem(f"t{t} {i} "), ("yes", "no"), i % 2) for i in range(40)))
        for t in range(count)
    )


def train(system: System, bench: Bench, world: World, iterations: int, name: str) -> Trained:
    """Meta-train from the start in a folder of its own, timing each meta-iteration."""
    config = system.config
    assert renew(system, config), "the same configuration"
    episodes = Episodes(
        tasks(system, bench.tokens), "by_task", batches=system.method.settings.inner_steps + 1, batch_size=2, seed=0
    )
    at = [time.perf_counter()]

    def listener(event: dict[str, Any]) -> None:
        _synchronize()
        at.append(time.perf_counter())
        bench.found["under_way"] = {"name": name, "seconds": [round(a - at[0], 3) for a in at]}
        if world.is_main:
            write_result(bench.file, bench.found)  # what there is if the time limit comes first

    folder = bench.file.parent / f"run-{name}"
    _start_counting()
    meta_train(
        system.learner,
        episodes,
        TrainingPlan(iterations, meta_batch=2, log_stds_every=10**6, checkpoint_every=10**6),
        RunDirectory(folder),
        world,
        listener=listener,
    )
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    steps = [event for event in journal if event["event"] == "step"]
    finite = all(bool(tensor.isfinite().all()) for tensor in theta(system.method).values())
    del bench.found["under_way"]
    return Trained(
        [round(after - before, 5) for before, after in itertools.pairwise(at)],
        [_numbers(event) for event in steps],
        next(event for event in journal if event["event"] == "end").get("ranks", []),
        finite and all(math.isfinite(x) for event in steps for x in _numbers(event)),
    )


def _numbers(event: dict[str, Any]) -> list[float]:
    """Every loss that the journal has of a step."""
    return [float(v) for k, v in sorted(event.items()) if isinstance(v, float) and ("nll" in k or "loss" in k)]


def eight_b(bench: Bench) -> None:
    """Replicas against one GPU, in turn; then shards."""
    world, alone, iterations = bench.world, World(), 8 if bench.dry else 14
    base, loading = bench.load("llama-3-8b", 1, world)
    bench.put("load_replica", loading)
    config = configuration(bench, inner_steps=5)
    system = build_system(config, base)
    one, both = [], []
    for turn in range(2):
        if world.is_main:
            one.append(train(system, bench, alone, iterations, f"one-{turn}"))
            bench.put(f"one_{turn}", one[-1].result())
        world.tell(0, long=True)  # the other one's GPU idles meanwhile
        both.append(train(system, bench, world, iterations, f"replicas-{turn}"))
        bench.put(f"replicas_{turn}", both[-1].result())
    if world.is_main:
        times = [statistics.median([s for run in runs for s in run.seconds[SKIPPED:]]) for runs in (one, both)]
        bench.put("two_gpu_speedup", times[0] / times[1])
        bench.put("graphs", system.graphs.report())
    system.close()
    del system, base
    gc.collect()
    _empty()
    base, loading = bench.load("llama-3-8b", 2, world)
    bench.put("load_shards", loading)
    system = build_system(config, base)
    parts = train(system, bench, world, iterations, "shards")
    bench.put("shards", {**parts.result(), "graphs": system.graphs.report(), "passes": _passes(base)})
    apart = [
        max(abs(a - b) for a, b in zip(one, other, strict=True))
        for one, other in zip(parts.losses, both[0].losses, strict=True)
    ]
    again = [
        max(abs(a - b) for a, b in zip(one, other, strict=True))
        for one, other in zip(both[1].losses, both[0].losses, strict=True)
    ]
    bench.put("losses_apart", {"shards": apart, "replicas_again": again, "shards_most": max(apart)})
    system.close()


def seventy_b(bench: Bench) -> None:
    """The 70B shape in two parts: ours, then the peer on the same parts."""
    if bench.dry:
        shapes.DRAWN_WHOLE = 0  # so that the tiny shape is drawn layer by layer, too
    world, iterations, inner_steps = bench.world, 20, 2
    base, loading = bench.load("llama-3-70b", 2, world)
    bench.put("load", {**loading, "parameters": sum(p.numel() for p in base.model.parameters())})
    config = configuration(bench, inner_steps)
    system = build_system(config, base)
    ours = train(system, bench, world, iterations, "seventy-b")
    result = ours.result()
    bench.put("abmll", {**result, "gradient_steps_each": inner_steps + 1, "passes": _passes(base)})
    bench.put("shape70b_step_s", result["iteration_s"] / (inner_steps + 1))
    system.close()
    bench.put("peer", peer(base, bench, steps=12))


def peer(base: LanguageModel, bench: Bench, steps: int) -> dict[str, Any]:
    """Stock peft LoRA with torch's AdamW on a base in parts; each process has a batch, gradients are averaged."""
    model = _with_peft(base.model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)
    generator = torch.Generator().manual_seed(bench.world.rank)
    seconds, losses = [], []
    _start_counting()
    for _ in range(steps):
        ids = torch.randint(3, 400, (2, bench.tokens), generator=generator).to(base.device)
        labels = torch.tensor([260, 261], device=base.device)
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1].float(), labels
        )
        loss.backward()
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        dist.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p) / bench.world.size
        optimizer.step()
        _synchronize()
        seconds.append(round(time.perf_counter() - began, 5))
        losses.append(float(loss))
    model.unload()
    return {
        "step_s": statistics.median(seconds[SKIPPED:]),
        "steps_s": seconds,
        "losses": losses,
        "all_finite": all(map(math.isfinite, losses)),
        "peak_gib": _peak_gib(bench.world),
    }


def _with_peft(model: Any) -> nn.Module:
    """Stock LoRA on a model in parts. Earlier releases take a share's shape for the layer's; then it is hidden."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    found: nn.Module = get_peft_model(model, config)
    layers = [m for m in found.modules() if hasattr(m, "lora_B")]
    if any(m.lora_B["default"].out_features != m.base_layer.out_features for m in layers):
        found.unload()
        with patch("torch.distributed.tensor.DTensor", type("Hidden", (), {})):
            found = get_peft_model(model, config)
    return found


def files(bench: Bench) -> None:
    """Write the 8B shape as safetensors; read it in two parts; the same weights as in memory."""
    world = bench.world
    folder = Path(bench.file.parent / "model")
    if world.is_main:
        began = time.perf_counter()
        base = load_base(ModelConfig(shape=bench.shape("llama-3-8b"), dtype=bench.dtype))
        base.model.save_pretrained(folder, max_shard_size="4GB")
        base.tokenizer.save_pretrained(folder)
        bench.put("write_s", round(time.perf_counter() - began, 2))
        del base
        _empty()
    world.tell(0, long=True)
    whole, _ = bench.load("llama-3-8b", 1, world)
    wanted = {
        name: weight for name, weight in whole.model.named_parameters() if name.endswith("layers.1.mlp.up_proj.weight")
    }
    began = _start_counting()
    before = _allocated()
    base = load_base(ModelConfig(source=str(folder), dtype=bench.dtype, shards=2), world)
    bench.put(
        "read",
        {
            "seconds": round(time.perf_counter() - began, 2),
            "held_gib": [round(n / 2**30, 3) for n in world.each(_allocated() - before)],
            "same_sample": base.fingerprint == whole.fingerprint,
            "same_share": _same_share(base.model, wanted),
        },
    )


def _same_share(model: nn.Module, wanted: dict[str, torch.Tensor]) -> bool:
    """Whether a process's share is that part of the whole weight."""
    parts = dict(model.named_parameters())
    found = []
    for name, weight in wanted.items():
        own: Any = parts[name]
        rows = len(own.to_local())
        start = own.device_mesh.get_local_rank() * rows
        found.append(torch.equal(own.to_local(), weight[start : start + rows]))
    return bool(found) and all(found)


def _passes(base: LanguageModel) -> dict[str, int]:
    passes = passes_of(base.model)
    return {} if passes is None else {"computed": passes.computed, "followed": passes.followed}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _empty() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _start_counting() -> float:
    """Peak memory counts from here; returns the time."""
    _synchronize()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return time.perf_counter()


def _peak_gib(world: World) -> list[float]:
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return [round(n / 2**30, 3) for n in world.each(peak)]


PARTS: dict[str, Callable[[Bench], None]] = {"eight_b": eight_b, "seventy_b": seventy_b, "files": files}


def run_part(name: str, file: Path, dry: bool) -> None:
    """What one of the two processes does."""
    bench = Bench(join_world(), file, dry)
    PARTS[name](bench)
    bench.put("complete", True)
    bench.world.tell(0, long=True)
    leave_world()


def launch(name: str, folder: Path, dry: bool) -> dict[str, Any]:
    """Run a part under torchrun; what it has written when it ends, or when its time is over."""
    file, began = folder / f"{name}.json", time.perf_counter()
    own = ["-m", "benchmarks.shards", "--part", name, "--out", str(file), *(["--dry-run"] if dry else [])]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *own]
    with (folder / f"{name}.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | str = process.wait(SECONDS[name])
        except subprocess.TimeoutExpired:
            code = f"stopped after {SECONDS[name]} s"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = json.loads(file.read_text()) if file.exists() else {}
    wall = round(time.perf_counter() - began, 1)
    last = (folder / f"{name}.txt").read_text(errors="replace").splitlines()[-80:]
    print(f"{name}: exit {code}, {wall} s", *([] if code == 0 else last), sep="\n", flush=True)
    return {**found, "exit": code, "wall_s": wall, **({} if code == 0 else {"output": last})}


def main() -> None:
    """Every part, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="")
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape on CPU processes")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--part", choices=list(PARTS), help="used by the program itself, under torchrun")
    given = parser.parse_args()
    if given.part:
        run_part(given.part, Path(given.out), given.dry_run)
        return
    result: dict[str, Any] = {**describe(), "gpus": torch.cuda.device_count(), "dry_run": given.dry_run}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.parts:
            result[name] = launch(name, Path(folder), given.dry_run)
            if given.out:
                write_result(given.out, result)
    if given.dry_run and any(result[name].get("exit") != 0 for name in given.parts):
        raise SystemExit("a part failed")


if __name__ == "__main__":
    main()
