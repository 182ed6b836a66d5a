"""Meta-SGD (rates that theta owns) and ANIL (some layers move): against first-order MAML and finite differences."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from abmll.adapters.folder import EXTRAS_FILE, read_adapter, read_facts
from abmll.errors import AbmllError
from abmll.methods.rivals.meta_sgd import MetaSGD
from abmll.systems.adapters import load_system, use_adapter
from abmll.systems.build import build_system, renew
from abmll.systems.plans import AdaptationPlan
from abmll.systems.system import System
from abmll.training.inner import inner_steps
from abmll.training.optimizers import GroupOptimizer
from abmll.training.resume import load_theta, theta
from tests.exact import exact_base, float64
from tests.systems import TASKS, key_of, questions, run_config, same, scramble, system_of, tiny_base, train, values

PLACE = (0, 0, 0)
FAST = {"inner_lr": 1e-2, "inner_steps": 2}


def rates_of(system: System) -> Tensor:
    return system.method.learned["log_rates"]


def steps(system: System, count: int = 2) -> None:
    """Inner steps from theta."""
    system.method.begin_task(first=True)
    batches = [questions(2, start=2 * step) for step in range(count)]
    inner_steps(system.method, GroupOptimizer(system.method.task()), system.batcher, batches, PLACE)


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_equal_rates_are_first_order_maml_bit_for_bit(rule: str, tmp_path: Path) -> None:
    settings = {**FAST, "inner_optimizer": rule, "training": {"iterations": 1}}
    fomaml, _ = train(run_config("fomaml", **settings), tmp_path / "fomaml")
    learned, _ = train(run_config("meta-sgd", **settings), tmp_path / "learned")
    assert same(values(fomaml, "shared"), values(learned, "shared"))
    assert same(values(fomaml, "task"), values(learned, "task"))


def test_each_factor_steps_at_its_own_rate() -> None:
    plain = system_of("fomaml", inner_optimizer="sgd", **FAST)
    system = system_of("meta-sgd", inner_optimizer="sgd", **FAST)
    for each in (plain, system):
        scramble(each)
    with torch.no_grad():
        rates_of(system).copy_(torch.arange(len(rates_of(system))).float() / 4 - 1)
    for each in (plain, system):
        steps(each, 1)
    names = list(values(system, "task"))
    assert len(names) == len(rates_of(system))
    for index, name in enumerate(names):
        moved, usual = (values(each, "task")[name] - values(each, "shared")[name] for each in (system, plain))
        assert torch.allclose(moved, usual * rates_of(system)[index].exp(), rtol=1e-3, atol=1e-7)


def test_the_gradient_of_a_rate_is_that_of_finite_differences_with_frozen_directions() -> None:
    """phi(r) = theta + e^r (phi - theta) for one factor: its directions do not change with its rate."""
    with float64():
        system = build_system(run_config("meta-sgd", **FAST), exact_base())
        scramble(system)
        steps(system)
        query, key = system.batcher(questions(4, start=8)), key_of(*PLACE, 2)
        phi, start = values(system, "task"), values(system, "shared")
        system.method.outer_gradient(query, key)
        found = rates_of(system).grad
        assert found is not None

        def loss(index: int, change: float) -> float:
            name = list(phi)[index]
            moved = {**phi, name: start[name] + (phi[name] - start[name]) * torch.tensor(change).exp()}
            system.method.adapters.load_state_dict("task", moved)
            return float(system.method.inner_loss(query[0], key).nll.detach())

        size = 1e-3
        expected = [(loss(i, size) - loss(i, -size)) / (2 * size) for i in range(len(phi))]
    assert torch.allclose(found.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-9)
    assert found.abs().max() > 1e-4


def test_rates_grow_where_longer_steps_do_better(tmp_path: Path) -> None:
    config = run_config("meta-sgd", inner_lr=1e-4, rate_lr=0.1, inner_steps=4, training={"iterations": 20})
    system, _ = train(config, tmp_path)
    assert float(rates_of(system).detach().mean()) > 0.2


def test_rates_are_kept_in_checkpoints_and_stored_adapters(tmp_path: Path) -> None:
    system = system_of("meta-sgd")
    with torch.no_grad():
        rates_of(system).uniform_(-1, 1)
    wanted = rates_of(system).detach().clone()
    other = system_of("meta-sgd")
    load_theta(other.method, theta(system.method))
    assert torch.equal(rates_of(other), wanted)
    system.save(tmp_path / "saved", slot="shared")
    loaded = load_system(tmp_path / "saved", tiny_base())
    assert torch.equal(rates_of(loaded), wanted)
    system.adapt(TASKS[0], AdaptationPlan(4, 2))
    loaded.adapt(TASKS[0], AdaptationPlan(4, 2))
    assert same(values(system, "task"), values(loaded, "task"))


def test_an_adapter_that_learned_something_else_is_refused(tmp_path: Path) -> None:
    system_of("meta-sgd").save(tmp_path / "rates", slot="shared")
    system_of("fomaml").save(tmp_path / "none", slot="shared")
    assert "learned" not in read_facts(tmp_path / "none" / EXTRAS_FILE).model_dump()
    with pytest.raises(AbmllError, match=r"'meta-sgd' learned log_rates \(8 numbers\) .*'fomaml' learns nothing"):
        use_adapter(read_adapter(tmp_path / "rates"), system_of("fomaml"), "there")
    with pytest.raises(AbmllError, match=r"'fomaml' learned nothing .* learns log_rates"):
        use_adapter(read_adapter(tmp_path / "none"), system_of("meta-sgd"), "there")


def test_a_renewed_system_has_equal_rates_again() -> None:
    system = system_of("meta-sgd")
    with torch.no_grad():
        rates_of(system).fill_(3.0)
    assert renew(system, run_config("meta-sgd", rate_lr=0.5))
    assert not rates_of(system).detach().any()
    assert isinstance(system.method, MetaSGD)


def moved(system: System) -> set[str]:
    now, start = values(system, "task"), values(system, "shared")
    return {name for name in now if not torch.equal(now[name], start[name])}


def test_anil_moves_the_layers_it_names_and_hands_all_gradients_on() -> None:
    system, plain = system_of("anil", **FAST), system_of("fomaml", **FAST)
    for each in (system, plain):
        scramble(each)
        steps(each)
    assert moved(system) == {name for name in moved(plain) if ".v_proj." in name}
    plain.method.adapters.load_state_dict("task", values(system, "task"))
    found = []
    for each in (system, plain):
        each.method.outer_gradient(each.batcher(questions(4, start=8)), key_of(*PLACE, 2))
        found.append([p.grad for p in each.method.adapters.parameters("shared")])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_anil_of_all_layers_is_first_order_maml_bit_for_bit(tmp_path: Path) -> None:
    fomaml, _ = train(run_config("fomaml", **FAST), tmp_path / "fomaml")
    anil, _ = train(run_config("anil", task_modules=("q_proj", "v_proj"), **FAST), tmp_path / "anil")
    assert same(values(fomaml, "shared"), values(anil, "shared"))


def test_a_module_that_is_not_adapted_is_refused_by_name() -> None:
    with pytest.raises(AbmllError, match=r"k_proj. matches no adapted layer; they are called q_proj, v_proj"):
        system_of("anil", task_modules=("k_proj",))
