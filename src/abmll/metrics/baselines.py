"""Baselines that need no model: rows of a table made from any system's predictions file."""

import numpy as np
from jaxtyping import Float

from abmll.errors import AbmllError
from abmll.metrics.predictions import Prediction, Predictions

UNIFORM = "uniform"
LABEL_FREQUENCY = "label_frequency"


def uniform(predictions: Predictions) -> Predictions:
    """The same questions, every choice equally probable: what guessing scores.

    Task, seed, draw and examples consumed are kept. Its accuracy is the mean of 1 / (number of choices), since equally
    probable choices share the answer (`abmll.metrics.scores.right_share`).

    >>> from abmll.metrics.predictions import Prediction
    >>> real = Predictions("lora", "toy", 0, 0, 0, rows=(Prediction("a", 1, (0.9, 0.1)),))
    >>> uniform(real).rows[0].probabilities
    (0.5, 0.5)
    """
    return _renamed(predictions, UNIFORM, None)


def label_frequency(predictions: Predictions) -> Predictions | None:
    """The same questions, each choice as probable as its label was among the adaptation examples.

    p_k = (count_k + 1) / (n + K): Laplace's rule of succession, n examples, K labels.

    Returns:
        None if the task has no fixed labels (`label_counts` is None).

    Raises:
        AbmllError: `label_counts` does not fit a question's number of choices, or holds a negative count.

    >>> from abmll.metrics.predictions import Prediction
    >>> rows = (Prediction("a", 1, (0.9, 0.1)),)
    >>> real = Predictions("lora", "toy", 0, 0, 0, rows, label_counts=(1, 5))
    >>> label_frequency(real).rows[0].probabilities
    (0.25, 0.75)
    """
    if predictions.label_counts is None:
        return None
    counts = np.array(predictions.label_counts, dtype=np.float64)
    if (counts < 0).any():
        raise AbmllError(f"task {predictions.task!r}: a label count is negative: {predictions.label_counts}")
    return _renamed(predictions, LABEL_FREQUENCY, tuple(smoothed_shares(counts).tolist()))


def smoothed_shares(counts: np.ndarray) -> Float[np.ndarray, "K"]:
    """(count_k + 1) / (n + K) of K labels.

    >>> smoothed_shares(np.array([1, 5])).tolist()
    [0.25, 0.75]
    """
    return (counts + 1) / (counts.sum() + len(counts))


def _renamed(predictions: Predictions, system: str, shares: tuple[float, ...] | None) -> Predictions:
    def rows(old: tuple[Prediction, ...]) -> tuple[Prediction, ...]:
        shared = [_fitted(predictions, r, shares) for r in old]
        return tuple(
            Prediction(r.id, r.answer, p, group=r.group, lengths=r.lengths) for r, p in zip(old, shared, strict=True)
        )

    splits = {split: rows(old) for split, old in predictions.splits.items()}
    return predictions.with_splits(splits, system=system, scale_prior=None)  # the prior is of another system


def _fitted(predictions: Predictions, row: Prediction, shares: tuple[float, ...] | None) -> tuple[float, ...]:
    choices = len(row.probabilities)
    if shares is None:
        return (1 / choices,) * choices
    if len(shares) != choices:
        raise AbmllError(
            f"task {predictions.task!r}, question {row.id!r}: {choices} choices, {len(shares)} label counts"
        )
    return shares
