"""SWAG (Maddox et al. 2019; Onal et al. 2024 on LoRA): a Gaussian of the weights that the steps went through."""

import math

import torch
from torch import Tensor

from abmll.errors import AbmllError
from abmll.kernels.noise import noise_key, normal
from abmll.systems.posteriors.base import Adaptation, FactorDraws, check_shapes, copied
from abmll.systems.posteriors.settings import SWAGSettings


class SWAG(FactorDraws):
    r"""w = mean + sqrt(scale / 2) (diag^(1/2) z1 + D z2 / sqrt(C - 1)) over the weights after each of the last steps.

    Mean and variance are those of the weights collected; D holds the last C of their deviations from the mean at that
    time. (The published code of SWAG on LoRA leaves the 1 / sqrt 2 out: its covariance is twice this, `scale` 2.)
    """

    settings: SWAGSettings

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self._first, self._count = 0, 0
        self._mean: list[Tensor] = []
        self._square: list[Tensor] = []
        self._deviations: list[list[Tensor]] = []

    def begin(self, steps: int) -> None:
        """Nothing is collected yet."""
        self._first, self._count, self._deviations = int(self.settings.start * steps), 0, []
        if 0 < steps < self._first + 2:
            raise AbmllError(
                f"posterior.name=swag collects weights after step {self._first} of {steps}, and needs two or more; "
                "give more adaptation.steps, or a lower posterior.start"
            )

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Collect phi."""
        if step < self._first:
            return
        phi = copied(self.parameters)
        if not self._count:
            self._mean, self._square = [torch.zeros_like(p) for p in phi], [torch.zeros_like(p) for p in phi]
        self._count += 1
        for mean, square, value in zip(self._mean, self._square, phi, strict=True):
            before = value - mean  # Welford: no difference of large squares
            mean += before / self._count
            square += before * (value - mean)
        deviation = [value - mean for value, mean in zip(phi, self._mean, strict=True)]
        self._deviations = [*self._deviations, deviation][-self.settings.columns :]

    def fit(self, adaptation: Adaptation) -> None:
        """All is collected."""

    def draw(self, number: int, key: int) -> list[Tensor]:
        """One draw around the mean of what was collected."""
        columns, scale = len(self._deviations), math.sqrt(self.settings.scale / 2)
        device = self._mean[0].device
        shared = normal(noise_key("swag", key), columns, torch.arange(1, device=device), layer=0)[0]
        drawn = []
        for index, (mean, square) in enumerate(zip(self._mean, self._square, strict=True)):
            own = normal(key, mean.shape[1], torch.arange(mean.shape[0], device=device), layer=index)
            low_rank = torch.stack([column[index] for column in self._deviations], dim=-1) @ shared
            drawn.append(mean + scale * ((square / self._count).sqrt() * own + low_rank / math.sqrt(columns - 1)))
        return drawn

    def state(self) -> dict[str, Tensor]:
        """Mean, variance and deviations of every factor."""
        state = {f"mean.{index}": mean for index, mean in enumerate(self._mean)}
        state |= {f"variance.{index}": square / self._count for index, square in enumerate(self._square)}
        columns = enumerate(self._deviations)
        return state | {f"deviation.{number}.{i}": part for number, column in columns for i, part in enumerate(column)}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse."""
        parameters, device = self.parameters, self.parts.batcher.device
        numbers = range(len(parameters))
        columns = len(state) // len(parameters) - 2
        if columns < 2 or len(state) % len(parameters):
            raise ValueError(f"{len(state)} tensors for {len(parameters)} factors")
        self._count = 1
        self._mean = [state[f"mean.{index}"].to(device) for index in numbers]
        self._square = [state[f"variance.{index}"].to(device) for index in numbers]
        self._deviations = [[state[f"deviation.{c}.{i}"].to(device) for i in numbers] for c in range(columns)]
        for values in (self._mean, self._square, *self._deviations):
            check_shapes(parameters, values)
        if any(bool((variance < 0).any()) for variance in self._square):
            raise ValueError("a variance is negative")
