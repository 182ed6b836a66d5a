"""The contract of methods that find phi from all rows of a task, without gradient steps."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

from abmll.methods.base import Method, Terms
from abmll.prompts.batches import ChoiceBatch


class Fitted(Method):
    """A method whose phi is a function of theta and of a task's rows; in place of inner steps there is `fit`.

    Attributes:
        local: what `fit` knows of a batch's likelihood, under phi as it is: outputs with their graph, and a quadratic
            form of them (`abmll.methods.core.local.Local`); set by who knows the likelihood.
        rows_at_once: which rows a block of `fit` has: `all`, or those of a `batch` of what would be a gradient step.
    """

    local: Callable[[ChoiceBatch], Any]
    rows_at_once: str = "all"

    @abc.abstractmethod
    def fit(self, blocks: Sequence[Sequence[ChoiceBatch]]) -> list[Terms]:
        """Make phi, given batches in which each row is once; the terms are for the journal, the last with the KL."""
