"""The output of an adapted layer: by the means, by the `activation` sampler and by the `weight` sampler."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from abmll.errors import AbmllError
from abmll.kernels.eager.tiles import contract, row_blocks
from abmll.kernels.factors import Factors, Variance
from abmll.kernels.noise import Key, normal

Product = Callable[[Tensor, Tensor], Tensor]
"""x, W -> x W^T, where W asks for no gradient."""


def frozen_linear(
    x: Float[Tensor, "*tokens I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None,
    packed: object = None,
) -> Float[Tensor, "*tokens O"]:
    """x W^T + b: a linear layer of the base model. Copies of the weight in other layouts, `packed`, are of no use."""
    return linear(x, weight, bias)


def mean_output(
    y0: Float[Tensor, "*tokens O"],
    x: Float[Tensor, "*tokens I"],
    mean_b: Float[Tensor, "O R"],
    mean_a: Float[Tensor, "R I"],
    scale: float,
) -> Float[Tensor, "*tokens O"]:
    """y0 + s (x A^T) B^T: summed in the factors' dtype, cast once to that of y0."""
    return _added(y0, mean(x.to(mean_a.dtype), mean_b, mean_a, scale))


def activation_output(
    y0: Float[Tensor, "B T O"],
    x: Float[Tensor, "B T I"],
    factors: Factors,
    variance: Variance,
    keys: Int[Tensor, " S"],
    layer: int,
    questions: Int[Tensor, " B"],
    tokens: Int[Tensor, "B T"],
) -> Float[Tensor, "B T O"]:
    """`mean_output` + `activation_noise`: local reparameterisation.

    Raises:
        AbmllError: the form is `log_std`, whose variance is not low-rank; or the rows do not divide into S groups.
    """
    x = x.to(factors.mean_a.dtype)
    noise = activation_noise(x, factors.std_b, factors.std_a, variance, keys, layer, questions, tokens)
    return _added(y0, mean(x, factors.mean_b, factors.mean_a, variance.scale) + noise)


def weight_output(
    y0: Float[Tensor, "*tokens O"],
    x: Float[Tensor, "*tokens I"],
    factors: Factors,
    variance: Variance,
    keys: Int[Tensor, " S"],
    layer: int,
    product: Product = linear,
) -> Float[Tensor, "*tokens O"]:
    """`mean_output` + `weight_noise`: one weight matrix for all tokens of a draw.

    Raises:
        AbmllError: the rows do not divide into S groups.
    """
    x = x.to(factors.mean_a.dtype)
    noise = weight_noise(x, factors.std_b, factors.std_a, variance, keys, layer, product)
    return _added(y0, mean(x, factors.mean_b, factors.mean_a, variance.scale) + noise)


def _added(y0: Float[Tensor, "*tokens O"], term: Float[Tensor, "*tokens O"]) -> Float[Tensor, "*tokens O"]:
    return (y0.to(term.dtype) + term).to(y0.dtype)


def mean(
    x: Float[Tensor, "*tokens I"], mean_b: Float[Tensor, "O R"], mean_a: Float[Tensor, "R I"], scale: float
) -> Float[Tensor, "*tokens O"]:
    """s (x A^T) B^T by two thin products."""
    return linear(linear(x, mean_a), mean_b) * scale


def rows_per_key(rows: int, keys: Int[Tensor, " S"]) -> int:
    """How many consecutive rows of a batch each key draws for.

    Raises:
        AbmllError: the rows do not divide into as many equal groups as there are keys.
    """
    if rows % len(keys):
        raise AbmllError(f"a batch of {rows} rows has no {len(keys)} equal groups, one for each noise key")
    return rows // len(keys)


def weight_noise(
    x: Float[Tensor, "*tokens I"],
    std_b: Float[Tensor, "O R"],
    std_a: Float[Tensor, "R I"],
    variance: Variance,
    keys: Int[Tensor, " S"],
    layer: int,
    product: Product = linear,
) -> Float[Tensor, "*tokens O"]:
    """x (std * E)^T with E standard normal per entry, made again in backward from its counters.

    The rows (dimension 0) of x are S equal consecutive groups; all tokens of group s share the one matrix of keys[s].
    `product` multiplies by a tile of that matrix.
    """
    how = (variance, layer, product)
    if len(keys) == 1:
        return _WeightNoise.apply(how, keys[0], x, std_b, std_a)
    groups = x.split(rows_per_key(x.shape[0], keys))
    draws = zip(keys.unbind(), groups, strict=True)
    return torch.cat([_WeightNoise.apply(how, key, group, std_b, std_a) for key, group in draws])


