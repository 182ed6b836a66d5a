"""The output of an adapted layer in fused Triton kernels: the twins of eager's three `..._output` ops.

`mean_output` and `activation_output` read x once and pass once over the outputs, forward, and the same again backward.
`weight_output` costs two products of the base layer's size forward and three backward. Nothing of size tokens x O,
tokens x I or O x I is made but the results themselves. No host synchronisation, no atomics: the same bits at every
call, and all of it can be captured in a CUDA graph.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from abmll.kernels import eager, fallbacks, refused
from abmll.kernels.factors import Factors, Variance
from abmll.kernels.triton_lowrank import collect, output, output_backward, project, project_backward
from abmll.kernels.triton_weight import weight_factor_backward, weight_forward, weight_input_backward, weight_matrix

_PROGRAMS = 264  # two for each multiprocessor of an H100
_PARTS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}  # how many bfloat16 numbers hold one of these
_MAX_RANK, _MAX_RANK_NOISE = 64, 16


def mean_output(
    y0: Float[Tensor, "*tokens O"],
    x: Float[Tensor, "*tokens I"],
    mean_b: Float[Tensor, "O R"],
    mean_a: Float[Tensor, "R I"],
    scale: float,
) -> Float[Tensor, "*tokens O"]:
    """y0 + s (x A^T) B^T: summed in float32, cast once to the type of y0."""
    reason = why_eager("mean_output", y0, x, mean_a, _MAX_RANK)
    if reason:
        fallbacks["mean_output"] = reason
        return eager.mean_output(y0, x, mean_b, mean_a, scale)
    return _LowRankOutput.apply(_Setup(scale), y0, x, mean_b, mean_a, None, None, None, None, None)


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
    """y0 + s (x A^T) B^T + sqrt(V) z, the local reparameterisation of `eager.activation_output`.

    V = sum_kl outer[o, kl] F[t, kl] over the pairs of rank R + 1, see `triton_lowrank`; z is made in the kernels.

    Raises:
        AbmllError: the form is `log_std`, whose variance is not low-rank; or the rows do not divide into S groups.
    """
    reason = why_eager("activation_output", y0, x, factors.mean_a, _MAX_RANK_NOISE)
    if reason or variance.form != "square":
        fallbacks["activation_output"] = reason or f"std_form is {variance.form}"
        return eager.activation_output(y0, x, factors, variance, keys, layer, questions, tokens)
    eager.rows_per_key(x.shape[0], keys)
    setup = _Setup(variance.scale, variance.offset, variance.floor, layer, x.shape[1])
    tokens = tokens if tokens.stride(1) == 1 else tokens.contiguous()
    return _LowRankOutput.apply(setup, y0, x, *factors, keys, questions.contiguous(), tokens)


def weight_output(
    y0: Float[Tensor, "*tokens O"],
    x: Float[Tensor, "*tokens I"],
    factors: Factors,
    variance: Variance,
    keys: Int[Tensor, " S"],
    layer: int,
) -> Float[Tensor, "*tokens O"]:
    """y0 + x (s B A + std * E)^T, where group s of the rows has its own E, made in the kernels from keys[s].

    Where no gradient is wanted of a bfloat16 layer, each entry of the drawn matrix is rounded to bfloat16, as the base
    weights are.

    Raises:
        AbmllError: the rows do not divide into S groups.
    """
    reason = why_eager("weight_output", y0, x, factors.mean_a, _MAX_RANK)
    if reason:
        fallbacks["weight_output"] = reason
        return eager.weight_output(y0, x, factors, variance, keys, layer)
    if len(keys) > 1:
        eager.rows_per_key(x.shape[0], keys)
    needed = torch.is_grad_enabled() and any(t.requires_grad for t in (y0, x, *factors))
    if not needed and x.dtype == y0.dtype == torch.bfloat16:
        return _drawn_output(y0, x, factors, variance, keys, layer)
    return _WeightOutput.apply(variance, layer, keys, y0, x, *factors)


def why_eager(name: str, y0: Tensor, x: Tensor, factor: Float[Tensor, "R I"], max_rank: int) -> str | None:
    """Why the kernels cannot do this call of an op, or None."""
    if factor.dtype != torch.float32:
        return f"factors are {factor.dtype}, not float32"
    for what, tensor in (("x", x), ("y0", y0)):
        if tensor.dtype not in _PARTS:
            return f"{what} is {tensor.dtype}"
    if factor.shape[0] > max_rank:
        return f"rank {factor.shape[0]} is above {max_rank}"
    return refused.get((name, factor.shape[0])) if x.numel() and y0.numel() else "the batch is empty"


class _Setup(NamedTuple):
    """Numbers of one call. Without noise (`mean_output`) only the scale is used."""

    scale: float
    offset: float = 0.0
    floor: float = 0.0
    layer: int = 0
    row_tokens: int = 1


_TILE = 64  # tokens, outputs, inputs and pairs of a tile: what a group of four warps multiplies at once


def kept_parts(*tensors: Tensor) -> int:
    """How many parts of float32 numbers are multiplied: all three, or two where results are cast to 16 bits."""
    return 3 if any(tensor.dtype == torch.float32 for tensor in tensors) else 2


def _meta(rank: int, kept: int, *, noise: bool) -> dict[str, int]:
    """Sizes that the low-rank kernels are compiled for: a pure function of the rank and of the types.

    Blocks of pairs are 64 wide even where 16 or 32 would hold them all (ranks up to 6): of these Triton 3.6.0 makes
    NaN, outputs off by 6 to 15 %, or an illegal access, on an H200. Interpreted they are right.
    """
    pairs = (rank + 1) * (rank + 2) // 2
    return {
        "RANK": rank,
        "RP": _power(max(16, rank)),
        "EP": _power(max(16, rank + 1)),
        "JP": _TILE if noise else 0,
        "BLOCKS": -(-pairs // _TILE) if noise else 1,
        "P": kept,
        "BT": _TILE,
        "num_warps": 4,
    }


def _power(number: int) -> int:
    """The next power of two.

    >>> _power(45), _power(64)
    (64, 64)
    """
    return 1 << (number - 1).bit_length()


def chunks(length: int, others: int) -> tuple[int, int]:
    """Cut a loop of `length` into chunks of whole tiles, to fill the chip together with `others` programs beside each.

    Returns the length of a chunk and the number of chunks.

    >>> chunks(4096, 8), chunks(512, 224), chunks(100, 1)
    ((128, 32), (512, 1), (64, 2))
    """
    tiles = triton.cdiv(length, _TILE)
    chunk = _TILE * triton.cdiv(tiles, max(1, min(tiles, _PROGRAMS // others)))
    return chunk, triton.cdiv(length, chunk)


class _LowRankOutput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        setup: _Setup,
        y0: Tensor,
        x: Tensor,
        mean_b: Tensor,
        mean_a: Tensor,
        std_b: Tensor | None,
        std_a: Tensor | None,
        keys: Tensor | None,
        questions: Tensor | None,
        places: Tensor | None,
    ) -> Tensor:
        noise = (keys, questions, places)
        with torch.cuda.device_of(x):
            z = projected(x, mean_a, std_a, kept_parts(x, y0))
            y = _output(setup, y0, z, mean_b, std_b, noise)
        ctx.save_for_backward(x, z, mean_b, mean_a, std_b, std_a, *noise)
        ctx.setup = setup
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, z, mean_b, mean_a, std_b, std_a, *noise = ctx.saved_tensors
        need_y0, need_x, *need = ctx.needs_input_grad[1:7]
        need_a, need_b = need[1] or need[3], need[0] or need[2]
        of_x: Tensor | None = None
        of_b: _Pair = (None, None)
        of_a: _Pair = (None, None)
        with torch.cuda.device_of(x):
            if need_x or need_a or need_b:
                needs = {"NEED_Z": need_x or need_a, "NEED_B": need_b}
                dz, of_b = _output_backward(ctx.setup, upstream.contiguous(), z, mean_b, std_b, tuple(noise), needs)
            if need_x or need_a:
                of_x, of_a = project_by_inputs(x, dz, mean_a, std_a, need_x=need_x, need_a=need_a)
        four = (of_b[0], of_a[0], of_b[1], of_a[1])
        factors = (gradient if wanted else None for gradient, wanted in zip(four, need, strict=True))
        return (None, upstream if need_y0 else None, of_x, *factors, None, None, None)


def projected(x: Tensor, mean_a: Tensor, std_a: Tensor | None, kept: int) -> Tensor:
    """z = [x A^T | F] of every token as bfloat16 parts."""
    meta, x = _meta(len(mean_a), kept, noise=std_a is not None), x.reshape(-1, x.shape[-1]).contiguous()
    tokens, width = x.shape
    tiles, blocks = triton.cdiv(tokens, _TILE), meta["BLOCKS"]
    chunk, count = chunks(width, tiles * blocks)
    parts = x.new_empty(count, tokens, meta["RP"] + blocks * meta["JP"], dtype=torch.float32)
    a = mean_a.contiguous(), _or(std_a, mean_a)
    how = {**meta, "X": _PARTS[x.dtype], "BI": _TILE, "num_stages": 2}
    project[(tiles, count, blocks)](x, *a, parts, tokens, width, chunk, **how)
    return _collect(parts, meta)


def _collect(parts: Tensor, meta: dict[str, int]) -> Tensor:
    """z or dz as bfloat16 parts: the sum over the first dimension, 0 in the columns that only fill up."""
    out = parts.new_empty(meta["P"], *parts.shape[1:], dtype=torch.bfloat16)
    count, rank = parts[0].numel(), meta["RANK"]
    pairs = (rank + 1) * (rank + 2) // 2 if meta["JP"] else 0
    how = {"WIDTH": parts.shape[2], "RANK": rank, "RP": meta["RP"], "PAIRS": pairs, "P": meta["P"], "BLOCK": 128}
    collect[(triton.cdiv(count, 128),)](parts, out, count, len(parts), **how, num_warps=4)
    return out


def _or(given: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that the kernel will not follow, where there is no tensor."""
    return other if given is None else given.contiguous()


