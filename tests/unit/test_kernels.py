"""The KL and the prior, tile by tile, against dense float64 forms, torch.distributions and Monte Carlo."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal
from torch.utils._python_dispatch import TorchDispatchMode

from abmll import kernels
from abmll.errors import AbmllError
from abmll.kernels import Factors, Variance, op
from abmll.kernels.eager import (
    activation_noise,
    first_row,
    layer_kl,
    layer_precision_penalty,
    precision_penalty,
    row_blocks,
    squared_norm,
    strided_rows,
    task_kl,
    weight_noise,
)
from abmll.kernels.noise import key_tensor, noise_key
from tests.dense import (
    cast,
    dense_kl,
    dense_mean,
    dense_normal,
    dense_precision_penalty,
    dense_variance,
    gradients_of,
    random_factors,
    relative_error,
)

FORMS = ("square", "log_std")
FLOORS = {2e-9: 1e-10, 4.5e-5: 1e-6, 10.0: 1e-6}  # std that training starts from, and its floor
SHAPES = [(1, 1, 1), (3, 5, 1), (7, 13, 4), (64, 48, 8), (96, 80, 64), (5, 2011, 3)]  # O, I, R
TWO_TILES = (301, 907, 16)
CASES = [*itertools.product(SHAPES, FLOORS, FORMS), (TWO_TILES, 4.5e-5, "square"), (TWO_TILES, 10.0, "log_std")]
PAPER_LIKE = Variance("square", 2.0**-29, 2.0**-33, 2.0)  # 1.9e-9 and 1.2e-10, powers of two: r is exact in float32
AT_THE_FLOOR = torch.tensor([[-(2.0**-30)], [0.0], [-(2.0**-30) + 2.0**-40]])  # with A' = 1: r = 0, f, and 1.8e-12


class Pair(NamedTuple):
    """float64 factors of phi and theta, and their common form."""

    task: Factors
    shared: Factors
    variance: Variance

    def leaves(self, dtype: torch.dtype = torch.float64) -> "Pair":
        return Pair(cast(self.task, dtype, requires_grad=True), cast(self.shared, dtype, requires_grad=True), self[2])

    @property
    def factors(self) -> tuple[Tensor, ...]:
        return (*self.task, *self.shared)


def far_pair(shape, std=4.5e-5, form="square", relative_spread=0.05, seed=0) -> Pair:
    """phi and theta drawn apart: means differ by stds, stds by some tens of percent and stay away from 0."""
    unit = std if form == "square" else 1.0
    both = [random_factors(*shape, seed + i, relative_spread * unit) for i in range(2)]
    both = [Factors(std * f.mean_b, *f[1:]) for f in both]
    return Pair(both[0], both[1], Variance(form, std, FLOORS[std], 2.0))


def near_pair(shape, std=4.5e-5, form="square", step=1e-6) -> Pair:
    """phi one Adam step from theta: every factor entry moved by the same amount. The stds move by less than f."""
    unit = std if form == "square" else 1.0
    shared = random_factors(*shape, 0, 0.05 * unit)
    generator = torch.Generator().manual_seed(1)
    sizes = (step, step, step * min(1.0, unit), step)
    signs = [torch.randn(f.shape, generator=generator, dtype=torch.float64).sign() for f in shared]
    moved = (f + size * sign for f, size, sign in zip(shared, sizes, signs, strict=True))
    return Pair(Factors(*moved), shared, Variance(form, std, FLOORS[std], 2.0))


def kl_in_extended_precision(pair: Pair) -> float:
    """The textbook KL in 80-bit floats: at phi close to theta it is right to more digits than float64 would be."""
    task, shared = ([f.detach().double().numpy().astype(np.longdouble) for f in side] for side in pair[:2])
    s, f, eps = (np.longdouble(x) for x in (pair.variance.scale, pair.variance.offset, pair.variance.floor))

    def mean_and_variance(mean_b, mean_a, std_b, std_a):
        u = s * (std_b @ std_a)
        return s * (mean_b @ mean_a), (
            (u + f) ** 2 if pair.variance.form == "square" else (f * np.exp(u)) ** 2
        ) + eps**2

    (mean, var), (mean0, var0) = mean_and_variance(*task), mean_and_variance(*shared)
    return float((0.5 * (np.log(var0 / var) + (var + (mean - mean0) ** 2) / var0 - 1)).sum())


# -------------------- KL(task | shared): values and gradients


@pytest.mark.parametrize(("shape", "std", "form"), CASES)
def test_trust_20_kl_and_its_eight_gradients_equal_torch_distributions_in_float64(shape, std, form):
    pair = far_pair(shape, std, form).leaves()
    ours, theirs = layer_kl(*pair), dense_kl(*pair)
    assert relative_error(ours, theirs) < 1e-9
    for mine, dense in zip(gradients_of(ours, pair.factors), gradients_of(theirs, pair.factors), strict=True):
        assert relative_error(mine, dense) < 1e-9


@pytest.mark.parametrize(("shape", "std", "form"), CASES)
@pytest.mark.parametrize("make", [far_pair, near_pair])
def test_float32_kl_and_gradients_equal_the_float64_ones(make, shape, std, form):
    pair = make(shape, std, form).leaves(torch.float32)
    exact = Pair(cast(pair.task, torch.float64), cast(pair.shared, torch.float64), pair.variance).leaves()
    ours, theirs = layer_kl(*pair), dense_kl(*exact)
    if make is far_pair:
        assert relative_error(ours, theirs) < 1e-5
    elif shape[0] * shape[1] < 100_000:  # 80-bit matrix products are slow
        assert float(ours.detach()) == pytest.approx(kl_in_extended_precision(exact), rel=1e-5)
    for mine, dense in zip(gradients_of(ours, pair.factors), gradients_of(theirs, exact.factors), strict=True):
        assert relative_error(mine, dense) < 1e-5


@pytest.mark.parametrize("std", [4.5e-5, 10.0])
def test_float32_kl_holds_where_stds_cancel_to_the_floor(std):
    """r = s B'A' + f crosses 0 in many entries: those rest on eps, and their rounding is that of B'A' itself."""
    pair = far_pair((96, 80, 8), std, relative_spread=1.0).leaves(torch.float32)
    assert (dense_variance(pair.shared.std_b, pair.shared.std_a, pair.variance).sqrt() < 0.1 * std).sum() > 100
    exact = Pair(cast(pair.task, torch.float64), cast(pair.shared, torch.float64), pair.variance)
    assert relative_error(layer_kl(*pair), dense_kl(*exact)) < 2e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("form", FORMS)
def test_variance_part_of_the_kl_is_right_at_every_ratio_of_variances(form, dtype, tolerance):
    """Equal means, std_phi / std_theta from 1e-3 to 1e3 and as close to 1 as 1e-7: each entry alone."""
    steps = torch.logspace(-7, -0.31, 40, dtype=torch.float64)
    ratios = torch.cat([1 + steps, 1 - steps, torch.logspace(-3, 3, 40, dtype=torch.float64)])
    moved = (ratios - 1 if form == "square" else ratios.log())[:, None].to(dtype)
    shared = Factors(*(torch.zeros(len(ratios), 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)) * 2)
    pair = Pair(Factors(shared.mean_b, shared.mean_a, moved, shared.std_a), shared, Variance(form, 1.0, 1e-8, 1.0))
    for row in range(len(ratios)):
        alone = Pair(*(Factors(f[0][row : row + 1], f[1], f[2][row : row + 1], f[3]) for f in pair[:2]), pair.variance)
        assert float(layer_kl(*alone)) == pytest.approx(kl_in_extended_precision(alone), rel=tolerance, abs=1e-19)


def test_one_row_per_tile_where_a_row_is_wider_than_a_tile():
    pair = far_pair((3, (1 << 18) + 5, 1)).leaves()
    assert row_blocks(3, (1 << 18) + 5) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    ours, theirs = layer_kl(*pair), dense_kl(*pair)
    assert relative_error(ours, theirs) < 1e-9
    for mine, dense in zip(gradients_of(ours, pair.factors), gradients_of(theirs, pair.factors), strict=True):
        assert relative_error(mine, dense) < 1e-9


@pytest.mark.parametrize("shape", [(1, 1), (577, 1031), (4096, 4096), (1, 1 << 20), (1 << 20, 1), (1000, 999)])
def test_row_blocks_partition_the_rows_and_bound_the_tile(shape):
    rows, columns = shape
    blocks = row_blocks(rows, columns)
    assert [i for block in blocks for i in range(rows)[block]] == list(range(rows))
    assert max(block.stop - block.start for block in blocks) * columns <= max(1 << 18, columns)


@pytest.mark.parametrize("stride", [2, 3, 7, 2000])
@pytest.mark.parametrize("rows", [1, 577, 1000])
def test_row_subsets_of_all_starts_partition_the_rows(rows, stride):
    numbers = torch.arange(1.0, rows + 1)[:, None]
    factors = Factors(numbers, torch.ones(1, 2), -numbers, torch.ones(1, 2))
    visited = []
    for start in range(stride):
        subset = strided_rows(factors, torch.tensor(start), stride)
        assert torch.equal(subset.std_b, -subset.mean_b)
        here = subset.mean_b[:, 0].int().tolist()
        expected = list(range(start + 1, rows + 1, stride))
        assert here == expected + [0] * (-(-rows // stride) - len(expected))
        visited += expected
    assert sorted(visited) == list(range(1, rows + 1))


def test_a_gpu_has_larger_tiles():
    assert len(row_blocks(4096, 4096)) == 64 * len(row_blocks(4096, 4096, torch.device("cuda")))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", FLOORS)
def test_kl_and_gradients_are_exactly_zero_at_equal_factors(std, dtype, form):
    pair = near_pair((33, 21, 8), std, form, step=0.0).leaves(dtype)
    kl = layer_kl(*pair)
    assert float(kl.detach()) == 0.0
    assert all(int(g.count_nonzero()) == 0 for g in gradients_of(kl, pair.factors))


@settings(max_examples=100, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    std=st.sampled_from(sorted(FLOORS)),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    seed=st.integers(0, 10_000),
    spread=st.floats(-6, 1),
    move=st.floats(-9, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_trust_20_kl_is_finite_and_never_negative(form, std, shape, seed, spread, move, dtype):
    variance = Variance(form, std, FLOORS[std], 2.0)
    shared = random_factors(*shape, seed, 10**spread * (std if form == "square" else 1.0))
    other = random_factors(*shape, seed + 1, 10**spread * (std if form == "square" else 1.0))
    task = Factors(*(f + 10**move * g for f, g in zip(shared, other, strict=True)))
    pair = Pair(task, shared, variance).leaves(dtype)
    if form == "log_std" and max(float(2 * (f.std_b @ f.std_a).detach().abs().max()) for f in pair[:2]) > 30:
        return  # exp(60) times float32's largest number is not a variance any more
    kl = layer_kl(*pair)
    assert float(kl.detach()) >= 0
    assert kl.isfinite()
    assert all(g.isfinite().all() for g in gradients_of(kl, pair.factors))


def test_trust_20_gradients_stay_finite_in_float32_where_a_std_rests_on_the_floor():
    """var = 1e-20, D = 1: D^2 / var^2 is 1e40, but the gradient, which has a factor 2 r, is not."""
    std_b = AT_THE_FLOOR.double()
    shared = Factors(torch.zeros(3, 1), torch.ones(1, 4), std_b, torch.ones(1, 4))
    task = Factors(torch.full((3, 1), 0.5).double(), torch.ones(1, 4).double(), std_b.clone(), torch.ones(1, 4))
    pair = Pair(task, shared, PAPER_LIKE)
    single = pair.leaves(torch.float32)
    double = Pair(cast(single.task, torch.float64), cast(single.shared, torch.float64), pair.variance).leaves()
    ours, theirs = layer_kl(*single), dense_kl(*double)
    assert relative_error(ours, theirs) < 1e-5
    for mine, dense in zip(gradients_of(ours, single.factors), gradients_of(theirs, double.factors), strict=True):
        assert mine.isfinite().all()
        assert relative_error(mine, dense) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_trust_20_kl_agrees_with_monte_carlo(form):
    pair = far_pair((3, 4, 2), 10.0, form, relative_spread=0.2)
    torch.manual_seed(0)
    q, p = (dense_normal(side, pair.variance) for side in (pair.task, pair.shared))
    draws = q.sample((100_000,))
    values = (q.log_prob(draws) - p.log_prob(draws)).sum((1, 2))
    kl = float(layer_kl(*pair))
    standard_error = float(values.std()) / len(values) ** 0.5
    assert standard_error < 0.02 * kl
    assert abs(float(values.mean()) - kl) < 4 * standard_error


def test_only_the_side_that_needs_a_gradient_gets_one():
    pair = far_pair((7, 13, 4))
    for wanted in ("task", "shared"):
        leaves = {
            name: cast(getattr(pair, name), torch.float64, requires_grad=name == wanted) for name in pair._fields[:2]
        }
        with torch.autograd.graph.saved_tensors_hooks(saved := Saved(), lambda kept: kept):
            kl = layer_kl(leaves["task"], leaves["shared"], pair.variance)
        kl.backward()
        assert len(saved.sizes) == 4
        for name, factors in leaves.items():
            assert all((f.grad is not None) == (name == wanted) for f in factors)
    assert not layer_kl(*pair).requires_grad


@pytest.mark.parametrize("index", range(8))
def test_each_factor_alone_gets_its_own_gradient(index):
    pair = far_pair((5, 6, 2)).leaves()
    expected = gradients_of(dense_kl(*pair), pair.factors)[index]
    alone = [f.detach().requires_grad_(i == index) for i, f in enumerate(pair.factors)]
    layer_kl(Factors(*alone[:4]), Factors(*alone[4:]), pair.variance).backward()
    assert relative_error(alone[index].grad, expected) < 1e-9
    assert all(f.grad is None for i, f in enumerate(alone) if i != index)


@pytest.mark.parametrize("upstream", [-2.5, 0.0, 0.34 / 3])
def test_gradients_are_multiplied_by_the_gradient_from_above(upstream):
    pair = far_pair((7, 13, 4)).leaves()
    once = gradients_of(layer_kl(*pair), pair.factors)
    scaled = gradients_of(upstream * layer_kl(*pair) + 3.0, pair.factors)
    penalty = gradients_of(layer_precision_penalty(*pair.shared[2:], pair.variance, 1.5, 0.01), pair.factors[6:])
    scaled_penalty = gradients_of(
        upstream * layer_precision_penalty(*pair.shared[2:], pair.variance, 1.5, 0.01), pair.factors[6:]
    )
    for one, other in zip((*once, *penalty), (*scaled, *scaled_penalty), strict=True):
        torch.testing.assert_close(other, upstream * one, rtol=1e-12, atol=0)


@pytest.mark.parametrize("entries", [1, 13, 100])
def test_the_size_of_tiles_changes_nothing(monkeypatch, entries):
    pair = far_pair((29, 13, 4)).leaves()
    whole = layer_kl(*pair)
    monkeypatch.setattr("abmll.kernels.eager.tiles._TILE_ENTRIES", entries)
    tiled = layer_kl(*pair)
    assert len(row_blocks(29, 13)) == {1: 29, 13: 29, 100: 5}[entries]
    assert relative_error(tiled, whole) < 1e-12
    for one, other in zip(gradients_of(whole, pair.factors), gradients_of(tiled, pair.factors), strict=True):
        assert relative_error(other, one) < 1e-12


def test_kl_and_penalty_of_several_layers_are_the_sums_over_them():
    shapes = [(9, 20, 4), (70, 30, 4), (9, 20, 2)]
    pairs = [far_pair(shape, form=FORMS[i % 2], seed=i).leaves() for i, shape in enumerate(shapes)]
    ours = task_kl(*zip(*pairs, strict=True))
    penalty = precision_penalty(
        *zip(*((p.shared.std_b, p.shared.std_a, p.variance) for p in pairs), strict=True), 1.5, 0.1
    )
    expected = [dense_kl(*p) for p in pairs]
    expected_penalty = [dense_precision_penalty(*p.shared[2:], p.variance, 1.5, 0.1) for p in pairs]
    assert relative_error(ours, sum(expected)) < 1e-9
    assert relative_error(penalty, sum(expected_penalty)) < 1e-9
    for pair, kl, prior in zip(pairs, expected, expected_penalty, strict=True):
        for mine, dense in zip(gradients_of(ours, pair.factors), gradients_of(kl, pair.factors), strict=True):
            assert relative_error(mine, dense) < 1e-9
        stds = pair.shared[2:]
        for mine, dense in zip(gradients_of(penalty, stds), gradients_of(prior, stds), strict=True):
            assert relative_error(mine, dense) < 1e-9


@pytest.mark.parametrize("rows", [32, 37, 3])
@pytest.mark.parametrize("stride", [2, 5])
def test_kl_of_a_row_subset_is_that_of_its_rows_times_the_stride(rows, stride):
    pairs = [far_pair((rows, 20, 4), seed=i).leaves() for i in range(2)]
    for key in key_tensor(*(noise_key("rows", draw) for draw in range(3))):
        ours = task_kl(*zip(*pairs, strict=True), stride=stride, key=key)
        starts = [int(first_row(key, torch.tensor(layer), stride)) for layer in range(2)]
        chosen = [
            Pair(*(Factors(f[0][i::stride], f[1], f[2][i::stride], f[3]) for f in pair[:2]), pair.variance)
            for i, pair in zip(starts, pairs, strict=True)
        ]
        expected = stride * sum(dense_kl(*each) for each in chosen)
        assert relative_error(ours, expected) < 1e-9
        factors = (*pairs[0].factors, *pairs[1].factors)
        for mine, dense in zip(gradients_of(ours, factors), gradients_of(expected, factors), strict=True):
            assert relative_error(mine, dense) < 1e-9


@pytest.mark.parametrize("form", FORMS)
def test_trust_23_gradcheck_of_the_kl(form):
    pair = far_pair((3, 4, 2), 10.0, form, relative_spread=0.3).leaves()
    assert torch.autograd.gradcheck(
        lambda *f: layer_kl(Factors(*f[:4]), Factors(*f[4:]), pair.variance), pair.factors, rtol=1e-6, atol=1e-7
    )


# -------------------- -log p(theta)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "rate"), [(1.0, 0.01), (2.5, 0.01), (0.5, 3.0)])
@pytest.mark.parametrize("std", FLOORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_penalty_equals_the_gamma_density_of_torch_distributions(dtype, std, shape, rate, form):
    pair = far_pair((64, 48, 8), std, form)
    single = cast(pair.shared, dtype, requires_grad=True)
    double = cast(single, torch.float64, requires_grad=True)
    ours = layer_precision_penalty(single.std_b, single.std_a, pair.variance, shape, rate)
    theirs = dense_precision_penalty(double.std_b, double.std_a, pair.variance, shape, rate)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    assert ours.dtype == torch.float64
    assert relative_error(ours, theirs) < tolerance
    for mine, dense in zip(gradients_of(ours, single[2:]), gradients_of(theirs, double[2:]), strict=True):
        assert relative_error(mine, dense) < tolerance


def test_precision_penalty_visits_every_tile():
    pair = far_pair(TWO_TILES)
    ours = layer_precision_penalty(*pair.shared[2:], pair.variance, 1.0, 0.01)
    theirs = dense_precision_penalty(*pair.shared[2:], pair.variance, 1.0, 0.01)
    assert relative_error(ours, theirs) < 1e-9


@pytest.mark.parametrize("rate", [0.01, 10.0])
def test_trust_20_precision_penalty_stays_finite_in_float32_at_the_floor(rate):
    single = [AT_THE_FLOOR.clone().requires_grad_(), torch.ones(1, 4).requires_grad_()]
    double = [f.detach().double().requires_grad_() for f in single]
    ours = layer_precision_penalty(*single, PAPER_LIKE, 1.0, rate)
    theirs = dense_precision_penalty(*double, PAPER_LIKE, 1.0, rate)
    assert relative_error(ours, theirs) < 1e-5
    for mine, dense in zip(gradients_of(ours, single), gradients_of(theirs, double), strict=True):
        assert mine.isfinite().all()
        assert relative_error(mine, dense) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_trust_23_gradcheck_of_the_precision_penalty(form):
    pair = far_pair((3, 4, 2), 10.0, form, relative_spread=0.3).leaves()
    assert torch.autograd.gradcheck(
        lambda b, a: layer_precision_penalty(b, a, pair.variance, 1.5, 0.7), pair.shared[2:], rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squared_norm_is_that_of_the_dense_product(dtype):
    factors = cast(random_factors(37, 53, 8, 0), dtype, requires_grad=True)
    b, a = factors.mean_b, factors.mean_a
    ours, theirs = squared_norm(b, a), (b.double() @ a.double()).square().sum()
    assert relative_error(ours, theirs) < 1e-12
    for mine, dense in zip(gradients_of(ours, (b, a)), gradients_of(theirs, (b, a)), strict=True):
        assert relative_error(mine, dense) < (1e-6 if dtype == torch.float32 else 1e-12)


def test_squared_norm_gives_the_gaussian_prior_of_the_means():
    pair = far_pair((7, 13, 4))
    mean, c = dense_mean(pair.shared, pair.variance), 2.06e-9
    squares = pair.variance.scale**2 * squared_norm(pair.shared.mean_b, pair.shared.mean_a)
    constant = Normal(0.0, c**0.5).log_prob(torch.zeros(7, 13, dtype=torch.float64)).sum()
    theirs = Normal(torch.tensor(0.0).double(), torch.tensor(c).double().sqrt()).log_prob(mean).sum()
    assert relative_error(constant - squares / (2 * c), theirs) < 1e-6


# -------------------- the op table, and memory


CPU = torch.device("cpu")


def test_unknown_ops_and_backends_are_refused_with_the_names_that_there_are():
    with pytest.raises(AbmllError, match="Did you mean 'task_kl'"):
        op("task_k", CPU)
    with pytest.raises(AbmllError, match=r"kernel backend 'tritn'.*Did you mean 'triton'"):
        kernels.use("tritn")


@pytest.mark.parametrize("name", kernels.OPS)
def test_on_the_cpu_an_op_is_eager_where_nothing_else_is_asked_for_or_faster(name, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(kernels.onednn, "why_not", lambda: "not on this CPU")
    has = {"eager": set(kernels.OPS), "onednn": {"frozen_linear", "weight_output"}}
    has["triton"] = set(kernels.OPS) - {"frozen_linear"}
    homes = {"eager": ("eager",), "onednn": ("onednn",), "triton": ("triton_", "wide.")}
    try:
        for backend, module in (("auto", "eager"), ("eager", "eager"), ("triton", "triton"), ("onednn", "onednn")):
            kernels.use(backend)
            assert kernels.backend_for(CPU) == module
            found = homes[module] if name in has[module] else ("eager",)
            assert op(name, CPU).__module__.startswith(tuple(f"abmll.kernels.{home}" for home in found))
            assert op(name, CPU).__name__ == name
    finally:
        kernels.use("auto")
    monkeypatch.setattr(kernels.onednn, "why_not", lambda: None)
    assert kernels.backend_for(CPU) == "onednn"


def test_auto_is_triton_on_cuda_where_triton_can_be_imported(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(kernels, "triton_error", lambda: None)
    assert kernels.backend_for(cuda) == "triton"
    monkeypatch.setattr(kernels, "triton_error", lambda: "no triton")
    assert kernels.backend_for(cuda) == "eager"
    assert op("task_kl", cuda) is task_kl


class LargestOutput(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


class Saved:
    """A pack hook that counts what autograd keeps for backward."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        self.sizes.append(tensor.numel())
        return tensor


