"""The optimizers of a method's groups, held against their published update rules in float64."""

import pytest
import torch
from torch import nn

from abmll.methods.base import Group
from abmll.training.optimizers import GroupOptimizer


def stepped(gradients: list[float], kind: str = "adamw", wide: bool = False) -> list[float]:
    """Where steps at rate 0.5 by these gradients lead, from 0."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float32))
    optimizer = GroupOptimizer([Group("mean", [parameter], kind, 0.5, wide)])  # type: ignore[arg-type]
    out = []
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
        out.append(float(parameter.detach()))
    return out


def adam(gradients: list[float]) -> list[float]:
    """Kingma and Ba 2015, algorithm 1, with the constants that they recommend; no weight decay."""
    m = v = x = 0.0
    out = []
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= 0.5 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
        out.append(x)
    return out


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("size", [3e-9, 1e-8, 1.0])
def test_adamw_is_adam_as_published_with_gradients_that_its_eps_is_felt_by(size: float, wide: bool) -> None:
    gradients = [size, -3 * size, 0.5 * size, size]
    assert stepped(gradients, wide=wide) == pytest.approx(adam(gradients), rel=1e-4)


def test_weights_do_not_decay() -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = GroupOptimizer([Group("mean", [parameter], "adamw", 0.5)])
    parameter.grad = torch.zeros(1)
    optimizer.step()
    assert float(parameter.detach()) == 1.0


def test_sgd_is_rate_times_gradient() -> None:
    assert stepped([1.0, -3.0], "sgd") == [-0.5, 1.0]
