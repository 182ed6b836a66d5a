"""The activation sampler at ranks 17 to 64: `triton_output.activation_output` with the variances of a layer in memory.

At rank 64 the pairs of rank R + 1 are half as many as a layer's inputs, so that they save nothing; the variances are
made instead, as two bfloat16 parts where x is 16 bits wide, and V = x^2 var^T and its two gradients are products of
torch's. They are gone when the layer is done; of layers with more entries than `_MOST_ENTRIES`, a part at a time.
"""

from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from abmll.kernels import eager, fallbacks, triton_output
from abmll.kernels.factors import Factors, Variance
from abmll.kernels.wide import tiles

MOST_NARROW, MOST_RANK = 16, 64
_MOST_ENTRIES = 1 << 26
_TILE = 64


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
    """y0 + s (x A^T) B^T + sqrt(V) z, the local reparameterisation of `eager.activation_output`, at any rank.

    Raises:
        AbmllError: the form is `log_std`, whose variance is not low-rank; or the rows do not divide into S groups.
    """
    given = (y0, x, factors, variance, keys, layer, questions, tokens)
    if len(factors.mean_a) <= MOST_NARROW:
        return triton_output.activation_output(*given)
    reason = triton_output.why_eager("activation_output", y0, x, factors.mean_a, MOST_RANK)
    if reason or variance.form != "square":
        fallbacks["activation_output"] = reason or f"std_form is {variance.form}"
        return eager.activation_output(*given)
    eager.rows_per_key(x.shape[0], keys)
    tokens = tokens if tokens.stride(1) == 1 else tokens.contiguous()
    call = _Call(variance, keys, layer, questions.contiguous(), tokens, triton_output.kept_parts(x, y0))
    return _WideOutput.apply(call, y0, x, *factors)


