"""The contract of methods that find phi from all rows of a task, without gradient steps."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from abmll.methods.base import Method, Terms
from abmll.prompts.batches import ChoiceBatch


class Pieces(NamedTuple):
    """How the questions of a block were dealt to its batches.

    Attributes:
        places: of each batch, which of the block's questions it has, by number.
        choices: of each batch, how many choices each of its questions has; the batch may be padded to more.
    """

    places: tuple[tuple[int, ...], ...]
    choices: tuple[int, ...]


class Fitted(Method):
    """A method whose phi is a function of theta and of a task's rows; in place of inner steps there is `fit`.

    Attributes:
        local: what `fit` knows of a batch's likelihood, under phi as it is: outputs with their graph, and a quadratic
            form of them (`abmll.methods.core.local.Local`); set by who knows the likelihood.
        rows_at_once: which rows a block of `fit` has: `all`, or those of a `batch` of what would be a gradient step.
        fit_tokens: most padded tokens of a batch of a block; None: the block is one batch.
    """

    local: Callable[[ChoiceBatch], Any]
    rows_at_once: str = "all"
    fit_tokens: int | None = None

    @abc.abstractmethod
    def fit(self, blocks: Sequence[Sequence[ChoiceBatch]], pieces: Sequence[Pieces] | None = None) -> list[Terms]:
        """Make phi, given batches in which each row is once; the terms are for the journal, the last with the KL.

        Args:
            blocks: batches whose rows belong together.
            pieces: of each block, which questions its batches have; None: one batch after the other.
        """
