"""How much seeds, draws, questions and tasks scatter, measured on the stored predictions of `experiments/unseen`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.unseen.cells import read_targets
from experiments.unseen.evidence import Values
from experiments.unseen.results import read_results

META_TRAINED = (
    "abmll",
    "abmll_frozen",
    "fomaml",
    "lora",
    "reptile",
    "reptile_rank32",
    "structured",
    "structured_rank32",
)
PLAIN = ("pretrained", "in_context")
METRICS = ("nll_scaled", "accuracy", "nll")
Stacks = Mapping[str, Float[np.ndarray, "_ _ _"]]


@dataclass(frozen=True)
class Components:
    """Standard deviations of a difference of two systems, by what makes it scatter.

    Attributes:
        seed: of the training seed, the same on every task.
        seed_task: of the seed, anew on each task.
        draw, question, task: of a draw of examples and of a question, within a task; and of the task.
        seed_draw, seed_question, draw_question: of their interactions.
        rest: of single answers.
    """

    seed: float
    seed_task: float
    draw: float
    question: float
    task: float
    seed_draw: float
    seed_question: float
    draw_question: float
    rest: float


def components_of(a: Stacks, b: Stacks) -> Components:
    """Estimates by the analysis of variance of a - b: mean over tasks within them; a negative variance counts as 0."""
    differences = [np.asarray(a[task]) - np.asarray(b[task]) for task in a]
    within = [_within(values) for values in differences]
    variances = {name: float(np.mean([each[name] for each in within])) for name in within[0]}
    by_seed = np.mean([values.mean(axis=(1, 2)) for values in differences], axis=0)
    draws, tasks = differences[0].shape[1], len(differences)
    shared = float(by_seed.var(ddof=1)) - (variances["seed_task"] + variances["seed_draw"] / draws) / tasks
    variances["seed"] = shared
    variances["task"] = float(np.var([values.mean() for values in differences], ddof=1))
    return Components(**{name: float(np.sqrt(max(0.0, value))) for name, value in variances.items()})


def _within(values: Float[np.ndarray, "S D N"]) -> dict[str, float]:
    """Variance components of one task: three crossed factors without replication."""
    sizes = dict(zip(("seed", "draw", "question"), values.shape, strict=True))
    axes = dict(zip(sizes, range(3), strict=True))
    parts: dict[frozenset[str], np.ndarray] = {frozenset(): values.mean(keepdims=True)}
    squares: dict[frozenset[str], float] = {}
    for count in (1, 2, 3):
        for chosen in map(frozenset, combinations(sizes, count)):
            averaged = tuple(axes[name] for name in sizes if name not in chosen)
            below = sum(part for names, part in parts.items() if names < chosen)
            parts[chosen] = values.mean(axis=averaged, keepdims=True) - below
            freedom = np.prod([sizes[name] - 1 for name in chosen])
            squares[chosen] = float((parts[chosen] ** 2).sum() * np.prod([values.shape[i] for i in averaged]) / freedom)
    rest = squares[frozenset(sizes)]
    pairs = {"_".join(name for name in sizes if name in pair): pair for pair in squares if len(pair) == 2}
    estimates = {
        n: (squares[pair] - rest) / np.prod([sizes[x] for x in sizes if x not in pair]) for n, pair in pairs.items()
    }
    for name in sizes:
        crossed = sum(squares[pair] for pair in pairs.values() if name in pair)
        others = np.prod([sizes[x] for x in sizes if x != name])
        estimates["seed_task" if name == "seed" else name] = (squares[frozenset([name])] - crossed + rest) / others
    return {**{name: float(value) for name, value in estimates.items()}, "rest": rest}


def measure(packed: Path) -> dict[str, Any]:
    """Median and largest component over all pairs of meta-trained systems, and the pair without meta-training."""
    results = read_results(read_targets(packed, "cloze"))
    values = Values(results.final, results.tasks, results.draws)
    estimates: dict[str, Any] = {}
    for metric in METRICS:
        pairs = [asdict(_pair(values, metric, a, b)) for a, b in combinations(META_TRAINED, 2)]
        names = [field.name for field in fields(Components)]
        for label, pick in (("median", np.median), ("largest", np.max)):
            estimates[f"{metric}, {label}"] = {name: float(pick([each[name] for each in pairs])) for name in names}
        estimates[f"{metric}, not meta-trained"] = asdict(_pair(values, metric, *PLAIN))
    return {"pairs": len(list(combinations(META_TRAINED, 2))), "plain": list(PLAIN), "components": estimates}


def _pair(values: Values, metric: str, a: str, b: str) -> Components:
    seeds = [seed for seed in values.final[a] if seed in values.final[b]]
    return components_of(*(values.stacks(name, metric, seeds, values.draws, values.tasks) for name in (a, b)))
