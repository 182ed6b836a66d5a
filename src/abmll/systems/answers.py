"""Answers to a user's questions: probabilities averaged over posterior draws, and how far the draws disagree."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import entr

from abmll.errors import NonFiniteError
from abmll.metrics.calibration import check_finite


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said of one question.

    Attributes:
        probabilities: of the choices, averaged over the draws; they sum to 1.
        choice: the most probable one, from 0; of equal ones the first.
        confidence: its probability.
        spread: standard deviation, over the draws, of the probability of that choice; None without draws.
        information: mutual information of answer and weights, nats: the entropy of the averaged probabilities less the
            mean entropy of each draw's. 0 where all draws agree, log K at most; None without draws.

    Raises:
        NonFiniteError: a number is NaN or infinite: that is no answer.
    """

    probabilities: tuple[float, ...]
    choice: int
    confidence: float
    spread: float | None
    information: float | None

    def __post_init__(self) -> None:
        """Refuse numbers that are not finite."""
        numbers = (*self.probabilities, self.confidence, self.spread or 0.0, self.information or 0.0)
        if not all(map(math.isfinite, numbers)):
            raise NonFiniteError(f"{self}: a number is NaN or infinite, which is no answer")


def summarise(draws: Float[np.ndarray, "S K"], drawing: bool = True) -> Answer:
    """The answer that S draws of K probabilities give; without `drawing` they say nothing of a spread.

    >>> found = summarise(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    >>> found.probabilities, found.choice, found.spread, round(found.information, 4)  # log 2: the draws decide it
    ((0.5, 0.5), 0, 0.5, 0.6931)
    """
    check_finite("probability", draws)
    mean = draws.mean(axis=0)
    choice = int(mean.argmax())
    information = float(entr(mean).sum() - entr(draws).sum(axis=1).mean()) if drawing else None
    return Answer(
        probabilities=tuple(mean.tolist()),
        choice=choice,
        confidence=float(mean[choice]),
        spread=float(draws[:, choice].std()) if drawing else None,
        information=None if information is None else max(0.0, information),
    )
