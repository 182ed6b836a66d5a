"""Everything that is reported of one run, as numbers."""

from functools import cache
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor

from experiments.synthetic import exact
from experiments.synthetic.problem import NOISE_VARIANCE, TRAIN_TASKS, Problem, make_problem
from experiments.synthetic.system import System, adapted

LEVELS = (0.5, 0.9)
STEPS, MORE_STEPS = 10, 60
"""Adaptation steps: the library's default, and enough to converge."""
DRAWS = 10


def of_theta(variance: Tensor, mean: Tensor, problem: Problem) -> dict[str, float | None]:
    """How well a learned mean and variance between tasks (O, I) match the true ones.

    `log_ratio` is the median of log10 (variance / truth); correlations of logarithms are over the weights that vary.
    """
    free, truth = problem.spread > 0, problem.spread.square()
    logs = [value[free].log().numpy() for value in (variance, truth)]
    varies = bool(truth[free].std() > 1e-12)
    return {
        "spearman": float(stats.spearmanr(variance.flatten(), truth.flatten()).statistic),
        "pearson_log": float(np.corrcoef(*logs)[0, 1]) if varies else None,
        "auroc_free": None if free.all() else float(roc_auc_score(free.flatten(), variance.flatten())),
        "log_ratio": float(np.median(logs[0] - logs[1]) / np.log(10)),
        "mean_error": mean_error(mean, problem),
    }


def mean_error(mean: Tensor, problem: Problem) -> float:
    """Root mean square error of theta's mean (O, I)."""
    return float((mean - problem.base - problem.mean).square().mean().sqrt())


def of_phi(mean: Tensor, std: Tensor, problem: Problem) -> dict[str, float]:
    """How well q(phi) of the first unseen tasks, mean and std (tasks, O, I), matches truth and exact posterior."""
    count, free = len(mean), problem.spread > 0
    best, truth, best_std = _references(problem, count)
    gap = ((truth - mean) / std).abs()[:, free]
    found = {
        f"coverage_{level:.0%}": float((gap < stats.norm.ppf(0.5 + level / 2)).double().mean()) for level in LEVELS
    }
    x, y = problem.test_x[:count], problem.test_y[:count]
    return {
        **found,
        "kl_exact": float(exact.divergence(mean, std, best, free).mean()),
        "kl_mean_field": float(exact.factorised_divergence(mean, std, best.mean, best_std, free).mean()),
        "std_ratio": float((std / best_std)[:, free].log10().median()),
        "mean_distance": float((mean - best.mean).square().mean().sqrt()),
        "nll": exact.predictive_nll(x, y, mean, torch.diag_embed(std.square()), NOISE_VARIANCE),
        "nll_mean_weights": point_nll(mean, problem),
    }


def _references(problem: Problem, count: int) -> tuple[exact.Posterior, Tensor, Tensor]:
    x, y = supports(problem, count)
    variance = problem.spread.square()
    best = exact.posterior(x, y, problem.base + problem.mean, variance, NOISE_VARIANCE)
    return best, problem.weights[TRAIN_TASKS:][:count], exact.mean_field_std(x, variance, NOISE_VARIANCE)


def point_nll(mean: Tensor, problem: Problem) -> float:
    """Test NLL of point weights (tasks, O, I) for the first unseen tasks."""
    count, none = len(mean), torch.zeros(*mean.shape, mean.shape[-1], dtype=mean.dtype)
    return exact.predictive_nll(problem.test_x[:count], problem.test_y[:count], mean, none, NOISE_VARIANCE)


def supports(problem: Problem, count: int) -> tuple[Tensor, Tensor]:
    """x and y of the unseen tasks' supports."""
    chosen = slice(2 * TRAIN_TASKS, 2 * (TRAIN_TASKS + count), 2)
    return problem.x[chosen], problem.y[chosen]


def of_system(system: System) -> dict[str, Any]:
    """Scores of a trained system: theta, and phi after `STEPS` on every unseen task and `MORE_STEPS` on the first."""
    return _of_point(system) if system.theta[1] is None else _of_gaussian(system)


