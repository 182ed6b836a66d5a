"""Training-free Bayesianization (Shi et al. 2025): the largest isotropic noise on the product that the fit can bear."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from abmll.kernels.noise import normal
from abmll.methods.noise import POSTERIOR
from abmll.question import Question
from abmll.systems.plans import PredictionPlan
from abmll.systems.posteriors.base import Adaptation, FactorDraws, factor_pairs
from abmll.systems.posteriors.settings import TFBSettings
from abmll.systems.predict import averaged

log = logging.getLogger(__name__)

SMALLEST = 1e-6
"""Of the largest singular value; below it a direction of B is rounding, and has no noise."""


class TFB(FactorDraws):
    r"""A = A* + sigma V D^-1 E with E standard normal, where B = U D V^T: the product s B A has noise s sigma U E.

    So each weight of the product varies alike within B's range, by s sigma in each direction U. The std sigma is the
    largest, by bisection, whose NLL on the examples exceeds phi's own by at most `tolerance`, relatively. Both
    published codes return the smallest one tried that exceeds it (`returned: exceeding`).
    """

    settings: TFBSettings

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.sigma = 0.0
        self._to_a: list[Tensor] = []

    def fit(self, adaptation: Adaptation) -> None:
        """The SVD of every B, and sigma."""
        self._decompose()
        limit = self._nll(0.0, adaptation.examples) * (1 + self.settings.tolerance)
        found = self._within if self.settings.returned == "within" else self._exceeding
        self.sigma = float(np.float32(found(limit, adaptation.examples)))  # as it is stored

    def _within(self, limit: float, examples: Sequence[Question]) -> float:
        """The largest std that was seen within the limit; 0 where the smallest is beyond."""
        s = self.settings
        if self._nll(s.most, examples) <= limit:
            return s.most
        if self._nll(s.least, examples) > limit:
            log.warning(
                "posterior.name=tfb: noise of std %g costs more than posterior.tolerance=%g lets pass, so answers are "
                "those of the mean weights",
                s.least,
                s.tolerance,
            )
            return 0.0
        return self._bisected(limit, examples)[0]

    def _exceeding(self, limit: float, examples: Sequence[Question]) -> float:
        """The smallest std that was seen beyond the limit, the ends of the interval unseen."""
        return self._bisected(limit, examples)[1]

    def _bisected(self, limit: float, examples: Sequence[Question]) -> tuple[float, float]:
        """What is left of the interval."""
        low, high = self.settings.least, self.settings.most
        for _ in range(self.settings.bisections):
            middle = (low + high) / 2
            within = self._nll(middle, examples) <= limit
            low, high = (middle, high) if within else (low, middle)
        return low, high

    def draw(self, number: int, key: int) -> list[Tensor]:
        """phi with noise on every A."""
        drawn = []
        for index, (b, a) in enumerate(factor_pairs(self)):
            noise = normal(key, a.shape[1], torch.arange(a.shape[0], device=a.device), layer=index)
            drawn += [b.detach().clone(), a.detach() + self.sigma * (self._to_a[index] @ noise)]
        return drawn

    def state(self) -> dict[str, Tensor]:
        """sigma; the rest is phi's."""
        return {"sigma": torch.tensor([self.sigma])}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse."""
        self.sigma = float(state["sigma"])
        self._decompose()

    @torch.no_grad()
    def _decompose(self) -> None:
        """V D^-1 of every B."""
        self._to_a = []
        for b, _ in factor_pairs(self):
            _, d, v_t = torch.linalg.svd(b.double(), full_matrices=False)
            inverse = torch.where(d > SMALLEST * d.max(), 1 / d.clamp(min=torch.finfo(d.dtype).tiny), 0.0)
            self._to_a.append((v_t.T * inverse).float())

    def _nll(self, sigma: float, examples: Sequence[Question]) -> float:
        """Of the right answers, by probabilities that are averaged over the draws."""
        self.sigma = sigma
        plan = PredictionPlan("weight", self.settings.samples if sigma else 1)
        found = averaged(examples, self.draw_by_batch(examples, plan, POSTERIOR), drawing=False)
        return -float(np.mean([np.log(max(row.probabilities[row.answer], 1e-300)) for row in found]))
