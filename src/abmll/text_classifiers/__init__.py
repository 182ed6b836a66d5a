"""Text classifiers that need no language model: what an engineer with a few labelled rows would use first.

Each is fitted to texts, the indices of their labels and the number of labels, and gives probabilities of every label.

>>> import numpy as np
>>> texts = ["never again", "it broke again", "a joy", "what a joy"] * 3
>>> fitted = TfidfClassifier().fit(texts, np.array([0, 0, 1, 1] * 3), labels=2)
>>> int(fitted.probabilities(["a real joy"]).argmax())
1
"""

from abmll.text_classifiers.regression import FittedRegression, fit_regression, with_unseen_labels
from abmll.text_classifiers.tfidf import TfidfClassifier
from abmll.text_classifiers.vectors import Encode, VectorClassifier, load_encoder

__all__ = [
    "Encode",
    "FittedRegression",
    "TfidfClassifier",
    "VectorClassifier",
    "fit_regression",
    "load_encoder",
    "with_unseen_labels",
]