_Noise = tuple[Tensor | None, Tensor | None, Tensor | None]
_Pair = tuple[Tensor | None, Tensor | None]


def _noise_arguments(setup: _Setup, z: Tensor, noise: _Noise) -> tuple[tuple[Any, ...], int, int]:
    """The arguments from `keys` to `tokens`, the number of tokens of a group, and of groups."""
    keys, questions, places = noise
    tokens, groups = z.shape[1], 1 if keys is None else len(keys)
    stride = 0 if places is None else places.stride(0)
    pointers = (_or(keys, z), _or(questions, z), z if places is None else places)
    each = tokens // groups
    return (*pointers, stride, setup.row_tokens, each, setup.layer, tokens), each, groups


def _output(setup: _Setup, y0: Tensor, z: Tensor, mean_b: Tensor, std_b: Tensor | None, noise: _Noise) -> Tensor:
    """y of every token, in the shape and type of y0."""
    meta, y0 = _meta(mean_b.shape[1], len(z), noise=std_b is not None), y0.contiguous()
    arguments, each, groups = _noise_arguments(setup, z, noise)
    y, height = torch.empty_like(y0), len(mean_b)
    grid = (triton.cdiv(height, _TILE), triton.cdiv(each, _TILE), groups)
    b = mean_b.contiguous(), _or(std_b, mean_b)
    numbers = (height, setup.scale, setup.offset, setup.floor)
    output[grid](y0, z, *b, y, *arguments, *numbers, **meta, BO=_TILE, num_stages=1)
    return y


