"""All adapted layers together: what crosses between task and shared, the KL of a part of the entries, the state."""

import hashlib
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from abmll.adapters.attach import StdOptions, attach
from abmll.adapters.base_weights import dense_weight, is_quantised, sample_base
from abmll.adapters.facts import digest
from abmll.adapters.gaussian import LowRankGaussian
from abmll.adapters.layer import AdaptedLinear, AdapterSet
from abmll.kernels.eager import layer_precision_penalty
from abmll.kernels.noise import kept, key_tensor, noise_key
from tests.adapters import SLOTS, move
from tests.dense import dense_kl, dense_mean, relative_error
from tests.tiny import tiny_gpt2, tiny_model

# -------------------- between task and shared


def slots_equal(adapters: AdapterSet, part: str | None = None) -> bool:
    pairs = zip(adapters.parameters("shared", part), adapters.parameters("task", part), strict=True)
    return all(torch.equal(shared, task) for shared, task in pairs)


@pytest.mark.parametrize("std_start", ["copy", "init"])
def test_begin_task_copies_the_means_and_copies_or_restarts_the_stds(std_start):
    adapters, fresh = (attach(tiny_model(), seed=2) for _ in range(2))
    move(adapters, "shared")
    move(adapters, "task", seed=1)
    theta = [p.detach().clone() for p in adapters.parameters("shared")]
    adapters.begin_task(std_start)
    assert slots_equal(adapters, "mean")
    assert slots_equal(adapters, "std") == (std_start == "copy")
    if std_start == "init":
        restarted, initial = adapters.parameters("task", "std"), fresh.parameters("task", "std")
        assert all(torch.equal(one, other) for one, other in zip(restarted, initial, strict=True))
    assert all(torch.equal(p, before) for p, before in zip(adapters.parameters("shared"), theta, strict=True))
    move(adapters, "task")
    assert all(torch.equal(p, before) for p, before in zip(adapters.parameters("shared"), theta, strict=True))


def test_begin_task_works_without_stds():
    adapters = attach(tiny_model(), std=None)
    move(adapters, "shared")
    adapters.begin_task("init")
    assert slots_equal(adapters)


def test_kl_is_zero_with_zero_gradients_at_the_start_of_a_task_with_copied_stds():
    adapters = attach(tiny_model())
    move(adapters, "shared")
    adapters.begin_task("copy")
    kl = adapters.kl()
    kl.backward()
    assert float(kl.detach()) == 0.0
    assert all(int(p.grad.count_nonzero()) == 0 for slot in SLOTS for p in adapters.parameters(slot))


def moved_set(size: float = 0.02, **options) -> AdapterSet:
    """All linear layers of the tiny model, phi and theta a little apart, stds of order 0.3."""
    adapters = attach(tiny_model(), "all-linear", std=StdOptions(init=0.3), **options)
    move(adapters, "shared", size)
    move(adapters, "task", size, seed=1)
    return adapters


def test_kl_and_penalties_are_sums_over_layers():
    adapters = moved_set()
    layers = adapters.layers.values()
    expected = sum(dense_kl(x.task.factors(), x.shared.factors(), x.task.variance) for x in layers)
    assert relative_error(adapters.kl(), expected) < 1e-5
    stds = [(x.shared.std_b, x.shared.std_a, x.shared.variance) for x in layers]
    penalties = torch.stack([layer_precision_penalty(*each, 1.0, 0.01) for each in stds])
    assert relative_error(adapters.precision_penalty(1.0, 0.01), penalties.sum()) < 1e-12
    expected = torch.stack([x.shared.mean_penalty(2.06e-9) for x in layers]).sum()
    assert relative_error(adapters.mean_penalty(2.06e-9), expected) < 1e-12
    assert adapters.entries == sum(x.base.weight.numel() for x in layers)


@pytest.mark.parametrize(("detach", "task_moves", "shared_moves"), [("task", 0, 1), ("shared", 1, 0), (None, 1, 1)])
def test_kl_gives_no_gradient_to_the_detached_side(detach, task_moves, shared_moves):
    adapters = moved_set()
    adapters.kl(detach=detach).backward()
    assert all((p.grad is not None) == task_moves for p in adapters.parameters("task"))
    assert all((p.grad is not None) == shared_moves for p in adapters.parameters("shared"))


