"""LowRankGaussian against the O x I Gaussian that it stands for."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from abmll.adapters.gaussian import LowRankGaussian
from abmll.kernels import Variance
from abmll.kernels.eager import layer_kl, layer_precision_penalty
from abmll.kernels.noise import noise_key
from tests.dense import dense_kl, dense_mean, dense_precision_penalty, dense_variance, gradients_of, relative_error

SQUARE = Variance("square", 0.3, 1e-3, 2.0)
LOG_STD = Variance("log_std", 0.3, 1e-3, 2.0)
FORMS = pytest.mark.parametrize("variance", [SQUARE, LOG_STD], ids=["square", "log_std"])


def gaussian(
    variance: Variance = SQUARE, shape: tuple[int, int, int] = (37, 21, 4), seed: int = 0, moved: float = 1.0
) -> LowRankGaussian:
    """A Gaussian whose B factors have left 0."""
    made = LowRankGaussian(*shape, variance, with_std=True, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.mean_b.copy_(moved * torch.randn(made.mean_b.shape, generator=generator))
        made.std_b.copy_(0.1 * moved * torch.randn(made.std_b.shape, generator=generator))
    return made


def exact_mean(g: LowRankGaussian) -> torch.Tensor:
    return dense_mean(g.factors(), g.variance)


def exact_std(g: LowRankGaussian) -> torch.Tensor:
    return dense_variance(g.std_b, g.std_a, g.variance).sqrt()


@FORMS
def test_means_stds_and_their_forward_equal_the_dense_matrices(variance):
    g, x = gaussian(variance), torch.randn(2, 5, 21)
    torch.testing.assert_close(g.dense_mean().double(), exact_mean(g), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(g.dense_std().double(), exact_std(g), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(g.mean(x).double(), x.double() @ exact_mean(g).T, rtol=1e-5, atol=1e-5)
    assert g.entries == 37 * 21


@FORMS
def test_kl_between_gaussians_is_that_of_torch_distributions(variance):
    task, shared = gaussian(variance), gaussian(variance, seed=1)
    assert (
        relative_error(
            layer_kl(task.factors(), shared.factors(), variance), dense_kl(task.factors(), shared.factors(), variance)
        )
        < 1e-5
    )


@FORMS
def test_penalties_are_the_log_densities_of_the_prior(variance):
    g, c = gaussian(variance), 2.06e-9
    theirs = -Normal(torch.tensor(0.0).double(), torch.tensor(c).double().sqrt()).log_prob(exact_mean(g)).sum()
    assert relative_error(g.mean_penalty(c), theirs) < 1e-6
    factors = (g.mean_b, g.mean_a)
    for mine, dense in zip(gradients_of(g.mean_penalty(c), factors), gradients_of(theirs, factors), strict=True):
        assert relative_error(mine, dense) < 1e-6
    theirs = dense_precision_penalty(g.std_b, g.std_a, variance, 1.0, 0.01)
    assert relative_error(layer_precision_penalty(g.std_b, g.std_a, variance, 1.0, 0.01), theirs) < 1e-5


def test_mean_penalty_at_the_start_is_the_normalising_constant():
    g = LowRankGaussian(37, 21, 4, SQUARE, with_std=False)
    assert float(g.mean_penalty(0.5).detach()) == pytest.approx(37 * 21 * 0.5 * math.log(2 * math.pi * 0.5), rel=1e-12)


@pytest.mark.parametrize("step", [1.0, 1e-6])
def test_squared_distance_equals_the_dense_sum_also_at_nearly_equal_means(step):
    one, other = gaussian(), gaussian()
    with torch.no_grad():
        other.mean_b.add_(step * torch.randn_like(other.mean_b).sign())
        other.mean_a.add_(step * torch.randn_like(other.mean_a).sign())
    theirs = (exact_mean(one) - exact_mean(other)).square().sum()
    assert relative_error(one.squared_distance(other), theirs) < 1e-5
    assert float(one.squared_distance(one).detach()) == 0.0


@FORMS
def test_std_summary_and_mean_variance_equal_the_dense_statistics(variance):
    g = gaussian(variance)
    std, summary = exact_std(g).detach(), g.std_summary(max_rows=37)
    expected = (std.min(), std.median(), std.max())
    assert summary[:3] == pytest.approx([float(value) for value in expected], rel=1e-5)
    assert summary.share_at_floor == pytest.approx(float((std <= 1.01 * variance.floor).double().mean()), abs=1e-9)
    assert g.mean_variance() == pytest.approx(float(std.square().mean()), rel=1e-5)


def test_mean_variance_visits_every_tile():
    g = gaussian(shape=(301, 907, 2))
    assert g.mean_variance() == pytest.approx(float(exact_std(g).detach().square().mean()), rel=1e-5)


def test_std_summary_of_a_sample_uses_evenly_spaced_rows_from_first_to_last():
    g = gaussian()
    rows = exact_std(g).detach()[[0, 9, 18, 27, 36]]
    assert g.std_summary(max_rows=5)[:3] == pytest.approx([float(rows.min()), float(rows.median()), float(rows.max())])


def test_share_at_floor_counts_stds_within_a_hundredth_of_it():
    g = LowRankGaussian(4, 5, 1, Variance("square", 0.5, 1e-3, 1.0), with_std=True)
    with torch.no_grad():
        g.std_a.fill_(1.0)
        g.std_b.copy_(torch.tensor([[-0.5], [-0.5 + 1e-4], [-0.5 + 2e-4], [0.0]]))  # r = 0, eps / 10, eps / 5, f
    assert g.std_summary().share_at_floor == 0.5
    assert g.std_summary().minimum == pytest.approx(1e-3)


@FORMS
def test_dense_draw_has_the_mean_and_variance_of_the_gaussian(variance):
    g = gaussian(variance, (6, 5, 2), moved=0.3)
    draws = torch.stack([g.dense_draw(key, 0) for key in range(500)]).double()
    mean, std = exact_mean(g).detach(), exact_std(g).detach()
    assert ((draws.mean(0) - mean).abs() < 4 * std / 500**0.5).all()
    assert (((draws - mean).square().mean(0) / std.square() - 1).abs() < 4 * (2 / 500) ** 0.5).all()


def test_stds_start_at_the_offset_and_means_at_zero():
    g = LowRankGaussian(6, 5, 2, Variance("square", 3e-3, 4e-3, 2.0), with_std=True)
    torch.testing.assert_close(g.dense_std(), torch.full((6, 5), 5e-3))
    assert int(g.dense_mean().count_nonzero()) == 0
    assert int(g.mean(torch.ones(3, 5)).count_nonzero()) == 0


def test_initial_a_factors_follow_lora_s_kaiming_uniform():
    g = LowRankGaussian(6, 4000, 8, SQUARE, with_std=True, seed=3)
    reference = torch.nn.init.kaiming_uniform_(torch.empty(8, 4000), a=5**0.5)
    for a in (g.mean_a, g.std_a):
        assert float(a.detach().abs().max()) == pytest.approx(float(reference.abs().max()), rel=1e-3)
        assert float(a.detach().std()) == pytest.approx(float(reference.std()), rel=0.02)
    assert not torch.isclose(g.mean_a, g.std_a).all()


def test_same_seed_gives_the_same_means_with_and_without_stds():
    with_std, without = (LowRankGaussian(6, 5, 2, SQUARE, with_std=w, seed=7) for w in (True, False))
    assert torch.equal(with_std.mean_a, without.mean_a)
    assert not torch.isclose(with_std.mean_a, LowRankGaussian(6, 5, 2, SQUARE, with_std=False, seed=8).mean_a).any()
    assert with_std.has_std
    assert not without.has_std
    assert [name for name, _ in without.named_parameters()] == ["mean_b", "mean_a"]


def test_reset_std_restores_the_initial_stds_and_leaves_the_means():
    g, fresh = gaussian(seed=5), LowRankGaussian(37, 21, 4, SQUARE, with_std=True, seed=5)
    with torch.no_grad():
        g.std_a.normal_()
    means = g.mean_b.detach().clone()
    g.reset_std(5)
    assert torch.equal(g.std_a, fresh.std_a)
    assert torch.equal(g.std_b, fresh.std_b)
    assert torch.equal(g.mean_b, means)


def test_detached_factors_share_memory_but_not_the_graph():
    g = gaussian()
    for live, detached in zip(g.factors(), g.factors(detached=True), strict=True):
        assert live.requires_grad
        assert not detached.requires_grad
        assert live.data_ptr() == detached.data_ptr()


def lora_start(name: str, seed: int, rank: int, width: int) -> torch.Tensor:
    """Uniform within 1 / sqrt(I) from torch's own generator, whose seed is named by the factor."""
    generator = torch.Generator().manual_seed(noise_key(name, seed) >> 1)
    return torch.empty(rank, width).uniform_(-(width**-0.5), width**-0.5, generator=generator)


