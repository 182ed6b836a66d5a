"""C-LoRA: its KL against torch.distributions, its outputs against a loop over tokens, and plain steps without noise."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from abmll.config import PosteriorConfig
from abmll.errors import AbmllError
from abmll.kernels.noise import noise_key
from abmll.systems.build import build_system
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from abmll.systems.posteriors.cores import c_lora
from abmll.systems.posteriors.cores.c_lora import CLoRA, Net, divergence, new_net, token_noise
from abmll.systems.posteriors.settings import CLoRASettings
from abmll.systems.system import System
from tests.exact import exact_base, float64
from tests.systems import TASKS, questions, run_config, scramble, tiny_base, values

PLAN, MEAN = AdaptationPlan(6, 4), PredictionPlan("mean", 1)


def system_with(base: Any = None, name: str = "c-lora", **posterior: Any) -> System:
    config = run_config("fomaml", inner_lr=1e-2, adaptation={"samples": 2})
    config = config.model_copy(update={"posterior": PosteriorConfig(name=name, **posterior)})
    system = build_system(config, base or tiny_base())
    scramble(system, size=0.3)
    return system


def c_lora_of(system: System) -> CLoRA:
    assert isinstance(system.posterior, CLoRA)
    return system.posterior


def begun(system: System) -> CLoRA:
    """Its networks as they begin, phi at theta."""
    posterior = c_lora_of(system)
    system.method.begin_task(first=True)
    like = posterior.parameters[0]
    posterior._nets = [new_net(3, i, posterior.settings, like) for i in range(len(posterior.parameters) // 2)]
    posterior._factors = [p.detach().clone() for p in posterior.parameters]
    return posterior


def test_the_kl_of_a_token_is_that_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.rand(2, 4, 5, 3, 3, generator=generator, dtype=torch.float64) + 0.1
    expected = kl_divergence(Normal(mean, std), Normal(torch.zeros(()).double(), 0.2)).sum((-2, -1))
    torch.testing.assert_close(divergence(mean, std, 0.2), expected)


def by_token(system: System, net: Net, x: Tensor, noise: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What a layer adds to the base's output: mean, and std of each entry, or with noise a draw; token by token."""
    task = next(iter(system.method.adapters.layers.values())).task
    scale, b, a = task.variance.scale, task.mean_b.detach().numpy(), task.mean_a.detach().numpy()
    weights = [part.detach().numpy() for part in net]
    out, spread = np.empty((*x.shape[:2], len(b))), np.empty((*x.shape[:2], len(b)))
    for place in np.ndindex(*x.shape[:2]):
        h = a @ x[place].numpy()
        made = weights[2] @ np.maximum(weights[0] @ h + weights[1], 0) + weights[3]
        mean, std = made[:9].reshape(3, 3), (1 / (1 + np.exp(-made[9:].reshape(3, 3)))) ** 2
        core = mean if noise is None else mean + std * noise[place].numpy()
        out[place] = scale * b @ core @ h
        spread[place] = scale * np.sqrt(b**2 @ (std**2 @ h**2))
    return out, spread


def outputs(system: System, net: Net, x: Tensor, keys: list[int]) -> list[Tensor]:
    """Draws of what the first layer puts out, beside a base of ones."""
    posterior, adapters = c_lora_of(system), system.method.adapters
    layer, tokens = next(iter(adapters.layers.values())), torch.arange(x.shape[1]).expand(x.shape[:2])
    posterior._nets[0] = net
    y, found = torch.ones(*x.shape[:2], layer.task.out_features), []
    with torch.no_grad(), adapters.drawing("mean", None, torch.arange(x.shape[0]), tokens):
        for key in keys:
            core = posterior._cores(key, lambda kl: None)[layer.index]
            found.append(core(y, x) - y)
    return found


def test_outputs_are_those_of_a_core_for_each_token() -> None:
    with float64():
        system = system_with(exact_base())
        posterior = begun(system)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 32, generator=generator)
        net = Net(*(part.detach() + 0.3 * torch.randn(part.shape, generator=generator) for part in posterior._nets[0]))
        tokens = torch.arange(3).expand(2, 3)
        noise = token_noise(7, 3, 0, torch.arange(2), tokens)
        (found,) = outputs(system, net, x, [7])
        np.testing.assert_allclose(found, by_token(system, net, x, noise)[0], rtol=1e-6, atol=1e-10)
        count = 2000
        drawn = torch.stack(outputs(system, net, x, [noise_key("draw", n) for n in range(count)])).numpy()
        mean, std = by_token(system, net, x)
        assert np.abs((drawn.mean(0) - mean) / std).max() < 5.5 / math.sqrt(count)
        np.testing.assert_allclose(drawn.std(0), std, rtol=0.12)


