"""The three ops of an adapted layer's output at Llama-3-8B shapes: errors against float64, time, memory.

    python -m benchmarks.kernel_output --out benchmarks/results/kernel_output.json

512 tokens, rank 8, bfloat16 in and out. Errors are relative to the largest entry of what eager gives in float64 on the
same bfloat16 numbers; those of eager in float32 stand beside them, and `float32` is a call whose y0 is float32, so that
no rounding of y hides anything. Times: forward and backward together in a captured graph, median of 20 replays.
"""

import argparse
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from abmll.kernels import Factors, Variance, eager, fallbacks, triton_output
from abmll.kernels.noise import key_tensor, noise_key
from benchmarks.common import describe, write_result

SHAPES = {"q": (4096, 4096), "v": (1024, 4096), "gate": (14336, 4096), "down": (4096, 14336)}  # O, I
OPS = ("mean_output", "activation_output", "weight_output")
NAMES = ("y", "y0", "x", "mean_b", "mean_a", "std_b", "std_a")
VARIANCE = Variance("square", 3e-3, 1e-6, 2.0)


class Case:
    """One layer's inputs: activations of order 1, LoRA-like factors, stds of tens of percent about f."""

    def __init__(self, shape: tuple[int, int], tokens: int, rank: int) -> None:
        (height, width), device = shape, torch.device("cuda")
        torch.manual_seed(0)
        self.length, self.rank, self.variance = tokens // 2, rank, VARIANCE
        self.y0 = torch.randn(2, self.length, height, device=device).bfloat16()
        self.x = torch.randn(2, self.length, width, device=device).bfloat16()
        self.up = torch.randn(2, self.length, height, device=device).bfloat16()
        a = [torch.empty(rank, width, device=device).uniform_(-1, 1) / width**0.5 for _ in range(2)]
        b = [torch.randn(height, rank, device=device) * size for size in (1e-2, 3e-2)]
        self.factors = Factors(b[0], a[0], b[1], a[1])
        self.keys = key_tensor(noise_key("benchmark"), device=device)
        self.questions = torch.tensor([7, 8], device=device)
        self.places = torch.arange(self.length, device=device).expand(2, self.length)

    def leaves(self, op: str, dtype: torch.dtype | None, y0: torch.dtype | None = None) -> list[Tensor]:
        given = (self.y0.to(y0 or self.y0.dtype), self.x, *self.factors)[: 4 if op == "mean_output" else 6]
        return [t.to(dtype or t.dtype, copy=True).requires_grad_() for t in given]

    def run(self, module: Any, op: str, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        """y and the gradients."""
        if op == "mean_output":
            y = module.mean_output(*leaves, self.variance.scale)
        else:
            noise = (self.keys, 3) + ((self.questions, self.places) if op == "activation_output" else ())
            y = getattr(module, op)(leaves[0], leaves[1], Factors(*leaves[2:]), self.variance, *noise)
        return (y.detach(), *torch.autograd.grad(y, leaves, self.up.to(y.dtype)))


def errors(case: Case, op: str) -> dict[str, dict[str, float]]:
    exact = case.run(eager, op, case.leaves(op, torch.float64))

    def compare(found: tuple[Tensor, ...]) -> dict[str, float]:
        pairs = zip(NAMES, found, exact, strict=False)
        return {n: float((a.double() - b).abs().max() / b.abs().max()) for n, a, b in pairs if n != "y0"}

    return {
        "triton": compare(case.run(triton_output, op, case.leaves(op, None))),
        "eager": compare(case.run(eager, op, case.leaves(op, None))),
        "triton_float32": compare(case.run(triton_output, op, case.leaves(op, None, torch.float32))),
        "eager_float32": compare(case.run(eager, op, case.leaves(op, None, torch.float32))),
    }


def milliseconds(run: Callable[[], object], repeats: int = 20) -> list[float]:
    """Of each replay of `run` captured; of plain calls where it cannot be captured."""
    stream = torch.cuda.Stream()
    again: Callable[[], object] = run
    with torch.cuda.stream(stream):
        run()
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                kept = run()  # noqa: F841  (its memory is the graph's)
            again = graph.replay
        except RuntimeError:
            traceback.print_exc(limit=1)
        times = []
        for _ in range(repeats + 3):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            again()
            events[1].record()
            torch.cuda.synchronize()
            times.append(events[0].elapsed_time(events[1]))
    return times[3:]


def measure(case: Case, op: str, module: Any, repeats: int) -> dict[str, Any]:
    leaves = case.leaves(op, None)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case.run(module, op, leaves)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    both = milliseconds(lambda: case.run(module, op, leaves), repeats)
    with torch.no_grad():
        only = milliseconds(lambda: _forward(case, op, module, leaves), repeats)
    return {
        "ms": statistics.median(both),
        "spread_ms": [min(both), max(both)],
        "forward_ms": statistics.median(only),
        "peak_mib": peak,
    }


def _forward(case: Case, op: str, module: Any, leaves: list[Tensor]) -> Tensor:
    if op == "mean_output":
        return module.mean_output(*leaves, case.variance.scale)
    noise = (case.keys, 3) + ((case.questions, case.places) if op == "activation_output" else ())
    return getattr(module, op)(leaves[0], leaves[1], Factors(*leaves[2:]), case.variance, *noise)


def kernel_times(case: Case, op: str) -> dict[str, float]:
    """Microseconds of each kernel of one forward and backward pass."""
    leaves = case.leaves(op, None)
    case.run(triton_output, op, leaves)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(5):
            case.run(triton_output, op, leaves)
        torch.cuda.synchronize()
    return {e.key[:60]: e.device_time_total / 5 for e in profile.key_averages() if e.device_time_total}


def replays_follow_the_key(case: Case, op: str) -> bool:
    """A captured pass, replayed after its key was rewritten, has the other key's noise."""
    leaves = case.leaves(op, None)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        _forward(case, op, triton_output, leaves)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph, stream=stream):
            y = _forward(case, op, triton_output, leaves)
        old = case.keys.clone()
        case.keys.copy_(key_tensor(noise_key("other"), device=case.keys.device))
        graph.replay()
        with torch.no_grad():
            expected = _forward(case, op, triton_output, leaves)
        torch.cuda.synchronize()
        case.keys.copy_(old)
        with torch.no_grad():
            before = _forward(case, op, triton_output, leaves)
    torch.cuda.synchronize()
    return torch.equal(y, expected) and not torch.equal(y, before)


