"""The two forward samplers: their draws, their variance and their gradients, against dense forms and Monte Carlo."""

import pytest
import torch
from torch import Tensor

from abmll.errors import AbmllError
from abmll.kernels import Variance
from abmll.kernels.eager import (
    activation_noise,
    activation_output,
    activation_variance,
    mean_output,
    std_and_noise,
    weight_noise,
    weight_output,
)
from abmll.kernels.noise import key_tensor, noise_key, normal
from tests.dense import cast, dense_mean, dense_variance, gradients_of, random_factors, relative_error

FORMS = ("square", "log_std")
KEY = key_tensor(noise_key("test", 0))


def stds(out_features: int, in_features: int, rank: int, variance: Variance, seed: int = 0) -> list[Tensor]:
    """float64 leaves B', A' whose products are a good part of f, so that stds vary and some come near 0."""
    unit = variance.offset if variance.form == "square" else 1.0
    factors = cast(random_factors(out_features, in_features, rank, seed, 0.2 * unit), torch.float64, requires_grad=True)
    return [factors.std_b, factors.std_a]


def some_variance(form: str = "square", std: float = 0.3) -> Variance:
    return Variance(form, std, 1e-2 * std, 2.0)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def dense_weight_noise(x: Tensor, std_b: Tensor, std_a: Tensor, variance: Variance, key: Tensor, layer: int) -> Tensor:
    """x (std * E)^T with all of E and of std in memory."""
    rows = torch.arange(std_b.shape[0])
    noise = normal(key, std_a.shape[1], rows, layer).double()
    return x @ (dense_variance(std_b, std_a, variance).sqrt() * noise).T


# -------------------- weight


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 13, 4), (301, 907, 8)])
def test_weight_noise_and_gradients_equal_the_dense_form_with_the_same_noise(shape, form):
    variance, x = some_variance(form), tokens(2, 3, shape[1])
    leaves = (x, *stds(*shape, variance))
    ours, theirs = weight_noise(*leaves, variance, KEY, layer=3), dense_weight_noise(*leaves, variance, KEY, 3)
    assert relative_error(ours, theirs) < 1e-12
    upstream = tokens(*ours.shape, seed=1).detach()
    ours, theirs = (ours * upstream).sum(), (theirs * upstream).sum()
    for mine, dense in zip(gradients_of(ours, leaves), gradients_of(theirs, leaves), strict=True):
        assert relative_error(mine, dense) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_float32_weight_noise_and_gradients_are_those_of_float64(form):
    variance = some_variance(form)
    double = (tokens(4, 48), *stds(64, 48, 8, variance))
    single = [leaf.detach().float().requires_grad_() for leaf in double]
    ours, theirs = weight_noise(*single, variance, KEY, layer=0), dense_weight_noise(*double, variance, KEY, 0)
    assert ours.dtype == torch.float32
    assert relative_error(ours, theirs) < 1e-5
    for mine, dense in zip(
        gradients_of(ours.square().sum(), single), gradients_of(theirs.square().sum(), double), strict=True
    ):
        assert relative_error(mine, dense) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_trust_23_gradcheck_of_the_weight_sampler(form):
    variance = some_variance(form)
    leaves = (tokens(2, 5), *stds(4, 5, 2, variance))
    assert torch.autograd.gradcheck(lambda *leaf: weight_noise(*leaf, variance, KEY, 1), leaves, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,), (2, 0)])
