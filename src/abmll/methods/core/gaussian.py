"""A Gaussian over all cores, given a diagonal prior and standard normal observations of linear functions of them.

With P numbers in all cores and N observations everything is done by matrices of N x N (the matrix inversion lemma), in
float64. No P x P matrix is made but for tests.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Covariance = Literal["full", "blocks", "factorised"]


@dataclass(frozen=True, eq=False)
class CoreGaussian:
    r"""N(mean, C) over the P numbers of all cores.

    With the prior's variances V and the rows W of the observations $t = W r + \text{noise}$ the exact covariance is
    $C = (V^{-1} + W^\top W)^{-1} = V - V W^\top (I + W V W^\top)^{-1} W V$. `blocks` and `factorised` are the Gaussians
    nearest to it by KL(q || exact) that are independent from layer to layer, or from number to number: their precision
    is the exact one's, where they have entries.

    Attributes:
        mean: of the Gaussian.
        variance: V.
        rows: W.
        form: of C.
        block: numbers of a layer, R^2.
    """

    mean: Float[Tensor, " P"]
    variance: Float[Tensor, " P"]
    rows: Float[Tensor, "N P"]
    form: Covariance
    block: int

    def marginal(self) -> Float[Tensor, " P"]:
        """diag C."""
        if self.form == "factorised":
            return 1 / (1 / self.variance + self.rows.square().sum(0))
        factor, rows, variance = self._parts()
        whitened = torch.linalg.solve_triangular(factor, rows, upper=False)
        return (variance - variance.square() * whitened.square().sum(1)).clamp_min(0).flatten()

    @property
    def blocks(self) -> int:
        """Parts that are independent of each other and not diagonal."""
        return len(self.mean) // self.block if self.form == "blocks" else 1

    def draw(self, of_prior: Float[Tensor, " P"], of_rows: Float[Tensor, "blocks N"]) -> Float[Tensor, " P"]:
        """A draw, from standard normal numbers: a draw of the prior, corrected by observations of it (Matheron)."""
        if self.form == "factorised":
            return self.mean + self.marginal().sqrt() * of_prior
        factor, rows, variance = self._parts()
        start = self.variance.sqrt() * of_prior
        seen = (rows @ start.view(self.blocks, -1, 1))[..., 0] + of_rows
        weights = torch.cholesky_solve(seen[..., None], factor)
        return self.mean + start - (variance * (rows.mT @ weights)[..., 0]).flatten()

    def covariance(self, other: Float[Tensor, "M P"]) -> Float[Tensor, "M M"]:
        """J C J^T of other rows J."""
        if self.form == "factorised":
            return (other * self.marginal()) @ other.T
        factor, rows, variance = self._parts()
        split = other.view(len(other), self.blocks, -1).transpose(0, 1)
        spread = split * variance[:, None]
        whitened = torch.linalg.solve_triangular(factor, rows @ spread.mT, upper=False)
        return (spread @ split.mT - whitened.mT @ whitened).sum(0)

    def dense(self) -> Float[Tensor, "P P"]:
        """C, all of it: for tests."""
        return self.covariance(torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device))

    def divergence(self, centre: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """KL from N(centre, V), the prior, in nats."""
        distance = ((self.mean - centre).square() / self.variance).sum()
        if self.form == "factorised":
            ratio = self.marginal() / self.variance
            return 0.5 * (distance + (ratio - 1 - ratio.log()).sum())
        factor, rows, _ = self._parts()
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum()
        eye = torch.eye(rows.shape[1], dtype=factor.dtype, device=factor.device)
        whitened = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        # tr(C V^-1) - P = -tr((I + G)^-1 G) = tr((I + G)^-1) - N, for each block
        shrunk = whitened.square().sum() - factor.shape[0] * factor.shape[1]
        return 0.5 * (distance + shrunk + log_det)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each block the Cholesky factor of I + W V W^T, W, and V."""
        rows = self.rows.view(len(self.rows), self.blocks, -1).transpose(0, 1)
        variance = self.variance.view(self.blocks, -1)
        return _factor(rows, variance), rows, variance


def posterior_mean(
    rows: Float[Tensor, "N P"],
    observed: Float[Tensor, " N"],
    centre: Float[Tensor, " P"],
    variance: Float[Tensor, " P"],
) -> Float[Tensor, " P"]:
    """The mean of the cores r given `observed` = `rows` r + noise; NaN where it cannot be computed.

    Args:
        rows: W.
        observed: with standard normal noise.
        centre: mean of the prior.
        variance: of the prior.
    """
    factor = _factor(rows, variance)
    weights = torch.cholesky_solve((observed - rows @ centre)[:, None], factor)
    return centre + variance * (rows.mT @ weights)[:, 0]


def _factor(rows: Float[Tensor, "*blocks N P"], variance: Float[Tensor, "*blocks P"]) -> Float[Tensor, "*blocks N N"]:
    """Of I + W V W^T, whose eigenvalues are 1 at least; NaN where numbers are not finite. Waits for nothing."""
    gram = (rows * variance[..., None, :]) @ rows.mT
    gram = gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(gram)
    return torch.where((info == 0)[..., None, None], factor, math.nan)
