"""The likelihood of a batch near the outputs as they are: a quadratic form, by the Fisher information."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

LEAST = 1e-12
"""A choice's probability is taken for at least this much: below it has no say in a curvature that float64 can hold."""


class Local(NamedTuple):
    r"""log p of B questions as a function of their K outputs, to second order.

    With the gradient $L t$ and the Fisher information $L L^\top$ in place of the Hessian a question has, up to a
    constant, $\log p(\text{outputs} + d) = -\tfrac12 |L^\top d - t|^2$: D standard normal observations t of $L^\top d$.

    Attributes:
        outputs: where it is made, with their graph.
        root: L, float64.
        target: t, float64.
        nll: -log p of each question as it is.
    """

    outputs: Float[Tensor, "B K"]
    root: Float[Tensor, "B K D"]
    target: Float[Tensor, "B D"]
    nll: Float[Tensor, " B"]


def of_choices(outputs: Float[Tensor, "B K"], answers: Int[Tensor, " B"]) -> Local:
    """The categorical likelihood of right choices, of which these are the log-probabilities; D = K - 1.

    Args:
        outputs: log-probabilities of the choices, with their graph; -inf where a question has fewer.
        answers: number of the right choice of each question.
    """
    f = outputs.detach()
    p, there = f.double().exp(), f.isfinite()
    p = torch.where(there, p.clamp_min(LEAST), 0)
    p = p / p.sum(-1, keepdim=True)
    root = multinomial_root(p)
    right = torch.nn.functional.one_hot(answers, f.shape[1]).to(p)
    nll = -f.double().gather(1, answers[:, None])[:, 0]
    return Local(outputs, root, _solved(root, right - p), nll)


def multinomial_root(p: Float[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
    r"""L with $L L^\top = \mathrm{diag}\, p - p p^\top$ and D = K - 1: its Cholesky factor (Tanabe & Sagae 1992).

    With $q_j = \sum_{i > j} p_i$ it is $L_{jj} = \sqrt{p_j q_j / q_{j - 1}}$ and $L_{ij} = -p_i L_{jj} / q_j$ for
    i > j. Choices that a question has not have p = 0 and come last.

    >>> p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    >>> root = multinomial_root(p)[0]
    >>> torch.allclose(root @ root.T, p[0].diag() - p[0, :, None] * p[0])
    True
    """
    tail = p.flip(-1).cumsum(-1).flip(-1)  # q_{j - 1}, by sums alone: nothing cancels
    after = torch.cat([tail[:, 1:], torch.zeros_like(tail[:, :1])], dim=1)
    ratio = torch.where(tail > 0, p * after / tail.clamp_min(LEAST * LEAST), 0)
    diagonal = ratio.sqrt()
    below = -p[:, :, None] * torch.where(after > 0, diagonal / after.clamp_min(LEAST * LEAST), 0)[:, None, :]
    return (below.tril(-1) + torch.diag_embed(diagonal))[:, :, :-1]


def _solved(root: Float[Tensor, "B K D"], gradient: Float[Tensor, "B K"]) -> Float[Tensor, "B D"]:
    """t of L t = gradient, which sums to zero as L's columns do; 0 where a column is."""
    top = root[:, :-1]
    empty = top.diagonal(dim1=-2, dim2=-1) == 0
    top = top + torch.diag_embed(empty.to(top))
    found = torch.linalg.solve_triangular(top, gradient[:, :-1, None], upper=False)[..., 0]
    return torch.where(empty, 0, found)
