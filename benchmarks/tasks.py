"""Adapting to a task and predicting it at the Llama-3-8B shape, and memory against tasks and posterior draws.

    python benchmarks/tasks.py --out benchmarks/results/tasks.json

`adapt_predict`: 10 steps of batch 2 and 256 questions of 128 tokens (letter); the peer, stock transformers + peft +
AdamW, predicts in batches of 16. Both predict with mean weights, in turn, each on a model of its own; the first task
includes captures, and `summary` takes medians over the others. Ours with S = 10 `weight` draws stands beside it.
`memory_tasks`: peak memory of 20 meta-iterations at the SmolLM2-135M shape with 10, 100 and 1,000 training tasks.
`memory_samples`: peak memory of predicting with S = 1, 10 and 100 draws, same shape.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from abmll.config import RunConfig, check
from abmll.models import LanguageModel, random_model
from abmll.question import Question, Task
from abmll.systems.build import build_system
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from abmll.systems.system import System
from abmll.tasks.episodes import Episodes
from abmll.training.checkpoints import RunDirectory
from abmll.training.train import TrainingPlan, meta_train
from benchmarks.common import describe, write_result


def system_on(base: LanguageModel, name: str, tokens: int) -> System:
    values = {
        "model": {"shape": "tiny-llama", "dtype": "bfloat16", "device": "cuda"},
        "likelihood": {"kind": "letter", "max_tokens": tokens},
        "method": {"name": name},
    }
    return build_system(check(RunConfig, values, "benchmark"), base)


def task(name: str, train: int, test: int, system: System, tokens: int) -> Task:
    """Two-choice questions whose prompts are as many tokens long."""

    def rows(kind: str, count: int) -> tuple[Question, ...]:
        return tuple(Question(f"{name}-{kind}-{i}", stem(i), ("yes", "no"), i % 2) for i in range(count))

    def stem(i: int) -> str:
        text = f"{name} {i} "
        used = len(system.batcher.encoder(Question(f"{name}-probe-{i}", text, ("yes", "no"), 0)).prefix)
        return text + "x" * (tokens - used)

    return Task(name, rows("train", train), rows("test", test))


def seconds(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


class Peer:
    """Adapts and predicts a task as one would with stock transformers + peft."""

    def __init__(self, base: LanguageModel) -> None:
        self.base = base
        self.config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")

    def adapt_and_predict(self, prompts: list[tuple[int, ...]]) -> float:
        """Seconds of a task whose first 20 prompts are to learn from."""
        model = get_peft_model(self.base.model, self.config)
        parameters = [p for p in model.parameters() if p.requires_grad]

        def logits(rows: list[tuple[int, ...]]) -> torch.Tensor:
            ids = torch.tensor(rows, device=self.base.device)
            return model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1].float()

        def whole() -> None:
            optimizer = torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.0)
            for step in range(10):
                optimizer.zero_grad()
                labels = torch.tensor([260, 261], device=self.base.device)
                nn.functional.cross_entropy(logits(prompts[2 * step : 2 * step + 2]), labels).backward()
                optimizer.step()
            with torch.no_grad():
                for start in range(20, len(prompts), 16):
                    logits(prompts[start : start + 16])[:, [260, 261]].softmax(-1).cpu()

        found = seconds(whole)
        model.unload()
        return found


def adapt_predict(tokens: int = 128, rounds: int = 20) -> dict[str, Any]:
    base, peers = (random_model("llama-3-8b", dtype="bfloat16", device="cuda") for _ in range(2))
    system, peer = system_on(base, "abmll", tokens), Peer(peers)
    tasks = [task(f"t{i}", 20, 256, system, tokens) for i in range(rounds + 1)]

    def ours(plan: PredictionPlan, t: Task) -> float:
        def whole() -> None:
            system.adapt(t, AdaptationPlan(), 0)
            system.predict(t.test, plan, (0, t.name))

        return seconds(whole)

    mean, drawn = PredictionPlan("mean", 1, 4096), PredictionPlan("weight", 10, 4096)
    result: dict[str, Any] = {"ours_mean_s": [], "peer_s": []}
    for t in tasks:
        prompts = [system.batcher.encoder(q).prefix for q in (*t.train, *t.test)]
        result["ours_mean_s"].append(ours(mean, t))
        result["peer_s"].append(peer.adapt_and_predict(prompts))
    result["ours_10_draws_s"] = [ours(drawn, t) for t in tasks[:3]]
    result["graphs"] = system.graphs.report()
    system.close()
    return result


def peak(run: Callable[[], object]) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**20


def drop() -> None:
    """What one setting left behind must not count for the next."""
    gc.collect()
    torch.cuda.empty_cache()


def memory() -> dict[str, Any]:
    base = random_model("smollm2-135m", dtype="bfloat16", device="cuda")
    result: dict[str, Any] = {"tasks_mib": {}, "samples_mib": {}}
    for count in (10, 100, 1000):
        system = system_on(base, "abmll", 64)
        tasks = tuple(task(f"t{i}", 12, 0, system, 64) for i in range(count))
        episodes = Episodes(tasks, "by_task", batches=6, batch_size=2, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory(Path(folder))
            plan = TrainingPlan(20)
            result["tasks_mib"][count] = peak(
                lambda: meta_train(system.learner, episodes, plan, run)  # noqa: B023
            )
        system.close()
        del system
        drop()
    for samples in (1, 10, 100):
        system = system_on(base, "abmll", 64)
        rows = task("s", 20, 64, system, 64).test
        plan = PredictionPlan("weight", samples, 4096)
        result["samples_mib"][samples] = peak(lambda: system.predict(rows, plan, (0,)))  # noqa: B023
        system.close()
        del system
        drop()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/tasks.json")
    arguments = parser.parse_args()
    torch.cuda.set_stream(torch.cuda.Stream())
    result: dict[str, Any] = {**describe(), "memory": memory()}
    print(result["memory"], flush=True)
    result["adapt_predict"] = adapt_predict()
    print(result["adapt_predict"], flush=True)
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