def test_weight_noise_takes_any_number_of_token_dimensions(shape):
    variance = some_variance()
    leaves = (tokens(*shape, 5), *stds(4, 5, 2, variance))
    draw = weight_noise(*leaves, variance, KEY, 1)
    assert draw.shape == (*shape, 4)
    expected = gradients_of(dense_weight_noise(*leaves, variance, KEY, 1).square().sum(), leaves)
    for mine, dense in zip(gradients_of(draw.square().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(mine, dense, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_weight_noise_leaves_gradients_only_where_they_are_needed(wanted):
    variance = some_variance()
    leaves = [
        leaf.detach().requires_grad_(i == wanted) for i, leaf in enumerate((tokens(3, 5), *stds(4, 5, 2, variance)))
    ]
    weight_noise(*leaves, variance, KEY, 1).sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(3)]


def test_all_tokens_share_one_weight_matrix():
    """Noise of a sum of tokens is the sum of their noises: true of a weight, not of noise per token."""
    variance = some_variance()
    b, a = stds(7, 13, 4, variance)
    x = tokens(2, 13)
    both = weight_noise(x, b, a, variance, KEY, 0)
    assert (
        relative_error(weight_noise(x.sum(0, keepdim=True), b, a, variance, KEY, 0), both.sum(0, keepdim=True)) < 1e-12
    )


def test_draws_differ_by_key_and_by_layer_and_repeat_otherwise():
    variance = some_variance()
    leaves = (tokens(2, 13), *stds(7, 13, 4, variance))
    first = weight_noise(*leaves, variance, KEY, 0)
    assert torch.equal(first, weight_noise(*leaves, variance, KEY, 0))
    assert not torch.isclose(first, weight_noise(*leaves, variance, KEY, 1)).any()
    assert not torch.isclose(first, weight_noise(*leaves, variance, key_tensor(noise_key("test", 1)), 0)).any()


def test_std_and_noise_is_what_the_sampler_multiplies():
    variance = some_variance()
    b, a = (leaf.detach() for leaf in stds(301, 907, 2, variance))
    blocks = list(std_and_noise(b, a, variance, KEY, 2))
    assert len(blocks) > 1
    weight = torch.cat([std * noise for _, _, std, noise in blocks])
    identity = torch.eye(907, dtype=torch.float64)
    assert relative_error(weight_noise(identity, b, a, variance, KEY, 2).T, weight) < 1e-12


# -------------------- activation


def dense_activation_variance(x: Tensor, std_b: Tensor, std_a: Tensor, variance: Variance) -> Tensor:
    """sum_i var_oi x_i^2 with the O x I matrix of variances."""
    return x.double().square() @ dense_variance(std_b, std_a, variance).T


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 13, 4), (64, 48, 8), (33, 200, 64)])
@pytest.mark.parametrize("std", [4.5e-5, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_activation_variance_equals_the_dense_sum(dtype, tolerance, std, shape):
    variance = Variance("square", std, 1e-6, 2.0)
    double = (tokens(3, shape[1]), *stds(*shape, variance))
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in double]
    ours, theirs = activation_variance(*leaves, variance), dense_activation_variance(*double, variance)
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=0)
    for mine, dense in zip(gradients_of(ours.sum(), leaves), gradients_of(theirs.sum(), double), strict=True):
        assert relative_error(mine, dense) < tolerance


def cancelling(dtype: torch.dtype, variance: Variance, rows: int = 40) -> list[Tensor]:
    """Factors of rank 3 with B'A' = -f / s to the last digit but spread over the rank, so that r = 0 in every entry."""
    generator = torch.Generator().manual_seed(0)
    b = torch.rand(rows, 3, generator=generator, dtype=torch.float64)
    b = -b / b.sum(1, keepdim=True) * variance.offset / variance.scale
    return [leaf.to(dtype).requires_grad_() for leaf in (b, torch.ones(3, 48, dtype=torch.float64))]


def test_activation_variance_is_clamped_at_the_floor_where_float32_cancellation_makes_it_negative():
    variance = Variance("square", 0.3, 1e-6, 2.0)
    b, a = cancelling(torch.float32, variance)
    x = tokens(5, 48).detach().float().requires_grad_()
    squares = x.detach().double().square().sum(1, keepdim=True)
    spread = activation_variance(x, b, a, variance)
    lowest = (variance.floor**2 * squares).expand_as(spread)
    clamped = torch.isclose(spread.double(), lowest, rtol=1e-5, atol=0)
    assert 0 < int(clamped.sum()) < clamped.numel()
    assert (spread.double() >= lowest * (1 - 1e-5)).all()
    exact = dense_activation_variance(x, b, a, variance)
    assert float((spread - exact).detach().abs().max()) < 1e-5 * variance.offset**2 * float(squares.max())
    assert all(int(g.count_nonzero()) == 0 for g in gradients_of(spread[clamped].sum(), (x, b, a)))
    assert all(int(g.count_nonzero()) > 0 for g in gradients_of(spread[~clamped].sum(), (x, b, a)))


def test_activation_variance_at_cancelling_rows_is_exact_in_float64():
    variance = Variance("square", 0.3, 1e-3, 2.0)
    b, a = cancelling(torch.float64, variance)
    x = tokens(5, 48)
    expected = variance.floor**2 * x.square().sum(1, keepdim=True).expand(5, 40)
    torch.testing.assert_close(activation_variance(x, b, a, variance), expected, rtol=1e-6, atol=0)


