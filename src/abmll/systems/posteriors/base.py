"""The contract of a posterior that is made after adaptation."""

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from abmll.errors import AbmllError
from abmll.likelihood import ChoiceLikelihood
from abmll.methods.base import Method, Schedule
from abmll.methods.noise import Coordinates, StepCoordinates, prediction_keys
from abmll.question import Question
from abmll.systems.plans import PredictionPlan
from abmll.systems.posteriors.settings import SETTINGS, PosteriorSettings
from abmll.systems.predict import Draw, draw_by_batch
from abmll.training.batcher import Batcher
from abmll.training.graphs import Graphs
from abmll.training.optimizers import GroupOptimizer


class Parts(NamedTuple):
    """The parts of a system that a posterior is made and asked with."""

    method: Method
    likelihood: ChoiceLikelihood
    batcher: Batcher
    graphs: Graphs
    optimizer: GroupOptimizer


@dataclass(frozen=True)
class Adaptation:
    """How phi came to be.

    Attributes:
        examples: the labelled rows, as they are put to the model.
        batches: of the steps that were taken, in order.
        coordinates: of their noise.
        schedule: how the rates fell over the steps.
    """

    examples: tuple[Question, ...]
    batches: tuple[tuple[Question, ...], ...]
    coordinates: StepCoordinates
    schedule: Schedule = "constant"


class Posterior(abc.ABC):
    """What answers are drawn from, made of an adapted phi; phi itself stays as it is.

    Until the first `fit`, and after an adaptation without steps, there is nothing to draw from, and phi answers.

    Args:
        parts: of the system.
        settings: an instance of its class in `abmll.systems.posteriors.settings.SETTINGS`.

    Attributes:
        fitted: there is something to draw from, and it is of the phi that there is.
    """

    def __init__(self, parts: Parts, settings: PosteriorSettings) -> None:
        self.parts, self.settings, self.fitted = parts, settings, False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The factors of phi that adaptation moves, which it is a distribution of."""
        return [parameter for group in self.parts.method.task() for parameter in group.parameters]

    def begin(self, steps: int) -> None:  # noqa: B027 - most of them need not know
        """So many steps from theta begin.

        Raises:
            AbmllError: they are too few.
        """

    def after_step(self, step: int) -> None:  # noqa: B027 - as above
        """A step was taken; phi is what it made."""

    @abc.abstractmethod
    def fit(self, adaptation: Adaptation) -> None:
        """Make the posterior; phi has been adapted, and is the same afterwards.

        Raises:
            NonFiniteError: a number that it is made of is NaN or infinite.
        """

    @abc.abstractmethod
    def draw_by_batch(
        self, questions: Sequence[Question], plan: PredictionPlan, coordinates: Coordinates
    ) -> Iterator[tuple[list[int], list[Draw]]]:
        """As `abmll.systems.predict.draw_by_batch`: the places of some questions, and their probabilities by draw."""

    @abc.abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that it is besides phi, as named tensors."""

    @abc.abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`, when phi is that of the state.

        Raises:
            KeyError, ValueError: it is another posterior's state, or of another phi.
        """


class FactorDraws(Posterior):
    """A posterior that gives factors: each draw is a LoRA, which takes phi's place while questions are answered."""

    @abc.abstractmethod
    def draw(self, number: int, key: int) -> list[Tensor]:
        """Draw `number`, whose noise the key names: values of `parameters`."""

    def draws(self, plan: PredictionPlan) -> int:
        """How many are averaged."""
        return plan.samples

    def draw_by_batch(
        self, questions: Sequence[Question], plan: PredictionPlan, coordinates: Coordinates
    ) -> Iterator[tuple[list[int], list[Draw]]]:
        """The probabilities of every batch under each draw, which is put into phi's memory and taken out again."""
        method, likelihood, batcher, graphs, _ = self.parts
        by_batch: dict[tuple[int, ...], list[Draw]] = {}
        alone = PredictionPlan("mean", 1, plan.batch_tokens)
        phi = copied(self.parameters)
        try:
            for number, key in enumerate(prediction_keys(coordinates, self.draws(plan))):
                put(self.parameters, self.draw(number, key))
                found = draw_by_batch(method, likelihood, batcher, questions, alone, coordinates, graphs)
                for places, drawn in found:
                    by_batch.setdefault(tuple(places), []).extend(drawn)
        finally:
            put(self.parameters, phi)
        yield from ((list(places), drawn) for places, drawn in by_batch.items())


def copied(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Copies, apart from any graph."""
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Values into the parameters' memory, by which captured steps go."""
    torch._foreach_copy_(tuple(parameters), tuple(values))


def check_shapes(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Refuse values of other factors.

    Raises:
        ValueError: says which is the first.
    """
    pairs = zip(parameters, values, strict=True)
    for number, (one, other) in enumerate(pairs):
        if one.shape != other.shape:
            raise ValueError(f"factor {number} has the shape {tuple(other.shape)}, here it is {tuple(one.shape)}")


def factor_pairs(posterior: Posterior) -> list[tuple[Tensor, Tensor]]:
    """B and A of each layer that moves.

    Raises:
        AbmllError: adaptation moves one of them alone.
    """
    factors = posterior.parameters
    pairs: list[tuple[Tensor, Tensor]] = list(zip(factors[::2], factors[1::2], strict=False))
    if len(factors) % 2 or any(b.shape[1] != a.shape[0] for b, a in pairs):
        name = next(name for name, kind in SETTINGS.items() if type(posterior.settings) is kind)
        raise AbmllError(f"posterior.name={name} needs a method that moves B and A of each layer in adaptation")
    return pairs
