"""Logistic regression on a few labelled rows: its penalty by inner folds, and a share for labels without rows."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse penalties C that inner folds choose from."""
INNER_FOLDS = 5
MOST_IN_ROW_SPACE = 1000
"""Rows beyond which features stay as they are: the decomposition grows with the cube of the rows."""
_LEAST_EIGENVALUE = 1e-10
_FLOOR = 1e-12

Features = Any
"""N rows of D numbers, dense or sparse (scipy)."""


@dataclass(frozen=True, eq=False)
class FittedRegression:
    """Probabilities of every label of a list from features.

    Attributes:
        model: of the labels that had rows; None where that was one label.
        basis: takes features to the space that the model was fitted in; None: they are its space.
        present: the labels that had rows.
        rows, labels: n and K.
        strength: C that was chosen.
    """

    model: LogisticRegression | None
    basis: Float[np.ndarray, "D R"] | None
    present: Int[np.ndarray, "M"]
    rows: int
    labels: int
    strength: float

    def probabilities(self, features: Features) -> Float[np.ndarray, "N K"]:
        """Probabilities of all K labels, in the order of the list; rows sum to 1."""
        if self.model is None:
            known = np.ones((features.shape[0], 1))
        else:
            known = self.model.predict_proba(features if self.basis is None else features @ self.basis)
        return with_unseen_labels(known, self.present, self.rows, self.labels)


def fit_regression(
    features: Features,
    answers: Int[np.ndarray, "N"],
    labels: int,
    groups: Sequence[int] | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> FittedRegression:
    """Fit logistic regression with an L2 penalty, of the strength that has the lowest NLL on inner folds.

    min over W, b:  ||W||^2 / 2 + C sum_n -log softmax(W x_n + b)_(y_n)

    Its solution lies in the span of the rows, so with fewer rows than features the same solution is sought in the
    coordinates of that span: what takes seconds on thousands of word pairs takes milliseconds.

    Args:
        features: of N rows.
        answers: index of each row's label.
        labels: number of labels K; one without rows has the share of `with_unseen_labels`.
        groups: number of the group of each row; a group stays on one side of the inner folds. None: each alone.
        strengths: values of C, the strongest penalty first, which a tie goes to.

    Raises:
        ValueError: there are no rows.
    """
    if not len(answers):
        raise ValueError("no rows to fit to")
    with threadpool_limits(1, "blas"):  # hundreds of small products: more threads mostly wait for each other, spinning
        basis = _row_space(features)
        coordinates = features if basis is None else features @ basis
        chosen = _strength(coordinates, answers, labels, groups, strengths)
        model, present = _fit(coordinates, answers, chosen)
    return FittedRegression(model, basis, present, len(answers), labels, chosen)


def with_unseen_labels(
    known: Float[np.ndarray, "N M"], present: Int[np.ndarray, "M"], rows: int, labels: int
) -> Float[np.ndarray, "N K"]:
    """Probabilities of M labels that had rows as those of all K: each label without rows has 1 / (n + K).

    That is the share that Laplace's rule of succession gives it, fixed before any row is seen; the others share what
    is left in proportion to what they had.

    >>> with_unseen_labels(np.array([[0.25, 0.75]]), np.array([0, 2]), rows=7, labels=3).round(3).tolist()
    [[0.225, 0.1, 0.675]]
    """
    share = 1 / (rows + labels)
    out = np.full((len(known), labels), share)
    out[:, present] = known * (1 - share * (labels - len(present)))
    return out


def _row_space(features: Features) -> Float[np.ndarray, "D R"] | None:
    """An orthonormal basis of the span of the rows; None where it would not be smaller, or too dear."""
    rows, width = features.shape
    if rows >= width or rows > MOST_IN_ROW_SPACE:
        return None
    gram = features @ features.T
    values, vectors = np.linalg.eigh(gram.toarray() if hasattr(gram, "toarray") else np.asarray(gram))
    real = values > _LEAST_EIGENVALUE * max(1.0, float(values.max()))
    return np.asarray(features.T @ (vectors[:, real] / np.sqrt(values[real])))


def _fit(
    coordinates: Features, answers: Int[np.ndarray, "N"], strength: float
) -> tuple[LogisticRegression | None, Int[np.ndarray, "M"]]:
    present = np.unique(answers)
    if len(present) < 2 or not coordinates.shape[1]:
        return None, present[:1] if len(present) < 2 else present
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its last step is an answer, too
        warnings.filterwarnings("ignore", "The number of unique classes")  # few rows a label are what this is for
        return LogisticRegression(C=strength, max_iter=1000, tol=1e-6).fit(coordinates, answers), present


def _strength(
    coordinates: Features,
    answers: Int[np.ndarray, "N"],
    labels: int,
    groups: Sequence[int] | None,
    strengths: Sequence[float],
) -> float:
    """The strength of the lowest mean NLL over inner folds."""
    losses = np.zeros(len(strengths))
    for fitted, asked in _inner_folds(answers, range(len(answers)) if groups is None else groups):
        for number, strength in enumerate(strengths):
            model, present = _fit(coordinates[fitted], answers[fitted], strength)
            found = FittedRegression(model, None, present, len(fitted), labels, strength)
            said = found.probabilities(coordinates[asked])[np.arange(len(asked)), answers[asked]]
            losses[number] -= np.log(np.maximum(said, _FLOOR)).sum()
    return strengths[int(losses.argmin())]


def _inner_folds(
    answers: Int[np.ndarray, "N"], groups: Sequence[int]
) -> Iterator[tuple[Int[np.ndarray, "F"], Int[np.ndarray, "A"]]]:
    """Folds with every label evenly, the rows of a group together; none where there are fewer than two groups."""
    names, first, of_row = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    folds = min(INNER_FOLDS, len(names))
    order = np.random.default_rng(0).permutation(len(names))
    order = order[np.argsort(answers[first][order], kind="stable")]
    part = np.empty(len(names), dtype=np.int64)
    part[order] = np.arange(len(names)) % max(1, folds)
    for number in range(folds if folds > 1 else 0):
        yield np.flatnonzero(part[of_row] != number), np.flatnonzero(part[of_row] == number)
