"""LiFT: its chain against the linear-Gaussian hierarchy in closed form, and each task's weights from visit to visit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from abmll.errors import AbmllError
from abmll.methods import resolve_settings
from abmll.methods.noise import step_key
from abmll.methods.task_weights import TaskWeights
from abmll.systems.build import renew
from abmll.systems.plans import AdaptationPlan, resolve
from abmll.systems.system import System
from abmll.training.graphs import Graphs
from abmll.training.inner import inner_steps
from abmll.training.optimizers import GroupOptimizer
from abmll.training.outer import READS_TASKS, add_outer_gradient
from tests.systems import TASKS, questions, run_config, same, system_of, train, values

SIGMA, BETA, TAU, ROWS = 1.0, 2.0, 0.7, 12.0
CENTRES = (1.0, -0.5)
"""Of two tasks: D_i says that phi_i is N(c_i, tau^2), in every number of the factors alike."""


def flat(parts: Any) -> Tensor:
    return torch.cat([part.detach().flatten() for part in parts])


def posterior() -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (theta, phi_1, phi_2), of one number."""
    link, data = 1 / SIGMA**2, 1 / TAU**2
    precision = np.array([[2 * link + 1 / BETA**2, -link, -link], [-link, link + data, 0], [-link, 0, link + data]])
    covariance = np.linalg.inv(precision)
    return covariance @ np.array([0, *CENTRES]) * data, covariance


def stationary(inner: float, outer: float) -> np.ndarray:
    """Covariance of the chain of these step sizes after a visit to each task, by the discrete Lyapunov equation."""
    precision = np.linalg.inv(posterior()[1])
    steps = [(1, inner), (0, outer), (2, inner), (0, outer)]
    transition, noise = np.eye(3), np.zeros((3, 3))
    for place, size in steps:
        step = np.eye(3)
        step[place] -= 0.5 * size * precision[place]
        transition, noise = step @ transition, step @ noise @ step.T
        noise[place, place] += size
    return np.asarray(solve_discrete_lyapunov(transition, noise))


def test_the_closed_form_of_small_steps_is_the_posterior() -> None:
    np.testing.assert_allclose(stationary(1e-4, 1e-4), posterior()[1], rtol=1e-3)


def test_its_samples_have_the_moments_of_the_hierarchy() -> None:
    """Every number of every factor is a chain of its own; means are the posterior's, covariances those of the steps."""
    inner, outer = 0.4, 0.3
    system = system_of("lift", inner_lr=inner, outer_lr=outer, task_std=SIGMA, shared_std=BETA, task_rows=ROWS)
    method, (batch, *_) = system.method, [questions(2)]
    optimizers = GroupOptimizer(method.task()), GroupOptimizer(method.shared())
    phi, theta = (method.adapters.parameters(slot) for slot in ("task", "shared"))
    tasks, samples = method.task_weights, []
    for visit in range(240):
        name = f"task {visit % 2}"
        method.nll = lambda batch, c=CENTRES[visit % 2]: sum(((p - c) ** 2).sum() for p in phi) / (2 * TAU**2 * ROWS)
        method.begin_task(first=visit == 0)
        tasks.put_into(name, phi)
        inner_steps(method, optimizers[0], system.batcher, [batch], (0, visit, 0))
        tasks.keep(name, phi)
        method.outer_gradient([], step_key((0, visit, 1))[0])
        optimizers[1].step()
        optimizers[1].zero_grad()
        if visit >= 80 and visit % 2:
            weights = tasks.state_dict()
            each = [flat([weights[f"task {i}.{k}"] for k in range(len(phi))]) for i in range(2)]
            samples.append(torch.stack([flat(theta), *each]))
    drawn = torch.cat(samples, 1).double().numpy()
    assert drawn.shape[1] > 40_000
    np.testing.assert_allclose(drawn.mean(1), posterior()[0], atol=0.03)
    np.testing.assert_allclose(np.cov(drawn), stationary(inner, outer), atol=0.04)