def test_initial_factors_are_those_that_earlier_runs_began_with():
    g = LowRankGaussian(6, 5, 3, SQUARE, with_std=True, seed=9)
    moved = gaussian(shape=(6, 5, 3), seed=1)
    moved.reset(9)
    for one in (g, moved):
        assert torch.equal(one.mean_a, lora_start("mean_a", 9, 3, 5))
        assert torch.equal(one.std_a, lora_start("std_a", 9, 3, 5))
        assert one.mean_b.shape == one.std_b.shape == (6, 3)
        assert not one.mean_b.any()
        assert not one.std_b.any()
    assert torch.equal(LowRankGaussian(6, 5, 3, SQUARE, with_std=False).mean_a, lora_start("mean_a", 0, 3, 5))
    plain = LowRankGaussian(6, 5, 3, SQUARE, with_std=False, seed=4)
    with torch.no_grad():
        plain.mean_b.normal_()
    plain.reset(2)
    assert torch.equal(plain.mean_a, lora_start("mean_a", 2, 3, 5))
    assert not plain.mean_b.any()


def test_a_summary_looks_at_64_rows_unless_told_otherwise():
    g = gaussian(shape=(130, 7, 2))
    rows = exact_std(g).detach()[np.linspace(0, 129, 64).astype(int)]
    assert g.std_summary()[:3] == pytest.approx([float(rows.min()), float(rows.median()), float(rows.max())], rel=1e-5)
    few = gaussian(shape=(10, 7, 2))
    std = exact_std(few).detach()
    assert few.std_summary()[:3] == pytest.approx([float(std.min()), float(std.median()), float(std.max())], rel=1e-5)
