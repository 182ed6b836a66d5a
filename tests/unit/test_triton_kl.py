"""The fused KL and prior in Triton's CPU interpreter, against dense float64 forms (torch.distributions).

Above rank 16 torch multiplies, and `triton_entries` is what is between its products.
"""

from itertools import product

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import tests.interpreter  # noqa: F401 - makes it quick
from abmll import kernels
from abmll.kernels import Factors, Variance, eager, triton_entries, triton_kl
from abmll.kernels.noise import key_tensor, noise_key
from abmll.kernels.wide import divergence
from tests.dense import cast, dense_kl, dense_precision_penalty, gradients_of, relative_error
from tests.unit.test_kernels import FLOORS, Pair, far_pair, near_pair

SHAPES = [(1, 1, 1), (7, 13, 4), (70, 90, 8), (65, 70, 16), (41, 67, 17), (3, 131, 32), (70, 90, 64)]  # O, I, R
EACH_WAY = [(7, 13, 4), (65, 70, 16), (41, 67, 17)]
NARROW_AND_WIDE = [8, 33]  # ranks: both ways
TOLERANCE = 1e-5
CPU = torch.device("cpu")


def fused_kl(*pairs: Pair, **options) -> Tensor:
    return triton_kl.task_kl([p.task for p in pairs], [p.shared for p in pairs], [p.variance for p in pairs], **options)


def eager_kl(*pairs: Pair, **options) -> Tensor:
    return eager.task_kl([p.task for p in pairs], [p.shared for p in pairs], [p.variance for p in pairs], **options)


def doubled(pair: Pair) -> Pair:
    """float64 leaves of the very numbers that a float32 pair holds."""
    return Pair(*(cast(side, torch.float64, requires_grad=True) for side in pair[:2]), pair.variance)


def all_factors(*pairs: Pair) -> tuple[Tensor, ...]:
    return tuple(f for pair in pairs for f in pair.factors)


def assert_close(ours: Tensor, factors, theirs: Tensor, wanted, tolerance: float = TOLERANCE) -> None:
    assert ours.dtype == torch.float64
    assert float((ours - theirs).abs()) <= tolerance * float(theirs.abs()) + 1e-16
    for mine, other in zip(gradients_of(ours, factors), gradients_of(theirs, wanted), strict=True):
        assert relative_error(mine, other) < tolerance


@pytest.mark.parametrize("stride", [1, 3])
def test_memory_for_one_layer_at_a_time_changes_nothing(monkeypatch, stride):
    pairs = [far_pair((40, 30, 4), seed=i).leaves(torch.float32) for i in range(2)]
    options = {"stride": stride, "key": key_tensor(noise_key("rows", 0), device=CPU)[0]}
    factors = all_factors(*pairs)
    together = fused_kl(*pairs, **options)
    wanted = gradients_of(together, factors)
    monkeypatch.setattr(triton_kl, "_chunk_bytes", lambda device: 1)
    apart = fused_kl(*pairs, **options)
    assert apart.item() == pytest.approx(together.item(), rel=1e-12)
    for mine, other in zip(gradients_of(apart, factors), wanted, strict=True):
        assert relative_error(mine, other) < TOLERANCE


@pytest.mark.parametrize(("shape", "std"), [*((shape, 4.5e-5) for shape in SHAPES), *product(EACH_WAY, (2e-9, 10.0))])
@pytest.mark.parametrize("make", [far_pair, near_pair])
def test_kl_and_its_eight_gradients_equal_torch_distributions(make, shape, std):
    rough = make(shape, std=std).leaves(torch.float32)
    exact = doubled(rough)
    # a gradient is a sum of products of parts of 16 bits each, 2^-16 in all; one entry has no others to average with
    tolerance = TOLERANCE if shape != (1, 1, 1) else 2 * TOLERANCE
    assert_close(fused_kl(rough), rough.factors, dense_kl(*exact), exact.factors, tolerance)