@pytest.mark.parametrize("stride", [16, 3])
@pytest.mark.parametrize("rows", [(32, 16), (13, 33)], ids=["rows that divide", "rows that do not"])
def test_kl_of_a_part_of_the_entries_is_unbiased(rows, stride):
    model = nn.Sequential(nn.Linear(9, rows[0]), nn.Linear(rows[0], rows[1])).requires_grad_(False)
    adapters = attach(model, ("0", "1"), std=StdOptions(init=0.3))
    move(adapters, "shared", 0.02)
    move(adapters, "task", 0.02, seed=1)
    whole = float(adapters.kl().detach())
    with torch.no_grad():
        estimates = [adapters.kl(stride=stride, key=key_tensor(noise_key("entries", i))[0]) for i in range(500)]
    estimates = torch.stack(estimates)
    standard_error = float(estimates.std()) / len(estimates) ** 0.5
    assert 0 < standard_error < 0.05 * whole
    assert abs(float(estimates.mean()) - whole) < 4 * standard_error


def test_kl_of_a_sixteenth_visits_a_sixteenth_and_repeats_by_key():
    adapters = moved_set()
    keys = key_tensor(3, 4)
    adapters.kl(stride=16, key=keys[0]).backward()
    layer = adapters.layers["model.layers.0.mlp.up_proj"]  # 64 rows, so 4 of them
    visited = layer.task.mean_b.grad.any(dim=1).nonzero().flatten().tolist()
    assert visited == list(range(visited[0], 64, 16))
    assert visited[0] < 16
    same, other = (float(adapters.kl(stride=16, key=key).detach()) for key in keys)
    assert same == float(adapters.kl(stride=16, key=keys[0]).detach()) != other
    assert float(adapters.kl(stride=1, key=keys[0]).detach()) == float(adapters.kl().detach())


def test_row_subsets_start_at_every_row_as_often_and_at_another_in_each_layer():
    starts = [[], []]
    adapters = attach(tiny_model(layers=2), ("q_proj",), std=StdOptions(init=0.3))
    move(adapters, "task", 0.02)
    for key in key_tensor(*range(400)):
        adapters.kl(stride=8, key=key).backward()
        for layer, found in zip(adapters.layers.values(), starts, strict=True):
            found.append(int(layer.task.mean_b.grad.any(dim=1).nonzero()[0]))
            layer.zero_grad()
    counts = torch.stack([torch.tensor(found).bincount(minlength=8) for found in starts])
    assert counts.shape == (2, 8)
    assert float(((counts - 50) ** 2 / 50).sum(1).max()) < 24.3  # chi-square, 7 degrees of freedom: 1 in 1000
    assert 20 < sum(one == other for one, other in zip(*starts, strict=True)) < 85  # 50 if they are independent


def test_gradient_of_the_kl_of_a_sixteenth_is_unbiased():
    adapters = attach(tiny_model(layers=1), ("q_proj",), std=StdOptions(init=0.3))
    move(adapters, "shared", 0.02)
    move(adapters, "task", 0.02, seed=1)
    (layer,) = adapters.layers.values()
    (whole,) = torch.autograd.grad(adapters.kl(), layer.task.mean_a)
    estimates = torch.stack(
        [torch.autograd.grad(adapters.kl(stride=16, key=key), layer.task.mean_a)[0] for key in key_tensor(*range(400))]
    )
    standard_error = estimates.std(0) / 400**0.5
    assert ((estimates.mean(0) - whole).abs() < 4.5 * standard_error).all()  # 256 comparisons at once


def test_mean_squared_distance_equals_the_dense_mean():
    adapters = moved_set()
    squares = [
        (dense_mean(x.task.factors(), x.task.variance) - dense_mean(x.shared.factors(), x.task.variance)).square().sum()
        for x in adapters.layers.values()
    ]
    assert float(adapters.mean_squared_distance()) == pytest.approx(
        float(torch.stack(squares).detach().sum()) / adapters.entries, rel=1e-5
    )


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_displacement_is_reptile_s_direction_for_a_and_b_apart(rate):
    adapters = moved_set()
    theta, phi = ([p.detach().clone() for p in adapters.parameters(slot)] for slot in SLOTS)
    adapters.add_displacement()
    torch.optim.SGD(adapters.parameters("shared"), lr=rate).step()
    for now, before, task in zip(adapters.parameters("shared"), theta, phi, strict=True):
        torch.testing.assert_close(now.detach(), before + rate * (task - before), rtol=1e-6, atol=1e-7)
    assert all(torch.equal(p, before) for p, before in zip(adapters.parameters("task"), phi, strict=True))


