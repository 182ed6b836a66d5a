"""Text classifiers without a language model: scikit-learn's own answers, known labels without rows, odd texts."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_info, threadpool_limits

from abmll.errors import AbmllError
from abmll.text_classifiers import (
    TfidfClassifier,
    VectorClassifier,
    fit_regression,
    load_encoder,
    with_unseen_labels,
)
from abmll.text_classifiers import regression as regression_module
from abmll.text_classifiers.regression import STRENGTHS, _inner_folds
from abmll.text_classifiers.tfidf import TOKEN

WORDS = ("sun", "rain", "wind", "snow", "river", "garden", "road", "hill")


def texts(count: int, labels: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts in which the word of their label comes more often than others."""
    rng = np.random.default_rng(seed)
    answers = np.arange(count) % labels
    words = [[WORDS[a] if rng.random() < 0.4 else rng.choice(WORDS) for _ in range(6)] for a in answers]
    return [" ".join(row) for row in words], answers


@pytest.mark.parametrize("labels", [2, 4])
def test_tfidf_is_scikit_learns(labels: int) -> None:
    """In the span of the rows the solution is that of all words and pairs."""
    some, answers = texts(40, labels)
    new, _ = texts(15, labels, seed=1)
    fitted = TfidfClassifier().fit(some, answers, labels)
    vectorizer = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform(some)
    assert fitted.regression.basis is not None
    assert fitted.regression.basis.shape[1] <= 40 < features.shape[1]
    model = LogisticRegression(C=fitted.regression.strength, max_iter=5000, tol=1e-8).fit(features, answers)
    theirs = model.predict_proba(vectorizer.transform(new))
    np.testing.assert_allclose(fitted.probabilities(new), theirs, atol=2e-3)


def test_the_penalty_has_the_lowest_nll_of_the_inner_folds() -> None:
    some, answers = texts(30, 3)
    features = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True).fit_transform(some)
    losses = {}
    for strength in STRENGTHS:
        said = np.zeros((30, 3))
        for fitted, asked in _inner_folds(answers, range(30)):
            model = LogisticRegression(C=strength, max_iter=5000).fit(features[fitted], answers[fitted])
            said[asked] = model.predict_proba(features[asked])
        losses[strength] = log_loss(answers, said)
    assert TfidfClassifier().fit(some, answers, 3).regression.strength == min(losses, key=lambda c: losses[c])


def test_what_says_nothing_gets_the_strongest_penalty_and_what_says_all_a_weak_one() -> None:
    rng = np.random.default_rng(0)
    answers = np.arange(40) % 2
    noise = fit_regression(rng.normal(size=(40, 100)), answers, 2)
    clear = fit_regression(np.eye(2)[answers], answers, 2)
    assert noise.strength == STRENGTHS[0]
    assert clear.strength == STRENGTHS[-1]


def test_a_label_without_rows_has_the_share_that_was_fixed_before() -> None:
    some, answers = texts(20, 2)
    found = TfidfClassifier().fit(some, 2 * answers, 4).probabilities(some[:5])  # labels 0 and 2 of 0 to 3
    np.testing.assert_allclose(found[:, [1, 3]], 1 / (20 + 4))
    np.testing.assert_allclose(found.sum(axis=1), 1)
    without = TfidfClassifier().fit(some, answers, 2).probabilities(some[:5])
    ratio = found[:, 0] / found[:, 2]
    np.testing.assert_allclose(ratio, without[:, 0] / without[:, 1], rtol=0.05)  # C may differ, as the share does
    known = np.array([[0.2, 0.8]])
    np.testing.assert_allclose(with_unseen_labels(known, np.array([0, 1]), 5, 2), known)


def test_one_label_alone_is_certain_but_for_the_others_shares() -> None:
    fitted = TfidfClassifier().fit(["a b", "c d", "e"], np.array([1, 1, 1]), 3)
    np.testing.assert_allclose(fitted.probabilities(["anything"]), [[1 / 6, 4 / 6, 1 / 6]])


def test_texts_without_a_word_have_the_shares_of_the_labels() -> None:
    fitted = TfidfClassifier().fit(["!!!", "???", "...", "!?"] * 5, np.array([0, 0, 0, 1] * 5), 2)
    found = fitted.probabilities(["...", "never seen"])
    np.testing.assert_allclose(found, [[0.75, 0.25]] * 2, atol=0.02)
    some, answers = texts(20, 2)
    assert np.isfinite(TfidfClassifier().fit(some, answers, 2).probabilities(["", "!!!", "unknown words alone"])).all()


