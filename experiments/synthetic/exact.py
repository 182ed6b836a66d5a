"""What is known in closed form: posteriors, the best factorised Gaussian, divergences, empirical Bayes."""

from typing import NamedTuple

import torch
from torch import Tensor


class Posterior(NamedTuple):
    """Gaussians over the rows of W, which are independent given the inputs.

    Attributes:
        mean: (*, O, I).
        covariance: (*, O, I, I).
    """

    mean: Tensor
    covariance: Tensor

    @property
    def std(self) -> Tensor:
        """(*, O, I), of each weight's marginal."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()


def posterior(x: Tensor, y: Tensor, prior_mean: Tensor, prior_variance: Tensor, noise_variance: float) -> Posterior:
    """p(W | x, y) for W ~ N(prior_mean, diag prior_variance) and y = x W^T + noise.

    By the covariance form, so a prior variance may be 0. Where beta times the KL was minimised, the optimum is the
    posterior of a noise variance beta times as large.

    Args:
        x: (*, N, I).
        y: (*, N, O).
        prior_mean: (O, I).
        prior_variance: (O, I).
        noise_variance: of y.
    """
    rows = x.unsqueeze(-3)  # (*, 1, N, I), against (O, N, I)
    spread = rows * prior_variance[:, None]  # X S
    gram = spread @ rows.mT + noise_variance * torch.eye(x.shape[-2], dtype=x.dtype)
    residual = y.mT - (rows @ prior_mean[..., None])[..., 0]  # (*, O, N)
    gain = torch.linalg.solve(gram, spread)  # (*, O, N, I)
    mean = prior_mean + (residual[..., None, :] @ gain)[..., 0, :]
    return Posterior(mean, torch.diag_embed(prior_variance) - spread.mT @ gain)


def mean_field_std(x: Tensor, prior_variance: Tensor, noise_variance: float) -> Tensor:
    """(*, O, I): stds of the factorised Gaussian nearest to the posterior by KL(q || p); its means are the exact ones.

    Its precision is the diagonal of the exact precision.
    """
    data = x.square().sum(-2, keepdim=True) / noise_variance
    return (prior_variance / (1 + prior_variance * data)).sqrt()


def divergence(mean: Tensor, std: Tensor, exact: Posterior, free: Tensor) -> Tensor:
    """KL(N(mean, diag std^2) || exact) for each weight, (*,); `free` (O, I) says which weights are no constants."""
    total = torch.zeros(mean.shape[:-2], dtype=mean.dtype)
    for row, chosen in enumerate(free):
        covariance = exact.covariance[..., row, chosen, :][..., chosen]
        gap = (mean - exact.mean)[..., row, chosen]
        variance = std[..., row, chosen].square()
        precision = torch.linalg.inv(covariance)
        quadratic = (gap[..., None, :] @ precision @ gap[..., None])[..., 0, 0]
        trace = (precision.diagonal(dim1=-2, dim2=-1) * variance).sum(-1)
        total += 0.5 * (trace + quadratic - variance.shape[-1] + covariance.logdet() - variance.log().sum(-1))
    return total / free.sum()


def factorised_divergence(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor, free: Tensor) -> Tensor:
    """KL between two factorised Gaussians for each free weight, (*,)."""
    ratio = (std / other_std).square()
    each = 0.5 * (ratio - 1 - ratio.log() + ((mean - other_mean) / other_std).square())
    return each[..., free].mean(-1)


def predictive_nll(x: Tensor, y: Tensor, mean: Tensor, covariance: Tensor, noise_variance: float) -> float:
    """-log p(y | x) per output, nats, where W's rows are N(mean, covariance): the limit of many weight draws.

    Args:
        x: (T, N, I).
        y: (T, N, O).
        mean: (T, O, I).
        covariance: (T, O, I, I), or zero for point weights.
        noise_variance: of y.
    """
    of_weights = torch.einsum("tni,toij,tnj->tno", x, covariance, x)
    normal = torch.distributions.Normal(x @ mean.mT, (of_weights + noise_variance).sqrt())
    return -float(normal.log_prob(y).mean())


def empirical_bayes(
    x: Tensor, y: Tensor, start: Tensor, noise_variance: float, iterations: int = 40
) -> tuple[Tensor, Tensor]:
    """Mean and variance (O, I) between tasks by EM with exact posteriors: what the same tasks can tell at best.

    Args:
        x: (T, N, I).
        y: (T, N, O).
        start: (O, I), the first guess of the mean.
        noise_variance: of y.
        iterations: of EM.
    """
    mean, variance = start, torch.full_like(start, 0.1)
    for _ in range(iterations):
        found = posterior(x, y, mean, variance, noise_variance)
        mean = found.mean.mean(0)
        variance = (found.std.square() + (found.mean - mean).square()).mean(0)
    return mean, variance
