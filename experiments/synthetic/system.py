"""The library on these tasks: its own `attach`, methods, `meta_train` and `adapt`; only batches are made here.

No tokenizer is needed: a whole dataset is one question, each of its rows a token, and the likelihood looks the numbers
up by the question's key. So local reparameterisation draws for every row, the `weight` sampler for the dataset.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from abmll.adapters.attach import StdOptions, attach
from abmll.adapters.layer import AdaptedLinear
from abmll.kernels.noise import key_tensor, noise_key
from abmll.methods import method_class, resolve_settings
from abmll.methods.base import Method
from abmll.prompts.batches import ChoiceBatch
from abmll.prompts.collate import collate
from abmll.prompts.encode import EncodedQuestion
from abmll.question import Question, Task
from abmll.systems.plans import AdaptationPlan
from abmll.systems.predict import adapt
from abmll.tasks.episodes import Episode, Episodes
from abmll.training.batcher import Batcher
from abmll.training.checkpoints import RunDirectory
from abmll.training.train import Learner, TrainingPlan, meta_train
from experiments.synthetic.problem import NOISE_VARIANCE, ROWS, Problem


@dataclass(frozen=True)
class Datasets(Batcher):
    """Batches of one dataset each: its number as the key, one column for each row."""

    encoder: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __call__(self, questions: Sequence[Question]) -> list[ChoiceBatch]:
        """A batch for every dataset."""
        return [_dataset(int(question.id)) for question in questions]


@cache
def _dataset(number: int) -> ChoiceBatch:
    return collate([EncodedQuestion((0,) * ROWS, ((0,), (0,)), (1.0, 1.0), 0, number, truncated=False)])


@dataclass(frozen=True)
class SameSupport(Episodes):
    """Episodes whose inner steps all see the same dataset, as an exact posterior does; the query is another one."""

    steps: int = 1

    def draw(self, iteration: int, position: int = 0) -> Episode:
        """`steps` times the support, then the query."""
        episode = super().draw(iteration, position)
        support, query = episode.batches
        return Episode(episode.task, (support,) * self.steps + (query,))


@dataclass(frozen=True)
class System:
    """A method on one linear layer, in float64."""

    problem: Problem
    model: nn.Module
    method: Method
    layer: AdaptedLinear

    @property
    def theta(self) -> tuple[Tensor, Tensor | None]:
        """Mean and std of W under theta, (O, I)."""
        return self._dense("shared")

    @property
    def phi(self) -> tuple[Tensor, Tensor | None]:
        """The same under phi."""
        return self._dense("task")

    @torch.no_grad()
    def _dense(self, slot: str) -> tuple[Tensor, Tensor | None]:
        gaussian = getattr(self.layer, slot)
        return self.problem.base + gaussian.dense_mean(), gaussian.dense_std() if gaussian.has_std else None

    @torch.no_grad()
    def set_theta(self, mean: Tensor, std: Tensor) -> None:
        """Give theta any mean of W - W0 and any std, (O, I); the rank must be I. A = A' = 0.3 times the identity."""
        shared, size = self.layer.shared, 0.3
        for a in (shared.mean_a, shared.std_a):
            a.copy_(size * torch.eye(len(a)))
        scale = size * shared.variance.scale
        shared.mean_b.copy_(mean / scale)
        shared.std_b.copy_((std - shared.variance.offset) / scale)

    @torch.no_grad()
    def drawn_means(self, x: Tensor, draws: int) -> Tensor:
        """(draws, N, O): outputs for x (N, I) under weights drawn from q(phi) by the `weight` sampler."""
        keys = key_tensor(*(noise_key("predict", draw) for draw in range(draws)))
        with self.method.adapters.drawing("weight", keys):
            return self.model(x.repeat(draws, 1)[:, None])[:, 0].unflatten(0, (draws, -1))


def build(problem: Problem, name: str, settings: dict[str, Any], *, rank: int, seed: int) -> System:
    """A method of the library on a linear layer with the problem's W0; its NLL is the mean over a dataset's rows."""
    model = nn.Sequential(nn.Linear(problem.base.shape[1], problem.base.shape[0], bias=False)).requires_grad_(False)
    model.double()[0].weight.copy_(problem.base)
    resolved, cls = resolve_settings(name, given=settings), method_class(name)
    options = {key: getattr(resolved, f"std_{key}") for key in ("form", "init", "floor") if cls.has_std}
    std = StdOptions(**options) if cls.has_std else None
    adapters = attach(model, ("0",), rank=rank, alpha=2.0 * rank, std=std, seed=seed)
    layer = adapters.layers["0"].double()

    def nll(batch: ChoiceBatch) -> Tensor:
        gap = problem.y[batch.row_keys] - model(problem.x[batch.row_keys])
        return (gap.square() / (2 * NOISE_VARIANCE)).sum(-1).mean()

    return System(problem, model, cls(adapters, nll, resolved), layer)


def train(system: System, iterations: int, seed: int, listener: Callable[[int], None] = lambda step: None) -> None:
    """`meta_train` in a run directory that is thrown away; `listener` hears of every step."""
    tasks, steps = system.problem.train, system.method.settings.inner_steps
    episodes = SameSupport(tasks, "by_task", batches=2, batch_size=1, seed=seed, steps=steps)
    plan = TrainingPlan(iterations, seed=seed, checkpoint_every=iterations, log_stds_every=iterations)
    learner = Learner.of(system.method, Datasets())
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")
        meta_train(learner, episodes, plan, run, listener=lambda event: listener(event["step"]))


def adapted(system: System, task: Task, steps: int) -> tuple[Tensor, Tensor | None]:
    """Mean and std of W under q(phi) after `adapt` on a task's support."""
    adapt(system.method, Datasets(), task, AdaptationPlan(examples=1, steps=steps, batch_size=1), draw=0)
    return system.phi