def test_displacements_of_several_tasks_add_up_and_can_be_of_the_means_only():
    adapters = moved_set()
    adapters.add_displacement("mean")
    adapters.add_displacement("mean")
    pairs = zip(adapters.parameters("shared", "mean"), adapters.parameters("task", "mean"), strict=True)
    assert all(torch.allclose(shared.grad, 2 * (shared - task)) for shared, task in pairs)
    assert all(p.grad is None for p in adapters.parameters("shared", "std"))


def kl_gradients(adapters: AdapterSet) -> tuple[AdaptedLinear, dict[tuple[str, str], Tensor]]:
    """The only layer of a set, and the KL's gradient in each of its factors."""
    adapters.kl().backward()
    (layer,) = adapters.layers.values()
    return layer, {
        (slot, name): p.grad.clone() for slot in SLOTS for name, p in getattr(layer, slot).named_parameters()
    }


def one_layer(rank: int = 3) -> AdapterSet:
    model = nn.Sequential(nn.Linear(6, 7)).double().requires_grad_(False)
    adapters = attach(model, ("0",), rank=rank, std=StdOptions(init=0.3))
    adapters.layers["0"].double()
    move(adapters, "shared", 0.2)
    move(adapters, "task", 0.2, seed=1)
    return adapters


def test_identity_the_two_mean_gradients_of_the_kl_cancel_as_matrices():
    """With A = 1 the factor B is the matrix s^-1 mean itself: what theta gets from both slots is exactly 0."""
    adapters = one_layer(rank=6)
    with torch.no_grad():
        for slot in SLOTS:
            getattr(adapters.layers["0"], slot).mean_a.copy_(torch.eye(6))
    layer, gradient = kl_gradients(adapters)
    adapters.add_task_gradients()
    assert float(gradient["task", "mean_b"].abs().min()) > 1e-3
    assert torch.equal(gradient["task", "mean_b"], -gradient["shared", "mean_b"])
    assert int(layer.shared.mean_b.grad.count_nonzero()) == 0
    assert layer.shared.std_b.grad.any()  # the stds do get their gradient


def test_identity_leaves_the_mismatch_of_the_other_factor_on_the_means():
    """s G (A_phi - A_theta)^T on B and s (B_phi - B_theta)^T G on A, with G = D / var_theta."""
    adapters = one_layer()
    layer, _ = kl_gradients(adapters)
    adapters.add_task_gradients()
    task, shared, s = layer.task, layer.shared, layer.task.variance.scale
    with torch.no_grad():
        pull = (task.dense_mean() - shared.dense_mean()) / shared.dense_std().square()
        expected_b = s * pull @ (task.mean_a - shared.mean_a).T
        expected_a = s * (task.mean_b - shared.mean_b).T @ pull
    assert relative_error(shared.mean_b.grad, expected_b) < 1e-9
    assert relative_error(shared.mean_a.grad, expected_a) < 1e-9


def test_task_gradients_are_handed_over_and_add_up():
    adapters = moved_set()
    adapters.kl(detach="shared").backward()
    once = [p.grad.clone() for p in adapters.parameters("task")]
    adapters.add_task_gradients()
    assert all(torch.equal(p.grad, g) for p, g in zip(adapters.parameters("shared"), once, strict=True))
    assert all(p.grad is None for p in adapters.parameters("task"))
    adapters.kl(detach="shared").backward()
    adapters.add_task_gradients()
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(adapters.parameters("shared"), once, strict=True))
    adapters.add_task_gradients()  # nothing is left to hand over
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(adapters.parameters("shared"), once, strict=True))


