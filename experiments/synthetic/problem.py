"""Linear-Gaussian tasks: W_i = W0 + M + spread * noise, y = x W_i^T + noise, all of it known."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.question import Question, Task

OUT, IN, ROWS = 12, 10, 20
"""O, I, and the rows of a dataset, of which a task adapts on one."""
NOISE_VARIANCE = 0.25
TRAIN_TASKS, TEST_TASKS, TEST_ROWS = 100, 4, 200
CORRELATION = 0.5
"""Between neighbouring inputs: without it the exact posterior would be nearly factorised, as q is."""


def rank_one(generator: torch.Generator) -> Tensor:
    """An outer product, 0.04 to 1: what low-rank std factors can hold."""
    del generator
    return torch.outer(*(torch.logspace(-0.7, 0, size, dtype=torch.float64) for size in (OUT, IN)))


def log_normal(generator: torch.Generator) -> Tensor:
    """exp N(log 0.25, 0.7) for each weight apart: of full rank."""
    return 0.25 * torch.exp(0.7 * torch.randn(OUT, IN, generator=generator, dtype=torch.float64))


def blocks(generator: torch.Generator) -> Tensor:
    """Two of four blocks are the same in all tasks (spread 0), the others vary by 0.4."""
    del generator
    halves = [torch.arange(size) < size // 2 for size in (OUT, IN)]
    return 0.4 * (halves[0][:, None] == halves[1]).double()


SPREADS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "rank_one": rank_one,
    "log_normal": log_normal,
    "blocks": blocks,
}


@dataclass(frozen=True)
class Problem:
    """Tasks, and all that is true of them.

    Task t has the datasets 2t (its support) and 2t + 1 (a query batch, where a method asks for one). The first
    `TRAIN_TASKS` are meta-trained on, the others are unseen.

    Attributes:
        spread: (O, I), the standard deviation of each weight between tasks.
        base: (O, I), W0.
        mean: (O, I), M, of rank 2: the tasks' mean is W0 + M.
        weights: (tasks, O, I), W_i.
        x: (datasets, ROWS, I).
        y: (datasets, ROWS, O).
        test_x: (TEST_TASKS, TEST_ROWS, I).
        test_y: (TEST_TASKS, TEST_ROWS, O).
    """

    spread: Tensor
    base: Tensor
    mean: Tensor
    weights: Tensor
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def train(self) -> tuple[Task, ...]:
        """Tasks of the library whose questions name a dataset each."""
        return tuple(_task(number, 2) for number in range(TRAIN_TASKS))

    @property
    def unseen(self) -> tuple[Task, ...]:
        """The same for the unseen tasks, which have their support only."""
        return tuple(_task(number, 1) for number in range(TRAIN_TASKS, TRAIN_TASKS + TEST_TASKS))


def make_problem(spread: str, seed: int) -> Problem:
    """The problem of a kind of spread and a seed, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gap = (torch.arange(IN)[:, None] - torch.arange(IN)).abs()
    root = torch.linalg.cholesky((CORRELATION**gap).double())
    std = SPREADS[spread](generator)
    base, mean = 0.3 * normal(OUT, IN), 0.2 * normal(OUT, 2) @ normal(2, IN)
    tasks = TRAIN_TASKS + TEST_TASKS
    weights = base + mean + std * normal(tasks, OUT, IN)
    x, test_x = normal(2 * tasks, ROWS, IN) @ root.T, normal(TEST_TASKS, TEST_ROWS, IN) @ root.T
    y = x @ weights.repeat_interleave(2, 0).mT + NOISE_VARIANCE**0.5 * normal(2 * tasks, ROWS, OUT)
    test_y = test_x @ weights[TRAIN_TASKS:].mT + NOISE_VARIANCE**0.5 * normal(TEST_TASKS, TEST_ROWS, OUT)
    return Problem(std, base, mean, weights, x, y, test_x, test_y)


def _task(number: int, datasets: int) -> Task:
    rows = [Question(str(2 * number + i), "a dataset", ("yes", "no"), 0) for i in range(datasets)]
    return Task(f"task-{number}", train=tuple(rows))
