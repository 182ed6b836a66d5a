"""What each method's steps compute, held against dense float64 autograd and `torch.distributions`."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll.methods import resolve_settings
from abmll.methods.base import Group
from abmll.systems.build import build_system
from abmll.systems.plans import resolve
from abmll.systems.system import System
from abmll.training.checkpoints import RunDirectory
from abmll.training.inner import NonFiniteError, inner_steps
from abmll.training.optimizers import GroupOptimizer, schedule_factor
from tests.dense import relative_error
from tests.oracle import draw_key, leaves, slow_gradients, slow_kl, slow_nll, slow_prior
from tests.systems import (
    TASKS,
    gradients,
    key_of,
    largest_difference,
    questions,
    run_config,
    same,
    scramble,
    system_of,
    tiny_base,
    train,
    values,
)

PLACE = (5, 3, 1, 2)
KEY = key_of(*PLACE)
FRIENDLY: dict[str, Any] = {
    "outer_step": "identity",
    "std_start": "copy",
    "training_sampler": "weight",
    "task_kl_weight": 0.7,
    "mean_prior_weight": 0.2,
    "precision_prior_weight": 0.01,
    "mean_prior_variance": 1e-4,
    "precision_prior_shape": 2.0,
    "precision_prior_rate": 0.5,
    "std_init": 0.05,
    "std_floor": 1e-3,
}
"""Settings under which each term of ABMLL is some of the gradient that a tolerance sees, as means over entries.

Of the largest entry of the outer gradient the NLL is 9 %, the KL 99 % and the Gaussian prior 8 % for the means; for the
stds the NLL is 0.2 %, the KL 70 % and the Gamma prior 95 %.
"""

WEIGHTS = ("task_kl_weight", "mean_prior_weight", "precision_prior_weight")
SHARES = {"mean": 1.0, "sum": 1e-4}
"""Of these weights: sums over 3,072 entries would hide the NLL, which is a mean in either case."""

FLOAT32 = 3e-4
"""The library's forward is float32 and the oracle's float64: differences relative to the largest entry stay below."""


def friendly(**settings: Any) -> System:
    """An ABMLL system with random theta and phi that differ."""
    system = system_of("abmll", **{**FRIENDLY, **settings})
    scramble(system, size=0.1)
    return system


def assert_close(ours: dict[str, Tensor | None], theirs: dict[str, Tensor], tolerance: float = FLOAT32) -> None:
    """Every gradient equals its oracle; one that is missing counts as zero."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        found = torch.zeros_like(expected) if ours[name] is None else ours[name]
        if bool(expected.abs().max() == 0):
            assert float(found.abs().max()) < 1e-9, name
        else:
            assert relative_error(found, expected) < tolerance, name


# -------------------- the noise of training


@pytest.mark.parametrize(("step", "samples"), [("identity", 3), ("displacement", 1)])
def test_the_noise_of_training_is_named_by_seed_iteration_position_step_and_sample(
    step: str, samples: int, tmp_path: Path
) -> None:
    settings = {"outer_step": step, "training_samples": samples, "inner_steps": 2}
    config = run_config("abmll", training={"iterations": 2, "meta_batch": 2, "seed": 5}, **settings)
    system = build_system(config, tiny_base())
    inner, drawn = [], []
    loss, drawing = system.method.inner_loss, system.method.adapters.drawing

    def losing(batch: Any, key: Tensor) -> Any:
        inner.append(int(key))
        return loss(batch, key)

    def draw(sampler: Any, keys: Tensor, *more: Any) -> Any:
        drawn.extend(keys.tolist())
        return drawing(sampler, keys, *more)

    system.method.inner_loss, system.method.adapters.drawing = losing, draw
    train(config, tmp_path, system=system)
    steps = 2 if step == "identity" else 3  # what is no query batch is one more inner step
    places = [(5, iteration, task, n) for iteration in range(2) for task in range(2) for n in range(steps)]
    assert inner == [int(key_of(*place)) for place in places]
    assert len(drawn) == 12 * samples, "three batches for each of four tasks"
    assert len(set(drawn)) == len(drawn), "no two passes share their noise"


