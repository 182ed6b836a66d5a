"""Are the kernels right on this machine? Every op that is not eager's, against its eager twin in float64.

A compiler can make wrong values of a right kernel without a word: Triton 3.6.0 did so of a tile of the KL (64 x 64 at
one stage) and of the noise at ranks up to 6, and nothing but a comparison on the very device and version shows it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abmll import kernels
from abmll.errors import AbmllError
from abmll.kernels import eager
from abmll.kernels.factors import Factors, Variance
from abmll.kernels.noise import key_tensor
from abmll.kernels.onednn import Packed

# Errors in norm. The tests of the kernels allow a tenth in float32 and as much in bfloat16, by the largest entry.
TOLERANCE = 1e-4  # of float32 results
ROUNDED = {torch.bfloat16: 1.6e-2, torch.float32: 1e-3}  # of results in this type, where y0 and x are bfloat16
INSTEAD = "set engine.kernels=eager"
LEAST_TRUSTED = 7
"""Ranks below are compared on the very machine before their kernels are used: see `refuse_wrong`."""

log = logging.getLogger(__name__)

_Op = Callable[..., Any]


class _Case(NamedTuple):
    """A layer; x and y0 have this type. Compilers treat sizes that 16 divides in another way than odd ones."""

    rows: int
    columns: int
    rank: int
    tokens: int  # of each of two keys: enough for oneDNN to be used, see `onednn.LEAST_WORK`
    dtype: torch.dtype


_CASES = (  # up to rank 8 and above it the products of the KL kernel have two widths, and it has other tiles
    _Case(203, 190, 3, 57, torch.float32),
    _Case(208, 192, 8, 64, torch.bfloat16),
    _Case(208, 192, 12, 64, torch.float32),
    _Case(112, 96, 17, 240, torch.float32),  # above 16 the KL has another kernel
)


class _Trial(NamedTuple):
    """One call: `call(op, tensors)`; its value and the gradients of the `wanted` tensors are compared."""

    call: Callable[[_Op, Sequence[Tensor]], Tensor]
    tensors: Sequence[Tensor]
    wanted: slice = slice(None)

    def outcome(self, op: _Op, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The value and the gradients; of the same numbers in another type."""
        taken = [x.detach().to(dtype or x.dtype) for x in self.tensors]
        leaves = [x.requires_grad_() for x in taken[self.wanted]]
        value = self.call(op, taken)
        upstream = torch.linspace(-2.5, 1.0, value.numel()).bfloat16().to(value).view_as(value)
        return [value.detach(), *torch.autograd.grad(value, leaves, upstream)]

    def errors(self, op: _Op, twin: _Op) -> Iterator[tuple[float, float]]:
        """Of each result its error in norm, relative to float64's, and what is allowed."""
        rounded = any(x.dtype == torch.bfloat16 for x in self.tensors)
        exact = self.outcome(twin, torch.float64)  # first: a wrong kernel may write anywhere
        for mine, right in zip(self.outcome(op), exact, strict=True):
            error = (mine.double() - right).norm() / right.norm()
            yield float(error), ROUNDED[mine.dtype] if rounded else TOLERANCE


def check_kernels(device: torch.device, rank: int | None = None) -> dict[str, str]:
    """Run every op that is not eager's on a device, on layers of some 200 x 200 at ranks 3, 8, 12 and 17 or at one rank
    in float32 and bfloat16, and judge it.

    Values and gradients are compared with those of `eager` in float64: of the KL for phi, for theta, for both, and on
    every third row; of the samplers with the same keys, so that both draw the same noise. On CUDA the kernels are
    compiled first, unless Triton has kept them: a minute or two. Nothing is raised: what an op raises is its verdict.
    Layers that an op hands over to eager are no evidence, and `kernels.fallbacks` stays as it was.

    Returns:
        op -> "agrees with float64 to ...", "WRONG: off by ...", "cannot run: ..." or "not checked: ...".

    >>> kernels.use("eager")
    >>> check_kernels(torch.device("cpu"))  # nothing to compare
    {}
    >>> kernels.use("auto")
    """
    cases = _CASES if rank is None else tuple(_at_rank(rank, dtype) for dtype in (torch.float32, torch.bfloat16))
    return dict(_verdicts(kernels.OPS, device, cases))