def std_and_noise(
    std_b: Tensor, std_a: Tensor, variance: Variance, key: Key, layer: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """(rows, u, std, E) of each row block: the entries that the `weight` sampler adds are std * E."""
    for rows in row_blocks(std_b.shape[0], std_a.shape[1], std_b.device):
        u = variance.scale * (std_b[rows] @ std_a)
        counters = torch.arange(rows.start, rows.stop, device=std_b.device)
        yield rows, u, variance.of(u).sqrt(), normal(key, std_a.shape[1], counters, layer).to(u.dtype)


class _WeightNoise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, how: tuple[Variance, int, Product], key: Tensor, x: Tensor, std_b: Tensor, std_a: Tensor
    ) -> Tensor:
        ctx.save_for_backward(key, x, std_b, std_a)
        ctx.how = variance, layer, product = how
        out = x.new_empty(*x.shape[:-1], std_b.shape[0])
        for rows, _, std, noise in std_and_noise(std_b, std_a, variance, key, layer):
            out[..., rows] = product(x, std.mul_(noise))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        key, x, std_b, std_a = ctx.saved_tensors
        variance, layer, product = ctx.how
        gradient_x = torch.zeros_like(x) if ctx.needs_input_grad[2] else None
        gradients: list[Tensor | None] = [torch.zeros_like(std_b), torch.zeros_like(std_a)]
        for rows, u, std, noise in std_and_noise(std_b, std_a, variance, key, layer):
            down = upstream[..., rows]
            if gradient_x is not None:
                gradient_x += product(down, (std * noise).t())
            if any(ctx.needs_input_grad[3:]):
                by_weight = down.reshape(-1, down.shape[-1]).T @ x.reshape(-1, x.shape[-1])
                by_u = by_weight.mul_(noise).mul_(variance.slope(u)).div_(std.mul_(2))  # dstd/du = var'(u) / (2 std)
                contract(gradients, by_u, std_b, std_a, rows, variance.scale)
        return (None, None, gradient_x, *gradients)


def activation_variance(
    x: Float[Tensor, "*tokens I"],
    std_b: Float[Tensor, "O R"],
    std_a: Float[Tensor, "R I"],
    variance: Variance,
) -> Float[Tensor, "*tokens O"]:
    """V = sum_i var_oi x_i^2 of each token and output, by two thin products (docs/method.md, section 3).

    With r = s B' A' + f the sum splits into pairs of factor rows, so the inner size is R (R + 1) / 2 + R + 1 and no
    O x I matrix appears. V is clamped at eps^2 sum x^2, where float32 cancellation could make it negative; the
    gradient is 0 there.

    Raises:
        AbmllError: the form is `log_std`, whose variance is not low-rank.
    """
    if variance.form != "square":
        raise AbmllError(f"the activation sampler needs std_form=square, not {variance.form}; use the weight sampler")
    first, second = torch.triu_indices(std_a.shape[0], std_a.shape[0], device=x.device)
    twice = torch.where(first == second, 1.0, 2.0).to(std_b.dtype)
    s, f = variance.scale, variance.offset
    inner = torch.cat([std_a[first] * std_a[second], std_a, torch.ones_like(std_a[:1])])
    constant = torch.full_like(std_b[:, :1], f**2 + variance.floor**2)
    outer = torch.cat([s**2 * twice * std_b[:, first] * std_b[:, second], 2 * s * f * std_b, constant], dim=1)
    squares = x.square()
    total = squares @ inner.T @ outer.T
    lowest = (variance.floor**2 * squares.sum(-1, keepdim=True)).detach()
    return torch.where(total < lowest, lowest, total)  # this way round a NaN stays a NaN


def activation_noise(
    x: Float[Tensor, "B T I"],
    std_b: Float[Tensor, "O R"],
    std_a: Float[Tensor, "R I"],
    variance: Variance,
    keys: Int[Tensor, " S"],
    layer: int,
    questions: Int[Tensor, " B"],
    tokens: Int[Tensor, "B T"],
) -> Float[Tensor, "B T O"]:
    """sqrt(V) * z with z standard normal per (question, token, output): local reparameterisation.

    The rows of the batch are S equal consecutive groups; group s takes its noise from keys[s].

    Same mean and variance as `weight_noise` for one layer and token, but not jointly over tokens: through a whole
    network the distributions differ. Pass equal `tokens` to share z over a sequence.
    """
    spread = activation_variance(x, std_b, std_a, variance)
    of_rows = rows_per_key(x.shape[0], keys)
    key = keys[0] if len(keys) == 1 else keys.repeat_interleave(of_rows)[:, None]
    noise = normal(key, std_b.shape[0], tokens, layer, questions[:, None].expand_as(tokens))
    return (spread + torch.finfo(spread.dtype).tiny).sqrt() * noise.to(spread.dtype)
