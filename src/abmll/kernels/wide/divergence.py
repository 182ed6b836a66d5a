# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""KL(task | shared) at ranks 17 to 64 where phi alone has gradients: `triton_kl` with tiles in memory.

The operands are those of `triton_kl`, and so are the parts that are multiplied, in products of torch's whose sums are
float32; one launch makes of the three products of all entries the loss and its gradients G and H, as two bfloat16 parts
each, which torch contracts. Tensor cores cut where they should round, the more the longer a sum is: sums of more than
`_LONGEST` terms are made in pieces, and these are added up outside.
"""

from collections.abc import Sequence
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from abmll.kernels import triton_kl
from abmll.kernels.factors import Factors, Variance
from abmll.kernels.triton_entries import reciprocal, twice_half_excess
from abmll.kernels.triton_kl import Group, Side, Way, power_of_2, split_pair, unit_of_means, unit_of_stds

MOST_RANK = 64
_LONGEST = 1024
_MOST_ENTRIES = 1 << 27  # of a layer: of larger ones `triton_entries` makes tiles


@triton.jit
@no_type_check
def _gradients(
    products, out, losses, largest, offsets, floors, n, m, height, pieces, width,
    TASK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS x COLUMNS entries of one layer: from products [3, L, n, m], u and the changes of the means and of the stds,
    the sum of the loss and, in the layer's unit, G and H as out [2, L, pieces, hi and mid, height, width].

    Beyond n and m all reads as zeros, where G and H are 0.
    """
    layer, layers = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < n)[:, None] & (column < m)[None, :]
    plane = n.to(tl.int64) * m
    at = products + layer * plane + row.to(tl.int64)[:, None] * m + column[None, :]
    unit, _, _, _ = unit_of_stds(largest, offsets, floors, layer)
    mean_unit, _, _ = unit_of_means(largest, layer)
    to_unit, unit = power_of_2(unit - mean_unit), power_of_2(unit)
    offset, floor = tl.load(offsets + layer) * unit, tl.load(floors + layer) * unit * unit
    r = tl.load(at, inside, 0.0) + offset
    change = tl.load(at + layers * plane, inside, 0.0) * to_unit
    step = tl.load(at + 2 * layers * plane, inside, 0.0)
    r_task = r + step
    var_shared, var_task = r * r + floor, r_task * r_task + floor
    inverse_shared = reciprocal(var_shared)
    delta, pull = step * (r + r_task) * inverse_shared, change * inverse_shared
    loss = tl.sum(tl.sum(twice_half_excess(delta, var_task, inverse_shared) + pull * change, 1), 0)
    block = (layer * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    tl.store(losses + block, 0.5 * loss)
    if TASK:
        there = (row < height)[:, None] & (column < pieces * width)[None, :]
        piece = ((layer * pieces + column // width) * 2)[None, :]
        to = out + (piece * height + row[:, None]) * width + (column % width)[None, :]
        part = height.to(tl.int64) * width
        hi, mid = split_pair(pull * unit)
        tl.store(to, hi, there)
        tl.store(to + part, mid, there)
        to += layers * pieces * 2 * part
        hi, mid = split_pair(r_task * delta * reciprocal(var_task) * unit)
        tl.store(to, hi, there)
        tl.store(to + part, mid, there)


def task_kl(
    task: Sequence[Factors],
    shared: Sequence[Factors],
    variances: Sequence[Variance],
    stride: int = 1,
    key: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """`eager.task_kl` at any rank; what is not for this module is `triton_kl`'s."""
    ranks = {f.mean_b.shape[1] for f in task}
    most = max(f.mean_b.shape[0] * f.mean_a.shape[1] for f in task)
    of_theta = torch.is_grad_enabled() and any(x.requires_grad for factors in shared for x in factors)
    narrow = min(ranks) <= triton_kl.MOST_RANK or max(ranks) > MOST_RANK
    if narrow or of_theta or most > _MOST_ENTRIES or triton_kl.unsupported("task_kl", task[0].mean_b, variances):
        return triton_kl.task_kl(task, shared, variances, stride, key)
    flat = [factor for factors in (*task, *shared) for factor in factors]
    return triton_kl.TaskKL.apply(Way(list(variances), _kl_of_group, lambda slots: _bytes_of), stride, key, *flat)


def _bytes_of(rows: int, rank: int, columns: int) -> int:
    """What a layer takes: operands, twice, three products in float32, and two gradients in two parts."""
    return 2 * triton_kl.operand_bytes(rows, rank, columns) + rows * columns * (3 * 4 + 2 * 2 * 2)


class _Pieces(NamedTuple):
    """A sum in so many pieces of so many terms, zeros at its end."""

    number: int
    size: int

    @classmethod
    def of(cls, terms: int) -> "_Pieces":
        """As few as `_LONGEST` allows, of sizes that 16 divides: tensor cores want those."""
        number = -(-terms // _LONGEST)
        return cls(number, 16 * -(-terms // (16 * number)))

    @property
    def total(self) -> int:
        """Terms, zeros included."""
        return self.number * self.size


def _kl_of_group(
    b: Side, a: Side, group: Group, wanted: list[bool], weight: float
) -> tuple[Tensor, Float[Tensor, "L k O R"], Float[Tensor, "L k R I"]]:
    """As `triton_kl` has it, for phi alone."""
    layers, tall, long = len(b.factors), _Pieces.of(b.rows), _Pieces.of(a.rows)
    left, left_parts, right, right_parts, largest = triton_kl.both_operands(b, a, group, wanted)
    products = _products(left, right, b.rows, a.rows, layers)
    grid = triton.cdiv(tall.total, 8), triton.cdiv(long.total, 256), layers
    losses = products.new_empty(grid[0] * grid[1] * layers)
    shape = (2, layers, long.number, 2, tall.total, long.size)
    gradients = products.new_empty(shape if wanted[0] else (0,), dtype=torch.bfloat16)
    _gradients[grid](
        products, gradients, losses, largest, group.offsets, group.floors, b.rows, a.rows, tall.total, long.number,
        long.size, TASK=wanted[0], ROWS=8, COLUMNS=256, num_warps=4,
    )  # fmt: skip
    del products
    total = weight * losses.double().sum()
    if not wanted[0]:
        return total, losses.new_empty(layers, 0, b.total, b.rank), losses.new_empty(layers, 0, a.rank, a.total)
    of_rows, of_columns = [], []
    for part in (0, 1):  # the means, whose parts are the second matrix, and the stds, whose parts are the third
        own_b, own_a = (
            pad(parts.view(layers, 5, rows, -1)[:, 1 + part], (0, 0, 0, pieces.total - rows))
            for parts, rows, pieces in ((left_parts, b.rows, tall), (right_parts, a.rows, long))
        )
        of_rows.append(_by_rows(gradients[part], own_a, b.rank)[:, : b.rows])
        of_columns.append(_by_columns(gradients[part], own_b, a.rank, tall)[..., : a.rows])
    by_b, by_a = torch.stack(of_rows, 1).mul_(weight * b.scale), torch.stack(of_columns, 1).mul_(weight)
    return total, by_b if b.stride == 1 else _at_visited_rows(b, by_b), by_a


def _multiplied(a: Float[Tensor, "L n k"], b: Float[Tensor, "L k m"]) -> Float[Tensor, "L n m"]:
    """Products of float16 or bfloat16 matrices, their sums in float32."""
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.bmm(a.float(), b.float())


def _products(left: Tensor, right: Tensor, n: int, m: int, layers: int) -> Float[Tensor, "3 L n m"]:
    """The three products of each layer, from the parts of `triton_kl`'s operands, the small terms first."""
    left, right = left.view(layers, 6, n, -1), right.view(layers, 3, m, -1)
    k = left.shape[-1] // 2

    def first(x: Tensor) -> Tensor:
        return x[..., :k]

    def last(x: Tensor) -> Tensor:
        return x[..., k:]

    shared, of_shared = (left[:, 0], left[:, 3]), right[:, 0]
    mine = [torch.cat([first(shared[0]), last(shared[1]), last(shared[0])], -1)]
    theirs = [torch.cat([first(of_shared), last(of_shared), last(of_shared)], -1)]
    for i in (1, 2):  # [lo hi] on both sides
        mine.append(torch.cat([first(left[:, i]), last(left[:, i]), last(left[:, i])], -1))
        theirs.append(torch.cat([last(right[:, i]), first(right[:, i]), last(right[:, i])], -1))
    found = _multiplied(torch.cat(mine), torch.cat(theirs).transpose(1, 2))
    return found.view(3, layers, n, m)


def _by_rows(gradient: Tensor, own_a: Float[Tensor, "L I K"], rank: int) -> Float[Tensor, "L O R"]:
    """G A^T from the parts of both."""
    layers, pieces, _, height, width = gradient.shape
    found = _multiplied(gradient.view(-1, 2 * height, width), own_a.reshape(layers * pieces, width, -1))
    return found.view(layers, pieces, 2, height, 2, -1).sum((1, 2, 4))[..., :rank]


def _by_columns(gradient: Tensor, own_b: Float[Tensor, "L O K"], rank: int, tall: _Pieces) -> Float[Tensor, "L R I"]:
    """B^T G from the parts of both."""
    layers, pieces, _, _, width = gradient.shape
    b = own_b.view(layers, 1, 1, tall.number, tall.size, -1).expand(-1, pieces, 2, -1, -1, -1)
    found = _multiplied(b.reshape(-1, tall.size, b.shape[-1]).transpose(1, 2), gradient.view(-1, tall.size, width))
    found = found.view(layers, pieces, 2 * tall.number, 2, -1, width).sum((2, 3))[:, :, :rank]
    return found.transpose(1, 2).reshape(layers, rank, pieces * width)


def _at_visited_rows(b: Side, by_b: Float[Tensor, "L k o R"]) -> Float[Tensor, "L k O R"]:
    """Gradients of the rows that a subset visits, zeros elsewhere."""
    rows = b.starts[:, None] + torch.arange(b.rows, device=by_b.device) * b.stride
    out = by_b.new_zeros(*by_b.shape[:2], b.rows * b.stride, b.rank)
    return out.scatter_(2, rows[:, None, :, None].expand_as(by_b), by_b)[:, :, : b.total]
