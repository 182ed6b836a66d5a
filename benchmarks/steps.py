"""One gradient step at the Llama-3-8B shape (random weights), ours against stock transformers + peft, in one run.

    python benchmarks/steps.py --out benchmarks/results/steps.json [--targets qv all] [--quick]

Peer: stock Llama + peft LoRA + torch AdamW, eager, batch 2 x 256, logits of the last position. Then the peer's step
captured as a CUDA graph, our LoRA step captured, and our ABMLL inner step captured with the full KL and with one
eighth of the rows. The variants are interleaved: each round times every one of them once; medians of the rounds.
"""

import argparse
import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from abmll.config import RunConfig, check
from abmll.kernels import fallbacks
from abmll.models import LanguageModel, load_model
from abmll.running.build import System, build_system
from abmll.running.inner import inner_steps
from abmll.tasks.batches import ChoiceBatch, collate
from abmll.tasks.prompts import EncodedQuestion
from benchmarks.common import describe, write_result

TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


class Rounds:
    """Times variants in turn; peak memory of each is measured in a round of its own."""

    def __init__(self) -> None:
        self.variants: dict[str, Callable[[], object]] = {}
        self.times: dict[str, list[float]] = {}
        self.peaks: dict[str, tuple[float, float]] = {}

    def add(self, name: str, run: Callable[[], object], warm: int = 3) -> None:
        for _ in range(warm):
            run()
        torch.cuda.synchronize()
        self.variants[name], self.times[name] = run, []

    def time(self, rounds: int) -> None:
        for _ in range(rounds):
            for name, run in self.variants.items():
                events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                events[0].record()
                run()
                events[1].record()
                torch.cuda.synchronize()
                self.times[name].append(events[0].elapsed_time(events[1]))

    def result(self) -> dict[str, Any]:
        return {
            name: {"ms": statistics.median(t), "spread_ms": [min(t), max(t)], "rounds": len(t)}
            for name, t in self.times.items()
            if t
        }


def letter_batch(size: int, tokens: int, vocabulary: int, seed: int) -> ChoiceBatch:
    """Prompts of exactly so many tokens with two letters to choose from."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, vocabulary, (size, tokens), generator=generator).tolist()
    questions = [
        EncodedQuestion(tuple(row), ((260,), (261,)), (1.0, 1.0), i % 2, seed * 1000 + i, False)
        for i, row in enumerate(rows)
    ]
    return collate(questions, buckets=True)


class Fixed:
    """Stands in for a batcher: the same batch every time, so that what is timed is the step."""

    def __init__(self, batch: ChoiceBatch, device: torch.device) -> None:
        self.made, self.device = batch.to(device), device

    def __call__(self, questions: object) -> list[ChoiceBatch]:
        return [self.made]


def our_system(base: LanguageModel, name: str, targets: tuple[str, ...], rank: int, **settings: Any) -> System:
    values = {
        "model": {"shape": "llama-3-8b", "dtype": "bfloat16", "device": "cuda"},
        "adapter": {"rank": rank, "alpha": 2.0 * rank, "targets": list(targets)},
        "likelihood": {"kind": "letter"},
        "method": {"name": name, **settings},
        "tasks": {"train": {"source": "builtin"}},
    }
    return build_system(check(RunConfig, values, "benchmark"), base)


def our_step(system: System, batch: ChoiceBatch, device: torch.device) -> Callable[[], object]:
    """One inner step, as training takes it: batch and key copied in, graph replayed, the finite flag read."""
    batcher, count = Fixed(batch, device), iter(range(10**9))
    system.method.begin_task()
    return lambda: inner_steps(
        system.method,
        system.adapting,
        batcher,
        [()],
        (0, next(count), 0),
        graphs=system.graphs,  # type: ignore[arg-type]
    )


class Peer:
    """transformers + peft + AdamW, as their documentation has it."""

    def __init__(self, model: nn.Module, targets: tuple[str, ...], rank: int, batch: ChoiceBatch, device: torch.device):
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM")
        self.model = get_peft_model(model, config)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, weight_decay=0.0, capturable=True)
        self.ids = batch.input_ids.to(device)
        self.labels = torch.full((len(self.ids),), 260, device=device)

    def step(self) -> None:
        self.optimizer.zero_grad()
        out = self.model(input_ids=self.ids, logits_to_keep=1, use_cache=False)
        nn.functional.cross_entropy(out.logits[:, -1].float(), self.labels).backward()
        self.optimizer.step()

    def captured(self) -> Callable[[], None]:
        for _ in range(2):
            self.step()
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            self.step()
        return graph.replay

    def remove(self) -> None:
        self.model.unload()


def peak(run: Callable[[], object]) -> dict[str, float]:
    """Peak memory of a step that has run before."""
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return {
        "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }


def drop() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def measure(base: LanguageModel, which: str, rank: int, size: int, tokens: int, rounds: int) -> dict[str, Any]:
    """All variants of one setting. Only one system's adapters are on the model at a time, so rounds are per variant
    pair: peer and ours alternate by being attached in turn, `rounds` blocks of five steps each."""
    device, targets = base.device, TARGETS[which]
    batch = letter_batch(size, tokens, base.model.config.vocab_size, seed=1)
    result: dict[str, Any] = {}
    times: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], object], warm: int = 4) -> None:
        block = Rounds()
        block.add(name, run, warm)
        block.time(rounds)
        times.setdefault(name, []).extend(block.times[name])
        result.setdefault(name, {}).setdefault("peak", peak(run))

    for block in range(2):
        torch.cuda.nvtx.range_push(f"block {block}")
        peer = Peer(base.model, targets, rank, batch, device)
        timed("peer_eager", peer.step)
        replay = peer.captured()
        timed("peer_captured", replay)
        del replay
        peer.remove()
        del peer
        drop()
        for name, method, settings in (
            ("lora_captured", "structured", {}),
            ("abmll_captured", "abmll", {}),
            ("abmll_eighth_captured", "abmll", {"kl_entries": 0.125}),
        ):
            system = our_system(base, method, targets, rank, **settings)
            timed(name, our_step(system, batch, device))
            result[name]["graphs"] = system.graphs.report()
            result[name]["kernel_fallbacks"] = dict(fallbacks)
            system.close()
            del system
            drop()
        torch.cuda.nvtx.range_pop()
    for name, found in times.items():
        result[name] |= {"ms": statistics.median(found), "spread_ms": [min(found), max(found)], "n": len(found)}
        print(f"{which} rank {rank} {size}x{tokens} {name}: {result[name]}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/steps.json")
    parser.add_argument("--targets", nargs="+", default=["qv", "all"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--shape", default="llama-3-8b")
    arguments = parser.parse_args()
    torch.cuda.set_stream(torch.cuda.Stream())  # nothing can be captured on the default stream
    base = load_model(None, shape=arguments.shape, dtype="bfloat16", device="cuda")
    result: dict[str, Any] = {**describe(), "shape": arguments.shape}
    for which in arguments.targets:
        for tokens in arguments.tokens:
            name = f"{which}_rank{arguments.rank}_{arguments.batch}x{tokens}"
            result[name] = measure(base, which, arguments.rank, arguments.batch, tokens, arguments.rounds)
            write_result(arguments.out, result)


if __name__ == "__main__":
    main()