# -------------------- reptile, structured, lora


def test_reptile_with_whole_steps_equals_structured(tmp_path: Path) -> None:
    same_rates = {"inner_lr": 1e-3, "outer_schedule": "constant"}
    fresh = run_config("structured", inner_optimizer_state="fresh", **same_rates)
    structured, _ = train(fresh, tmp_path / "structured")
    reptile, _ = train(run_config("reptile", outer_lr=1.0, **same_rates), tmp_path / "reptile")
    halved, _ = train(run_config("reptile", outer_lr=0.5, **same_rates), tmp_path / "halved")
    assert same(values(structured, "shared"), values(reptile, "shared"))
    assert not same(values(structured, "shared"), values(halved, "shared"))


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("linear", (1.0, 0.75, 0.5, 0.25)), ("constant", (1.0, 1.0, 1.0, 1.0))],
)
def test_reptile_moves_a_and_b_apart_by_an_annealed_part(
    schedule: str, shares: tuple[float, ...], tmp_path: Path
) -> None:
    config = run_config("reptile", outer_lr=0.5, outer_schedule=schedule, training={"iterations": 4})
    system = system_of("reptile", outer_lr=0.5, outer_schedule=schedule)
    seen = [values(system, "shared")]
    moves = []

    def watch(event: dict[str, Any]) -> None:
        moves.append((values(system, "shared"), values(system, "task")))

    train(config, tmp_path, system=system, listener=watch)
    for (theta, phi), share in zip(moves, shares, strict=True):
        expected = {n: before + 0.5 * share * (phi[n] - before) for n, before in seen[-1].items()}
        assert largest_difference(theta, expected) < 1e-7
        assert any("mean_a" in n and not torch.equal(theta[n], seen[-1][n]) for n in theta)
        seen.append(theta)


def test_reptile_anneals_to_nothing_unless_told_otherwise(tmp_path: Path) -> None:
    """Nichol et al. 2018, section 4: the step size falls linearly to 0 over meta-training."""
    moves = []
    system = system_of("reptile")
    before = values(system, "shared")

    def watch(event: dict[str, Any]) -> None:
        moves.append((values(system, "shared"), values(system, "task")))

    train(run_config("reptile", training={"iterations": 4}), tmp_path, system=system, listener=watch)
    for (theta, phi), share in zip(moves, (1.0, 0.75, 0.5, 0.25), strict=True):
        expected = {n: old + 0.22 * share * (phi[n] - old) for n, old in before.items()}
        assert largest_difference(theta, expected) < 1e-7
        before = theta


FRESH = {"inner_optimizer_state": "fresh"}


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [("lora", {}, {18.0}), ("structured", {}, {18.0}), ("structured", FRESH, set()), ("reptile", {}, set())],
)
def test_moments_go_on_from_task_to_task_in_lora_and_structured(
    name: str, settings: dict[str, Any], steps: set[float], tmp_path: Path
) -> None:
    _, final = train(run_config(name, **settings), tmp_path)  # 3 iterations of 6 steps
    saved = RunDirectory(tmp_path).load(final).optimizer
    assert {float(t) for n, t in saved.items() if n.startswith("inner.") and n.endswith(".step")} == steps


@pytest.mark.parametrize("meta_batch", [1, 2])
def test_structured_is_default_lora_on_structured_data(meta_batch: int, tmp_path: Path) -> None:
    training = {"iterations": 4, "meta_batch": meta_batch}
    structured, _ = train(run_config("structured", training=training), tmp_path / "structured")
    lora, _ = train(run_config("lora", episodes="by_task", training=training), tmp_path / "lora")
    fresh, _ = train(run_config("structured", **FRESH, training=training), tmp_path / "fresh")
    assert same(values(structured, "shared"), values(lora, "shared"))
    assert not same(values(structured, "shared"), values(fresh, "shared"))


