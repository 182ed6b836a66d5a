"""TF-IDF of words and pairs of neighbouring words, and logistic regression."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer

from abmll.text_classifiers.regression import Features, FittedRegression, fit_regression

_WITHOUT_SPACES = "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
TOKEN = rf"[{_WITHOUT_SPACES}]|[^\W{_WITHOUT_SPACES}]+"
"""A word; where words have no spaces between them (Chinese, Japanese, Thai, Lao, Burmese, Khmer) a character."""


@dataclass(frozen=True, eq=False)
class FittedTfidf:
    """A fitted classifier.

    Attributes:
        vectorizer: text -> features; None where no text had a word.
        regression: features -> probabilities.
    """

    vectorizer: TfidfVectorizer | None
    regression: FittedRegression

    def probabilities(self, texts: Sequence[str]) -> Float[np.ndarray, "N K"]:
        """Probabilities of each label for each text; rows sum to 1."""
        return self.regression.probabilities(_features(self.vectorizer, texts))


@dataclass(frozen=True)
class TfidfClassifier:
    """TF-IDF of words and pairs (scikit-learn's, sublinear term frequencies, rows of length 1), logistic regression.

    >>> texts = ["never again", "it broke again", "a joy", "what a joy"] * 3
    >>> fitted = TfidfClassifier().fit(texts, np.array([0, 0, 1, 1] * 3), labels=3)
    >>> fitted.probabilities(["a real joy"])[0, 2].round(3).item(), round(1 / (12 + 3), 3)  # the label without rows
    (0.067, 0.067)
    """

    def fit(
        self, texts: Sequence[str], answers: Int[np.ndarray, "N"], labels: int, groups: Sequence[int] | None = None
    ) -> FittedTfidf:
        """Fit to labelled texts.

        Args:
            texts: of N rows.
            answers: index of the label of each.
            labels: number of labels, also of those without rows.
            groups: see `fit_regression`.

        Raises:
            ValueError: there are no rows.
        """
        vectorizer: TfidfVectorizer | None
        try:
            vectorizer = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True).fit(texts)
        except ValueError:  # no word in any of the texts
            vectorizer = None
        return FittedTfidf(vectorizer, fit_regression(_features(vectorizer, texts), answers, labels, groups))


def _features(vectorizer: TfidfVectorizer | None, texts: Sequence[str]) -> Features:
    """Features of texts; a single one that is 0, where no text had a word: what is left is how often labels came."""
    return csr_array(np.zeros((len(texts), 1))) if vectorizer is None else vectorizer.transform(texts)