def mean_backward(
    scale: float, g: Tensor, z: Tensor, mean_b: Tensor, needs: dict[str, bool]
) -> tuple[Tensor, Tensor | None]:
    """dz in parts, where NEED_Z says so, and dB, where NEED_B does, of s h B^T."""
    dz, (of_b, _) = _output_backward(_Setup(scale), g, z, mean_b, None, (None, None, None), needs)
    return dz, of_b


def _output_backward(
    setup: _Setup,
    g: Tensor,
    z: Tensor,
    mean_b: Tensor,
    std_b: Tensor | None,
    noise: _Noise,
    needs: dict[str, bool],
) -> tuple[Tensor, _Pair]:
    """dz in parts, and dB and dB'."""
    meta = _meta(mean_b.shape[1], len(z), noise=std_b is not None)
    arguments, each, groups = _noise_arguments(setup, z, noise)
    (height, rank), slices = mean_b.shape, groups * meta["BLOCKS"]
    tiles = triton.cdiv(height, _TILE)
    chunk, count = chunks(each, tiles * slices)
    z_parts = z.new_empty(tiles, *z.shape[1:], dtype=torch.float32)
    b_parts = z.new_empty(slices * count, 2, height, rank, dtype=torch.float32)
    b = mean_b.contiguous(), _or(std_b, mean_b)
    numbers = (height, chunk, setup.scale, setup.offset, setup.floor)
    how = {**meta, **needs, "G": _PARTS[g.dtype], "BO": _TILE, "num_stages": 1}
    output_backward[(tiles, count, slices)](g, z, *b, z_parts, b_parts, *arguments, *numbers, **how)
    return _collect(z_parts, meta) if needs["NEED_Z"] else z, _sum(b_parts) if needs["NEED_B"] else (None, None)