def test_std_statistics_summarise_both_slots_over_all_layers():
    adapters = moved_set()
    statistics = adapters.std_statistics()
    for slot in SLOTS:
        stds = [getattr(layer, slot).dense_std().detach().double() for layer in adapters.layers.values()]
        assert statistics[slot]["min"] == pytest.approx(min(float(s.min()) for s in stds), rel=1e-5)
        assert statistics[slot]["max"] == pytest.approx(max(float(s.max()) for s in stds), rel=1e-5)
        total = sum(float(s.square().sum()) for s in stds)
        assert statistics[slot]["mean_variance"] == pytest.approx(total / adapters.entries, rel=1e-5)
    assert statistics["shared"] != statistics["task"]


# -------------------- state


def test_trust_31_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    adapters = attach(tiny_model())
    before = {name: tensor.clone() for name, tensor in adapters.state_dict("shared").items()}
    first = next(iter(before))
    changed = {name: tensor + 1 for name, tensor in before.items()}
    wrong = {
        "missing": {name: tensor for name, tensor in changed.items() if name != first},
        "unexpected": changed | {"model.layers.9.self_attn.q_proj.mean_a": torch.zeros(8, 32)},
        "rank": attach(tiny_model(), rank=4).state_dict("shared"),
        "base": attach(tiny_model(hidden=64)).state_dict("shared"),
        "without stds": attach(tiny_model(), std=None).state_dict("shared"),
        "last shape": changed | {list(before)[-1]: torch.zeros(1, 1)},
    }
    for state in wrong.values():
        with pytest.raises((KeyError, ValueError)):
            adapters.load_state_dict("shared", state)
        assert all(torch.equal(tensor, before[name]) for name, tensor in adapters.state_dict("shared").items())


def test_state_goes_from_one_set_to_another():
    one, other = attach(tiny_model()), attach(tiny_model(), seed=1)
    move(one, "shared")
    objects = other.parameters("shared")
    other.load_state_dict("shared", one.state_dict("shared"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters("shared"), other.parameters("shared"), strict=True))
    assert all(now is before for now, before in zip(other.parameters("shared"), objects, strict=True))
    assert not slots_equal(other)


def test_a_state_that_does_not_fit_is_said():
    adapters = attach(tiny_model())
    state = dict(adapters.state_dict("shared"))
    first = next(iter(state))
    with pytest.raises(KeyError, match=rf"adapter tensors differ: \['{re.escape(first)}'\] \.\.\."):
        adapters.load_state_dict("shared", {name: t for name, t in state.items() if name != first})
    with pytest.raises(ValueError, match=rf"^{re.escape(first)}: shape \(1, 2\), expected \(32, 8\)$"):
        adapters.load_state_dict("shared", state | {first: torch.zeros(1, 2)})
    many = state | {f"x{n}": torch.zeros(1) for n in range(7)}
    with pytest.raises(KeyError, match=r"\['x0', 'x1', 'x2', 'x3', 'x4'\] \.\.\."):
        adapters.load_state_dict("shared", many)


def test_every_layer_starts_by_a_seed_of_its_own_and_again_when_reset():
    adapters, other = attach(tiny_model(), seed=3), attach(tiny_model(), seed=8)
    move(other, "shared")
    move(other, "task", seed=1)
    other.reset(3)
    assert other.seed == 3
    for index, (layer, again) in enumerate(zip(adapters.layers.values(), other.layers.values(), strict=True)):
        shape = layer.shared.out_features, layer.shared.in_features, 8, layer.shared.variance
        alone = LowRankGaussian(*shape, with_std=True, seed=3 * 1_000_003 + index)
        for slot in (layer.shared, layer.task, again.shared, again.task):
            pairs = zip(slot.parameters(), alone.parameters(), strict=True)
            assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    move(other, "task")
    other.begin_task("init")
    for layer, again in zip(adapters.layers.values(), other.layers.values(), strict=True):
        assert torch.equal(again.task.std_a, layer.task.std_a), "by the seed of the reset"


def test_the_median_and_the_share_at_the_floor_are_those_of_layers():
    adapters = moved_set()
    for slot, found in adapters.std_statistics().items():
        parts = [getattr(layer, slot).std_summary() for layer in adapters.layers.values()]
        assert found["median"] == pytest.approx(float(np.median([part.median for part in parts])))
        assert found["share_at_floor"] == pytest.approx(float(np.mean([part.share_at_floor for part in parts])))
        assert set(found) == {"min", "median", "max", "share_at_floor", "mean_variance"}


