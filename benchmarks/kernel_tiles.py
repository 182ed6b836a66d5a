"""One run that decides between tiles of the KL kernel: compile time, time, and error against float64 of each.

    python -m benchmarks.kernel_tiles [NAME ...]

`default` is what `abmll.kernels.triton_kl` uses. Shapes are all linear layers of `--layers` transformer layers of
Llama-3-8B.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from abmll.kernels import Factors, eager, triton_kl
from benchmarks.kernel_kl import ALL, VARIANCE, factors, graph_times, moved

Tile = dict[str, int]


def tile(rows: int, columns: int, warps: int = 4, stages: int = 2) -> Tile:
    return {"BLOCK_N": rows, "BLOCK_M": columns, "num_warps": warps, "num_stages": stages}


# Of the inner KL (and the prior), and of the outer one. One stage with 64 x 64 is left out: Triton 3.6.0 made a kernel
# of wrong values and wild addresses of it.
TILES: dict[str, tuple[Tile, Tile]] = {
    "default": (triton_kl._tile(16, shared=False), triton_kl._tile(16, shared=True)),
    "one_stage": (tile(64, 32, stages=1), tile(64, 32, stages=1)),
    "two_stages": (tile(64, 64, stages=2), tile(64, 32, stages=2)),
    "three_stages": (tile(64, 64, stages=3), tile(64, 32, stages=3)),
    "tall": (tile(128, 64, 8), tile(128, 32, 8)),
}


def use(inner: Tile, outer: Tile) -> None:
    def of(width: int, *, shared: bool) -> Tile:
        return outer if shared else inner

    triton_kl._tile = of


def leaves(side: list[Factors]) -> list[Factors]:
    return [Factors(*(x.detach().requires_grad_() for x in f)) for f in side]


def runs(op: Any, task: list[Factors], shared: list[Factors]) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """The value and the gradients, by what they are of."""
    variances = [VARIANCE] * len(task)
    mine, theirs = leaves(task), leaves(shared)
    stds = [[f.std_b for f in theirs], [f.std_a for f in theirs]]

    def with_gradients(loss: Tensor, of: list[Tensor]) -> tuple[Tensor, ...]:
        return (loss, *torch.autograd.grad(loss, of))

    return {
        "inner": lambda: with_gradients(op.task_kl(mine, shared, variances), [x for f in mine for x in f]),
        "outer": lambda: with_gradients(op.task_kl(mine, theirs, variances), [x for f in (*mine, *theirs) for x in f]),
        "prior": lambda: with_gradients(op.precision_penalty(*stds, variances, 2.5, 0.01), [*stds[0], *stds[1]]),
    }


def doubled(side: list[Factors]) -> list[Factors]:
    return [Factors(*(x.double() for x in f)) for f in side]


def worst(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Of the value and of each gradient as a whole."""
    return max(float((a.detach().double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join(TILES), default=list(TILES))
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda")
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    shared = [factors(shape, 8, device) for _ in range(arguments.layers) for shape in ALL.values()]
    task = [moved(f, 1e-6) for f in shared]
    cases: dict[str, Any] = {}
    for case, step in (("step", 1e-6), ("apart", None)):
        theirs = [factors((1024, 4096), 8, device)]
        mine = [moved(theirs[0], step)]
        exact = runs(eager, doubled(mine), doubled(theirs))
        cases[case] = mine, theirs, {kind: tuple(x.detach() for x in run()) for kind, run in exact.items()}
    for name in arguments.names:
        use(*TILES[name])
        try:
            start = time.perf_counter()
            errors = {
                f"{case} {kind}": f"{worst(run(), exact[kind]):.1e}"
                for case, (mine, theirs, exact) in cases.items()
                for kind, run in runs(triton_kl, mine, theirs).items()
            }
            compiled = time.perf_counter() - start
            times = {
                kind: round(statistics.median(graph_times(run, 10)), 3)
                for kind, run in runs(triton_kl, task, shared).items()
            }  # fmt: skip
        except Exception as problem:  # a tile that does not fit says so, and the others are still measured
            print(f"{name:20} {type(problem).__name__}: {str(problem)[:300]}", flush=True)
            continue
        print(f"{name:20} first calls {compiled:.1f} s, ms {times}, errors {errors}", flush=True)


if __name__ == "__main__":
    main()
