"""Classifier: what it promises of its answers (sets, abstaining), what it refuses, and rows of any language."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abmll.classifier import Classifier
from abmll.classifier.stored import FILE
from abmll.errors import AbmllError
from abmll.everyday.adapt import HeldBackRows
from abmll.metrics.abstention import certify, conformal_threshold, rows_needed, thresholds
from tests.everyday import asked, place_run, texts

TEXTS, NAMES = (list(column) for column in zip(*texts(60), strict=True))
LANGUAGES = {
    "German": ("In welches Ressort gehört der Artikel?", ("Wirtschaft", "Übersee"), "Die Straße ist naß und groß."),
    "Chinese": ("这条评论冒犯人吗？", ("是的", "不是"), "今天的天气真好我们一起去公园散步吧" * 4),
    "Thai": ("ข้อความนี้เกี่ยวกับอะไร", ("อาหาร", "กีฬา"), "วันนี้อากาศดีมากเราไปเดินเล่นกันเถอะ"),
    "Arabic": ("ما موضوع هذا النص؟", ("رياضة", "اقتصاد"), "ارتفعت الأسعار في السوق هذا الأسبوع"),
    "Hebrew": ("מה הנושא של הטקסט?", ("ספורט", "כלכלה"), "המחירים עלו השבוע בשוק"),
    "Hindi": ("यह पाठ किस बारे में है?", ("खेल", "अर्थव्यवस्था"), "इस सप्ताह बाज़ार में दाम बढ़े"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_run(tmp_path_factory.mktemp("place")) / "runs" / "mine"


@pytest.fixture(scope="module")
def fitted(run: Path) -> Classifier:
    return Classifier(run, steps=40, hold_back=30).fit(TEXTS, NAMES)


# -------------------- sets


@pytest.mark.parametrize(("count", "risk"), [(9, 0.1), (19, 0.1), (20, 0.25), (50, 0.1)])
def test_conformal_sets_miss_as_often_as_promised(count: int, risk: float) -> None:
    """By simulation of the rank alone: rows and a new one are exchangeable, so its rank is uniform."""
    rng, worlds = np.random.default_rng(0), 20_000
    of_truth = rng.random((worlds, count + 1))
    missed = np.mean([row[-1] < conformal_threshold(row[:-1], risk) for row in of_truth])
    exact = np.floor(risk * (count + 1) + 1e-9) / (count + 1)
    assert exact <= risk
    assert missed == pytest.approx(exact, abs=4 * np.sqrt(0.25 / worlds))


@pytest.mark.parametrize(("risk", "need"), [(0.5, 1), (0.25, 3), (0.1, 9), (0.05, 19), (0.01, 99)])
def test_sets_need_as_many_rows_as_their_risk_asks_for(risk: float, need: int) -> None:
    rows = np.linspace(0.1, 0.9, need)
    assert conformal_threshold(rows, risk) == pytest.approx(rows.min())
    with pytest.raises(AbmllError, match=f"need {need} labelled rows or more .* here are {need - 1}"):
        conformal_threshold(rows[:-1], risk)


def test_predict_set_gives_sets_that_hold_the_right_label(fitted: Classifier) -> None:
    new, truth = (list(column) for column in zip(*texts(80, seed=7), strict=True))
    sets = fitted.predict_set(new, risk=0.2)
    probabilities = fitted.predict_proba(new)
    least = np.sort(fitted._held_back.of_truth(fitted._temperature))[::-1][int(np.ceil(0.8 * 31)) - 1]
    for own, p in zip(sets, probabilities, strict=True):
        assert own[0] == fitted.classes_[p.argmax()]
        assert set(own) == set(fitted.classes_[p >= least]) | {own[0]}
    covered = np.mean([label in own for label, own in zip(truth, sets, strict=True)])
    assert covered >= 0.6, "0.8 in the mean over rows held back; of one draw of 30 rarely so much less"


def test_sets_of_rows_with_choices_of_their_own_are_places(run: Path) -> None:
    rows = asked(24)
    sets = Classifier(run, steps=2, hold_back=6).fit(rows).predict_set(rows[:4], risk=0.4)
    for own, row in zip(sets, rows, strict=False):
        assert 1 <= len(own) <= len(row["choices"])
        assert set(own) <= set(range(len(row["choices"])))


def test_without_rows_held_back_there_are_no_sets(run: Path) -> None:
    plain = Classifier(run, steps=1).fit(TEXTS, NAMES)
    with pytest.raises(AbmllError, match="need 9 labelled rows or more that were held back from adapting; here are 0"):
        plain.predict_set(TEXTS[:2])
    with pytest.raises(AbmllError, match=r"risk 1\.5: expected a number between 0 and 1"):
        plain.predict_set(TEXTS[:2], risk=1.5)


# -------------------- abstaining


def test_it_abstains_by_the_threshold_that_the_promise_gives(run: Path) -> None:
    risk, new = 0.3, [text for text, _ in texts(200, seed=3)]
    classifier = Classifier(run, steps=40, hold_back=30, abstain_below_risk=risk, other="unsure").fit(TEXTS, NAMES)
    held_back, confidence = classifier._held_back, classifier.predict_proba(new).max(1)
    sure = np.array([max(p) for p in classifier._temperature.apply(held_back.probabilities)])
    right = np.array([int(np.argmax(p)) for p in held_back.probabilities]) == np.array(held_back.answers)
    promised = [test for test in certify(sure, right, thresholds(confidence, 30, risk), risk) if test.promised]
    if not promised:
        with pytest.raises(AbmllError, match="no threshold keeps the promise: 30 rows held back"):
            classifier.predict(new)
        return
    found, silent = classifier.predict(new), confidence < promised[-1].threshold
    assert (found[silent] == "unsure").all()
    assert (found[~silent] == classifier.classes_[classifier.predict_proba(new).argmax(1)][~silent]).all()


def promising(of_truth: list[float]) -> HeldBackRows:
    return HeldBackRows(tuple((p, 1 - p) for p in of_truth), (0,) * len(of_truth))


def test_unsure_rows_are_named_as_was_asked(fitted: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    surest = np.sort(fitted.predict_proba(TEXTS).max(1))[-20]
    monkeypatch.setattr(HeldBackRows, "threshold", lambda self, unlabelled, risk, temperature: float(surest))
    for other in (None, "out of scope"):
        fitted.set_params(abstain_below_risk=0.1, other=other)
        found = fitted.predict(TEXTS)
        assert sum(label == other for label in found) == 40
        assert fitted.score(TEXTS, NAMES) == np.mean(fitted.set_params(abstain_below_risk=None).predict(TEXTS) == NAMES)
    fitted.set_params(other=None)


def test_a_threshold_is_refused_where_nothing_is_promised() -> None:
    sure = np.full(50, 0.9)
    assert promising([0.9] * 30).threshold(sure, 0.1) == -np.inf
    with pytest.raises(AbmllError, match=r"abstain_below_risk=0\.1: no threshold keeps the promise: 30 rows held back"):
        promising([0.9] * 15 + [0.1] * 15).threshold(sure, 0.1)


@pytest.mark.parametrize("risk", [0.1, 0.2])
def test_too_few_rows_held_back_are_refused_before_the_model_is_loaded(risk: float, run: Path) -> None:
    need = rows_needed(risk)
    with pytest.raises(AbmllError, match=f"needs hold_back={need} or more.* here it is {need - 1}"):
        Classifier("nowhere", hold_back=need - 1, abstain_below_risk=risk).fit(TEXTS, NAMES)
    with pytest.raises(AbmllError, match="hold_back=59 of 60 different rows"):
        Classifier(run, hold_back=59).fit(TEXTS, NAMES)


def test_rows_held_back_are_kept_with_a_saved_classifier(fitted: Classifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "saved")
    loaded = Classifier.load(tmp_path / "saved")
    assert loaded._held_back == fitted._held_back
    assert len(loaded._held_back.answers) == 30
    for one, other in zip(loaded.predict_set(TEXTS[:5], 0.2), fitted.predict_set(TEXTS[:5], 0.2), strict=True):
        assert one.tolist() == other.tolist()


def test_rows_held_back_that_are_none_are_refused(fitted: Classifier) -> None:
    stored = json.loads(json.dumps(fitted._held_back.to_json()))
    assert HeldBackRows.from_json(stored) == fitted._held_back
    for name, value in (("answers", [0]), ("answers", [9] * 30), ("probabilities", [[float("nan"), 1.0]] * 30)):
        with pytest.raises(ValueError, match="damaged"):
            HeldBackRows.from_json({**stored, name: value})
    assert FILE == "classifier.json"


# -------------------- weights, draws


def test_sample_weight_is_refused_by_name_with_what_to_do() -> None:
    with pytest.raises(AbmllError, match=r"sample_weight is not taken.*several times"):
        Classifier("nowhere").fit(TEXTS, NAMES, sample_weight=np.ones(60))


def test_answers_are_by_the_mean_weights_unless_draws_are_asked_for(run: Path, tmp_path: Path) -> None:
    mean = Classifier(run, steps=4).fit(TEXTS, NAMES)
    assert {answer.spread for answer in mean.answers(TEXTS[:3])} == {None}
    drawn = Classifier(run, steps=4, samples=3).fit(TEXTS, NAMES)
    assert all(answer.spread > 0 for answer in drawn.answers(TEXTS[:3]))
    same = Classifier(run, steps=4, settings=("adaptation.sampler=weight", "adaptation.samples=3")).fit(TEXTS, NAMES)
    np.testing.assert_allclose(same.predict_proba(TEXTS[:3]), drawn.predict_proba(TEXTS[:3]), atol=1e-6)
    for name, classifier in (("mean", mean), ("drawn", drawn)):
        classifier.save(tmp_path / name)
        loaded = Classifier.load(tmp_path / name).predict_proba(TEXTS[:3])
        np.testing.assert_allclose(loaded, classifier.predict_proba(TEXTS[:3]), atol=1e-6)


# -------------------- long texts, languages


def test_long_texts_lose_their_middle_and_how_many_is_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = " ".join(f"word{n}" for n in range(400))
    long = [f"{words} sun {n}" for n in range(4)]
    classifier = Classifier(run, steps=1, settings=("likelihood.max_tokens=120",))
    with caplog.at_level(logging.WARNING):
        classifier.fit([*long[:3], *TEXTS[:9]], [*NAMES[:3], *NAMES[:9]])
        classifier.predict([long[3], "short"])
    said = [record.message for record in caplog.records if "likelihood.max_tokens=120" in record.message]
    assert len(said) == 2
    assert said[0].startswith("3 rows are longer")
    assert said[1].startswith("1 row is longer")
    assert all("the middle of their text was left out" in message for message in said)


@pytest.mark.parametrize("language", LANGUAGES)
def test_rows_of_any_language_are_fitted_saved_and_answered(language: str, run: Path, tmp_path: Path) -> None:
    ask, labels, text = LANGUAGES[language]
    rows = [f"{text} {n}" for n in range(8)]
    fitted = Classifier(run, steps=2, ask=ask).fit(rows, [labels[n % 2] for n in range(8)])
    assert sorted(labels) == list(fitted.classes_)
    (question,) = (fitted._layout.question({"text": rows[0]}, 0, labelled=False),)
    assert question.question == ask
    prompt = fitted._shared.session.system.batcher.encoder.prompt(question)
    assert ask in prompt
    assert rows[0] in prompt
    fitted.save(tmp_path / "saved")
    loaded: Any = Classifier.load(tmp_path / "saved")
    assert loaded.ask == ask
    assert set(loaded.predict(rows)) <= set(labels)
    np.testing.assert_allclose(loaded.predict_proba(rows), fitted.predict_proba(rows), atol=1e-6)