def wide_kl(*pairs: Pair, **options) -> Tensor:
    """Of phi alone, as inner steps have it: above rank 16 that is `wide.divergence`'s."""
    shared = [Factors(*(x.detach() for x in p.shared)) for p in pairs]
    return divergence.task_kl([p.task for p in pairs], shared, [p.variance for p in pairs], **options)


@pytest.mark.parametrize(("shape", "std"), [*((s, 4.5e-5) for s in SHAPES[-3:]), *product(SHAPES[-1:], (2e-9, 10.0))])
@pytest.mark.parametrize("make", [far_pair, near_pair])
@pytest.mark.parametrize("longest", [1024, 48])  # of a sum of the tensor cores': in one piece, and in two
def test_wide_kl_of_phi_alone_equals_torch_distributions(monkeypatch, make, shape, std, longest):
    monkeypatch.setattr(divergence, "_LONGEST", longest)
    monkeypatch.setattr(triton_kl, "task_kl", None)  # it does not hand over
    rough = make(shape, std=std).leaves(torch.float32)
    exact = doubled(rough)
    assert_close(wide_kl(rough), rough.task, dense_kl(*exact), exact.task)
    with torch.no_grad():
        assert float(wide_kl(rough)) == pytest.approx(float(dense_kl(*exact).detach()), rel=TOLERANCE)


@pytest.mark.parametrize("stride", [1, 3])
def test_wide_layers_and_the_rows_of_a_subset_add_up(monkeypatch, stride):
    pairs = [far_pair(s, seed=i).leaves(torch.float32) for i, s in enumerate([(9, 20, 33), (70, 30, 33), (9, 20, 33)])]
    options = {"stride": stride, "key": key_tensor(noise_key("rows", 0), device=CPU)[0]}
    factors = [f for p in pairs for f in p.task]
    wanted = eager_kl(*pairs, **options)
    assert_close(wide_kl(*pairs, **options), factors, wanted, factors)
    monkeypatch.setattr(triton_kl, "_chunk_bytes", lambda device: 1)
    assert_close(wide_kl(*pairs, **options), factors, eager_kl(*pairs, **options), factors)


def test_wide_kl_and_gradients_are_exactly_zero_at_equal_factors():
    shared = far_pair((40, 70, 33), std=2e-9).shared
    pair = Pair(shared, shared, Variance("square", 2e-9, FLOORS[2e-9], 2.0)).leaves(torch.float32)
    value = wide_kl(pair)
    assert float(value.detach()) == 0
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(value, pair.task))


def test_layers_of_several_shapes_and_scales_add_up():
    pairs = [
        far_pair(shape, seed=i).leaves(torch.float32) for i, shape in enumerate([(9, 20, 4), (70, 30, 4), (9, 20, 4)])
    ]
    pairs.append(Pair(*far_pair((9, 20, 4), seed=7).leaves(torch.float32)[:2], Variance("square", 4e-5, 1e-6, 0.5)))
    assert_close_to_dense(pairs)
    assert_close_to_dense([far_pair(shape, seed=3).leaves(torch.float32) for shape in [(9, 20, 33), (70, 30, 33)]])


def assert_close_to_dense(pairs: list[Pair]) -> None:
    exact = [doubled(p) for p in pairs]
    assert_close(fused_kl(*pairs), all_factors(*pairs), sum(dense_kl(*p) for p in exact), all_factors(*exact))


@pytest.mark.parametrize("rank", NARROW_AND_WIDE)
def test_a_gradient_from_above_scales_every_gradient(rank):
    rough = far_pair((33, 20, rank)).leaves(torch.float32)
    exact = doubled(rough)
    assert_close(-2.5e-3 * fused_kl(rough), rough.factors, -2.5e-3 * dense_kl(*exact), exact.factors)