def test_noise_is_standard_normal_and_each_token_s_own() -> None:
    drawn = token_noise(5, 3, 1, torch.arange(40), torch.arange(30).expand(40, 30))
    assert drawn.shape == (40, 30, 3, 3)
    assert abs(float(drawn.mean())) < 0.05
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)
    assert len(drawn.flatten(2)[..., 0].unique()) == 1200
    alone = token_noise(5, 3, 1, torch.tensor([17]), torch.tensor([[4, 9]]))
    assert torch.equal(alone[0], drawn[17, [4, 9]])


def test_without_noise_and_steps_of_the_networks_it_is_the_plain_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(key: int, rank: int, layer: int, questions: Tensor, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, rank, rank)

    monkeypatch.setattr(c_lora, "token_noise", none)
    system, plain = system_with(core_lr=1e-30, kl_weight=0.0), system_with(name="none")
    for each in (system, plain):
        each.adapt(TASKS[0], PLAN)
    phi = list(values(plain, "task").values())
    for factor, expected in zip(c_lora_of(system)._factors, phi, strict=True):
        torch.testing.assert_close(factor, expected, rtol=1e-4, atol=1e-5)
    asked = TASKS[0].test[:3]
    for one, other in zip(system.predict(asked), plain.predict(asked, MEAN), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


UNEVEN = tuple(replace(row, question=row.question + " or not" * n) for n, row in enumerate(questions(4)))


def gradients(system: System) -> list[Tensor]:
    posterior = begun(system)
    posterior._gradients(UNEVEN, (0, 1, 2, 3))
    moved = [*posterior.parameters, *(part for net in posterior._nets for part in net)]
    return [part.grad.clone() for part in moved if part.grad is not None]


def test_micro_batches_and_padding_change_nothing() -> None:
    """The KL is of the tokens of a question, averaged over questions: by all of them padded together, or one by one."""
    with float64():
        whole = system_with(exact_base(), kl_weight=0.1)
        apart = system_with(exact_base(), kl_weight=0.1)
        object.__setattr__(apart.batcher, "micro_batch", 1)
        assert len(apart.batcher(UNEVEN)) == 4
        assert bool((whole.batcher.batch(UNEVEN).reach == 0).any()), "some is padding"
        for one, other in zip(gradients(whole), gradients(apart), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10)
            assert float(one.abs().max()) > 0


def test_the_networks_descend_nll_and_kl() -> None:
    """Their gradient along a way, against finite differences of both, the KL by torch.distributions."""
    with float64():
        system = system_with(exact_base(), kl_weight=1e-3)
        posterior, generator = begun(system), torch.Generator().manual_seed(0)
        start = [[part.detach().clone() for part in net] for net in posterior._nets]
        way = [[torch.randn(part.shape, generator=generator) for part in net] for net in start]
        posterior._gradients(questions(1), (0, 1, 2, 3))
        pairs = zip(posterior._nets, way, strict=True)
        slope = sum(float((p.grad * w).sum()) for net, ways in pairs for p, w in zip(net, ways, strict=True))  # type: ignore[operator]
        (batch,) = system.batcher(questions(1))
        rows = batch.reach > 0

        def loss(size: float) -> float:
            moved = [
                Net(*(p + size * w for p, w in zip(net, ways, strict=True)))
                for net, ways in zip(start, way, strict=True)
            ]
            posterior._nets, seen = moved, []
            adapters = system.method.adapters
            inputs = {layer.index: layer for layer in adapters.layers.values()}
            handles = [layer.register_forward_hook(lambda m, x, y: seen.append((m, x[0]))) for layer in inputs.values()]
            key = noise_key("CLoRA", int(c_lora.step_key((0, 1, 2, 3))))
            with torch.no_grad(), adapters.drawing("mean", None, batch.row_keys, batch.token_index):
                with adapters.with_cores(posterior._cores(key, lambda kl: None)):
                    nll = float(system.likelihood.nll(batch))
                kl = 0.0
                for layer, x in seen:
                    mean, std = moved[layer.index](x @ layer.task.mean_a.T)
                    of_tokens = kl_divergence(Normal(mean, std), Normal(0.0, 0.2)).sum((-2, -1))
                    kl += float(of_tokens[rows].sum())
            for handle in handles:
                handle.remove()
            assert len(seen) == len(start)
            return nll + 1e-3 * kl

        assert (loss(1e-7) - loss(-1e-7)) / 2e-7 == pytest.approx(slope, rel=1e-6)


def test_a_method_that_moves_b_alone_is_refused_by_the_posterior_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    system = system_with()
    (group,) = system.method.task()
    alone = [group._replace(parameters=group.parameters[::2])]
    monkeypatch.setattr(system.method, "task", lambda: alone)
    with pytest.raises(AbmllError, match=r"posterior\.name=c-lora needs a method that moves B and A"):
        system.adapt(TASKS[0], PLAN)


def test_outside_its_passes_layers_are_plain() -> None:
    system = system_with()
    system.adapt(TASKS[0], PLAN)
    system.predict(TASKS[0].test[:1])
    assert system.method.adapters.noise.cores == {}
    assert CLoRASettings().kl_weight == pytest.approx(1.54e-8, rel=1e-2)