def test_each_visit_goes_on_from_its_own_last_one(tmp_path: Path) -> None:
    """Without noise and with a hierarchy that holds nothing, the visits to a task are SGD on its batches alone."""
    settings = {"noise": 0.0, "task_std": 1e6, "outer_lr": 1e-30, "inner_lr": 0.05, "task_rows": 2.0, "inner_steps": 1}
    config = run_config("lift", training={"iterations": 7}, **settings)
    start = system_of("lift", **settings)
    theta = flat(start.method.adapters.parameters("shared"))
    system, _ = train(config, tmp_path)
    episodes, chains = resolve(config).episodes_of(tuple(TASKS)), dict[str, Tensor]()
    phi = start.method.adapters.parameters("task")
    for iteration in range(7):
        episode = episodes.draw(iteration)
        put(phi, chains.get(episode.task, theta))
        for batch in episode.batches:
            nll = start.likelihood.nll(start.batcher.batch(batch))
            put(phi, flat(phi) - 0.05 * flat(torch.autograd.grad(nll, phi)))
        chains[episode.task] = flat(phi)
    stored = system.method.task_weights.state_dict()
    assert {name.rpartition(".")[0] for name in stored} == chains.keys()
    assert 1 < len(chains) < 7, "some tasks were visited twice"
    for task, expected in chains.items():
        found = flat([stored[f"{task}.{i}"] for i in range(len(phi))])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def put(phi: Any, values: Tensor) -> None:
    for parameter, part in zip(phi, values.split([p.numel() for p in phi]), strict=True):
        parameter.copy_(part.view(parameter.shape))


def test_a_stopped_run_goes_on_from_every_task_s_weights(tmp_path: Path) -> None:
    settings = {"inner_lr": 1e-3, "outer_lr": 1e-4, "task_std": 0.1}
    whole, _ = train(run_config("lift", training={"iterations": 6}, **settings), tmp_path / "whole")
    train(run_config("lift", training={"iterations": 4}, **settings), tmp_path / "parts")
    parts, _ = train(run_config("lift", training={"iterations": 6}, **settings), tmp_path / "parts")
    assert same(values(whole, "shared"), values(parts, "shared"))
    assert same(dict(whole.method.task_weights.state_dict()), dict(parts.method.task_weights.state_dict()))
    config = run_config("lift", training={"iterations": 6}, **settings)
    assert renew(whole, config)
    again, _ = train(config, tmp_path / "again", system=whole)
    assert same(values(again, "shared"), values(parts, "shared")), "another training remembers no task"


def test_an_adaptation_is_a_sample_unless_there_is_no_noise() -> None:
    def adapted(noise: float, draw: int) -> dict[str, Tensor]:
        system: System = system_of("lift", noise=noise, inner_lr=1e-4)
        system.adapt(TASKS[0], AdaptationPlan(len(TASKS[0].train), 3), draw)
        return values(system, "task")

    assert same(adapted(1.0, 0), adapted(1.0, 0))
    moved = flat(adapted(1.0, 0).values()) - flat(adapted(0.0, 0).values())
    assert float(moved.std()) == pytest.approx((3 * 1e-4) ** 0.5, rel=0.5)  # three steps of it, drawn back to theta


def test_weights_of_other_shapes_are_refused() -> None:
    kept, like = TaskWeights(), [torch.zeros(2, 3)]
    kept.load_state_dict({"a.b.0": torch.ones(2, 3)}, like)
    assert kept.count == 1
    assert torch.equal(kept.total(like)[0], torch.ones(2, 3))
    with pytest.raises(ValueError, match="other shapes"):
        kept.load_state_dict({"a.0": torch.ones(3, 2)}, like)
    with pytest.raises(KeyError):
        kept.load_state_dict({"a.1": torch.ones(2, 3)}, like)


def test_rules_that_are_no_langevin_steps_are_refused() -> None:
    for name, value in (("inner_optimizer", "adamw"), ("outer_schedule", "linear")):
        with pytest.raises(AbmllError, match=rf"method\.{name}"):
            resolve_settings("lift", given={name: value})


def test_on_cuda_it_is_said_that_the_outer_step_is_not_captured() -> None:
    system = system_of("lift")
    graphs = Graphs(torch.device("cpu"))
    graphs.capture = True
    outer = GroupOptimizer(system.method.shared())
    totals = [torch.zeros_like(p) for p in outer.parameters]
    for _ in range(3):
        add_outer_gradient(system.method, system.batcher, (), (0, 0, 0, 1), (outer, totals), 1.0, graphs)
    assert list(graphs.report()["fallbacks"].values()) == [READS_TASKS]
