"""The synthetic experiment: its closed forms against other computations, and its smallest run from end to end."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from experiments.short_json import read_gzipped
from experiments.synthetic import exact
from experiments.synthetic.problem import IN, NOISE_VARIANCE, OUT, SPREADS, TRAIN_TASKS, Problem, make_problem
from experiments.synthetic.report import report
from experiments.synthetic.run import missing, run
from experiments.synthetic.scores import of_theta, supports
from experiments.synthetic.settings import settings
from experiments.synthetic.system import adapted, build


def posterior_of(problem: Problem, task: int) -> tuple[Tensor, Tensor, exact.Posterior]:
    x, y = (part[task] for part in supports(problem, task + 1))
    prior = problem.base + problem.mean, problem.spread.square()
    return x, y, exact.posterior(x, y, *prior, NOISE_VARIANCE)


@pytest.mark.parametrize("spread", SPREADS)
def test_posterior_equals_conditioning_all_weights_and_outputs_as_one_gaussian(spread):
    problem = make_problem(spread, seed=3)
    x, y, found = posterior_of(problem, task=1)
    design = np.kron(np.eye(OUT), x.numpy())  # vec(y^T) = design vec(W) + noise
    prior_mean = (problem.base + problem.mean).numpy().ravel()
    prior = np.diag(problem.spread.numpy().ravel() ** 2)
    joint = design @ prior @ design.T + NOISE_VARIANCE * np.eye(len(design))
    gain = prior @ design.T @ np.linalg.inv(joint)
    mean = prior_mean + gain @ (y.T.numpy().ravel() - design @ prior_mean)
    covariance = (prior - gain @ design @ prior).reshape(OUT, IN, OUT, IN)
    np.testing.assert_allclose(found.mean, mean.reshape(OUT, IN), atol=1e-10)
    for row in range(OUT):
        np.testing.assert_allclose(found.covariance[row], covariance[row, :, row], atol=1e-10)
    between_rows = covariance[np.arange(OUT) != 2][:, :, 2]
    assert abs(between_rows).max() < 1e-10


def test_posterior_equals_gaussian_process_regression_of_scikit_learn():
    problem = make_problem("log_normal", seed=0)
    x, y, found = posterior_of(problem, task=0)
    row, spread = 4, problem.spread[4].numpy()
    process = GaussianProcessRegressor(DotProduct(0.0, "fixed"), alpha=NOISE_VARIANCE, optimizer=None)
    process.fit(x.numpy() * spread, (y[:, row] - x @ (problem.base + problem.mean)[row]).numpy())
    mean, covariance = process.predict(np.diag(spread), return_cov=True)
    np.testing.assert_allclose(found.mean[row] - (problem.base + problem.mean)[row], mean, atol=1e-8)
    np.testing.assert_allclose(found.covariance[row], covariance, atol=1e-8)


def test_mean_field_is_the_nearest_factorised_gaussian_and_divergences_are_those_of_torch():
    problem = make_problem("log_normal", seed=1)
    x, _, found = posterior_of(problem, task=0)
    best = exact.mean_field_std(x, problem.spread.square(), NOISE_VARIANCE)
    free = problem.spread > 0
    ours = float(exact.divergence(found.mean + 0.1, best, found, free))
    row = [MultivariateNormal(m + 0.1, torch.diag(s.square())) for m, s in zip(found.mean, best, strict=True)]
    other = [MultivariateNormal(m, c) for m, c in zip(*found, strict=True)]
    assert ours == pytest.approx(float(sum(map(kl_divergence, row, other))) / (OUT * IN), rel=1e-9)
    stds = best.log().clone().requires_grad_()
    exact.divergence(found.mean, stds.exp(), found, free).backward()
    assert float(stds.grad.abs().max()) < 1e-10


def test_predictive_nll_is_the_limit_of_many_weight_draws():
    problem = make_problem("rank_one", seed=2)
    _, _, found = posterior_of(problem, task=0)
    x, y = problem.test_x[:1, :3], problem.test_y[:1, :3]
    torch.manual_seed(0)
    weights = MultivariateNormal(found.mean, found.covariance).sample((20_000,))
    densities = stats.norm.pdf(y[0], x[0] @ weights.mT, NOISE_VARIANCE**0.5)
    found_nll = exact.predictive_nll(x, y, found.mean[None], found.covariance[None], NOISE_VARIANCE)
    assert found_nll == pytest.approx(-np.log(densities.mean(0)).mean(), abs=0.02)


def test_empirical_bayes_comes_near_the_truth():
    problem = make_problem("log_normal", seed=0)
    x, y = problem.x[: 2 * TRAIN_TASKS], problem.y[: 2 * TRAIN_TASKS]
    x, y = (part.unflatten(0, (TRAIN_TASKS, 2)).flatten(1, 2) for part in (x, y))  # both datasets of a task
    mean, variance = exact.empirical_bayes(x, y, problem.base, NOISE_VARIANCE, iterations=15)
    scores = of_theta(variance, mean, problem)
    assert scores["spearman"] > 0.95
    assert abs(scores["log_ratio"]) < 0.1


def test_the_librarys_weight_draws_have_the_mean_and_std_that_are_scored():
    chosen = {setting.path: setting for setting in settings()}["true-theta/log_normal.copy"]
    problem = make_problem("log_normal", seed=0)
    system = build(problem, chosen.method, chosen.settings, rank=chosen.rank, seed=0)
    system.set_theta(problem.mean, problem.spread)
    mean, std = adapted(system, problem.unseen[0], 0)
    torch.testing.assert_close(mean, problem.base + problem.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(std, problem.spread, rtol=1e-3, atol=0)
    draws = system.drawn_means(torch.eye(IN, dtype=torch.float64), 150).mT  # x = 1: the weights themselves
    torch.testing.assert_close(draws.std(0), std, rtol=0.3, atol=0)
    assert float(((draws.mean(0) - mean) / std * 150**0.5).abs().max()) < 5


def test_smallest_run_from_end_to_end(tmp_path: Path):
    all_of = {setting.path: setting for setting in settings()}
    chosen = [
        replace(all_of[path], iterations=2, seeds=(0,))
        for path in ("combinations/log_normal.displacement-init", "points/log_normal.reptile")
    ]
    for setting, seed in missing(tuple(chosen), tmp_path):
        run(setting, seed, tmp_path)
    assert missing(tuple(chosen), tmp_path) == []
    assert len(missing((replace(chosen[0], iterations=3),), tmp_path)) == 1, "other settings, so another run"
    result = json.loads((tmp_path / "combinations" / "log_normal.displacement-init-0.json").read_text())
    assert result["environment"]["torch"] == torch.__version__
    assert [step for step, _ in result["log_ratio_curve"]] == [1, 2]
    scores = {name: value for part in result["scores"].values() for name, value in part.items()}
    assert {name for name, value in scores.items() if value is None} == {"auroc_free", "std_where_shared"}
    assert scores["nll"] > result["reference"]["exact"]["nll"], "two iterations cannot beat exact inference"
    report(tmp_path)
    summary = read_gzipped(tmp_path / "summary.json.gz")
    (row,) = summary["combinations"].values()
    assert row["theta"]["spearman"] == {"mean": scores["spearman"], "se": None, "seeds": 1}
    assert "| displacement, init | 10 |" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "ratchet.png").read_bytes().startswith(b"\x89PNG")