@pytest.mark.parametrize("rank", NARROW_AND_WIDE)
@pytest.mark.parametrize("std", FLOORS)
def test_kl_and_gradients_are_exactly_zero_at_equal_factors(std, rank):
    shared = far_pair((40, 70, rank), std=std).shared
    pair = Pair(shared, shared, Variance("square", std, FLOORS[std], 2.0)).leaves(torch.float32)
    value = fused_kl(pair)
    assert float(value) == 0
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(value, pair.factors))


@pytest.mark.parametrize("rank", [2, 17])
def test_stds_that_cancel_to_the_floor_are_as_exact_as_in_eager(rank):
    """r = u + f = 0 in whole rows: the products behind u must keep float32's digits."""
    pair = far_pair((24, 40, rank), std=4.5e-5)
    for side in (pair.task, pair.shared):
        side.std_a.fill_(1.0)
        side.std_b.fill_(0.0)
        side.std_b[::2, 0] = -4.5e-5 / 2 * (1 + 1e-3)
    pair.task.std_b[::2, 1] += 1e-8
    rough = pair.leaves(torch.float32)
    exact = doubled(rough)
    assert_close(fused_kl(rough), rough.factors, dense_kl(*exact), exact.factors, 1e-3)


@pytest.mark.parametrize("size", [1e-8, 1e8])
@pytest.mark.parametrize("part", ["mean", "std"])
def test_factors_of_any_size_keep_their_digits(part, size):
    """B as much smaller as A is larger, and back: the float16 parts behind the products neither vanish nor overflow."""
    pair = far_pair((33, 20, 8))
    for side in (pair.task, pair.shared):
        getattr(side, f"{part}_b").mul_(size)
        getattr(side, f"{part}_a").div_(size)
    rough = pair.leaves(torch.float32)
    exact = doubled(rough)
    assert_close(fused_kl(rough), rough.factors, dense_kl(*exact), exact.factors)


def test_the_smaller_of_two_halves_keeps_its_share_of_the_digits():
    """All of the change in A, by a step that is tiny beside it, then all in B; and stds that start from B = 0."""
    for still, zero in (("_b", False), ("_a", False), ("_a", True)):
        pair = near_pair((33, 20, 8))
        for name in (f"mean{still}", f"std{still}"):
            getattr(pair.task, name).copy_(getattr(pair.shared, name))
        if zero:
            pair.shared.std_b.zero_()
            pair.task.std_b.fill_(1e-9)
        rough = pair.leaves(torch.float32)
        exact = doubled(rough)
        value, wanted = fused_kl(rough), dense_kl(*exact)
        assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=TOLERANCE)
        for mine, other in zip(gradients_of(value, rough.task), gradients_of(wanted, exact.task), strict=True):
            assert relative_error(mine, other) < TOLERANCE


@pytest.mark.parametrize("rank", NARROW_AND_WIDE)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", range(8))
def test_what_is_not_a_number_stays_visible(at, number, rank):
    rough = far_pair((9, 20, rank)).leaves(torch.float32)
    with torch.no_grad():
        rough.factors[at][1, 1] = number
    assert not torch.isfinite(fused_kl(rough))


@pytest.mark.parametrize("rank", NARROW_AND_WIDE)
def test_a_side_without_gradient_gets_none(rank):
    pair = far_pair((33, 20, rank)).leaves(torch.float32)
    fixed = Factors(*(f.detach() for f in pair.shared))
    inner = triton_kl.task_kl([pair.task], [fixed], [pair.variance])
    both = torch.autograd.grad(fused_kl(pair), pair.task)
    for mine, other in zip(torch.autograd.grad(inner, pair.task), both, strict=True):
        assert relative_error(mine, other) < TOLERANCE / 2
    with torch.no_grad():
        assert float(fused_kl(pair)) == pytest.approx(float(inner.detach()), rel=1e-12)
    fixed = Factors(*(f.detach() for f in pair.task))
    outer = triton_kl.task_kl([fixed], [pair.shared], [pair.variance])
    both = torch.autograd.grad(fused_kl(pair), pair.shared)
    for mine, other in zip(torch.autograd.grad(outer, pair.shared), both, strict=True):
        assert relative_error(mine, other) < TOLERANCE / 2


