"""One gradient step at the Llama-3-8B shape (random weights), ours against stock transformers + peft, in one run.

    python -m benchmarks.steps [--settings qv_rank8_2x256 all_rank8_2x256] [--layers 4 --more] [--out FILE]

Peer: stock Llama + peft LoRA + torch AdamW, eager, batch 2 x 256, logits of the last position. Then the peer's step
captured as a CUDA graph, our LoRA step captured, and our ABMLL inner step captured with the full KL and with one
eighth of the rows. Each is timed in two blocks that alternate with the others'; medians over both.

A setting is TARGETS_rankR_BxT. `--more` adds the peer under torch.compile, and ABMLL as one would write it: dense
means and stds from the factors, `torch.distributions.kl_divergence`, eager. They are for few `--layers`: compiling 32
takes minutes, and dense stds of all layers do not fit.
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
from abmll.models import LanguageModel, random_model
from abmll.models.shapes import SHAPES
from abmll.prompts.batches import ChoiceBatch
from abmll.prompts.collate import collate
from abmll.prompts.encode import EncodedQuestion
from abmll.systems.build import build_system
from abmll.systems.system import System
from abmll.training.inner import inner_steps
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


class Dense:
    """ABMLL with dense matrices and autograd, the way of a first try: four factors per layer, theta a fixed copy."""

    def __init__(self, model: nn.Module, targets: tuple[str, ...], rank: int, batch: ChoiceBatch, device: torch.device):
        self.model, self.ids = model, batch.input_ids.to(device)
        self.labels = torch.full((len(self.ids),), 260, device=device)
        self.layers: list[list[torch.Tensor]] = []
        self.hooks = [
            module.register_forward_hook(self.hook(*module.weight.shape, rank, device))
            for name, module in model.named_modules()
            if name.rsplit(".", 1)[-1] in targets
        ]
        parameters = [p for layer in self.layers for p in layer]
        self.theta = [[p.detach().clone() for p in layer] for layer in self.layers]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)

    def hook(self, out: int, into: int, rank: int, device: torch.device) -> Callable[..., torch.Tensor]:
        factors = [torch.randn(shape, device=device) * 1e-3 for shape in ((out, rank), (rank, into)) * 2]
        self.layers.append([f.requires_grad_() for f in factors])
        layer = self.layers[-1]

        def add(module: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            q = self.normal(layer)
            return output + nn.functional.linear(given[0], q.rsample().to(output.dtype))

        return add

    @staticmethod
    def normal(factors: list[torch.Tensor]) -> torch.distributions.Normal:
        b, a, std_b, std_a = factors
        return torch.distributions.Normal(2.0 * b @ a, (2.0 * std_b @ std_a + 4.5e-5).abs() + 1e-6)

    def step(self) -> None:
        self.optimizer.zero_grad()
        out = self.model(input_ids=self.ids, logits_to_keep=1, use_cache=False)
        loss = nn.functional.cross_entropy(out.logits[:, -1].float(), self.labels)
        pairs = zip(self.layers, self.theta, strict=True)
        kl = [torch.distributions.kl_divergence(self.normal(q), self.normal(p)).sum() for q, p in pairs]
        (loss + 5e-10 * torch.stack(kl).sum()).backward()
        self.optimizer.step()

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


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


def measure(
    base: LanguageModel, which: str, rank: int, size: int, tokens: int, rounds: int, more: bool
) -> dict[str, Any]:
    """All variants of one setting. Only one system's adapters are on the model at a time, so peer and ours alternate by
    being attached in turn, in two blocks of `rounds` steps.
    """
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
        if more:
            peer.model.compile()
            timed("peer_compiled", peer.step, 8)
        peer.remove()
        del peer
        drop()
        if more:
            dense = Dense(base.model, targets, rank, batch, device)
            timed("abmll_dense", dense.step)
            dense.remove()
            del dense
            drop()
        for name, method, settings in (
            ("lora_captured", "structured", {"inner_optimizer_state": "fresh"}),  # the default of the results
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
    parser.add_argument("--settings", nargs="+", default=["qv_rank8_2x256", "all_rank8_2x256"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--shape", default="llama-3-8b")
    parser.add_argument("--layers", type=int, help="of the shape; all by default")
    parser.add_argument("--more", action="store_true")
    arguments = parser.parse_args()
    torch.cuda.set_stream(torch.cuda.Stream())  # nothing can be captured on the default stream
    if arguments.layers:
        SHAPES[arguments.shape]["num_hidden_layers"] = arguments.layers
    base = random_model(arguments.shape, dtype="bfloat16", device="cuda")
    result: dict[str, Any] = {**describe(), "shape": arguments.shape, "layers": base.model.config.num_hidden_layers}
    for name in arguments.settings:
        which, rank, size = name.split("_")
        batch, tokens = map(int, size.split("x"))
        rank_of, rounds = int(rank.removeprefix("rank")), arguments.rounds
        result[name] = measure(base, which, rank_of, batch, tokens, rounds, arguments.more)
        write_result(arguments.out, result)


if __name__ == "__main__":
    main()
