"""The method's densities as dense float64 matrices and `torch.distributions`: what the tiled kernels are held to.

Nothing here calls the kernels; the formulas are written out again from docs/method.md, section 1.
"""

import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence

from abmll.kernels import Factors, Variance


def random_factors(out_features: int, in_features: int, rank: int, seed: int, std_size: float = 0.3) -> Factors:
    """float64 factors with s-free products of order 1 for the means and of order `std_size` for the stds."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = std_size / rank**0.5
    return Factors(
        draw(out_features, rank) / rank**0.5,
        draw(rank, in_features),
        spread * draw(out_features, rank),
        draw(rank, in_features).clamp(-2, 2),
    )


def cast(factors: Factors, dtype: torch.dtype, *, requires_grad: bool = False) -> Factors:
    """The same factors as new leaves of another dtype."""
    return Factors(*(f.detach().to(dtype).clone().requires_grad_(requires_grad) for f in factors))


def dense_mean(factors: Factors, variance: Variance) -> Tensor:
    """s B A, float64."""
    return variance.scale * (factors.mean_b.double() @ factors.mean_a.double())


def dense_variance(std_b: Tensor, std_a: Tensor, variance: Variance) -> Tensor:
    """r^2 + eps^2 with r = s B' A' + f, or f^2 exp(2 s B' A') + eps^2; float64."""
    product = variance.scale * (std_b.double() @ std_a.double())
    if variance.form == "square":
        return (product + variance.offset) ** 2 + variance.floor**2
    return variance.offset**2 * (2 * product).exp() + variance.floor**2


def dense_normal(factors: Factors, variance: Variance) -> Normal:
    """The Gaussian over W - W0 as torch's own distribution."""
    return Normal(dense_mean(factors, variance), dense_variance(factors.std_b, factors.std_a, variance).sqrt())


def dense_kl(task: Factors, shared: Factors, variance: Variance) -> Tensor:
    """KL(q(phi) || p(phi | theta)) summed over entries, by `torch.distributions`."""
    return kl_divergence(dense_normal(task, variance), dense_normal(shared, variance)).sum()


def dense_precision_penalty(std_b: Tensor, std_a: Tensor, variance: Variance, shape: float, rate: float) -> Tensor:
    """-log Gamma(1 / var; shape, rate) summed over entries, by `torch.distributions`."""
    prior = Gamma(torch.tensor(shape, dtype=torch.float64), torch.tensor(rate, dtype=torch.float64))
    return -prior.log_prob(1 / dense_variance(std_b, std_a, variance)).sum()


def gradients_of(value: Tensor, factors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """d value / d each factor, float64; zeros where the value does not depend on it."""
    found = torch.autograd.grad(value, factors, retain_graph=True, allow_unused=True)
    return tuple(
        torch.zeros_like(f, dtype=torch.float64) if g is None else g.double()
        for f, g in zip(factors, found, strict=True)
    )


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest entry of `theirs`."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300))