def test_trust_23_gradcheck_of_the_activation_variance_and_noise():
    variance = some_variance()
    leaves = (tokens(2, 3, 5), *stds(4, 5, 2, variance))
    questions, places = torch.arange(2), torch.arange(3).expand(2, 3)
    assert torch.autograd.gradcheck(lambda *leaf: activation_variance(*leaf, variance), leaves, rtol=1e-6, atol=1e-7)
    assert torch.autograd.gradcheck(
        lambda *leaf: activation_noise(*leaf, variance, KEY, 1, questions, places), leaves, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_trust_19_a_non_finite_input_is_not_hidden_by_the_clamp(value, which):
    variance = some_variance()
    leaves = [leaf.detach().clone() for leaf in (tokens(3, 5), *stds(4, 5, 2, variance))]
    leaves[which].view(-1)[0] = value
    assert not activation_variance(*leaves, variance).isfinite().all()
    assert not weight_noise(*leaves, variance, KEY, 0).isfinite().all()


def test_activation_sampler_refuses_log_std_which_has_no_low_rank_variance():
    variance = some_variance("log_std")
    with pytest.raises(AbmllError, match="std_form=square"):
        activation_variance(tokens(3, 5), *stds(4, 5, 2, variance), variance)


def test_a_token_of_zeros_has_no_noise_and_finite_gradients():
    variance = some_variance()
    leaves = [leaf.detach().float().requires_grad_() for leaf in (tokens(1, 2, 5), *stds(4, 5, 2, variance))]
    x = leaves[0] * torch.tensor([0.0, 1.0])[:, None]
    draw = activation_noise(x, *leaves[1:], variance, KEY, 0, torch.tensor([0]), torch.arange(2)[None])
    assert float(draw[0, 0].detach().abs().max()) < 1e-15
    assert all(g.isfinite().all() for g in gradients_of(draw.square().sum() + draw.sum(), leaves))


def test_activation_noise_is_keyed_by_question_and_token_whatever_the_batch():
    variance = some_variance()
    b, a = stds(4, 5, 2, variance)
    x = tokens(3, 6, 5).detach()
    questions, places = torch.tensor([11, 12, 13]), torch.arange(6).expand(3, 6)
    together = activation_noise(x, b, a, variance, KEY, 0, questions, places)
    order = torch.tensor([2, 0])
    apart = activation_noise(x[order][:, 1:4], b, a, variance, KEY, 0, questions[order], places[order][:, 1:4])
    torch.testing.assert_close(apart, together[order][:, 1:4], rtol=1e-12, atol=0)


def test_rows_of_one_question_share_the_noise_of_their_prefix():
    variance = some_variance()
    b, a = stds(4, 5, 2, variance)
    x = tokens(1, 6, 5).detach().repeat(2, 1, 1)
    places = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6, 7]])
    first, second = activation_noise(x, b, a, variance, KEY, 0, torch.tensor([9, 9]), places)
    torch.testing.assert_close(first[:4], second[:4], rtol=1e-12, atol=0)
    assert not torch.isclose(first[4:], second[4:]).any()


def test_equal_tokens_share_one_direction_over_a_sequence():
    variance = some_variance()
    b, a = stds(4, 5, 2, variance)
    x = tokens(2, 6, 5).detach()
    draw = activation_noise(x, b, a, variance, KEY, 0, torch.tensor([1, 2]), torch.zeros(2, 6, dtype=torch.int64))
    direction = draw / activation_variance(x, b, a, variance).sqrt()
    torch.testing.assert_close(direction, direction[:, :1].expand_as(direction), rtol=1e-9, atol=0)
    assert not torch.isclose(direction[0], direction[1]).any()


# -------------------- several draws in one batch

KEYS = key_tensor(*(noise_key("test", i) for i in range(3)))


def test_every_group_of_rows_has_the_weight_of_its_own_key():
    variance = some_variance()
    leaves = (tokens(6, 3, 5), *stds(4, 5, 2, variance))
    together = weight_noise(*leaves, variance, KEYS, 1)
    groups = leaves[0].split(2)
    apart = torch.cat([weight_noise(x, *leaves[1:], variance, k[None], 1) for x, k in zip(groups, KEYS, strict=True)])
    assert torch.equal(together, apart)
    expected = gradients_of(apart.square().sum(), leaves)
    for mine, other in zip(gradients_of(together.square().sum(), leaves), expected, strict=True):
        assert torch.equal(mine, other)


def test_every_group_of_rows_has_the_activation_noise_of_its_own_key():
    variance = some_variance()
    b, a = stds(4, 5, 2, variance)
    x, questions, places = tokens(6, 3, 5), torch.arange(6), torch.arange(3).expand(6, 3)
    together = activation_noise(x, b, a, variance, KEYS, 1, questions, places)
    for group, key in enumerate(KEYS):
        rows = slice(2 * group, 2 * group + 2)
        alone = activation_noise(x[rows], b, a, variance, key[None], 1, questions[rows], places[rows])
        torch.testing.assert_close(together[rows], alone, rtol=1e-12, atol=0)