def test_structured_is_one_adamw_over_all_batches_in_order(tmp_path: Path) -> None:
    """Against torch's own optimizer, which is told nothing of tasks."""
    config = run_config("structured", training={"iterations": 3})
    trained, _ = train(config, tmp_path)
    system = system_of("structured")
    parameters = system.method.adapters.parameters("task", "mean")
    optimizer = torch.optim.AdamW(parameters, lr=resolve_settings("structured").inner_lr, weight_decay=0.0)
    system.method.begin_task()
    for iteration in range(3):
        for batch in resolve(config).episodes_of(TASKS).draw(iteration).batches:
            optimizer.zero_grad()
            system.likelihood.nll(system.batcher.batch(batch)).backward()
            optimizer.step()
    expected = values(system, "task")
    start = values(system_of("structured"), "shared")
    assert largest_difference(values(trained, "shared"), expected) < 1e-4 * largest_difference(start, expected)


def test_fresh_moments_restart_for_each_task() -> None:
    system = system_of("structured", **FRESH)
    optimizer = GroupOptimizer(system.method.task())
    ends = []
    for _ in range(2):
        system.method.begin_task()
        optimizer.restart()
        inner_steps(system.method, optimizer, system.batcher, [questions(2), questions(2, start=2)], (0, 0, 0))
        ends.append(values(system, "task"))
    assert same(*ends)


def test_lora_gets_as_many_examples_as_the_others() -> None:
    sizes = {}
    for name in ("lora", "structured", "reptile", "fomaml", "abmll"):
        episodes = resolve(run_config(name)).episodes_of(TASKS)
        sizes[name] = (episodes.examples, [len(b) for b in episodes.draw(0).batches])
    assert set(map(str, sizes.values())) == {"(12, [2, 2, 2, 2, 2, 2])"}


def test_systems_by_task_see_the_same_batches_and_lora_mixed_ones() -> None:
    episodes = {
        name: resolve(run_config(name)).episodes_of(TASKS) for name in ("lora", "structured", "reptile", "abmll")
    }
    drawn = {name: [each.draw(i).batches for i in range(5)] for name, each in episodes.items()}
    assert drawn["structured"] == drawn["reptile"] == drawn["abmll"] != drawn["lora"]
    assert all(len({q.id.split("-")[0] for b in batches for q in b}) == 1 for batches in drawn["abmll"])
    assert any(len({q.id.split("-")[0] for b in batches for q in b}) > 1 for batches in drawn["lora"])


@pytest.mark.parametrize(
    ("name", "settings", "batches", "queries"),
    [
        ("lora", {}, 6, 0),
        ("structured", {}, 6, 0),
        ("reptile", {}, 6, 0),
        ("fomaml", {}, 5, 1),
        ("abmll", {"outer_step": "identity"}, 5, 1),
        ("abmll", {"outer_step": "detach"}, 6, 0),
        ("abmll", {"outer_step": "displacement"}, 6, 0),
    ],
)
def test_a_system_without_a_query_batch_takes_it_as_a_sixth_inner_step(
    name: str, settings: dict[str, Any], batches: int, queries: int, tmp_path: Path
) -> None:
    system = system_of(name, **settings)
    steps: list[int] = []
    asked: list[int] = []
    inner_loss, outer_gradient = system.method.inner_loss, system.method.outer_gradient
    started = [False]

    def count_step(batch: Any, key: Any) -> Any:
        if not started[0]:
            steps.append(int(key))
        return inner_loss(batch, key)

    def count_query(query: Any, key: Any) -> Any:
        started[0] = True
        asked.append(len(query))
        return outer_gradient(query, key)

    system.method.inner_loss, system.method.outer_gradient = count_step, count_query  # type: ignore[method-assign]
    train(run_config(name, training={"iterations": 1}, **settings), tmp_path, system=system)
    assert steps == [int(key_of(0, 0, 0, step)) for step in range(batches)]
    assert asked == [queries]


