"""Rivals against the packages of their authors, where these are installed: `make oracles`."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from abmll.question import Question
from abmll.systems.posteriors.base import Adaptation
from abmll.systems.posteriors.ivon import IVONState, ivon_step
from abmll.systems.posteriors.laplace import Laplace
from abmll.systems.posteriors.laplace.curvature import KroneckerSums, Seen
from abmll.systems.posteriors.laplace.evidence import Evidence
from abmll.systems.posteriors.settings import IVONSettings, LaplaceSettings
from tests.exact import float64


def test_ivon_is_ivon_opt_step_by_step() -> None:
    """On a quadratic with noise of our choice, also where the mean is clipped."""
    ivon = pytest.importorskip("ivon")
    torch.manual_seed(0)
    s = IVONSettings(lr=0.1, ess=50.0, hess_init=0.3, beta2=0.9, weight_decay=0.2, clip=0.05, centre="zero")
    start, minimum = torch.randn(1, 6), torch.randn(1, 6)
    theirs = nn.Parameter(start.clone())
    options = {"beta1": s.beta1, "beta2": s.beta2, "hess_init": s.hess_init, "weight_decay": s.weight_decay}
    optimizer = ivon.IVON([theirs], lr=s.lr, ess=s.ess, clip_radius=s.clip, rescale_lr=False, **options)
    ours = IVONState(start.clone(), torch.full_like(start, s.hess_init), 0 * start, 0 * start)
    for step in range(1, 30):
        std = (s.ess * (ours.hessian + s.weight_decay)).rsqrt()
        with optimizer.sampled_params(train=True):
            noise = (theirs.detach() - ours.mean) / std
            optimizer.zero_grad()
            (theirs - minimum).square().sum().backward()
            assert theirs.grad is not None
            gradient = theirs.grad.clone()
        optimizer.step()
        ours = ivon_step(ours, gradient, noise, step, s)
        assert torch.allclose(theirs.detach(), ours.mean, atol=1e-5)
    assert torch.allclose(optimizer.param_groups[0]["hess"], ours.hessian.flatten(), rtol=1e-3)


class OfNetwork(Laplace):
    """Our Laplace on the parameters of a small network, a question being a row of its inputs."""

    def __init__(self, network: nn.Module, inputs: Tensor, **settings: float) -> None:
        self.network, self.inputs, self.settings = network, inputs, LaplaceSettings(centre="zero", **settings)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def jacobian(self, question: Question) -> tuple[Tensor, Tensor, None]:
        f = self.network(self.inputs[int(question.id)][None])[0].log_softmax(-1)
        rows = [torch.autograd.grad(f[k], self.parameters, retain_graph=True) for k in range(len(f))]
        return f.detach(), torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]), None


def test_laplace_is_laplace_torch_s_with_the_full_gauss_newton_matrix() -> None:
    """Log evidence up to the likelihood's constant, the precision of the largest evidence, and the predictive."""
    laplace = pytest.importorskip("laplace")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, labels = torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 3, (12,))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=4)
    theirs = laplace.Laplace(network, "classification", "all", "full")
    theirs.fit(data)
    rows = tuple(Question(str(i), "?", ("a", "b", "c"), int(label)) for i, label in enumerate(labels))
    ours = OfNetwork(network, inputs)
    ours.fit(Adaptation(rows, (), (0, 0, 0)))

    def evidence(precision: float) -> float:
        found = theirs.log_marginal_likelihood(prior_precision=torch.tensor([precision], dtype=torch.float64))
        return float(found.detach() - theirs.log_likelihood)

    for precision in (0.1, 1.0, 30.0):
        assert ours.evidence().log_at(precision) == pytest.approx(evidence(precision), rel=1e-6)
    grid = [ours.precision * math.exp(step) for step in np.linspace(-2, 2, 41)]
    assert evidence(ours.precision) >= max(map(evidence, grid)) - 1e-6
    theirs.prior_precision = torch.tensor([ours.precision], dtype=torch.float64)
    asked = torch.randn(5, 4, dtype=torch.float64)
    _, covariances = theirs._glm_predictive_distribution(asked)
    centred = torch.eye(3, dtype=torch.float64)
    for x, expected in zip(asked, covariances, strict=True):
        ours.inputs = x[None]
        f, jacobian, _ = ours.jacobian(Question("0", "?", ("a", "b", "c"), None))
        centred = torch.eye(3, dtype=torch.float64) - f.exp()[None]  # scores without what moves all of them alike
        np.testing.assert_allclose(ours.covariance(jacobian), centred @ expected.detach() @ centred.T, rtol=1e-6)


def test_kronecker_factors_are_laplace_torch_s() -> None:
    """Log evidence and predictive of a network whose examples are one token each."""
    laplace = pytest.importorskip("laplace")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    inputs, labels = torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 3, (12,))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=12)
    theirs = laplace.Laplace(network, "classification", "all", "kron")
    theirs.fit(data)
    first, last = network[0], network[2]
    sums = KroneckerSums()
    for x in inputs:
        middle = torch.tanh(first(x))
        f = last(middle).log_softmax(-1)
        by_last = torch.eye(3, dtype=torch.float64) - f.exp()[None]
        by_first = (by_last @ last.weight) * (1 - middle.square())
        seen = [Seen(x[None], by_first[:, None].detach()), Seen(middle[None].detach(), by_last[:, None].detach())]
        sums.add(seen, f.detach().exp())
    with float64():
        ours = sums.curvature()
    distance = sum(float(p.detach().square().sum()) for p in network.parameters())
    asked = torch.randn(5, 4, dtype=torch.float64)
    for precision in (0.1, 1.0, 30.0):
        found = theirs.log_marginal_likelihood(prior_precision=torch.tensor([precision], dtype=torch.float64))
        expected = float(found.detach() - theirs.log_likelihood)
        assert Evidence(ours.spectrum(), distance).log_at(precision) == pytest.approx(expected, rel=1e-6)
        _, covariances = theirs._glm_predictive_distribution(asked)
        for x, covariance in zip(asked, covariances, strict=True):
            scores = network(x)
            rows = [torch.autograd.grad(score, list(network.parameters()), retain_graph=True) for score in scores]
            jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
            np.testing.assert_allclose(ours.covariance(jacobian, precision), covariance.detach(), rtol=1e-6)
