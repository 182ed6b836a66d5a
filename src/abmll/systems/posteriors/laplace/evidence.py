r"""The evidence of one task, or of several, as a function of the prior's precision.

$$ \log Z(\lambda) = \text{const} - \tfrac\lambda2 |\phi - a_0|^2 - \tfrac12 \sum_i \log(1 + h_i / \lambda) $$

with $h_i$ the eigenvalues of the curvature H. It is concave in $\log \lambda$, and so is the sum over tasks, which has
the same form: the squared distances add up, and the eigenvalues of all tasks stand side by side.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar

PRECISIONS = (1e-6, 1e12)
"""Between which the prior's precision is looked for."""


class Evidence(NamedTuple):
    """What the evidence of a task, or of several, depends on besides the precision.

    Attributes:
        spectrum: eigenvalues of the curvature that are not 0.
        squared_distance: of phi to the prior's mean.

    >>> one, other = Evidence(np.array([3.0]), 0.5), Evidence(np.array([1.0, 2.0]), 0.25)
    >>> round(pooled([one, other]).log_at(2.0) - one.log_at(2.0) - other.log_at(2.0), 12)
    0.0
    """

    spectrum: Float[np.ndarray, " N"]
    squared_distance: float

    def log_at(self, precision: float) -> float:
        """log Z, without the log-likelihood of the examples, which does not depend on the precision."""
        return -0.5 * precision * self.squared_distance - 0.5 * float(np.log1p(self.spectrum / precision).sum())

    def best_precision(self) -> float:
        """The precision of the largest evidence within `PRECISIONS`, as float32 has it, in which it is stored."""

        def loss(log_precision: float) -> float:
            return -self.log_at(math.exp(log_precision))

        found = minimize_scalar(loss, bounds=np.log(PRECISIONS), method="bounded", options={"xatol": 1e-6})
        return float(np.float32(math.exp(found.x)))


def pooled(evidences: Sequence[Evidence]) -> Evidence:
    """The evidence of several tasks under one precision: the sum of their logarithms."""
    return Evidence(np.concatenate([e.spectrum for e in evidences]), sum(e.squared_distance for e in evidences))