# -------------------- outer gradients against dense autograd


def test_fomaml_takes_the_query_gradient_at_phi() -> None:
    system = system_of("fomaml")
    scramble(system, size=0.1)
    phi = leaves(system, "task")
    nll = slow_nll(system, phi, questions(3))
    terms = system.method.outer_gradient(system.batcher(questions(3)), KEY)
    assert abs(float(terms.nll - nll.detach())) < 1e-5
    assert_close(gradients(system, "shared"), slow_gradients(nll, phi))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("std_form", ["square", "log_std"])
def test_inner_loss_of_abmll_is_nll_plus_weighted_kl(reduction: str, std_form: str) -> None:
    beta = SHARES[reduction] * FRIENDLY["task_kl_weight"]
    system = friendly(reduction=reduction, std_form=std_form, task_kl_weight=beta)
    phi, theta = leaves(system, "task"), leaves(system, "shared")
    nll = slow_nll(system, phi, questions(2), draw_key(PLACE))
    kl = slow_kl(system, phi, theta) / (system.method.adapters.entries if reduction == "mean" else 1)
    terms = system.method.inner_loss(system.batcher(questions(2))[0], KEY)
    terms.backward()
    for ours, theirs in ((terms.total, nll + beta * kl), (terms.nll, nll), (terms.task_kl, kl)):
        assert relative_error(ours, theirs) < 5e-5  # 1.2e-5 with ten times the rounding
    assert_close(gradients(system, "task"), slow_gradients(nll + beta * kl, phi))
    assert all(gradient is None for gradient in gradients(system, "shared").values())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_identity_adds_the_gradients_at_phi_to_those_of_kl_and_prior_at_theta(reduction: str) -> None:
    beta, gaussian, gamma = (SHARES[reduction] * FRIENDLY[name] for name in WEIGHTS)
    system = friendly(reduction=reduction, **dict(zip(WEIGHTS, (beta, gaussian, gamma), strict=True)))
    phi, theta = leaves(system, "task"), leaves(system, "shared")
    count = system.method.adapters.entries if reduction == "mean" else 1
    nll = slow_nll(system, phi, questions(2), draw_key(PLACE))
    kl, prior = slow_kl(system, phi, theta) / count, slow_prior(system, theta, gaussian, gamma) / count
    at_phi, at_theta = slow_gradients(nll + beta * kl, phi), slow_gradients(beta * kl + prior, theta)
    system.method.outer_gradient(system.batcher(questions(2)), KEY)
    assert_close(gradients(system, "shared"), {name: at_phi[name] + at_theta[name] for name in at_phi})


def test_identity_without_nll_leaves_the_means_only_the_mismatch_of_factors() -> None:
    """docs/method.md, section 2: with G = dKL / dmean_phi, theta's B takes s G (A_phi - A_theta)^T, and A s dB^T G."""
    weights = {"mean_prior_weight": 0.0, "precision_prior_weight": 0.0}
    system = friendly(**weights, reduction="sum", task_kl_weight=1.0)
    nll = system.method.nll
    system.method.nll = lambda batch: 0.0 * nll(batch)
    system.method.outer_gradient(system.batcher(questions(2)), KEY)
    found = gradients(system, "shared")
    for path, layer in system.method.adapters.layers.items():
        s, phi, theta = layer.task.variance.scale, layer.task, layer.shared
        pull = (phi.dense_mean() - theta.dense_mean()) / theta.dense_std().square()
        by_b = s * pull @ (phi.mean_a - theta.mean_a).T
        by_a = s * (phi.mean_b - theta.mean_b).T @ pull
        assert relative_error(found[f"{path}.mean_b"], by_b) < 1e-4  # G itself is made in float32 here
        assert relative_error(found[f"{path}.mean_a"], by_a) < 1e-4


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_detach_takes_kl_and_prior_alone(reduction: str) -> None:
    system = friendly(outer_step="detach", reduction=reduction)
    phi, theta = leaves(system, "task"), leaves(system, "shared")
    count = system.method.adapters.entries if reduction == "mean" else 1
    wanted = (0.7 * slow_kl(system, phi, theta) + slow_prior(system, theta, 0.2, 0.01)) / count
    system.method.outer_gradient([], KEY)
    assert_close(gradients(system, "shared"), slow_gradients(wanted, theta))


