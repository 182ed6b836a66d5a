"""The fused forward ops in Triton's CPU interpreter, against eager in float64: values, gradients, noise, fallbacks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import tests.interpreter  # noqa: F401 - makes it quick
from abmll import kernels
from abmll.adapters.gaussian import LowRankGaussian
from abmll.adapters.layer import AdaptedLinear, Noise
from abmll.errors import AbmllError
from abmll.kernels import Factors, Variance, eager, fallbacks, triton_output
from abmll.kernels.noise import key_tensor, noise_key, normal
from abmll.kernels.wide import output as wide
from tests.dense import dense_mean, dense_variance, gradients_of, random_factors, relative_error

ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of results in this type
OPS = ("mean_output", "activation_output", "weight_output")


class Case(NamedTuple):
    """One call: what the three ops take, and a gradient from above."""

    y0: Tensor
    x: Tensor
    factors: Factors
    variance: Variance
    keys: Tensor
    questions: Tensor
    tokens: Tensor
    upstream: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.y0, self.x, *self.factors)

    def on(self, *leaves: Tensor) -> "Case":
        return self._replace(y0=leaves[0], x=leaves[1], factors=Factors(*leaves[2:]))

    def new(self, dtype: torch.dtype | None = None) -> "Case":
        """The same numbers as leaves that take gradients, in their own types or in another."""
        return self.on(*(leaf.detach().to(dtype or leaf.dtype).clone().requires_grad_() for leaf in self.leaves))


def case(shape, rank, dtype=torch.float32, std=0.3, form="square", draws=1, layer_std=0.2) -> Case:
    """Inputs of shape (B, T, I, O)."""
    rows, length, width, height = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    factors = random_factors(height, width, rank, 0, layer_std * (std if form == "square" else 1.0))
    return Case(
        draw(rows, length, height).to(dtype),
        draw(rows, length, width).to(dtype),
        Factors(*(f.float() for f in factors)),
        Variance(form, std, 1e-10 if std < 1e-6 else 1e-2 * std, 2.0),
        key_tensor(*(noise_key("draw", i) for i in range(draws))),
        torch.tensor([2**32 - 1, 5, 77][:rows]),
        torch.arange(length).expand(rows, length),
        draw(rows, length, height).to(dtype),
    )


def run(module, op: str, c: Case) -> Tensor:
    if op == "mean_output":
        return module.mean_output(c.y0, c.x, *c.factors[:2], c.variance.scale)
    noise = (c.keys, 3) if op == "weight_output" else (c.keys, 3, c.questions, c.tokens)
    return getattr(module, op)(c.y0, c.x, c.factors, c.variance, *noise)


def value_and_gradients(module, op: str, c: Case) -> tuple[Tensor, ...]:
    leaves = c.leaves[: 4 if op == "mean_output" else 6]
    y = run(module, op, c)
    return (y, *torch.autograd.grad(y, leaves, c.upstream.to(y.dtype)))


def assert_equals_eager(op: str, c: Case) -> None:
    ours = value_and_gradients(triton_output, op, c.new())
    theirs = value_and_gradients(eager, op, c.new(torch.float64))
    assert op not in fallbacks
    for mine, leaf, exact in zip(ours, (c.y0, *c.leaves), theirs, strict=False):
        assert mine.dtype == leaf.dtype
        assert relative_error(mine, exact) < max(ROUNDING[mine.dtype], 1e-5 if c.x.dtype == torch.float32 else 2**-14)


@pytest.fixture(autouse=True)
def no_fallbacks() -> Iterator[None]:
    fallbacks.clear()
    yield
    fallbacks.clear()


# -------------------- values and gradients


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("shape", "rank"), [((1, 3, 5, 7), 1), ((2, 5, 37, 21), 3), ((2, 40, 70, 90), 8)])
def test_values_and_gradients_are_those_of_eager_in_float64(shape, rank, op):
    assert_equals_eager(op, case(shape, rank))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_half_precision_is_rounded_once_and_only_where_results_have_it(op, dtype):
    """The factors' gradients are those of float64 on the same rounded inputs, to 16 bits."""
    assert_equals_eager(op, case((2, 5, 37, 30), 8, dtype))


@pytest.mark.parametrize(("op", "rank"), [("mean_output", 64), ("activation_output", 16), ("weight_output", 64)])
def test_large_ranks(op, rank):
    assert_equals_eager(op, case((1, 5, 20, 30), rank))


