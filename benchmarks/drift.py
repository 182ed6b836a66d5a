"""How far a question's probabilities move with the batch it is in, and from float32 to bfloat16.

    python -m benchmarks.drift [--source MODEL] [--device cpu] [--questions 60] [--out FILE]

The same questions of the built-in held-out tasks are answered one by one, and in batches of up to 2,048 padded tokens,
in float32 and in bfloat16, by mean weights that are scrambled (so that adapters count) and by draws around them.
Float32 is the promise of docs/trust.md, 22 (1e-5); bfloat16 is what users of GPUs have, and is only told.
"""

import argparse
import itertools
from typing import Any

import numpy as np
import torch

from abmll.config import RunConfig, check
from abmll.models import LanguageModel
from abmll.question import Question
from abmll.systems.build import build_system, load_base
from abmll.systems.plans import PredictionPlan
from abmll.tasks.sources import load_tasks
from benchmarks.common import describe, write_result

Answers = list[np.ndarray]
DRAWS = 5
CASES = tuple(itertools.product(("cloze", "letter"), ("mean", "weight")))


def config_of(source: str, device: str, dtype: str, kind: str) -> RunConfig:
    """One ABMLL run; nothing is trained."""
    values = {
        "model": {"source": source, "device": device, "dtype": dtype},
        "likelihood": {"kind": kind, "max_tokens": 96},
        "method": {"name": "abmll", "std_init": 3e-3},
    }
    return check(RunConfig, values, "benchmarks.drift")


def answers(base: LanguageModel, config: RunConfig, questions: list[Question], plan: PredictionPlan) -> Answers:
    """Probabilities of every question, by adapters whose means are not zero."""
    system = build_system(config, base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for factor in system.method.adapters.parameters("task", "mean"):
            factor += 0.02 * torch.randn(factor.shape, generator=generator).to(factor)
    found = system.predict(questions, plan, ("drift",))
    system.close()
    return [np.array(row.probabilities) for row in found]


def apart(one: Answers, other: Answers) -> dict[str, float]:
    """Largest and mean difference of a probability, and the share of questions with another answer."""
    far = np.array([np.abs(a - b).max() for a, b in zip(one, other, strict=True)])
    changed = np.mean([a.argmax() != b.argmax() for a, b in zip(one, other, strict=True)])
    return {"largest": float(far.max()), "mean": float(far.mean()), "other_answer": float(changed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="smollm2-135m-instruct")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--out", default="benchmarks/results/drift.json")
    arguments = parser.parse_args()
    tasks = load_tasks("builtin:held-out")
    questions = [question for task in tasks for question in task.test[: arguments.questions // len(tasks)]]
    result: dict[str, Any] = {**describe(), "questions": len(questions), "draws": DRAWS}
    found: dict[tuple[str, ...], Answers] = {}
    for dtype in ("float32", "bfloat16"):
        base = load_base(config_of(arguments.source, arguments.device, dtype, "cloze").model)
        for kind, sampler in CASES:
            config = config_of(arguments.source, arguments.device, dtype, kind)
            for how, tokens in (("alone", 1), ("batch", 2048)):
                plan = PredictionPlan(sampler, DRAWS, tokens)
                found[kind, sampler, dtype, how] = answers(base, config, questions, plan)
    for case in CASES:
        result[", ".join(case)] = {
            "float32, alone or in a batch": apart(found[*case, "float32", "alone"], found[*case, "float32", "batch"]),
            "bfloat16, alone or in a batch": apart(
                found[*case, "bfloat16", "alone"], found[*case, "bfloat16", "batch"]
            ),
            "bfloat16 or float32": apart(found[*case, "bfloat16", "batch"], found[*case, "float32", "batch"]),
        }
        print(*case, result[", ".join(case)], flush=True)
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