def attempt(label: str, what: Callable[[], Any]) -> Any:
    """A part of the report, or why there is none."""
    start = time.perf_counter()
    try:
        found = what()
    except Exception as error:  # one case's trouble is not the others'
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    print(f"{label} [{time.perf_counter() - start:.1f} s]: {_short(found)}", flush=True)
    return found


def _short(found: Any) -> Any:
    if isinstance(found, dict):
        return {k: _short(v) for k, v in found.items()}
    return float(f"{found:.3g}") if isinstance(found, float) else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/kernel_output.json")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--ops", nargs="+", default=list(OPS), choices=list(OPS))
    parser.add_argument("--no-eager", action="store_true", help="leave eager's times out")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"tokens": arguments.tokens, "rank": arguments.rank}
    for op in arguments.ops:
        for name in arguments.shapes:
            case = Case(SHAPES[name], arguments.tokens, arguments.rank)
            result[f"{op} {name}"] = report(case, op, name, with_eager=not arguments.no_eager)
            del case
            torch.cuda.empty_cache()
    print("fallbacks:", dict(fallbacks))
    write_result(arguments.out, {**describe(), **result})


def report(case: Case, op: str, name: str, *, with_eager: bool) -> dict[str, Any]:
    """Everything about one op at one shape."""
    label, repeats = f"{op} {name}", 3 if op == "weight_output" else 20
    found = {"errors": attempt(f"{label} errors", lambda: errors(case, op))}
    found["triton"] = attempt(f"{label} triton", lambda: measure(case, op, triton_output, 20))
    if with_eager:
        found["eager"] = attempt(f"{label} eager", lambda: measure(case, op, eager, repeats))
    if name in ("q", "gate"):
        found["kernels"] = attempt(f"{label} kernels, us", lambda: kernel_times(case, op))
    if name == "q" and op != "mean_output":
        found["replay"] = attempt(f"{label} replays follow the key", lambda: replays_follow_the_key(case, op))
    return found


if __name__ == "__main__":
    main()