@pytest.mark.parametrize(
    ("shape", "rank", "dtype", "options"),
    [
        ((2, 5, 37, 30), 17, torch.float32, {}),
        ((1, 40, 70, 90), 64, torch.bfloat16, {"most": 70 * 64}),  # of the outputs, 64 at a time
        ((3, 7, 20, 30), 33, torch.float16, {"draws": 3}),
        ((2, 5, 37, 21), 24, torch.bfloat16, {"std": 2e-9}),
        ((2, 5, 37, 21), 24, torch.bfloat16, {"std": 10.0}),
    ],
)
def test_activation_noise_at_wide_ranks(monkeypatch, shape, rank, dtype, options):
    monkeypatch.setattr(wide, "_MOST_ENTRIES", options.pop("most", 1 << 26))
    c = case(shape, rank, dtype, **options)
    ours = value_and_gradients(wide, "activation_output", c.new())
    theirs = value_and_gradients(eager, "activation_output", c.new(torch.float64))
    assert not fallbacks
    for mine, leaf, exact in zip(ours, (c.y0, *c.leaves), theirs, strict=True):
        assert mine.dtype == leaf.dtype
        assert relative_error(mine, exact) < max(ROUNDING[mine.dtype], 1e-5 if dtype == torch.float32 else 2**-14)


@pytest.mark.parametrize("wanted", [{0}, {1}, {2, 4}, {5}])
def test_wide_inputs_get_their_gradients_whether_or_not_the_others_need_one(wanted):
    c = case((1, 5, 20, 30), 17)
    expected = value_and_gradients(eager, "activation_output", c.new(torch.float64))[1:]
    leaves = [leaf.clone().requires_grad_(i in wanted) for i, leaf in enumerate(c.leaves)]
    run(wide, "activation_output", c.on(*leaves)).backward(c.upstream)
    for index, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (index in wanted)
        assert leaf.grad is None or relative_error(leaf.grad, expected[index]) < 1e-5


@pytest.mark.parametrize("std", [2e-9, 10.0])
@pytest.mark.parametrize("op", OPS[1:])
def test_small_and_large_stds(op, std):
    assert_equals_eager(op, case((2, 5, 37, 21), 8, std=std))


def test_stds_below_the_resolution_of_the_sum_still_get_their_gradients():
    c = case((2, 5, 37, 21), 8, torch.bfloat16, std=2e-9)
    assert_equals_eager("activation_output", c)
    gradients = value_and_gradients(triton_output, "activation_output", c.new())[-2:]
    assert all(g.any() for g in gradients)


def test_weight_sampler_in_log_std_form():
    assert_equals_eager("weight_output", case((2, 5, 37, 21), 3, form="log_std"))


@pytest.mark.parametrize("op", OPS[1:])
def test_every_group_of_rows_has_the_noise_of_its_own_key(op):
    assert_equals_eager(op, case((3, 7, 20, 30), 3, draws=3))


@pytest.mark.parametrize("wanted", [{0}, {1}, {2, 4}, {5}])
@pytest.mark.parametrize("op", OPS)
def test_inputs_get_their_gradients_whether_or_not_the_others_need_one(op, wanted):
    c = case((1, 5, 20, 30), 3)
    wanted = {index % 4 for index in wanted} if op == "mean_output" else wanted
    expected = value_and_gradients(eager, op, c.new(torch.float64))[1:]
    leaves = [leaf.clone().requires_grad_(i in wanted) for i, leaf in enumerate(c.leaves)]
    run(triton_output, op, c.on(*leaves)).backward(c.upstream)
    for index, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (index in wanted)
        assert leaf.grad is None or relative_error(leaf.grad, expected[index]) < 1e-5


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_computed_for_a_constant(op):
    assert not run(triton_output, op, case((1, 2, 20, 30), 3)).requires_grad


@pytest.mark.parametrize(("draws", "most"), [(1, 1 << 28), (3, 1 << 28), (3, 600)])
def test_predictions_draw_the_matrices_that_training_draws(monkeypatch, draws, most):
    """Without gradients, in bfloat16, each draw's matrix is made at once, `most` entries at a time."""
    monkeypatch.setattr(triton_output, "_MOST_DRAWN", most)
    c = case((3, 7, 20, 30), 3, torch.bfloat16, draws=draws)
    with torch.no_grad():
        y = run(triton_output, "weight_output", c)
    exact = run(eager, "weight_output", c.new(torch.float64))
    assert (y.dtype, y.shape) == (torch.bfloat16, c.y0.shape)
    assert relative_error(y, exact) < ROUNDING[torch.bfloat16]
    assert relative_error(y.double() - c.y0.double(), exact - c.y0.double()) < ROUNDING[torch.bfloat16]


