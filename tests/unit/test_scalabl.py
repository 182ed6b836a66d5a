"""ScalaBL: core against an SVD, KL against torch.distributions, steps against autograd, moments of draws."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from abmll.config import PosteriorConfig
from abmll.kernels.noise import noise_key, normal
from abmll.methods.noise import adaptation_coordinates, step_key
from abmll.systems.build import build_system
from abmll.systems.plans import AdaptationPlan
from abmll.systems.posteriors.base import put
from abmll.systems.posteriors.cores.scalabl import Core, ScalaBL, core_of, kl_gradients
from abmll.systems.posteriors.settings import ScalaBLSettings
from abmll.systems.system import System
from abmll.tasks.episodes import adaptation_batches
from tests.exact import exact_base, float64
from tests.systems import TASKS, run_config, scramble, tiny_base

PLAN = AdaptationPlan(6, 4)
RATE = 1e-2


def system_with(base: Any = None, **posterior: Any) -> System:
    config = run_config("fomaml", inner_lr=RATE, adaptation={"samples": 4})
    config = config.model_copy(update={"posterior": PosteriorConfig(name="scalabl", **posterior)})
    system = build_system(config, base or tiny_base())
    scramble(system)
    return system


def scalabl_of(system: System) -> ScalaBL:
    assert isinstance(system.posterior, ScalaBL)
    return system.posterior


def cores_of(system: System) -> list[Core]:
    state, fields = scalabl_of(system).state(), Core._fields
    return [Core(*(state[f"{name}.{i}"] for name in fields)) for i in range(len(state) // len(fields))]


def test_the_core_is_the_singular_values_of_a_and_the_product_theta_s() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(7, 3, generator=generator), torch.randn(3, 5, generator=generator)
    core = core_of(b, a, index=2, epsilon=0.05)
    np.testing.assert_allclose(core.log_value.exp(), np.linalg.svd(a.numpy(), compute_uv=False), rtol=1e-5)
    torch.testing.assert_close(core.left @ torch.diag(core.log_value.exp()) @ core.right, b @ a)
    torch.testing.assert_close(core.right @ core.right.T, torch.eye(3))
    std = core.log_std.exp()
    assert bool(((std >= 0.05 / 2**0.5 * 0.999) & (std <= 0.05 * 1.001)).all())
    assert not torch.equal(std, core_of(b, a, index=1, epsilon=0.05).log_std.exp())
    none = core_of(b, 0 * a, index=0, epsilon=0.05)
    assert all(bool(part.isfinite().all()) for part in none), "an A of zeros has a core, too"


@pytest.mark.parametrize("kl", ["elbo", "reversed"])
def test_kl_gradients_are_those_of_torch_distributions(kl: Any) -> None:
    log_value, log_std = torch.tensor([[-1.0, 0.3], [-2.0, -0.5]], dtype=torch.float64).requires_grad_().unbind()
    q, p = Normal(log_value.exp(), log_std.exp()), Normal(torch.zeros(2).double(), 0.7)
    total = (kl_divergence(q, p) if kl == "elbo" else kl_divergence(p, q)).sum()
    expected = torch.autograd.grad(total, [log_value, log_std])
    settings = ScalaBLSettings(prior_std=0.7, kl=kl)
    for found, gradient in zip(kl_gradients(log_value.detach(), log_std.detach(), settings), expected, strict=True):
        torch.testing.assert_close(found, gradient)


class ByAutograd:
    """The steps again: the chain rule, and the KL of torch.distributions, by autograd through the core's four parts."""

    def __init__(self, system: System, kl: str, noisy: bool) -> None:
        self.system, self.kl, self.noisy = system, kl, noisy
        self.posterior = scalabl_of(system)
        s, pairs = self.posterior.settings, enumerate(self.theta())
        cores = [core_of(b, a, i, s.epsilon) for i, (b, a) in pairs]
        self.parts = [part.clone().requires_grad_() for core in cores for part in core]
        self.adam = torch.optim.AdamW(self.parts, lr=RATE, weight_decay=0.0)

    def theta(self) -> list[tuple[Tensor, Tensor]]:
        factors = [p.detach().clone() for p in self.system.method.adapters.parameters("shared")]
        return list(zip(factors[::2], factors[1::2], strict=True))

    def run(self) -> list[Core]:
        examples, batches = adaptation_batches(TASKS[0], examples=6, steps=4, batch_size=2, seed=0, draw=0)
        for number, batch in enumerate(batches):
            self.step(batch, (*adaptation_coordinates(0, 0), number), len(examples))
        return self.cores()

    def cores(self) -> list[Core]:
        return [Core(*self.parts[i : i + 4]) for i in range(0, len(self.parts), 4)]

    def step(self, batch: Any, coordinates: Any, examples: int) -> None:
        name, factors = noise_key("ScalaBL", int(step_key(coordinates))), []
        for index, core in enumerate(self.cores()):
            noise = normal(name, 3, torch.tensor(0), layer=index) if self.noisy else torch.zeros(3)
            factors += [core.left, (core.log_value.exp() + core.log_std.exp() * noise)[:, None] * core.right]
        phi = self.posterior.parameters
        put(phi, [factor.detach() for factor in factors])
        nll = self.system.likelihood.nll(self.system.batcher.batch(batch))
        gradients = torch.autograd.grad(nll, phi)
        s, prior = self.posterior.settings, Normal(torch.zeros(()), self.posterior.settings.prior_std)
        of_kl = []
        for core in self.cores():
            q = Normal(core.log_value.exp(), core.log_std.exp())
            total = (kl_divergence(q, prior) if self.kl == "elbo" else kl_divergence(prior, q)).sum()
            of_kl.append(torch.autograd.grad(s.kl_lr * s.kl_weight / examples * total, [core.log_value, core.log_std]))
        self.adam.zero_grad()
        torch.autograd.backward(factors, gradients)
        self.adam.step()
        with torch.no_grad():
            for core, moves in zip(self.cores(), of_kl, strict=True):
                for part, move in zip(core[2:], moves, strict=True):
                    part -= move