class _Call(NamedTuple):
    """What a call takes besides tensors that have gradients; `kept` parts hold a float32 number."""

    variance: Variance
    keys: Int[Tensor, " S"]
    layer: int
    questions: Int[Tensor, " B"]
    places: Int[Tensor, "B T"]
    kept: int

    @property
    def parts(self) -> int:
        """In how many bfloat16 parts numbers go through memory; 1: they are float32."""
        return 2 if self.kept == 2 else 1

    def noise(self, tokens: int) -> tuple[Any, ...]:
        """The arguments from `keys` to `tokens`."""
        each = tokens // len(self.keys)
        stride, row = self.places.stride(0), self.places.shape[1]
        return self.keys, self.questions, self.places, stride, row, each, self.layer, tokens

    def grid(self, tokens: int, columns: int) -> tuple[int, int, int]:
        """Programs of `finish` and `pull`."""
        groups = len(self.keys)
        return triton.cdiv(columns, _TILE), triton.cdiv(tokens // groups, _TILE), groups


def _width(rank: int) -> dict[str, int]:
    return {"RANK": rank, "RP": triton.next_power_of_2(rank)}


def _ranges(height: int, width: int) -> list[slice]:
    """Outputs whose variances are in memory together."""
    most = max(_TILE, _MOST_ENTRIES // width // _TILE * _TILE)
    return [slice(first, min(first + most, height)) for first in range(0, height, most)]


class _WideOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, y0: Tensor, x: Tensor, *factors: Tensor) -> Tensor:
        mean_b, mean_a, std_b, std_a = (f.contiguous() for f in factors)
        y0, flat = y0.contiguous(), x.reshape(-1, x.shape[-1]).contiguous()
        y, (tokens, width), height = torch.empty_like(y0), flat.shape, y0.shape[-1]
        spread = flat.new_empty(tokens, height, dtype=torch.float32)
        with torch.cuda.device_of(x):
            z = triton_output.projected(flat, mean_a, None, call.kept)
            square = _squares(flat, call.parts)
            for part in _ranges(height, width):
                sums, more = _spreads(square, _variances(call, std_b[part], std_a))
                count = part.stop - part.start
                tiles.finish[call.grid(tokens, count)](
                    y0, z, mean_b, sums, more, y, spread, *call.noise(tokens), height, part.start, count,
                    call.variance.scale, **_width(len(mean_a)), P=call.kept, PARTS=call.parts, BT=_TILE, BO=_TILE,
                    num_warps=4,
                )  # fmt: skip
        ctx.save_for_backward(flat, z, spread, mean_b, mean_a, std_b, std_a)
        ctx.call = call
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        need_y0, need_x, *need = ctx.needs_input_grad[1:]
        found: tuple[Tensor | None, ...] = (None,) * 5
        if need_x or any(need):
            with torch.cuda.device_of(upstream):
                found = _backward(ctx.call, upstream.contiguous(), ctx.saved_tensors, need_x, need)
        gradients = (g if wanted else None for g, wanted in zip(found, (need_x, *need), strict=True))
        of_x, *of_factors = gradients
        of_x = None if of_x is None else of_x.view(*upstream.shape[:-1], -1)
        return (None, upstream if need_y0 else None, of_x, *of_factors)


def _squares(x: Float[Tensor, "tokens I"], parts: int) -> Tensor:
    """x^2: float32, or the bfloat16 planes [hi, hi, lo]."""
    if parts == 1:
        return x.float().square()
    out = x.new_empty(3, *x.shape, dtype=torch.bfloat16)
    tiles.squares[(triton.cdiv(x.numel(), 1024),)](x, out, x.numel(), BLOCK=1024)
    return out


def _variances(call: _Call, std_b: Float[Tensor, "O R"], std_a: Float[Tensor, "R I"]) -> Tensor:
    """var of some outputs: float32, or the bfloat16 planes [hi, mid]."""
    (height, rank), width, v = std_b.shape, std_a.shape[1], call.variance
    dtype = torch.bfloat16 if call.parts == 2 else torch.float32
    out = std_b.new_empty(call.parts, height, width, dtype=dtype)
    tiles.variances[(triton.cdiv(height, _TILE), triton.cdiv(width, _TILE))](
        std_b, std_a, out, height, width, v.scale, v.offset, v.floor, **_width(rank), PARTS=call.parts,
        BO=_TILE, BI=_TILE, num_warps=4,
    )  # fmt: skip
    return out


def _product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """A product whose sums are float32, of float32 or bfloat16 operands."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _spreads(square: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """V: float32, or the terms that add up to it, the planes of the first and the second."""
    if len(var) == 1:
        sums = _product(square, var[0].T)
        return sums, sums
    return _product(square[1:].flatten(0, 1), var[0].T), _product(square[0], var[1].T)


def _backward(
    call: _Call, g: Tensor, saved: tuple[Tensor, ...], need_x: bool, need: list[bool]
) -> tuple[Tensor | None, ...]:
    """dx, dB, dA, dB', dA'."""
    x, z, spread, mean_b, mean_a, std_b, std_a = saved
    tokens, height, scale = len(x), len(mean_b), call.variance.scale
    needs = {"NEED_Z": need_x or need[1], "NEED_B": need[0]}
    dz, of_b = triton_output.mean_backward(scale, g, z, mean_b, needs)
    of_a, of_x = None, None
    of_std: tuple[Tensor | None, Tensor | None] = (None, None)
    if need[1]:
        of_a = triton_output.project_by_inputs(x, dz, mean_a, None, need_x=False, need_a=True)[1][0]
    if need_x or need[2] or need[3]:
        planes, dtype = (1, torch.float32) if call.parts == 1 else (3, torch.bfloat16)
        down = x.new_empty(planes, tokens, height, dtype=dtype)
        tiles.pull[call.grid(tokens, height)](
            g, spread, down, *call.noise(tokens), height, P=call.kept, PARTS=call.parts, BT=_TILE, BO=_TILE, num_warps=4
        )
    if need_x:
        by_square = _by_square(call, down, std_b, std_a, coarse=x.dtype == torch.bfloat16)
        of_x = _input_backward(call, x, dz, mean_a, by_square)
    if need[2] or need[3]:
        of_std = _std_backward(call, down, _squares(x, call.parts), std_b, std_a)
    return of_x, of_b, of_a, *of_std


def _by_square(call: _Call, down: Tensor, std_b: Tensor, std_a: Tensor, *, coarse: bool) -> Float[Tensor, "tokens I"]:
    """dV var; from the first parts alone where dx is bfloat16, which is no more than such a part."""
    total: Tensor | None = None
    for part in _ranges(len(std_b), std_a.shape[1]):
        var = _variances(call, std_b[part], std_a)
        found = _product(down[0][:, part], var[0])
        if not coarse and call.parts == 2:
            found += _product(down[1][:, part], var[0]) + _product(down[0][:, part], var[1])
        total = found if total is None else total.add_(found)
    assert total is not None
    return total


def _input_backward(call: _Call, x: Tensor, dz: Tensor, mean_a: Tensor, by_square: Tensor) -> Tensor:
    dx, (tokens, width) = torch.empty_like(x), x.shape
    tiles.input_backward[(triton.cdiv(width, _TILE), triton.cdiv(tokens, _TILE))](
        x, dz, mean_a, by_square, dx, tokens, width, **_width(len(mean_a)), P=call.kept, BT=_TILE, BI=_TILE, num_warps=4
    )
    return dx


def _std_backward(
    call: _Call, down: Tensor, square: Tensor, std_b: Tensor, std_a: Tensor
) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
    """dB' and dA'."""
    (height, rank), width, v = std_b.shape, std_a.shape[1], call.variance
    of_b, of_a = [], None
    for part in _ranges(height, width):
        by_variance = _product(down.flatten(0, 1)[:, part].T, square.flatten(0, -2))
        count = part.stop - part.start
        blocks = triton.cdiv(count, _TILE)
        chunk, chunks = triton_output.chunks(width, blocks)
        b_parts = std_b.new_empty(chunks, count, rank)
        a_parts = std_b.new_empty(blocks, rank, width)
        tiles.contract[(blocks, chunks)](
            by_variance, std_b[part], std_a, b_parts, a_parts, count, width, chunk, v.scale, v.offset,
            **_width(rank), P=call.kept, BO=_TILE, BI=_TILE, num_warps=4, num_stages=1,
        )  # fmt: skip
        of_b.append(b_parts.sum(0))
        share = a_parts.sum(0)
        of_a = share if of_a is None else of_a.add_(share)
    assert of_a is not None
    return torch.cat(of_b), of_a
