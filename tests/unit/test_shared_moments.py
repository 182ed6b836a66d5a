"""MAML-en-LLM's shared moments: against one torch AdamW that steps phi and theta in turn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from abmll.config import RunConfig
from abmll.errors import AbmllError
from abmll.methods import resolve_settings
from abmll.systems.build import build_system
from abmll.systems.plans import AdaptationPlan, resolve
from abmll.systems.system import System
from tests.exact import exact_base, float64
from tests.systems import TASKS, key_of, largest_difference, run_config, same, scramble, tiny_base, train, values

RATES = {"inner_lr": 3e-3, "outer_lr": 2e-3, "inner_steps": 2}


def config_of(**settings: Any) -> RunConfig:
    return run_config(
        "maml-en-llm", "as-published", **{**RATES, "demonstrations": 2, "second_order": False, **settings}
    )


def by_one_adamw(config: RunConfig, iterations: int) -> System:
    """First order, written down: one optimizer on one set of parameters, whose values are put back before its steps."""
    system = build_system(config, exact_base())
    shared, task = (system.method.adapters.parameters(slot) for slot in ("shared", "task"))
    optimizer = torch.optim.AdamW(task, weight_decay=0.0)
    episodes = resolve(config).episodes_of(TASKS)
    visits = [(i, p) for i in range(iterations) for p in range(config.training.meta_batch)]
    for iteration, position in visits:
        theta = [p.detach().clone() for p in shared]
        put(task, theta)
        *support, query = system.batcher.asked(episodes.draw(iteration, position))
        for batch in support:
            step(optimizer, RATES["inner_lr"], gradients(system, batch, task), task)
        of_query = gradients(system, query, task)
        put(task, theta)
        step(optimizer, RATES["outer_lr"], of_query, task)
        put(shared, task)
    return system


def gradients(system: System, batch: Any, parameters: list[Any]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(system.method.inner_loss(system.batcher.batch(batch), key_of(0)).total, parameters)


def step(optimizer: torch.optim.Optimizer, rate: float, found: tuple[torch.Tensor, ...], parameters: list[Any]) -> None:
    optimizer.param_groups[0]["lr"] = rate
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()


def put(parameters: list[Any], given: list[Any]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, given, strict=True):
            parameter.copy_(value)


@pytest.mark.parametrize("meta_batch", [1, 2])
def test_inner_and_outer_steps_are_those_of_one_adamw(meta_batch: int, tmp_path: Path) -> None:
    with float64():
        config = config_of(training={"iterations": 3, "meta_batch": meta_batch})
        expected = values(by_one_adamw(config, 3), "shared")
        system, _ = train(config, tmp_path, system=build_system(config, exact_base()))
        assert largest_difference(values(system, "shared"), expected) < 1e-9
        other = config.model_copy(update={"method": config_of(moments="separate").method})
        separate, _ = train(other, tmp_path / "separate", system=build_system(other, exact_base()))
        assert largest_difference(values(separate, "shared"), expected) > 1e-4


def test_a_run_that_was_stopped_goes_on_with_the_shared_moments(tmp_path: Path) -> None:
    whole, _ = train(config_of(second_order=True, training={"iterations": 4}), tmp_path / "whole")
    train(config_of(second_order=True, training={"iterations": 2}), tmp_path / "parts")
    parts, _ = train(config_of(second_order=True, training={"iterations": 4}), tmp_path / "parts")
    assert same(values(whole, "shared"), values(parts, "shared"))


def test_adapting_to_an_unseen_task_begins_without_moments(tmp_path: Path) -> None:
    """So it is what moments of its own give, from the same theta."""
    trained, _ = train(config_of(), tmp_path)
    separate = build_system(config_of(moments="separate", inner_optimizer_state="fresh"), tiny_base())
    for system in (trained, separate):
        scramble(system)
        system.adapt(TASKS[1], AdaptationPlan(6, 3))
    assert same(values(trained, "task"), values(separate, "task"))


@pytest.mark.parametrize(
    "given", [{"inner_optimizer": "sgd"}, {"outer_optimizer": "sgd"}, {"inner_optimizer_state": "fresh"}]
)
def test_moments_that_nobody_has_are_not_shared(given: dict[str, Any]) -> None:
    with pytest.raises(AbmllError, match=r"method.moments=shared needs one rule .*inner_optimizer_state=persistent"):
        resolve_settings("maml-en-llm", "as-published", given)