def test_characters_are_words_where_no_spaces_are() -> None:
    vectorizer = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2))
    vectorizer.fit(["不是好 film", "Ünï não"])
    assert {"不", "是", "不 是", "好 film", "ünï", "não"} <= set(vectorizer.get_feature_names_out())
    some, answers = ["天气很好", "好天气", "坏天气", "天气很坏"] * 4, np.array([0, 0, 1, 1] * 4)
    found = TfidfClassifier().fit(some, answers, 2).probabilities(["今天很好", "今天很坏"])
    assert found.argmax(axis=1).tolist() == [0, 1]


def test_groups_stay_on_one_side_of_the_inner_folds() -> None:
    groups = np.arange(24) // 4
    seen = []
    for fitted, asked in _inner_folds(np.arange(24) % 2, groups.tolist()):
        assert not set(groups[fitted]) & set(groups[asked])
        seen += asked.tolist()
    assert sorted(seen) == list(range(24))
    assert list(_inner_folds(np.zeros(3, dtype=np.int64), [7, 7, 7])) == []


def test_many_rows_and_few_features_are_fitted_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit_regression(np.eye(3)[np.arange(12) % 3], np.arange(12) % 3, 3).basis is None
    some, answers = texts(30, 2)
    before = TfidfClassifier().fit(some, answers, 2).probabilities(some)
    monkeypatch.setattr(regression_module, "MOST_IN_ROW_SPACE", 10)
    fitted = TfidfClassifier().fit(some, answers, 2)
    assert fitted.regression.basis is None
    np.testing.assert_allclose(fitted.probabilities(some), before, atol=2e-3)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        TfidfClassifier().fit([], np.array([], dtype=np.int64), 2)


def count_words(some: Any) -> np.ndarray:
    return np.array([[text.split().count(word) for word in WORDS] for text in some], dtype=np.float64)


def test_vectors_are_of_length_one_and_fitted_as_scikit_learn_does() -> None:
    some, answers = texts(40, 3)
    fitted = VectorClassifier(count_words).fit(some, answers, 3)
    unit = count_words(some) / np.linalg.norm(count_words(some), axis=1, keepdims=True)
    model = LogisticRegression(C=fitted.regression.strength, max_iter=5000, tol=1e-8).fit(unit, answers)
    np.testing.assert_allclose(fitted.probabilities(some), model.predict_proba(unit), atol=2e-3)
    np.testing.assert_allclose(
        fitted.probabilities(["sun sun rain"]), fitted.probabilities(["sun sun rain sun sun rain"]), atol=1e-12
    )
    assert np.isfinite(fitted.probabilities(["none of them"])).all()


def test_vectors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(AbmllError, match=r"that of text 1 \(from 0\) is not finite"):
        VectorClassifier(lambda some: np.array([[1.0], [np.inf]])).fit(["a", "b"], np.array([0, 1]), 2)


def test_what_is_missing_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("sentence_transformers"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AbmllError, match=r"my/encoder.*pip install sentence-transformers"):
        load_encoder("my/encoder")


def test_an_encoder_that_is_none_is_one_message(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    with pytest.raises(AbmllError, match="taken for a folder, cannot be loaded"):
        load_encoder(str(tmp_path))


def test_a_tiny_encoder_from_a_folder(tmp_path: Path) -> None:
    models = pytest.importorskip("sentence_transformers.models")
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=5 + len(WORDS), **sizes)).save_pretrained(tmp_path / "bert")
    module = models.Transformer(str(tmp_path / "bert"))
    SentenceTransformer(modules=[module, models.Pooling(16)]).save(str(tmp_path / "encoder"))
    encode = load_encoder(str(tmp_path / "encoder"), device="cpu")
    some, answers = texts(12, 2)
    assert encode(some).shape == (12, 16)
    np.testing.assert_allclose(VectorClassifier(encode).fit(some, answers, 2).probabilities(some).sum(axis=1), 1)


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_a_fit_takes_one_blas_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two on busy cores a fit of 60 rows took 3 to 5 s, not .1: threads spin while they wait for each other."""
    seen = set[int]()

    class Watched(LogisticRegression):
        def fit(self, *args: Any, **named: Any) -> "Watched":
            seen.update(blas_threads())
            return super().fit(*args, **named)

    monkeypatch.setattr(regression_module, "LogisticRegression", Watched)
    some, answers = texts(12, 2)
    with threadpool_limits(2, "blas"):
        assert blas_threads() == {2}
        TfidfClassifier().fit(some, answers, 2)
        assert blas_threads() == {2}
    assert seen == {1}