def _of_gaussian(system: System) -> dict[str, Any]:
    problem, (mean, std) = system.problem, system.theta
    theta = of_theta(std.square(), mean, problem)
    shared = problem.spread == 0
    theta["std_where_shared"] = float(std[shared].median()) if shared.any() else None
    found, nlls = [], []
    for index, task in enumerate(problem.unseen):
        found.append(adapted(system, task, STEPS))
        nlls.append(drawn_nll(system, index))
    phi = of_phi(*(torch.stack(part) for part in zip(*found, strict=True)), problem)
    more = of_phi(*(part[None] for part in adapted(system, problem.unseen[0], MORE_STEPS)), problem)
    return {"theta": theta, "phi": {**phi, "nll_draws": float(np.mean(nlls))}, "phi_converged": more}


def _of_point(system: System) -> dict[str, Any]:
    problem, (mean, _) = system.problem, system.theta
    few = torch.stack([adapted(system, task, STEPS)[0] for task in problem.unseen])
    more = adapted(system, problem.unseen[0], MORE_STEPS)[0]
    return {
        "theta": {"mean_error": mean_error(mean, problem)},
        "phi": {"nll_mean_weights": point_nll(few, problem)},
        "phi_converged": {"nll_mean_weights": point_nll(more[None], problem)},
    }


def drawn_nll(system: System, index: int) -> float:
    """Test NLL per output of an unseen task, the densities of `DRAWS` weight draws averaged, by the library's sampler.

    The task must have been adapted to.
    """
    x, y = system.problem.test_x[index], system.problem.test_y[index]
    means = system.drawn_means(x, DRAWS)
    each = torch.distributions.Normal(means, NOISE_VARIANCE**0.5).log_prob(y)
    return -float((each.logsumexp(0) - np.log(DRAWS)).mean())


@cache
def reference(spread: str, seed: int) -> dict[str, Any]:
    """What exact inference does on the same tasks, with the true prior and with one estimated from them."""
    problem = make_problem(spread, seed)
    count = len(problem.test_x)
    x, y = supports(problem, count)
    best, _, best_std = _references(problem, count)
    trained = slice(0, 2 * TRAIN_TASKS, 2)
    em_mean, em_variance = exact.empirical_bayes(problem.x[trained], problem.y[trained], problem.base, NOISE_VARIANCE)
    with_em = exact.posterior(x, y, em_mean, em_variance, NOISE_VARIANCE)
    return {
        "exact": {**of_phi(best.mean, best.std, problem), "nll": _exact_nll(best, problem)},
        "mean_field": of_phi(best.mean, best_std, problem),
        "empirical_bayes": {**of_theta(em_variance, em_mean, problem), "nll": _exact_nll(with_em, problem)},
        "ridge_oracle": {"nll": point_nll(best.mean, problem)},
        "least_squares": {"nll": point_nll((torch.linalg.pinv(x) @ y).mT, problem)},
        "prior_mean": {"nll": point_nll((problem.base + problem.mean).expand_as(best.mean), problem)},
    }


def more_references(spread: str, seed: int) -> dict[str, Any]:
    """`reference` for the first unseen task alone, on which convergence is looked at; and theta before training."""
    problem = make_problem(spread, seed)
    best, _, best_std = _references(problem, 1)
    exact_scores = {**of_phi(best.mean, best.std, problem), "nll": _exact_nll(best, problem)}
    return {
        "exact": exact_scores,
        "mean_field": of_phi(best.mean, best_std, problem),
        "untrained": {"mean_error": mean_error(problem.base, problem)},
    }


def _exact_nll(found: exact.Posterior, problem: Problem) -> float:
    x, y = (part[: len(found.mean)] for part in (problem.test_x, problem.test_y))
    return exact.predictive_nll(x, y, found.mean, found.covariance, NOISE_VARIANCE)


def tempered_coverage(spread: str, seed: int, beta: float) -> dict[str, float]:
    """Coverage of the factorised optimum under the true prior where the KL weighs beta in place of 1."""
    problem = make_problem(spread, seed)
    x, y = supports(problem, len(problem.test_x))
    variance, noise = problem.spread.square(), beta * NOISE_VARIANCE
    best = exact.posterior(x, y, problem.base + problem.mean, variance, noise)
    return of_phi(best.mean, exact.mean_field_std(x, variance, noise), problem)