def test_displacement_moves_the_means_towards_phi_and_the_stds_by_one_adamw_step() -> None:
    settings = {"outer_step": "displacement", "outer_optimizer": "sgd", "outer_lr": 0.25, "outer_std_lr": 0.01}
    system = friendly(**settings)
    theta, phi = values(system, "shared"), values(system, "task")
    dense = leaves(system, "shared")
    loss = 0.7 * slow_kl(system, leaves(system, "task"), dense) + slow_prior(system, dense, 0.2, 0.01)
    by_hand = slow_gradients(loss / system.method.adapters.entries, dense)
    optimizer = GroupOptimizer(system.method.shared())
    system.method.outer_gradient([], KEY)
    optimizer.step()
    for name, moved in values(system, "shared").items():
        if ".mean_" in name:
            assert torch.allclose(moved, theta[name] + 0.25 * (phi[name] - theta[name]), rtol=0, atol=1e-7), name
            continue
        expected = theta[name].clone().requires_grad_()
        rule = torch.optim.AdamW([expected], lr=0.01, weight_decay=0.0)
        expected.grad = by_hand[name].float()
        rule.step()
        assert torch.allclose(moved, expected.detach(), rtol=0, atol=1e-5), name  # a step is 1e-2: 0.1 % of it


def test_prior_enters_once_per_outer_step_whatever_the_meta_batch(tmp_path: Path) -> None:
    settings = {"outer_step": "detach", "task_kl_weight": 0.0, "mean_prior_weight": 1.0, "precision_prior_weight": 1.0}
    settings |= {"outer_optimizer": "sgd", "outer_lr": 1e-9, "inner_steps": 1, "std_init": 0.1}
    ends = []
    for size in (1, 2, 3):
        config = run_config("abmll", **settings, training={"iterations": 1, "meta_batch": size})
        system = system_of("abmll", **settings)
        scramble(system, size=0.1)
        before = values(system, "shared")
        train(config, tmp_path / str(size), system=system)
        ends.append({n: t for n, t in values(system, "shared").items() if ".mean_" in n})  # AdamW hides a factor
    moved = largest_difference(ends[0], {n: before[n] for n in ends[0]})
    assert moved > 1e-5
    assert largest_difference(ends[0], ends[1]) < 0.01 * moved
    assert largest_difference(ends[0], ends[2]) < 0.01 * moved


def test_sums_agree_with_means_under_rescaled_weights() -> None:
    found = []
    for reduction in ("mean", "sum"):
        system = friendly(reduction=reduction)
        n = system.method.adapters.entries if reduction == "sum" else 1
        system = friendly(reduction=reduction, **{name: FRIENDLY[name] / n for name in WEIGHTS})
        terms = system.method.outer_gradient(system.batcher(questions(2)), KEY)
        found.append((terms.total, gradients(system, "shared")))
    assert relative_error(found[0][0], found[1][0]) < 1e-6
    assert_close(found[1][1], found[0][1], 1e-5)


# -------------------- stds


