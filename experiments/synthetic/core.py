"""ABMLL in a core on these tasks, where a core is the whole matrix: B and A are identities, so that R is W - W0.

What is left to learn is the prior of R, by EM; a task's posterior is found in one pass, as the likelihood is Gaussian.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from abmll.files import write_text
from abmll.methods.core import CoreABMLL
from abmll.methods.core.gaussian import CoreGaussian
from abmll.methods.core.local import Local
from abmll.prompts.batches import ChoiceBatch
from experiments.short_json import write_gzipped
from experiments.synthetic import exact
from experiments.synthetic.problem import IN, NOISE_VARIANCE, OUT, SPREADS, TRAIN_TASKS, Problem, make_problem
from experiments.synthetic.run import rounded
from experiments.synthetic.scores import of_phi, of_theta, reference, supports
from experiments.synthetic.settings import ITERATIONS, SEEDS
from experiments.synthetic.system import System, adapted, build, train

COMMON: dict[str, Any] = {
    "train_factors": False,
    "passes": 1,
    "inner_steps": 1,
    "prior_tasks": float(TRAIN_TASKS),
    "outer_schedule": "linear",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "factorised": {"covariance": "factorised"},
    "frozen": {"variances": "frozen"},
}
"""`full` with V permuted at adaptation is a row too, of the same training."""
PERMUTED = "permuted"


def core_system(problem: Problem, seed: int, settings: dict[str, Any]) -> System:
    """The library's method, whose cores are the weights; M starts at 0, where W is W0."""
    system = build(problem, "core", {**COMMON, **settings}, rank=max(OUT, IN), seed=seed)
    method, shared = _core(system), system.layer.shared
    with torch.no_grad():
        shared.mean_b.copy_(torch.eye(OUT) / shared.variance.scale)
        shared.mean_a.copy_(torch.eye(OUT, IN))
        for parameter in method.learned.values():
            parameter.data = parameter.data.double()
        method.learned["core_mean"].zero_()
    method.local = lambda batch: _gaussian(problem, system, batch)
    return system


def _core(system: System) -> CoreABMLL:
    assert isinstance(system.method, CoreABMLL)
    return system.method


def _gaussian(problem: Problem, system: System, batch: ChoiceBatch) -> Local:
    """Every output of every row is an observation."""
    mean = (system.model(problem.x[batch.row_keys]) / NOISE_VARIANCE**0.5).flatten(1)
    gap = (problem.y[batch.row_keys] / NOISE_VARIANCE**0.5).flatten(1) - mean.detach()
    return Local(mean, torch.eye(mean.shape[1]).double()[None], gap, gap.square().sum(1) / 2)


