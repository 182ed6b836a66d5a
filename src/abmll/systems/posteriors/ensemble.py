"""An ensemble of adaptations: the same theta and examples, another order of the steps' rows for each member."""

import numpy as np
from torch import Tensor

from abmll.question import Question
from abmll.systems.plans import PredictionPlan
from abmll.systems.posteriors.base import Adaptation, FactorDraws, check_shapes, copied, put
from abmll.systems.posteriors.settings import EnsembleSettings
from abmll.systems.predict import steps_from_theta


class Ensemble(FactorDraws):
    """Members that saw the same rows, in other orders and with other noise; probabilities are averaged, never scores.

    The batches of a member are those of phi with their rows dealt anew, pass by pass. Members of other training seeds
    are rows of a comparison, which `abmll.metrics.ensemble` averages.
    """

    settings: EnsembleSettings

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self._members: list[list[Tensor]] = []

    def fit(self, adaptation: Adaptation) -> None:
        """Adapt again for each member but the first, which is phi."""
        method, _, batcher, graphs, optimizer = self.parts
        phi = copied(self.parameters)
        self._members = [phi]
        seed, iteration, draw = adaptation.coordinates
        try:
            for member in range(1, self.settings.members):
                coordinates = (seed, iteration + member, draw)
                batches = reordered(adaptation.batches, [seed, draw, member])
                steps_from_theta(method, optimizer, batcher, batches, coordinates, graphs, adaptation.schedule)
                self._members.append(copied(self.parameters))
        finally:
            put(self.parameters, phi)

    def draws(self, plan: PredictionPlan) -> int:
        """All members, whatever the plan says."""
        return len(self._members)

    def draw(self, number: int, key: int) -> list[Tensor]:
        """A member."""
        return self._members[number]

    def state(self) -> dict[str, Tensor]:
        """Every member but phi."""
        members = enumerate(self._members[1:], start=1)
        return {f"{number}.{index}": value for number, member in members for index, value in enumerate(member)}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse."""
        parameters, device = self.parameters, self.parts.batcher.device
        count = len(state) // len(parameters)
        others = [
            [state[f"{number}.{index}"].to(device) for index in range(len(parameters))]
            for number in range(1, count + 1)
        ]
        for member in others:
            check_shapes(parameters, member)
        self._members = [copied(parameters), *others]


def reordered(batches: tuple[tuple[Question, ...], ...], seed: list[int]) -> list[tuple[Question, ...]]:
    """Batches of the same sizes with the rows of each pass in another order: no row is taken more often than before."""
    rows = [row for batch in batches for row in batch]
    size = len(set(rows))
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    passes = [rows[start : start + size] for start in range(0, len(rows), size)]
    stream = iter([part[i] for part in passes for i in generator.permutation(len(part))])
    return [tuple(next(stream) for _ in batch) for batch in batches]