def refuse_wrong(
    rank: int, device: torch.device, dtype: torch.dtype, ops: Sequence[str] = kernels.OPS
) -> dict[str, str]:
    """Compare the kernels of one rank with eager's in float64, once in a process: wrong ones are not used at this rank.

    They are noted in `kernels.refused`, and those calls are eager's, as is told by a warning and in
    `kernels.fallbacks`. The first time on a machine, kernels are compiled for it, as for any use; then it is a tenth of
    a second.

    Args:
        rank: of the adapters.
        device: where they are.
        dtype: that the base model computes in.
        ops: to compare.

    Returns:
        op -> verdict, of those that are refused.

    Raises:
        AbmllError: a kernel took the device down, so that nothing can be computed there by this process.

    >>> kernels.use("eager")
    >>> refuse_wrong(3, torch.device("cpu"), torch.float32)  # eager has no kernels that a compiler made
    {}
    >>> kernels.use("auto")
    """
    case = _at_rank(rank, dtype)
    new = [name for name in ops if (name, case, device) not in _compared]
    _compared.update((name, case, device) for name in new)
    wrong = {name: verdict for name, verdict in _verdicts(new, device, (case,)) if is_bad(verdict)}
    if wrong and _is_lost(device):
        raise AbmllError(f"adapter.rank={rank}: {next(iter(wrong.values()))}, and start again")
    for name, verdict in wrong.items():
        kernels.refused[name, rank] = f"at rank {rank} it is {verdict.removesuffix('; ' + INSTEAD)}"
        log.warning("the kernel of %s is not used at rank %d on this machine: %s", name, rank, verdict)
    return wrong


_compared: set[tuple[str, "_Case", torch.device]] = set()


def _at_rank(rank: int, dtype: torch.dtype) -> _Case:
    """A layer whose sizes 16 divides, as those of models."""
    return _Case(208, 192, rank, 64, dtype)


def _verdicts(ops: Sequence[str], device: torch.device, cases: Sequence[_Case]) -> Iterator[tuple[str, str]]:
    """The verdict on each op that is not eager's."""
    lost = "the device does not answer" if _is_lost(device) else ""
    for name in ops:
        try:
            op, twin = kernels.op(name, device), getattr(eager, name)
            if op is not twin:
                yield name, f"not checked: {lost}" if lost else _verdict(name, op, twin, device, cases)
        except torch.OutOfMemoryError:
            yield name, "not checked: the device has no memory left"
        except Exception as error:  # whatever a compiler, a driver or a kernel may raise
            why = (str(error).strip() or "no message").splitlines()[0]
            lost = lost or (f"the device answers no more since {name}" if _is_lost(device) else "")
            yield name, f"cannot run: {type(error).__name__}: {why}; {INSTEAD}"


def is_bad(verdict: str) -> bool:
    """Is this the verdict on a kernel that must not be used?"""
    return verdict.startswith(("WRONG", "cannot run"))


def _verdict(name: str, op: _Op, twin: _Op, device: torch.device, cases: Sequence[_Case]) -> str:
    errors: list[tuple[float, float]] = []
    before, handed_over = dict(kernels.fallbacks), ""
    try:
        with torch.enable_grad(), torch.cuda.device_of(torch.empty(0, device=device)):
            for trial in (trial for case in cases for trial in _trials(name, case, device)):
                kernels.fallbacks.pop(name, None)
                found = list(trial.errors(op, twin))
                handed_over = kernels.fallbacks.get(name, handed_over)
                errors += [] if name in kernels.fallbacks else found  # eager's own are no evidence
    finally:
        kernels.fallbacks.clear()
        kernels.fallbacks.update(before)
    if not errors:
        return f"not checked: it hands over to eager ({handed_over})"
    wrong = [error for error, allowed in errors if not error <= allowed]  # NaN is wrong, and the largest
    if wrong:
        return f"WRONG: off by {float(torch.tensor(wrong).max()):.2g} from float64; {INSTEAD}"
    worst = {allowed: max(error for error, other in errors if other == allowed) for _, allowed in errors}
    names = {TOLERANCE: "", ROUNDED[torch.bfloat16]: "in bfloat16 "}
    said = ", ".join(f"{name}to {worst[allowed]:.1e}" for allowed, name in names.items() if allowed in worst)
    return f"agrees with float64 {said}" + (f"; hands over to eager where {handed_over}" if handed_over else "")