def project_by_inputs(
    x: Tensor, dz: Tensor, mean_a: Tensor, std_a: Tensor | None, *, need_x: bool, need_a: bool
) -> tuple[Tensor | None, _Pair]:
    """dx, and dA and dA'."""
    meta, flat = _meta(len(mean_a), len(dz), noise=std_a is not None), x.reshape(-1, x.shape[-1]).contiguous()
    (tokens, width), blocks = flat.shape, meta["BLOCKS"]
    tiles = triton.cdiv(width, _TILE)
    chunk, count = chunks(tokens, tiles)
    dx = torch.empty_like(flat)
    a_parts = flat.new_empty(count * blocks, 2, len(mean_a), width, dtype=torch.float32)
    a = mean_a.contiguous(), _or(std_a, mean_a)
    how = {**meta, "X": _PARTS[x.dtype], "NEED_A": need_a, "BI": _TILE, "num_stages": 2 if blocks == 1 else 1}

    def launch(first_block: int, number: int, *, need_x: bool) -> None:
        numbers = (tokens, width, chunk, first_block)
        project_backward[(tiles, count, number)](flat, dz, *a, dx, a_parts, *numbers, NEED_X=need_x, **how)

    launch(0, 1, need_x=need_x)
    if blocks > 1 and need_a:
        launch(1, blocks - 1, need_x=False)
    return dx.view(x.shape) if need_x else None, _sum(a_parts) if need_a else (None, None)


def _sum(parts: Tensor) -> _Pair:
    """The sum over the first dimension, taken apart along the second: of the mean factor, of the std factor."""
    total = parts[0] if len(parts) == 1 else parts.sum(0)
    return total[0], total[1]


class _WeightOutput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, variance: Variance, layer: int, keys: Tensor, y0: Tensor, x: Tensor, *factors: Tensor
    ) -> Tensor:
        x, y0, factors = x.contiguous(), y0.contiguous(), tuple(f.contiguous() for f in factors)
        y, (tokens, width), height = torch.empty_like(y0), x.reshape(-1, x.shape[-1]).shape, y0.shape[-1]
        each = tokens // len(keys)
        tile, how = _weight_shape(each, factors[0].shape[1], variance, x, y0)
        grid = (triton.cdiv(height, _TILE), triton.cdiv(each, tile), len(keys))
        numbers = (layer, each, height, width, variance.scale, variance.offset, variance.floor)
        with torch.cuda.device_of(x):
            weight_forward[grid](x, y0, y, *factors, keys, *numbers, **how, X=_PARTS[x.dtype], BT=tile)
        ctx.save_for_backward(keys, x, *factors)
        ctx.how = (variance, layer)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        keys, x, *factors = ctx.saved_tensors
        need_y0, need_x, *need = ctx.needs_input_grad[3:]
        call, of_x = (*ctx.how, keys, upstream.contiguous(), x, factors), None
        of_four: Sequence[Tensor | None] = (None,) * 4
        with torch.cuda.device_of(x):
            if need_x:
                of_x = _weight_input_backward(*call)
            if any(need):
                of_four = _weight_factor_backward(*call)
        wanted = (gradient if needed else None for gradient, needed in zip(of_four, need, strict=True))
        return (None, None, None, upstream if need_y0 else None, of_x, *wanted)


