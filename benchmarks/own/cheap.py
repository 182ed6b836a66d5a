"""Answers of what needs no language model: TF-IDF or sentence vectors, each with logistic regression.

    OMP_NUM_THREADS=1 python -m benchmarks.own cheap --data SETS --out ANSWERS/cheap --vectors ENCODER_FOLDER

Seconds are of the processor, not of the clock, so that another process on the machine does not count.
"""

import time
from collections.abc import Sequence

import numpy as np

from abmll.question import Question
from abmll.text_classifiers import Encode, TfidfClassifier, VectorClassifier
from benchmarks.own.cells import Asked, answer_entries, right_answers

TFIDF, VECTORS = "tf-idf", "sentence vectors"
Classifier = TfidfClassifier | VectorClassifier


class RememberedVectors:
    """Sentence vectors of the texts of one set, each encoded once whatever number of cells it is in.

    Args:
        encode: texts -> vectors.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._vectors: dict[str, np.ndarray] = {}
        self._texts, self._seconds = 0, 0.0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Their vectors, in their order."""
        new = list(dict.fromkeys(text for text in texts if text not in self._vectors))
        if new:
            began = time.process_time()
            self._vectors |= zip(new, self._encode(new), strict=True)
            self._seconds += time.process_time() - began
            self._texts += len(new)
        return np.stack([self._vectors[text] for text in texts])

    @property
    def seconds_per_text(self) -> float:
        """Seconds that a text took, on average."""
        return self._seconds / max(1, self._texts)


def cheap_answers(asked: Asked, vectors: RememberedVectors | None) -> dict[str, np.ndarray]:
    """Answers of each classifier to a cell, as `benchmarks.own.answers` reads them."""
    out = right_answers(asked)
    out |= _of_classifier(TFIDF, TfidfClassifier(), asked, 0.0)
    if vectors is not None:
        vectors([row.context for row in (*asked.labelled, *asked.test)])
        out |= _of_classifier(VECTORS, VectorClassifier(vectors), asked, vectors.seconds_per_text)
    return out


def _of_classifier(name: str, classifier: Classifier, asked: Asked, per_text: float) -> dict[str, np.ndarray]:
    labels = len(asked.labelled[0].choices)
    texts, answers = _texts(asked.labelled), np.array([row.answer for row in asked.labelled])
    own = np.zeros((len(texts), labels))
    for fold in asked.folds:
        fitted = classifier.fit([texts[i] for i in fold.fitted], answers[list(fold.fitted)], labels)
        own[list(fold.answered)] = fitted.probabilities([texts[i] for i in fold.answered])
    began = time.process_time()
    fitted = classifier.fit(texts, answers, labels)
    between = time.process_time()
    test = fitted.probabilities(_texts(asked.test))
    answering = (time.process_time() - between) / len(test) + per_text
    return answer_entries(name, own, test, (between - began + per_text * len(texts), 1000 * answering))


def _texts(rows: Sequence[Question]) -> list[str]:
    return [row.context for row in rows]