def scores(spread: str, seed: int, settings: dict[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Of a trained system: theta, and the posteriors of the unseen tasks; for `full` also with V permuted."""
    problem = make_problem(spread, seed)
    system = core_system(problem, seed, settings)
    train(system, ITERATIONS, seed)
    method = _core(system)
    variance = _weights(method.learned["core_variance"].detach())
    theta = of_theta(variance, problem.base + _weights(method.learned["core_mean"].detach()), problem)
    found = {"": {"theta": theta, "phi": _of_posteriors(system)}}
    if not settings:
        permutation = torch.randperm(variance.numel(), generator=torch.Generator().manual_seed(seed))
        shuffled = torch.ones(OUT, OUT, dtype=torch.float64)
        shuffled[:, :IN] = variance.flatten()[permutation].view(OUT, IN)
        method.prior_variance = shuffled.flatten()
        found[PERMUTED] = {"theta": {}, "phi": _of_posteriors(system)}
    return found


def _weights(numbers: Tensor) -> Tensor:
    """(*, O, I) of numbers of a core, whose columns from I on see no input."""
    return numbers.view(*numbers.shape[:-1], OUT, OUT)[..., :IN]


def _of_posteriors(system: System) -> dict[str, float]:
    problem, posteriors = system.problem, []
    for task in problem.unseen:
        adapted(system, task, 1)
        found = _core(system).found
        assert found is not None
        posteriors.append(found)
    mean = torch.stack([problem.base + _weights(found.mean) for found in posteriors])
    std = torch.stack([_weights(found.marginal()).sqrt() for found in posteriors])
    covariance = torch.stack([_covariance(found) for found in posteriors])
    each_row = torch.stack([covariance[:, o, :, o] for o in range(OUT)], dim=1)
    x, y = problem.test_x, problem.test_y
    return {
        **of_phi(mean, std, problem),
        "kl_exact": _divergence(mean, covariance, problem),
        "nll": exact.predictive_nll(x, y, mean, each_row, NOISE_VARIANCE),
    }


def _covariance(found: CoreGaussian) -> Tensor:
    """(O, I, O, I) of the weights."""
    return found.dense().view(OUT, OUT, OUT, OUT)[:, :IN, :, :IN]


def _divergence(mean: Tensor, covariance: Tensor, problem: Problem) -> float:
    """KL(q || exact posterior) per weight that varies, averaged over tasks."""
    x, y = supports(problem, len(mean))
    best = exact.posterior(x, y, problem.base + problem.mean, problem.spread.square(), NOISE_VARIANCE)
    free = (problem.spread > 0).flatten()
    found = []
    for m, c, centre, rows in zip(mean, covariance, best.mean, best.covariance, strict=True):
        dense = torch.block_diag(*rows)[free][:, free]
        q = MultivariateNormal(m.flatten()[free], c.reshape(OUT * IN, OUT * IN)[free][:, free])
        found.append(kl_divergence(q, MultivariateNormal(centre.flatten()[free], dense)) / free.sum())
    return float(torch.stack(found).mean())


def _runs() -> Iterator[tuple[str, str, int]]:
    yield from ((spread, name, seed) for spread in SPREADS for name in VARIANTS for seed in SEEDS)


def run(folder: Path) -> None:
    """All of it, some minutes: `core.json.gz` and `core.md`."""
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    for spread, name, seed in _runs():
        for suffix, parts in scores(spread, seed, VARIANTS[name]).items():
            row = rows.setdefault(f"{spread}.{suffix or name}", {"theta": {}, "phi": {}})
            for part, values in parts.items():
                for metric, value in values.items():
                    if value is not None and np.isfinite(value):
                        row[part].setdefault(metric, []).append(value)
        print(f"{spread} {name} {seed}", flush=True)
    summary = {
        name: {part: {m: _mean_of(v) for m, v in values.items()} for part, values in row.items()}
        for name, row in rows.items()
    }
    summary |= {f"{spread}.exact": {"phi": _exact(spread)} for spread in SPREADS}
    write_gzipped(folder / "core.json.gz", rounded(summary))
    write_text(folder / "core.md", table(rounded(summary)))


def _mean_of(values: list[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "se": float(np.std(values, ddof=1) / len(values) ** 0.5)}


def _exact(spread: str) -> dict[str, Any]:
    """Without its KL, which is that of its marginals there."""
    each = [reference(spread, seed)["exact"] for seed in SEEDS]
    return {m: _mean_of([row[m] for row in each]) for m in each[0] if m != "kl_exact"}


COLUMNS = {
    ("theta", "spearman"): "Spearman of V",
    ("theta", "auroc_free"): "AUROC of what varies",
    ("theta", "log_ratio"): "log10 V / truth",
    ("theta", "mean_error"): "error of the mean",
    ("phi", "coverage_50%"): "50 % holds",
    ("phi", "coverage_90%"): "90 % holds",
    ("phi", "kl_exact"): "KL to exact",
    ("phi", "nll"): "test NLL",
    ("phi", "nll_mean_weights"): "with mean weights",
}


def table(summary: dict[str, Any]) -> str:
    """As Markdown: means over seeds, their standard errors behind them."""
    lines = [["tasks", "covariance, V", *COLUMNS.values()], ["---"] * (len(COLUMNS) + 2)]
    for name in sorted(summary, key=lambda name: list(SPREADS).index(name.partition(".")[0])):
        spread, _, variant = name.partition(".")
        cells = [summary[name].get(part, {}).get(metric) for part, metric in COLUMNS]
        lines.append([spread, variant, *("" if c is None else f"{c['mean']:.2f} ± {c['se']:.2f}" for c in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