WIDE = 2048


def _kl(pair: Pair, x: Tensor) -> Tensor:
    return layer_kl(*pair)


def _penalty(pair: Pair, x: Tensor) -> Tensor:
    return layer_precision_penalty(*pair.shared[2:], pair.variance, 1.0, 0.01)


def _norm(pair: Pair, x: Tensor) -> Tensor:
    return squared_norm(pair.shared.mean_b, pair.shared.mean_a)


def _weight(pair: Pair, x: Tensor) -> Tensor:
    return weight_noise(x, *pair.task[2:], pair.variance, keys=key_tensor(1), layer=0).square().sum()


def _activation(pair: Pair, x: Tensor) -> Tensor:
    tokens = torch.arange(x.shape[1]).expand(x.shape[:2])
    draw = activation_noise(x, *pair.task[2:], pair.variance, key_tensor(1), 0, torch.arange(x.shape[0]), tokens)
    return draw.square().sum()


@pytest.mark.parametrize("run", [_kl, _penalty, _norm, _weight, _activation])
def test_nothing_out_times_in_is_ever_made_or_kept(run):
    pair = far_pair((WIDE, WIDE, 8)).leaves(torch.float32)
    x = torch.randn(2, 8, WIDE, requires_grad=True)
    with LargestOutput() as largest, torch.autograd.graph.saved_tensors_hooks(saved := Saved(), lambda kept: kept):
        run(pair, x).backward()
    per_factor = 2 * 8 * WIDE  # `difference_of_products` puts two factors beside each other
    assert largest.entries <= (1 << 18) + per_factor
    assert largest.entries > 0
    inner = 8 * 9 // 2 + 8 + 1  # rows of the activation sampler's thin products
    assert sum(saved.sizes) <= 12 * (inner * 2 * WIDE + x.numel()) < WIDE * WIDE
    assert max(saved.sizes) <= inner * WIDE


def test_the_memory_check_would_see_a_dense_matrix():
    with LargestOutput() as largest:
        torch.ones(64, 1) @ torch.ones(1, 32)
    assert largest.entries == 64 * 32


def test_the_sum_over_a_layer_is_accumulated_in_float64():
    """10^7 equal entries: a float32 running sum would be off in the fifth digit or earlier."""
    zeros = Factors(torch.zeros(4000, 1), torch.ones(1, 2500), torch.zeros(4000, 1), torch.ones(1, 2500))
    moved = Factors(torch.full((4000, 1), 0.7), *zeros[1:])
    variance = Variance("square", 1.0, 1e-6, 1.0)
    one = float(layer_kl(corner(moved), corner(zeros), variance))
    assert float(layer_kl(moved, zeros, variance)) == pytest.approx(10_000_000 * one, rel=1e-12)


def corner(factors: Factors) -> Factors:
    """The factors of the first entry alone."""
    return Factors(*(f[:1, :1] for f in factors))