def test_penalties_of_a_slot_are_those_of_that_slot():
    adapters = moved_set()
    move(adapters, "task", 0.5, seed=2)
    normal = torch.distributions.Normal(0.0, torch.tensor(0.5).double().sqrt())
    for slot in SLOTS:
        means = [dense_mean(getattr(x, slot).factors(), x.task.variance) for x in adapters.layers.values()]
        expected = -sum(float(normal.log_prob(mean).sum().detach()) for mean in means)
        assert float(adapters.mean_penalty(0.5, slot).detach()) == pytest.approx(expected, rel=1e-5)
    shared = float(adapters.mean_penalty(0.5, "shared").detach())
    assert float(adapters.mean_penalty(0.5).detach()) == shared != float(adapters.mean_penalty(0.5, "task").detach())


KEYS = key_tensor(noise_key("a"), noise_key("b"), noise_key("c"))


def test_dropout_leaves_out_inputs_of_the_means_by_draw_and_layer():
    """y = base(x) + s B A (x * m / (1 - p)), the masks m of each draw's rows; the base sees all of x."""
    model = nn.ModuleDict({"q_proj": nn.Linear(12, 5), "v_proj": nn.Linear(7, 4)}).requires_grad_(False)
    adapters = attach(model, rank=2, alpha=4.0, std=None)
    move(adapters, size=0.5)
    masks = kept(KEYS, 2, 12, 0.4)
    with torch.no_grad(), adapters.dropping(0.4, KEYS):
        assert torch.equal(adapters.noise.kept, masks)
        for index, (path, layer) in enumerate(adapters.layers.items()):
            x = torch.randn(6, 3, layer.base.in_features, generator=torch.Generator().manual_seed(index))
            y = layer(x)
            for row in range(6):
                mask = masks[row // 2, index, : x.shape[-1]]
                expected = layer.base(x[row]) + (x[row] * mask) @ layer.task.dense_mean().T
                torch.testing.assert_close(y[row], expected, rtol=1e-5, atol=1e-6)
            assert path in ("q_proj", "v_proj")
    assert adapters.noise.kept is None
    with adapters.dropping(0.0, KEYS):
        assert adapters.noise.kept is None
    with pytest.raises(RuntimeError, match="inside"), adapters.dropping(0.4, KEYS):
        raise RuntimeError("inside")
    assert adapters.noise.kept is None


def test_a_draw_is_what_it_was_told_and_over_after_the_block():
    adapters = attach(tiny_model())
    rows, tokens = torch.tensor([1, 2]), torch.zeros(2, 3, dtype=torch.long)
    nothing = ("mean", None, None, None)
    for given in (("activation", KEYS, rows, tokens), ("weight", KEYS, None, None), nothing):
        with adapters.drawing(*given):
            noise = adapters.noise
            assert (noise.sampler, noise.keys, noise.questions, noise.tokens) == given
        assert (noise.sampler, noise.keys, noise.questions, noise.tokens) == nothing


def test_weights_that_are_packed_are_known_as_such_and_read_where_somebody_can():
    plain = nn.Linear(3, 2)
    assert not is_quantised(plain)
    assert dense_weight(plain) is plain.weight
    transposed = next(iter(attach(tiny_gpt2(), ("c_attn",)).layers.values())).base
    assert not is_quantised(transposed)
    for weight in (torch.zeros(3, 1), torch.zeros(2, 3, dtype=torch.int8), torch.zeros(6)):
        packed = nn.Linear(3, 2)
        packed.weight = nn.Parameter(weight, requires_grad=False)
        assert is_quantised(packed)
        assert weight.shape == (3, 1) or dense_weight(packed) is None
    adapters = attach(nn.Sequential(packed), ("0",), rank=1)
    assert sample_base(adapters).tolist() == [[0.0] * 256] * 8


def test_a_digest_is_the_sha256_of_facts_names_shapes_and_bytes():
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(1)
    text = b"{}" + b"\na (2, 3) " + a.numpy().tobytes() + b"\nb (1,) " + b.numpy().tobytes()
    assert digest("{}", {"b": b, "a": a}) == hashlib.sha256(text).hexdigest()
    assert digest("{}", {"b": b, "a": a.T.contiguous().T}) == hashlib.sha256(text).hexdigest()