_MOST_DRAWN = 1 << 28  # entries of drawn matrices in memory at a time: half a GiB


def _drawn_output(
    y0: Tensor, x: Tensor, factors: Factors, variance: Variance, keys: Int[Tensor, " S"], layer: int
) -> Tensor:
    """`weight_output` of predictions: each draw's matrix is made once, for all of its tokens, and torch multiplies.

    The fused kernel makes it again for every 256 tokens, which is two fifths of a pass of 4,096.
    """
    x, y0, factors = x.contiguous(), y0.contiguous(), Factors(*(f.contiguous() for f in factors))
    width, height, rank = x.shape[-1], y0.shape[-1], factors.mean_b.shape[1]
    inputs, outputs = x.view(len(keys), -1, width), y0.view(len(keys), -1, height)
    most = max(1, _MOST_DRAWN // (height * width))
    tiles = triton.cdiv(height, _TILE), triton.cdiv(width, _TILE)
    _, how = _weight_shape(_TILE, rank, variance, x, y0)
    found = []
    for first in range(0, len(keys), most):
        some = keys[first : first + most].contiguous()
        w = x.new_empty(len(some), height, width)
        with torch.cuda.device_of(x):
            numbers = (layer, height, width, variance.scale, variance.offset, variance.floor)
            weight_matrix[(*tiles, len(some))](w, *factors, some, *numbers, **how)
        groups = slice(first, first + len(some))
        found.append(torch.baddbmm(outputs[groups], inputs[groups], w.transpose(1, 2)))
    return (found[0] if len(found) == 1 else torch.cat(found)).view(y0.shape)


def _weight_shape(
    tokens: int, rank: int, variance: Variance, operand: Tensor, other: Tensor
) -> tuple[int, dict[str, Any]]:
    """Tokens that share one tile of the weight, and the constants of the kernel."""
    tile = min(_power(max(tokens, _TILE)), 256 if operand.dtype == torch.bfloat16 else _TILE)
    meta = {"RANK": rank, "RP": _power(max(16, rank)), "LOG": variance.form == "log_std", "BO": _TILE, "BI": _TILE}
    return tile, {**meta, "P": kept_parts(operand, other), "num_warps": 8 if tile > 128 else 4, "num_stages": 2}


def _weight_input_backward(
    variance: Variance, layer: int, keys: Tensor, g: Tensor, x: Tensor, factors: list[Tensor]
) -> Tensor:
    dx, height, width = torch.empty_like(x), g.shape[-1], x.shape[-1]
    each = x.numel() // width // len(keys)
    tile, how = _weight_shape(each, factors[0].shape[1], variance, g, x)
    grid = (triton.cdiv(width, _TILE), triton.cdiv(each, tile), len(keys))
    numbers = (layer, each, height, width, variance.scale, variance.offset, variance.floor)
    weight_input_backward[grid](g, dx, *factors, keys, *numbers, **how, G=_PARTS[g.dtype], BT=tile)
    return dx


def _weight_factor_backward(
    variance: Variance, layer: int, keys: Tensor, g: Tensor, x: Tensor, factors: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """dB, dA, dB', dA'."""
    height, width, rank, groups = g.shape[-1], x.shape[-1], factors[0].shape[1], len(keys)
    each = x.numel() // width // groups
    tiles = triton.cdiv(height, _TILE)
    chunk, count = chunks(width, tiles * groups)
    b_parts = x.new_empty(groups * count, 2, height, rank, dtype=torch.float32)
    a_parts = x.new_empty(groups * tiles, 2, rank, width, dtype=torch.float32)
    _, how = _weight_shape(_TILE, rank, variance, x, g)
    numbers = (layer, each, height, width, chunk, variance.scale, variance.offset, variance.floor)
    parts = {"X": _PARTS[x.dtype], "G": _PARTS[g.dtype], "BT": _TILE}
    weight_factor_backward[(tiles, count, groups)](x, g, *factors, b_parts, a_parts, keys, *numbers, **how, **parts)
    (mean_b, std_b), (mean_a, std_a) = _sum(b_parts), _sum(a_parts)
    return mean_b, mean_a, std_b, std_a