@pytest.mark.parametrize("op", ["mean_output", "weight_output"])
@pytest.mark.parametrize("shape", [(), (2, 1, 3)])
def test_any_number_of_token_dimensions(op, shape):
    c = case((1, 6, 20, 30), 3)
    count = torch.Size(shape).numel()
    flat = c._replace(y0=c.y0[:, :count], x=c.x[:, :count], upstream=c.upstream[:, :count])
    free = flat._replace(y0=flat.y0.reshape(*shape, 30), x=flat.x.reshape(*shape, 20))
    shaped = free._replace(upstream=flat.upstream.reshape(*shape, 30))
    ours, expected = (value_and_gradients(triton_output, op, each.new()) for each in (shaped, flat))
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine.reshape(other.shape), other, rtol=0, atol=0)
    assert ours[0].shape == (*shape, 30)


@pytest.mark.parametrize("op", OPS)
def test_layout_in_memory_makes_no_difference(op):
    c = case((2, 6, 20, 30), 3)
    plain = c._replace(upstream=torch.ones_like(c.upstream))
    strided = c._replace(
        y0=c.y0.mT.contiguous().mT,
        x=c.x.mT.contiguous().mT,
        tokens=c.tokens.T.contiguous().T,
        upstream=torch.ones(()).expand(c.upstream.shape),
    )
    results = (value_and_gradients(triton_output, op, each.new()) for each in (plain, strided))
    assert all(torch.equal(mine, other) for mine, other in zip(*results, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_a_call_repeats_bit_for_bit(op):
    c = case((1, 5, 20, 30), 3, torch.bfloat16)
    results = (value_and_gradients(triton_output, op, c.new()) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


class Saved:
    """A pack hook that counts what autograd keeps for backward."""

    def __init__(self) -> None:
        self.entries = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        self.entries += tensor.numel()
        return tensor


@pytest.mark.parametrize("op", OPS)
def test_beside_x_and_the_factors_little_is_kept(op):
    c = case((1, 7, 200, 100), 3).new()
    with torch.autograd.graph.saved_tensors_hooks(saved := Saved(), lambda kept: kept):
        run(triton_output, op, c)
    own = c.x.numel() + sum(f.numel() for f in c.factors)
    assert saved.entries <= own + 3 * 7 * (16 + 64) + 7 + 2  # z in three parts; places, questions, a key


@pytest.mark.parametrize("rank", range(1, 17))
def test_pairs_come_in_blocks_that_the_compiler_gets_right(rank):
    meta = triton_output._meta(rank, 3, noise=True)
    assert meta["JP"] == 64  # of 16 and 32 Triton 3.6.0 makes wrong numbers; nothing but a GPU shows it
    assert meta["BLOCKS"] == -(-((rank + 1) * (rank + 2) // 2) // 64)


# -------------------- the noise


def test_weight_noise_is_the_dense_draw():
    """y of x = 1 is the drawn matrix itself, mean + std * E, with E by `noise.normal`; 4 I + 1 columns and odd rows."""
    c = case((1, 69, 69, 33), 3)
    c = c._replace(x=torch.eye(69)[None], y0=torch.zeros(1, 69, 33))
    noise = normal(c.keys[0], 69, torch.arange(33), 3).double()
    expected = dense_mean(c.factors, c.variance) + dense_variance(*c.factors[2:], c.variance).sqrt() * noise
    assert relative_error(run(triton_output, "weight_output", c)[0].T, expected) < 2e-6


def test_activation_noise_is_keyed_by_question_and_token_whatever_the_batch():
    c = case((3, 6, 20, 30), 3)
    together, order = run(triton_output, "activation_output", c), torch.tensor([2, 0])
    part = Case(
        *(t[order][:, 1:4] for t in (c.y0, c.x)),
        *c[2:5],
        c.questions[order],
        c.tokens[order][:, 1:4],
        c.upstream[order][:, 1:4],
    )
    alone = run(triton_output, "activation_output", part)
    torch.testing.assert_close(alone, together[order][:, 1:4], rtol=0, atol=1e-4)
    shared = run(triton_output, "activation_output", c._replace(tokens=torch.zeros_like(c.tokens)))
    theirs = run(eager, "activation_output", c._replace(tokens=torch.zeros_like(c.tokens)))
    torch.testing.assert_close(shared, theirs, rtol=0, atol=1e-4)


def cancelling() -> Case:
    """B'A' = -f / s to the last digit, spread over the rank: V is eps^2 sum x^2, or float32's idea of it."""
    c = case((1, 5, 48, 40), 3)
    b = torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = -b / b.sum(1, keepdim=True) * c.variance.offset / c.variance.scale
    variance = Variance("square", c.variance.offset, 1e-6, c.variance.scale)
    factors = Factors(torch.zeros(40, 3), c.factors.mean_a, b.float(), torch.ones(3, 48))
    return c._replace(factors=factors, variance=variance, y0=torch.zeros_like(c.y0))


def test_variance_is_clamped_at_the_floor_with_gradient_zero_where_float32_cancels():
    c = cancelling().new()
    noise = normal(c.keys[:, None], 40, c.tokens, 3, c.questions[:1, None].expand(1, 5))
    y = run(triton_output, "activation_output", c)
    spread = (y.detach().double() / noise.double()).square()
    squares = c.x.detach().double().square().sum(-1, keepdim=True)
    lowest = (c.variance.floor**2 * squares).expand_as(spread)
    assert (spread > lowest * (1 - 1e-5)).all()
    assert float((spread - lowest).max()) < 1e-5 * c.variance.offset**2 * float(squares.max())
    clamped = torch.isclose(spread, lowest, rtol=1e-5, atol=0)
    assert 0 < int(clamped.sum()) < clamped.numel()
    at, above = (gradients_of(y[where].sum(), (c.x, *c.factors[2:])) for where in (clamped, ~clamped))
    assert all(int(g.count_nonzero()) == 0 for g in at)
    assert all(int(g.count_nonzero()) > 0 for g in above)


def test_a_token_of_zeros_has_no_noise_and_finite_gradients():
    c = case((1, 2, 20, 30), 3)
    c = c._replace(x=c.x * torch.tensor([0.0, 1.0])[:, None], y0=torch.zeros_like(c.y0)).new()
    y, *gradients = value_and_gradients(triton_output, "activation_output", c)
    assert float(y[0, 0].detach().abs().max()) < 1e-15
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("index", "value"), [(1, float("inf")), (2, float("nan")), (5, float("nan"))])
@pytest.mark.parametrize("op", OPS)
def test_trust_19_a_non_finite_input_is_not_hidden(op, value, index):
    index = index % 4 if op == "mean_output" else index
    leaves = [leaf.clone() for leaf in case((1, 2, 20, 30), 3).leaves]
    leaves[index].view(-1)[0] = value
    assert not run(triton_output, op, case((1, 2, 20, 30), 3).on(*leaves)).isfinite().all()


# -------------------- when eager does it


@pytest.mark.parametrize(
    ("op", "change", "why"),
    [
        ("activation_output", lambda: case((1, 2, 20, 30), 64), "rank 64"),
        ("mean_output", lambda: case((1, 2, 20, 30), 65), "rank 65"),
        ("weight_output", lambda: case((1, 2, 20, 30), 3, torch.float64), "x is torch.float64"),
        ("mean_output", lambda: case((1, 2, 20, 30), 3).new(torch.float64), "factors are torch.float64"),
        ("activation_output", lambda: case((1, 0, 20, 30), 3), "empty"),
    ],
)
def test_eager_takes_over_where_triton_cannot_and_the_reason_is_kept(op, change: Callable[[], Case], why):
    c = change()
    for mine, theirs in zip(*(value_and_gradients(m, op, c.new()) for m in (triton_output, eager)), strict=True):
        assert torch.equal(mine, theirs)
    assert why in fallbacks[op]


def test_activation_sampler_refuses_log_std_as_eager_does():
    with pytest.raises(AbmllError, match="std_form=square"):
        run(triton_output, "activation_output", case((1, 2, 20, 30), 3, form="log_std"))


@pytest.mark.parametrize("op", OPS[1:])
def test_rows_that_do_not_divide_into_groups_are_refused(op):
    with pytest.raises(AbmllError, match="3 rows has no 2 equal groups"):
        run(triton_output, op, case((3, 2, 20, 30), 3, draws=2))


@pytest.mark.parametrize("sampler", ["mean", "weight", "activation"])
def test_the_adapted_layer_runs_them_through_the_op_table(sampler, monkeypatch):
    c = case((2, 5, 20, 30), 3)
    task = LowRankGaussian(30, 20, 3, c.variance, with_std=True)
    for parameter, value in zip(task.factors(), c.factors, strict=True):
        parameter.data.copy_(value)
    noise = Noise(sampler, c.keys, c.questions, c.tokens)
    layer = AdaptedLinear(torch.nn.Linear(20, 30), task, task, noise, index=3)
    expected = layer(c.x)
    calls = []
    fused = getattr(triton_output, f"{sampler}_output")
    monkeypatch.setattr(triton_output, fused.__name__, lambda *given: calls.append(sampler) or fused(*given))
    kernels.use("triton")
    try:
        torch.testing.assert_close(layer(c.x), expected, rtol=0, atol=1e-4)
    finally:
        kernels.use("auto")
    assert calls == [sampler]
