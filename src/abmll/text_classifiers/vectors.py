"""Sentence vectors, and logistic regression."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from abmll.errors import AbmllError
from abmll.text_classifiers.regression import FittedRegression, fit_regression

Encode = Callable[[Sequence[str]], Float[np.ndarray, "N D"]]
"""Texts -> a vector each."""


@dataclass(frozen=True, eq=False)
class FittedVectors:
    """A fitted classifier.

    Attributes:
        encode: text -> vector.
        regression: vector -> probabilities.
    """

    encode: Encode
    regression: FittedRegression

    def probabilities(self, texts: Sequence[str]) -> Float[np.ndarray, "N K"]:
        """Probabilities of each label for each text; rows sum to 1."""
        return self.regression.probabilities(_unit(self.encode(texts)))


@dataclass(frozen=True)
class VectorClassifier:
    """Vectors of whole texts, each of length 1, and logistic regression over them.

    Attributes:
        encode: texts -> vectors, see `load_encoder`.

    >>> letters = lambda texts: np.array([[text.count(c) for c in "abcdefghijklmnopqrst"] for text in texts], float)
    >>> fitted = VectorClassifier(letters).fit(["aab", "ab", "st", "tts"] * 3, np.array([0, 0, 1, 1] * 3), labels=2)
    >>> fitted.probabilities(["abba", "ttt"]).argmax(axis=1).tolist()
    [0, 1]
    """

    encode: Encode

    def fit(
        self, texts: Sequence[str], answers: Int[np.ndarray, "N"], labels: int, groups: Sequence[int] | None = None
    ) -> FittedVectors:
        """Fit to labelled texts; arguments and errors as `TfidfClassifier.fit`."""
        return FittedVectors(self.encode, fit_regression(_unit(self.encode(texts)), answers, labels, groups))


def load_encoder(source: str, device: str | None = None) -> Encode:
    """A sentence encoder: a folder or a hub id of sentence-transformers (safetensors only, no code of its own).

    Args:
        source: the folder, or the id.
        device: where it runs; None: where sentence-transformers puts it.

    Raises:
        AbmllError: sentence-transformers is not installed, or the encoder cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer  # optional extra
    except ImportError:
        raise AbmllError(
            f"sentence vectors ({source}) need a package: pip install sentence-transformers; or leave out --vectors"
        ) from None
    try:
        model = SentenceTransformer(
            source, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    except Exception as error:  # whatever a hub, a folder or its configuration raises
        kind = "folder" if Path(source).exists() else "hub id (there is no such folder)"
        raise AbmllError(f"sentence vectors: {source}, taken for a {kind}, cannot be loaded: {error}") from error

    def encode(texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        return np.asarray(model.encode(list(texts), show_progress_bar=False), dtype=np.float64)

    return encode


def _unit(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Vectors of length 1; 0 stays 0.

    Raises:
        AbmllError: a number is not finite.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise AbmllError(f"sentence vectors: that of text {row} (from 0) is not finite")
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