def test_frozen_stds_do_not_move_and_collect_no_gradient(tmp_path: Path) -> None:
    system = system_of("abmll", train_stds=False)
    before = values(system, "shared")
    train(run_config("abmll", train_stds=False), tmp_path, system=system)
    for slot in ("shared", "task"):
        stds = {n: t for n, t in values(system, slot).items() if ".std_" in n}
        assert stds
        assert same(stds, {n: before[n] for n in stds})
        assert all(g is None for n, g in gradients(system, slot).items() if ".std_" in n)


@pytest.mark.parametrize("std_form", ["square", "log_std"])
def test_no_std_goes_below_the_floor(std_form: str) -> None:
    system = friendly(std_form=std_form, std_floor=1e-3)
    for layer in system.method.adapters.layers.values():
        with torch.no_grad():
            layer.task.std_a.fill_(1.0)
            layer.task.std_b.fill_(-0.05 / (3 * layer.task.variance.scale))  # s B' A' = -f: r = 0
            if std_form == "log_std":
                layer.task.std_b.mul_(1e4)
        assert torch.allclose(layer.task.dense_std(), torch.tensor(1e-3), rtol=1e-4)
    statistics = system.method.adapters.std_statistics()
    assert statistics["task"]["share_at_floor"] == 1.0
    assert statistics["shared"]["share_at_floor"] < 0.1


@pytest.mark.parametrize(("wide", "moves"), [(True, True), (False, False)])
def test_moments_of_huge_gradients_need_float64(wide: bool, moves: bool) -> None:
    parameter = torch.nn.Parameter(torch.full((4,), 1e-3))
    optimizer = GroupOptimizer([Group("std", [parameter], "adamw", 1e-5, wide)])
    for _ in range(3):
        parameter.grad = torch.full((4,), 1e22)  # its square, times 1 - .999, is beyond float32's 3e38
        optimizer.step()
    moments = optimizer.state_dict()["std.0.exp_avg_sq"]
    assert bool(moments.isfinite().all()) == moves
    assert (float((parameter.detach() - 1e-3).abs().min()) > 1e-5) == moves


@pytest.mark.parametrize(("state", "moves"), [("float64", True), ("float32", False)])
def test_paper_preset_moves_its_stds_because_their_state_is_float64(state: str, moves: bool, tmp_path: Path) -> None:
    """The prior's weight is 1e4 times the preset's: a sum over the wider layers of a real model is as much larger."""
    settings = {"std_state": state, "inner_steps": 1, "precision_prior_weight": 1e-2}
    system = system_of("abmll", "paper", **settings)
    before = values(system, "shared")
    _, final = train(run_config("abmll", "paper", **settings), tmp_path, system=system)
    saved = RunDirectory(tmp_path).load(final).optimizer
    moments = [t for n, t in saved.items() if n.startswith("outer.std.0.") and n.endswith("exp_avg_sq")]
    assert {t.dtype for t in moments} == {getattr(torch, state)}
    assert all(bool(t.isfinite().all()) for t in moments) == moves
    after = values(system, "shared")
    assert all(not torch.equal(after[n], before[n]) for n in before if ".std_b" in n) == moves


def test_paper_preset_stores_wide_state() -> None:
    assert [g.float64_state for g in system_of("abmll", "paper").method.shared()] == [False, True]
    assert [g.float64_state for g in system_of("abmll").method.shared()] == [False, False]


# -------------------- micro-batches, schedules


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("structured", {}),
        ("fomaml", {}),
        ("abmll", {"training_sampler": "mean"}),
        ("abmll", {"training_sampler": "activation", "std_init": 0.05}),
        ("abmll", {"training_sampler": "weight", "std_init": 0.05}),
        ("abmll", {"kl_entries": 0.3, "std_init": 0.05}),
    ],
)
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_add_up_to_the_whole(name: str, settings: dict[str, Any], micro_batch: int) -> None:
    found = []
    for size in (None, micro_batch):
        system = system_of(name, **settings, training={"micro_batch": size})
        scramble(system, size=0.05)
        batches = system.batcher(questions(4))
        assert len(batches) == (1 if size is None else math.ceil(4 / size))
        with_loss = _accumulate(system)
        with_loss |= {f"outer {k}": v for k, v in _outer(system).items()}
        found.append(with_loss)
    scale = max(float(t.abs().max()) for t in found[0].values())
    assert largest_difference(found[0], found[1]) < 1e-5 * max(1.0, scale)