def test_rows_that_do_not_divide_into_groups_are_refused():
    variance = some_variance()
    leaves = (tokens(4, 3, 5), *stds(4, 5, 2, variance))
    with pytest.raises(AbmllError, match="4 rows has no 3 equal groups"):
        weight_noise(*leaves, variance, KEYS, 1)
    with pytest.raises(AbmllError, match="4 rows has no 3 equal groups"):
        activation_noise(*leaves, variance, KEYS, 1, torch.arange(4), torch.arange(3).expand(4, 3))


# -------------------- the whole output of a layer


@pytest.mark.parametrize("sampler", ["mean", "weight", "activation"])
def test_outputs_are_the_base_s_plus_mean_and_noise_rounded_once(sampler):
    variance = some_variance()
    factors = cast(random_factors(64, 48, 4, 0, 0.2 * variance.offset), torch.float32)
    x = tokens(2, 30, 48).detach().to(torch.bfloat16)
    y0 = tokens(2, 30, 64, seed=1).detach().to(torch.bfloat16)
    noise_args = (*factors[2:], variance, KEY, 1)
    places = torch.arange(30).expand(2, 30)
    if sampler == "mean":
        y, noise = mean_output(y0, x, *factors[:2], variance.scale), 0
    elif sampler == "weight":
        y, noise = weight_output(y0, x, factors, variance, KEY, 1), weight_noise(x.float(), *noise_args)
    else:
        y = activation_output(y0, x, factors, variance, KEY, 1, torch.arange(2), places)
        noise = activation_noise(x.float(), *noise_args, torch.arange(2), places)
    exact = y0.double() + x.double() @ dense_mean(factors, variance).T + noise
    assert y.dtype == torch.bfloat16
    assert float((y != exact.to(torch.bfloat16)).float().mean()) < 0.01  # but for entries at a rounding edge


# -------------------- the two samplers beside each other

DRAWS, TOGETHER = 4000, 500


def both_samplers() -> tuple[Tensor, Tensor, Tensor]:
    """DRAWS keys' noise of one token by either sampler (D x O), and its dense variance (O)."""
    variance = some_variance()
    b, a = stds(12, 9, 2, variance)
    x, place = tokens(1, 1, 9).detach(), torch.zeros(1, 1, dtype=torch.int64)
    many, places = x.expand(TOGETHER, 1, 9), place.expand(TOGETHER, 1)
    groups = torch.arange(DRAWS).split(TOGETHER)
    with torch.no_grad():
        keys = [(key_tensor(*(noise_key(name, int(i)) for i in group)) for group in groups) for name in "wa"]
        weight = torch.cat([weight_noise(many[:, 0], b, a, variance, key, 5) for key in keys[0]])
        activation = torch.cat(
            [activation_noise(many, b, a, variance, key, 5, places[:, 0], places)[:, 0] for key in keys[1]]
        )
        return weight, activation, dense_activation_variance(x[0, 0], b, a, variance)


def test_both_samplers_have_the_same_mean_and_variance_for_one_layer_and_token():
    weight, activation, variance = both_samplers()
    for draws in (weight, activation):
        assert (draws.mean(0).abs() < 4 * (variance / DRAWS).sqrt()).all()
        assert ((draws.square().mean(0) / variance - 1).abs() < 4 * (2 / DRAWS) ** 0.5).all()
        outputs = torch.corrcoef(draws.T) - torch.eye(12)
        assert float(outputs.abs().max()) < 4 / DRAWS**0.5
    difference = weight.mean(0) - activation.mean(0)
    assert (difference.abs() < 4 * (2 * variance / DRAWS).sqrt()).all()


def test_over_tokens_the_samplers_are_not_the_same_distribution():
    """Two equal tokens: one draw of a weight gives them equal noise, local reparameterisation independent noise."""
    variance = some_variance()
    b, a = (leaf.detach() for leaf in stds(2000, 9, 2, variance))
    x = tokens(1, 1, 9).detach().repeat(1, 2, 1)
    weight = weight_noise(x, b, a, variance, KEY, 0)[0]
    activation = activation_noise(x, b, a, variance, KEY, 0, torch.tensor([0]), torch.arange(2)[None])[0]
    assert torch.corrcoef(weight)[0, 1] > 0.999
    assert abs(torch.corrcoef(activation)[0, 1]) < 4 / 2000**0.5