def _is_lost(device: torch.device) -> bool:
    """Has an error of CUDA left this process without the device?"""
    try:
        return device.type == "cuda" and bool(torch.ones((), device=device).isnan())
    except RuntimeError:
        return True


class _Layer(NamedTuple):
    """Draws the tensors of a case, the same ones at every check."""

    case: _Case
    device: torch.device
    generator: torch.Generator

    def draw(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator).to(self.device)

    def factors(self, std: float) -> list[Tensor]:
        """Means of about one std, and stds some tenths away from what B' A' = 0 gives."""
        rows, columns, rank, *_ = self.case
        b = [self.draw(rows, rank) * (size * std / rank**0.5) for size in (1.0, 0.05)]
        return [b[0], self.draw(rank, columns), b[1], self.draw(rank, columns)]


def _trials(name: str, case: _Case, device: torch.device) -> list[_Trial]:
    layer, keys = _Layer(case, device, torch.Generator().manual_seed(0)), key_tensor(3, 2**64 - 5, device=device)
    if name in ("task_kl", "precision_penalty"):
        return _of_two_layers(name, [layer.factors(4.5e-5) for _ in range(2)], layer, keys[0])
    x = layer.draw(2, case.tokens, case.columns)
    if name == "frozen_linear":
        tensors, of_x = [x, layer.draw(case.rows, case.columns), layer.draw(case.rows)], slice(1)
        return [_Trial(lambda op, t: op(*t), tensors, of_x), _Trial(lambda op, t: op(*t, Packed()), tensors, of_x)]
    tensors = [layer.draw(2, case.tokens, case.rows).to(case.dtype), x.to(case.dtype), *layer.factors(0.3)]
    if name == "mean_output":
        return [_Trial(lambda op, t: op(*t, 2.0), tensors[:4])]
    variance, places = Variance("square", 0.3, 3e-3, 2.0), torch.arange(case.tokens, device=device).expand(2, -1)
    at = (torch.tensor([2**32 - 1, 5], device=device), places) if name == "activation_output" else ()
    return [_Trial(lambda op, t: op(*t[:2], Factors(*t[2:]), variance, keys, 3, *at), tensors)]


def _of_two_layers(name: str, shared: list[list[Tensor]], layer: _Layer, key: Tensor) -> list[_Trial]:
    """The prior of theta; the KL of phi that is far from theta in one layer and near it in the other."""
    kinds = [Variance("square", 4.5e-5, 1e-6, 2.0)] * 2
    if name == "precision_penalty":
        stds = [*(factors[2] for factors in shared), *(factors[3] for factors in shared)]
        return [_Trial(lambda op, t: op(t[:2], t[2:], kinds, 2.5, 0.01), stds)]
    far, near = (
        [x * (1 + size * layer.draw(*x.shape)) for x in f] for f, size in zip(shared, (0.2, 1e-3), strict=True)
    )
    both = [*far, *near, *shared[0], *shared[1]]

    def kl(op: _Op, t: Sequence[Tensor], *subset: Any) -> Tensor:
        layers = [Factors(*t[i : i + 4]) for i in range(0, 16, 4)]
        return op(layers[:2], layers[2:], kinds, *subset)

    whole = [_Trial(kl, both, side) for side in (slice(8), slice(8, None), slice(None))]
    return [*whole, _Trial(lambda op, t: kl(op, t, 3, key), both)]