@pytest.mark.parametrize(("kl", "kl_lr"), [("elbo", 0.2), ("reversed", 1e-3)])
def test_its_steps_are_those_of_autograd(kl: Any, kl_lr: float) -> None:
    with float64():
        system = system_with(exact_base(), kl=kl, kl_lr=kl_lr, epsilon=0.2)
        expected = ByAutograd(system, kl, noisy=True).run()
        system.adapt(TASKS[0], PLAN)
        for found, core in zip(cores_of(system), expected, strict=True):
            for part, other in zip(found, core, strict=True):
                torch.testing.assert_close(part, other.detach(), rtol=1e-6, atol=1e-8)


def test_without_stds_and_kl_it_is_plain_steps_in_the_coordinates_of_the_core() -> None:
    with float64():
        system = system_with(exact_base(), kl_weight=0.0, epsilon=1e-14)
        expected = ByAutograd(system, "elbo", noisy=False).run()
        system.adapt(TASKS[0], PLAN)
        drawn = scalabl_of(system).draw(0, 7)
        for index, core in enumerate(expected):
            product = core.left @ torch.diag(core.log_value.exp()) @ core.right
            torch.testing.assert_close(drawn[2 * index] @ drawn[2 * index + 1], product.detach(), rtol=1e-7, atol=1e-10)


def test_draws_are_loras_whose_core_has_the_mean_and_the_std() -> None:
    system = system_with()
    system.adapt(TASKS[0], PLAN)
    posterior, core = scalabl_of(system), cores_of(system)[0]
    posterior._cores = posterior._cores[:1]
    drawn = [posterior.draw(0, key) for key in range(2000)]
    left, factors = drawn[0][0], torch.stack([a for _, a in drawn]).double()
    assert all(torch.equal(b, left) for b, _ in drawn)
    assert [tuple(part.shape) for part in drawn[0]] == [tuple(p.shape) for p in posterior.parameters[:2]]
    values = factors @ torch.linalg.pinv(core.right.double())  # what stands before V^T
    diagonal, std = values.diagonal(dim1=1, dim2=2), core.log_std.double().exp()
    assert float((values - torch.diag_embed(diagonal)).abs().max()) < 1e-4, "a diagonal core"
    error = (diagonal.mean(0) - core.log_value.double().exp()).abs() / std
    assert float(error.max()) < 5 / 2000**0.5
    torch.testing.assert_close(diagonal.std(0), std, rtol=0.1, atol=0)
    correlation = np.corrcoef(diagonal.T.numpy()) - np.eye(3)
    assert np.abs(correlation).max() < 0.12