def _accumulate(system: System) -> dict[str, Tensor]:
    """phi's gradients of one inner step on four questions, by a step of plain SGD with rate 1."""
    before = values(system, "task")
    groups = [Group("all", system.method.adapters.parameters("task"), "sgd", 1.0)]
    terms = inner_steps(system.method, GroupOptimizer(groups), system.batcher, [questions(4)], PLACE[:3])
    moved = {name: before[name] - tensor for name, tensor in values(system, "task").items()}
    GroupOptimizer(groups).zero_grad()
    with torch.no_grad():
        for parameter, old in zip(groups[0].parameters, before.values(), strict=True):
            parameter.copy_(old)
    return {**moved, "loss": terms[0].total}


def _outer(system: System) -> dict[str, Tensor]:
    query = system.batcher(questions(4)) if system.method.uses_query else []
    system.method.outer_gradient(query, KEY)
    return {name: gradient for name, gradient in gradients(system, "shared").items() if gradient is not None}


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", 0, [1.0, 1.0, 1.0, 1.0]),
        ("constant", 2, [0.5, 1.0, 1.0, 1.0]),
        ("linear", 0, [1.0, 0.75, 0.5, 0.25]),
        ("linear", 2, [0.5, 1.0, 1.0, 0.5]),
        ("cosine", 0, [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
        ("cosine", 9, [1 / 9, 2 / 9, 3 / 9, 4 / 9]),
    ],
)
def test_schedules(schedule: str, warmup: int, factors: list[float]) -> None:
    assert [schedule_factor(schedule, i, 4, warmup) for i in range(4)] == pytest.approx(factors)


def test_inner_schedule_scales_the_inner_rate(tmp_path: Path) -> None:
    one = {"training": {"iterations": 1}}
    warm, _ = train(run_config("structured", warmup=2, **one), tmp_path / "warm")
    half, _ = train(run_config("structured", inner_lr=1.5e-4, **one), tmp_path / "half")
    # warm-up halves the outer rate as well, which for structured is a step of 1
    start = values(system_of("structured"), "shared")
    moved = [{n: t - start[n] for n, t in values(system, "shared").items()} for system in (warm, half)]
    assert all(torch.allclose(2 * moved[0][n], moved[1][n], rtol=0, atol=1e-7) for n in start)
    assert max(float(t.abs().max()) for t in moved[1].values()) > 1e-4


# -------------------- non-finite numbers


