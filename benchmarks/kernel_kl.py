"""The KL and prior kernels alone, at Llama-3-8B shapes: time, and error against float64.

    python benchmarks/kernel_kl.py --out benchmarks/results/kernel_kl.json

Factors are random: phi one Adam step of 1e-6 from theta, and phi drawn apart. The reference is the eager op on float64
copies of the same float32 factors. Times are of captured graphs replayed, median of 20.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from abmll.kernels import Factors, Variance, eager, triton_kl
from abmll.kernels.wide import divergence
from benchmarks.common import describe, write_result

LAYERS = 32
QV = {"q": (4096, 4096), "v": (1024, 4096)}
ALL = {**QV, "k": (1024, 4096), "o": (4096, 4096), "gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336)}
VARIANCE = Variance("square", 2.06e-9**0.5, 1e-6, 2.0)


def factors(shape: tuple[int, int], rank: int, device: torch.device) -> Factors:
    """LoRA-like: A as initialised, B after some training; r mostly near f, now and then cancelling it."""
    out, into = shape
    a = [torch.empty(rank, into, device=device).uniform_(-1, 1) / into**0.5 for _ in range(2)]
    b = [torch.randn(out, rank, device=device) * size for size in (1e-2, 5e-4)]
    return Factors(b[0], a[0], b[1], a[1])


def moved(f: Factors, step: float | None) -> Factors:
    """Every entry one step of that size away; None: by tens of percent."""
    if step is None:
        return Factors(*(x * (1 + 0.2 * torch.randn_like(x)) for x in f))
    return Factors(*(x + step * torch.randn_like(x).sign() for x in f))


def graph_times(run: Callable[[], object], repeats: int = 20) -> list[float]:
    """Milliseconds of each replay of `run` captured."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            kept = run()
    times = []
    for _ in range(repeats + 3):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        graph.replay()
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]))
    del kept
    return times[3:]


def cases(shapes: dict[str, tuple[int, int]], rank: int, device: torch.device) -> tuple[list[Factors], list[Factors]]:
    """Factors of phi and theta for every layer of the model."""
    shared = [factors(shape, rank, device) for _ in range(LAYERS) for shape in shapes.values()]
    return [moved(f, 1e-6) for f in shared], shared


def measure(shapes: dict[str, tuple[int, int]], rank: int, device: torch.device) -> Iterator[tuple[str, dict]]:
    task, shared = cases(shapes, rank, device)
    variances = [VARIANCE] * len(task)
    leaves = [[Factors(*(x.detach().requires_grad_() for x in f)) for f in side] for side in (task, shared)]
    flat = [[x for f in side for x in f] for side in leaves]

    def inner() -> object:
        loss = divergence.task_kl(leaves[0], shared, variances)
        return torch.autograd.grad(loss, flat[0])

    def inner_eighth() -> object:
        key = torch.zeros((), dtype=torch.int64, device=device)
        return torch.autograd.grad(divergence.task_kl(leaves[0], shared, variances, 8, key), flat[0])

    def outer() -> object:
        loss = triton_kl.task_kl(leaves[0], leaves[1], variances)
        stds = [[f.std_b for f in leaves[1]], [f.std_a for f in leaves[1]]]
        prior = triton_kl.precision_penalty(*stds, variances, 1.0, 0.01)
        mean = torch.stack([eager.squared_norm(f.mean_b, f.mean_a) for f in leaves[1]]).sum()
        return torch.autograd.grad(loss + 1e-6 * prior + 1e-6 * mean, flat[0] + flat[1])

    for name, run in (("inner", inner), ("inner_eighth", inner_eighth), ("outer", outer)):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        times = graph_times(run)
        yield (
            name,
            {
                "ms": statistics.median(times),
                "spread_ms": [min(times), max(times)],
                "peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20,
            },
        )


def errors(
    shape: tuple[int, int], rank: int, step: float | None, device: torch.device, *, phi_alone: bool = False
) -> dict[str, float]:
    """Relative errors of the value and of each gradient (of the whole tensor, in norm); of phi, or of both."""
    shared = factors(shape, rank, device)
    task = moved(shared, step)

    def run(op: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
        f = [Factors(*(x.to(dtype).requires_grad_() for x in side)) for side in (task, shared)]
        if phi_alone:
            f[1] = Factors(*(x.detach() for x in f[1]))
        loss = op([f[0]], [f[1]], [VARIANCE])
        return loss, torch.autograd.grad(loss, [*f[0]] if phi_alone else [*f[0], *f[1]])

    exact, wanted = run(eager.task_kl, torch.float64)
    found = {}
    for name, op in (("triton", divergence.task_kl), ("eager_float32", eager.task_kl)):
        loss, gradients = run(op, torch.float32)
        found[f"{name}_value"] = float((loss - exact).abs() / exact.abs())
        for i, (mine, theirs) in enumerate(zip(gradients, wanted, strict=True)):
            label = f"{name}_{'task' if i < 4 else 'shared'}_{Factors._fields[i % 4]}"
            found[label] = float((mine.double() - theirs).norm() / theirs.norm())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/kernel_kl.json")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda")
    result: dict = {"times": {}, "errors": {}}
    for rank in arguments.ranks:
        for name, shapes in (("qv", QV), ("all", ALL)):
            for kind, values in measure(shapes, rank, device):
                result["times"][f"{name}_rank{rank}_{kind}"] = values
                print(name, rank, kind, values, flush=True)
            torch.cuda.empty_cache()
    for shape in {*ALL.values()}:
        for step in (1e-6, None):
            found = errors(shape, 8, step, device)
            result["errors"][f"{shape[0]}x{shape[1]}_{'adam_step' if step else 'apart'}"] = found
            worst = {k: max(v for n, v in found.items() if n.startswith(k)) for k in ("triton", "eager_float32")}
            print(
                shape, step, {k: f"{v:.1e}" for k, v in worst.items()}, f"value {found['triton_value']:.1e}", flush=True
            )
    write_result(arguments.out, {**describe(), **result})


if __name__ == "__main__":
    main()