def test_wide_tiles_of_a_few_rows_add_up(monkeypatch):
    """Three rows of a tile; what each stores over its products is read no more."""
    pair = far_pair((10, 130, 33)).leaves(torch.float32)
    stds, options = ([pair.shared.std_b], [pair.shared.std_a], [pair.variance]), (1.5, 0.01)
    runs = (lambda: fused_kl(pair), lambda: triton_kl.precision_penalty(*stds, *options))
    whole = [(run(), gradients_of(run(), pair.factors)) for run in runs]
    monkeypatch.setattr(triton_entries, "_TILE_ENTRIES", 3 * 130)
    for run, (value, gradients) in zip(runs, whole, strict=True):
        assert float(run().detach()) == pytest.approx(float(value.detach()), rel=1e-6)
        for mine, other in zip(gradients_of(run(), pair.factors), gradients, strict=True):
            assert relative_error(mine, other) < TOLERANCE


@pytest.mark.parametrize("rank", [4, 33])
@pytest.mark.parametrize("rows", [32, 37])
@pytest.mark.parametrize("stride", [2, 5])
def test_a_subset_of_rows_is_the_one_that_eager_visits(rows, stride, rank):
    pairs = [far_pair((rows, 20, rank), seed=i).leaves(torch.float32) for i in range(2)]
    exact = [doubled(p) for p in pairs]
    for draw in range(2):
        key = key_tensor(noise_key("rows", draw), device=CPU)[0]
        ours, theirs = (run(*p, stride=stride, key=key) for run, p in ((fused_kl, pairs), (eager_kl, exact)))
        assert_close(ours, all_factors(*pairs), theirs, all_factors(*exact))


@pytest.mark.parametrize(("shape", "rate"), [(1.0, 0.01), (2.5, 0.3)])
@pytest.mark.parametrize("std", FLOORS)
@pytest.mark.parametrize("sizes", [[(40, 70, 8), (9, 20, 1)], [(9, 23, 17), (41, 67, 64)]])
def test_precision_penalty_equals_the_gamma_density_of_torch_distributions(sizes, std, shape, rate):
    pairs = [far_pair(size, std=std).leaves(torch.float32) for size in sizes]
    exact = [doubled(p) for p in pairs]
    stds = [[p.shared.std_b for p in pairs], [p.shared.std_a for p in pairs]]
    ours = triton_kl.precision_penalty(*stds, [p.variance for p in pairs], shape, rate)
    theirs = sum(dense_precision_penalty(p.shared.std_b, p.shared.std_a, p.variance, shape, rate) for p in exact)
    wanted = tuple(f for p in exact for f in p.shared[2:])
    assert_close(ours, tuple(f for p in pairs for f in p.shared[2:]), theirs, wanted)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (far_pair((9, 20, 4), form="log_std").leaves(torch.float32), "log_std"),
        (far_pair((9, 20, 4)).leaves(torch.float64), "float64"),
        (far_pair((9, 20, 17), form="log_std").leaves(torch.float32), "log_std"),
    ],
)
def test_what_the_kernel_cannot_do_is_done_by_eager_and_said(pair, reason):
    kernels.fallbacks.clear()
    assert float(fused_kl(pair).detach()) == float(eager_kl(pair).detach())
    assert reason in kernels.fallbacks["task_kl"]


def test_the_op_table_gives_the_kernel_that_was_asked_for():
    try:
        kernels.use("triton")
        assert kernels.op("task_kl", CPU) is divergence.task_kl
        kernels.use("auto")
        assert kernels.op("task_kl", CPU) is eager.task_kl
    finally:
        kernels.use("auto")