def _poison(system: System, kind: str) -> Tensor:
    """Something to add to a loss: NaN, infinity, or a zero whose gradient is NaN."""
    if kind == "gradient":
        return (0.0 * system.method.adapters.parameters("task", "mean")[0].sum()).sqrt()
    return torch.tensor(float(kind))


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("name", ["structured", "abmll"])
def test_trust_19_inner_step_stops_before_a_nonfinite_update(name: str, kind: str) -> None:
    system = system_of(name)
    scramble(system, size=0.01)
    theta, phi = values(system, "shared"), values(system, "task")
    nll = system.method.nll
    system.method.nll = lambda batch: nll(batch) + _poison(system, kind)
    optimizer = GroupOptimizer(system.method.task())
    with pytest.raises(NonFiniteError, match=rf"inner step 0.*{questions(1)[0].id}"):
        inner_steps(system.method, optimizer, system.batcher, [questions(2)], (0, 0, 0))
    assert same(values(system, "shared"), theta)
    assert same(values(system, "task"), phi)
    assert not optimizer.state_dict() or all(bool((t == 0).all()) for t in optimizer.state_dict().values())


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
@pytest.mark.parametrize(("name", "settings"), [("fomaml", {}), ("abmll", {"outer_step": "identity"})])
@pytest.mark.parametrize("meta_batch", [1, 2])
def test_trust_19_outer_step_stops_before_a_nonfinite_update(
    name: str, settings: dict[str, Any], kind: str, meta_batch: int, tmp_path: Path
) -> None:
    system = system_of(name, **settings)
    theta = values(system, "shared")
    nll, calls = system.method.nll, []

    def poisoned(batch: Any) -> Tensor:
        calls.append(1)
        return nll(batch) + (_poison(system, kind) if len(calls) == 6 * meta_batch else 0.0)  # the last query batch

    system.method.nll = poisoned
    config = run_config(name, training={"meta_batch": meta_batch}, **settings)
    with pytest.raises(NonFiniteError, match="outer step 0, task tiny"):
        train(config, tmp_path, system=system)
    assert len(calls) == 6 * meta_batch
    assert same(values(system, "shared"), theta)
    assert RunDirectory(tmp_path).steps() == [0]


def test_trust_19_no_checkpoint_holds_a_nonfinite_value(tmp_path: Path) -> None:
    system = system_of("structured")
    nll, calls = system.method.nll, []

    def poisoned(batch: Any) -> Tensor:
        calls.append(1)
        return nll(batch) * (float("nan") if len(calls) == 15 else 1.0)  # in the third iteration

    system.method.nll = poisoned
    with pytest.raises(NonFiniteError):
        train(run_config("structured", training={"checkpoint_every": 1}), tmp_path, system=system)
    run = RunDirectory(tmp_path)
    assert run.steps() == [0, 1, 2]
    kept = [run.load(step) for step in run.steps()]
    assert all(bool(t.isfinite().all()) for one in kept for t in (*one.shared.values(), *one.optimizer.values()))


# -------------------- learned temperature


@pytest.mark.parametrize("name", ["pretrained", "structured", "fomaml", "abmll"])
def test_temperature_takes_the_gradient_of_one_batch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the query batch, or of the last inner one where there is none: never of the support's sum."""
    learned = {"likelihood": {"learn_temperature": True}, "training": {"iterations": 1}, "inner_steps": 2}
    system = system_of(name, **learned)
    losses: list[Tensor] = []
    nll = system.method.nll

    def keep(batch: Any) -> Tensor:
        losses.append(nll(batch))
        return losses[-1]

    system.method.nll = keep
    temperature = system.likelihood.log_temperature
    taken: list[float] = []
    step = GroupOptimizer.step

    def watch(optimizer: GroupOptimizer, skip: Tensor | None = None) -> None:
        if any(parameter is temperature for parameter in optimizer.parameters):
            taken.append(float(temperature.grad))
        step(optimizer, skip)

    def expected_nll(batch: Any) -> Tensor:
        value = keep(batch)
        per_batch.append(float(torch.autograd.grad(value, temperature, retain_graph=True)[0]))
        return value

    per_batch: list[float] = []
    system.method.nll = expected_nll
    monkeypatch.setattr(GroupOptimizer, "step", watch)
    train(run_config(name, **learned), tmp_path, system=system)
    assert len(per_batch) == 3
    assert taken == pytest.approx([per_batch[-1]])
    assert abs(sum(per_batch) - per_batch[-1]) > 1e-3


def test_displacement_takes_reptiles_rule_unless_told_otherwise() -> None:
    assert resolve_settings("abmll", given={"outer_step": "displacement"}).outer_optimizer == "sgd"
    told = resolve_settings("abmll", given={"outer_step": "displacement", "outer_optimizer": "adamw"})
    assert told.outer_optimizer == "adamw"
    assert resolve_settings("abmll", given={"outer_step": "identity"}).outer_optimizer == "adamw"
