"""Classifier with scikit-learn's manners: clone, parameters, cross-validation, pipelines, DataFrames, no pickles."""

import copy
import datetime
import enum
import json
import pickle
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import abmll
from abmll.adapters.folder import checksum, read_adapter
from abmll.classifier import Classifier
from abmll.errors import AbmllError
from abmll.everyday import shared_session as sharing
from abmll.files import SEAL, read_sealed_json, write_sealed_json
from abmll.question import Question
from abmll.tables.labels import label_text
from tests.everyday import asked, place_run, texts

TEXTS, NAMES = zip(*texts(16), strict=True)
ROWS = asked(12)
STEPS = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_run(tmp_path_factory.mktemp("place")) / "runs" / "mine"


@pytest.fixture
def new(run: Path) -> Any:
    def make(**params: Any) -> Classifier:
        return Classifier(run, **{"steps": STEPS, "samples": 2, "temperature": "none", **params})

    return make


def test_it_is_public_and_typed() -> None:
    assert abmll.Classifier is Classifier
    assert "Classifier" in abmll.__all__
    with pytest.raises(AttributeError, match="Classifer"):
        abmll.Classifer  # noqa: B018


def test_parameters_and_clone(new: Any) -> None:
    one = new(ask="Which?", settings=("model.device=cpu",))
    other = clone(one)
    assert other.get_params() == one.get_params()
    assert other.set_params(samples=3, seed=7).get_params()["seed"] == 7
    assert is_classifier(one)
    fitted = one.fit(list(TEXTS), list(NAMES))
    assert fitted is one
    assert not hasattr(clone(fitted), "classes_")
    with pytest.raises(ValueError, match="steps_"):
        one.set_params(steps_=3)


@pytest.mark.parametrize("what", ["predict", "predict_proba", "score", "answers"])
def test_unfitted_it_says_so(what: str, new: Any) -> None:
    with pytest.raises(NotFittedError):
        getattr(new(), what)(list(TEXTS))
    with pytest.raises(NotFittedError):
        new().save("nowhere")


def test_plain_classification(new: Any) -> None:
    found = new().fit(list(TEXTS), list(NAMES))
    assert found.classes_.tolist() == ["bad", "good"]
    table = found.predict_proba(list(TEXTS[:5]))
    assert table.shape == (5, 2)
    assert table.sum(1) == pytest.approx(1.0)
    assert found.predict(list(TEXTS[:5])).tolist() == found.classes_[table.argmax(1)].tolist()
    right = np.mean(found.predict(list(TEXTS)) == np.array(NAMES))
    assert found.score(list(TEXTS), list(NAMES)) == pytest.approx(right)
    assert log_loss(NAMES, found.predict_proba(list(TEXTS)), labels=found.classes_) > 0
    (answer,) = found.answers([TEXTS[0]])
    assert answer.confidence == max(answer.probabilities)
    assert answer.spread is not None
    assert answer.information is not None


def test_adapting_learns(new: Any) -> None:
    """24 steps on a rule as plain as this one must beat chance on other texts, and beat two steps."""
    others, truth = zip(*texts(30, seed=5), strict=True)
    scores = [new(steps=steps).fit(list(TEXTS), list(NAMES)) for steps in (1, 60)]
    losses = [log_loss(truth, found.predict_proba(list(others)), labels=found.classes_) for found in scores]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("kind", ["frame", "series", "array", "column", "dicts"])
def test_every_kind_of_table_gives_the_same(kind: str, new: Any) -> None:
    plain = new().fit(list(TEXTS), list(NAMES)).predict_proba(list(TEXTS[:4]))
    frame = pd.DataFrame({"nr": range(16), "text": TEXTS, "label": NAMES})
    X = {
        "frame": frame,
        "series": frame["text"],
        "array": frame["text"].to_numpy(),
        "column": frame[["text"]].to_numpy(),
        "dicts": frame.to_dict("records"),
    }[kind]
    y = None if kind in ("frame", "dicts") else frame["label"]
    assert np.array_equal(new().fit(X, y).predict_proba(X[:4]), plain)


def test_labels_of_numbers_come_back_as_numbers(new: Any) -> None:
    numbers = [int(name == "good") for name in NAMES]
    found = new().fit(list(TEXTS), numbers)
    assert found.classes_.tolist() == [0, 1]
    assert found.predict(list(TEXTS[:3])).dtype == found.classes_.dtype


@pytest.mark.parametrize("kind", ["bools", "spaces", "numbers of two kinds", "a frame", "a column of an array"])
def test_labels_of_any_kind_are_learned_and_scored(kind: str, new: Any) -> None:
    """Those come back that were given, and the score is scikit-learn's accuracy of them."""
    words, truth = zip(*texts(8), strict=True)
    good = [label == "good" for label in truth]
    y: Any = {
        "bools": good,
        "spaces": [f"{label} " for label in truth],
        "numbers of two kinds": [1 if each else 2.0 for each in good],
        "a frame": pd.DataFrame({"label": truth}),
        "a column of an array": np.array(truth)[:, None],
    }[kind]
    fitted = new().fit(words, y)
    flat = np.ravel(y)
    assert fitted.classes_.tolist() == sorted(set(flat.tolist()))
    assert fitted.score(words, y) == accuracy_score(flat, fitted.predict(words))


BY_INDEX: dict[
    str, tuple[Any, Any]
] = {  # a column of labels for 16 rows that alternate between two -> forms of the two
    "numbers and texts": (
        [3, "neutral"],
        [[3, "neutral"], ["3", "neutral"], [3.0, np.str_("neutral")], ["3.0", " neutral"]],
    ),
    "integers": (
        [0, 1],
        [["0", "1"], [0.0, 1.0], [False, True], np.array(["0", "1"]), ["0.0", "1.0"], [np.int8(0), 1]],
    ),
    "floats": ([0.0, 1.0], [[0, 1], ["0", "1"]]),
    "booleans": (
        [False, True],
        [["False", "True"], ["false", "true"], [0, 1], np.array([False, True]), ["FALSE", "TRUE"]],
    ),
    "texts of numbers": (["1", "2"], [[1, 2], [1.0, 2.0], np.array([1, 2])]),
    "Unicode": (["é", "ü"], [["e\u0301", "u\u0308"], [" é\u200b", "\ufeffü "]]),
    "bytes": ([b"a", b"b"], [["a", "b"], np.array([b"a", b"b"])]),
    "dates": (
        [datetime.date(2024, 1, 1), datetime.date(2024, 2, 1)],
        [["2024-01-01", "2024-02-01"], np.array(["2024-01-01", "2024-02-01"], dtype="datetime64[ns]")],
    ),
    "categories": (["a", "b"], [pd.Categorical(["a", "b"]), pd.array(["a", "b"], dtype="string")]),
}


@pytest.mark.parametrize("kind", BY_INDEX)
def test_labels_in_another_form_are_scored_as_the_same_labels(kind: str, new: Any) -> None:
    """By the indices of the two labels, which no form can change."""
    two, forms = BY_INDEX[kind]
    index = [n % 2 for n in range(16)]
    fitted = new().fit(list(TEXTS), [two[n] for n in index])
    order = [fitted._layout.labels.index(label_text(label, "label")) for label in two]
    right = [answer.choice == order[n] for answer, n in zip(fitted.answers(list(TEXTS)), index, strict=True)]
    assert sum(right) > 0, "else all forms that are not known would do"
    for form in forms:
        assert fitted.score(list(TEXTS), [form[n] for n in index]) == np.mean(right), form


def test_labels_of_mixed_types_are_one_class_in_all_forms(new: Any) -> None:
    y: Any = [[3, "bad"], ["3", "bad "], [3.0, "ba\u200bd"], [" 3", "bad"]] * 4
    plain = new().fit(list(TEXTS), [(3, "bad")[n % 2] for n in range(16)])
    mixed = new().fit(list(TEXTS), [y[n][n % 2] for n in range(16)])
    assert mixed.classes_.tolist() == plain.classes_.tolist() == [3, "bad"]
    assert np.array_equal(mixed.predict_proba(list(TEXTS)), plain.predict_proba(list(TEXTS)))
    assert set(mixed.predict(list(TEXTS)).tolist()) <= {3, "bad"}


def test_labels_that_look_alike_are_remarked(new: Any) -> None:
    with pytest.warns(UserWarning, match="'Good' and 'good' are two labels, and look alike"):
        new().fit(list(TEXTS), [("Good", "good")[n % 2] for n in range(16)])


def test_spaces_and_forms_of_a_text_do_not_change_an_answer(new: Any) -> None:
    fitted = new().fit(list(TEXTS), list(NAMES))
    texts_ = ["le café au soleil", " le cafe\u0301 au soleil ", "\ufeffle café au soleil\u200b\n"]
    assert len({tuple(row) for row in fitted.predict_proba(texts_).tolist()}) == 1
    questions = new().fit(ROWS)
    forms = [
        ["fire", "ice"],
        [" fire", "ice"],
        ["fi\u200bre ", "ice\u00a0"],
        np.array(["fire", " ice"]),
        (" fire", "ice"),
    ]
    rows = [{"question": stem, "choices": choices} for stem in ("Hot?", " Hot? ") for choices in forms]
    assert len({tuple(row) for row in questions.predict_proba(rows).tolist()}) == 1


@pytest.mark.parametrize(
    "y",
    [
        [b"a", b"b"],
        [datetime.date(2024, 1, 1), datetime.date(2024, 2, 1)],
        [datetime.datetime(2024, 1, 1, 5), datetime.datetime(2024, 2, 1, 6)],
        pd.to_datetime(["2024-01-01", "2024-02-01"]),
        pd.to_datetime(["2024-01-01", "2024-02-01"]).tz_localize("UTC"),
        np.array(["2024-01-01", "2024-02-01"], dtype="datetime64[D]"),
        [Decimal("1.5"), Decimal("2.5")],
        [0, 1],
        [0.5, 1.5],
        np.array([0, 1], dtype="uint8"),
        [False, True],
        [3, "neutral"],
        [b"a", 3],
        pd.Categorical(["a", "b"]),
        pyarrow.array(["a", "b"]),
        [enum.IntEnum("N", "A B").A, enum.IntEnum("M", "A B").B],
    ],
    ids=lambda y: f"{type(y).__name__} of {type(y[0]).__name__}",
)
def test_whatever_fit_takes_is_saved_with_its_type(y: Any, new: Any, tmp_path: Path) -> None:
    labels = [y[n % 2] for n in range(16)]
    fitted = new(steps=1).fit(list(TEXTS), labels)
    fitted.save(tmp_path / "kept")
    again = Classifier.load(tmp_path / "kept")
    assert again.classes_.dtype == fitted.classes_.dtype
    assert again.classes_.tolist() == fitted.classes_.tolist()
    assert [type(value) for value in again.classes_] == [type(value) for value in fitted.classes_]
    assert np.array_equal(again.predict(list(TEXTS)), fitted.predict(list(TEXTS)))
    assert again.score(list(TEXTS), labels) == fitted.score(list(TEXTS), labels)
    again.save(tmp_path / "twice")
    assert (tmp_path / "twice" / "classifier.json").read_text() == (tmp_path / "kept" / "classifier.json").read_text()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (
            [enum.Enum("E", "A B").A, enum.Enum("F", "A B").B],
            "row 0: label is <E.A: 1>, not text.* in 15 more rows too",
        ),
        ([1j, 2j], "row 0: label is 1j, not text.* in 15 more rows too"),
        ([b"\xff", b"a"], "row 0: label is b'.xff', not text"),
        ([float("inf"), 1.0], "row 0: label is inf"),
        ([datetime.timedelta(1), datetime.timedelta(2)], "in 15 more rows too"),
        ([["a", "b"], ["a"]], "give one label a row"),
    ],
    ids=repr,
)
def test_what_could_not_be_saved_is_no_label(y: Any, message: str, new: Any) -> None:
    with pytest.raises(AbmllError, match=message):
        new().fit(list(TEXTS), [y[n % 2] for n in range(16)])


def test_a_quantity_is_no_label(new: Any) -> None:
    with pytest.raises(AbmllError, match="16 different numbers for 16 rows, a quantity"):
        new().fit(list(TEXTS), np.linspace(0.1, 1.7, 16))


def test_a_folder_of_the_first_format_loads(new: Any, tmp_path: Path) -> None:
    fitted = new(steps=1).fit(list(TEXTS), [n % 2 == 0 for n in range(16)])
    fitted.save(tmp_path / "kept")
    file = tmp_path / "kept" / "classifier.json"
    values = {name: value for name, value in json.loads(file.read_text()).items() if name != SEAL}
    file.write_text(json.dumps(values))
    with pytest.raises(AbmllError, match=r"classifier\.json: has no SHA-256 of its own; fit and save again"):
        Classifier.load(tmp_path / "kept")
    values |= {"abmll_classifier": 1, "classes": [False, True]}
    values["layout"]["labels"] = ["False", "True"]  # as it wrote them
    file.write_text(json.dumps(values))
    again = Classifier.load(tmp_path / "kept")
    assert again.classes_.tolist() == [False, True]
    assert again._layout.labels == ("False", "True")
    assert again.score(list(TEXTS), ["True", "False"] * 8) == np.mean(again.predict(list(TEXTS)) == [True, False] * 8)


@pytest.mark.parametrize("kind", ["polars", "lazy", "arrow", "batch", "dictionary", "one column", "marks in the names"])
def test_frames_of_every_library_give_the_same(kind: str, new: Any) -> None:
    columns: Any = {"text": list(TEXTS), "label": list(NAMES)}
    if kind in ("polars", "lazy"):
        polars = pytest.importorskip("polars", reason="needs pip install abmll[dev]")
        X = polars.DataFrame(columns).lazy() if kind == "lazy" else polars.DataFrame(columns)
    else:
        X = {
            "arrow": pyarrow.table(columns),
            "batch": pyarrow.RecordBatch.from_pydict(columns),
            "dictionary": columns,
            "one column": pd.DataFrame({"review": TEXTS}),
            "marks in the names": pd.DataFrame({"\ufefftext ": TEXTS, "label\u200b": NAMES}),
        }[kind]
    y = list(NAMES) if kind == "one column" else None
    plain = new().fit(list(TEXTS), list(NAMES))
    fitted = new().fit(X, y)
    assert np.array_equal(fitted.predict_proba(X), plain.predict_proba(list(TEXTS)))
    assert fitted.score(X, y) == plain.score(list(TEXTS), list(NAMES))


def test_two_columns_of_one_name_are_refused(new: Any) -> None:
    with pytest.raises(AbmllError, match="row 0: column 'text' is given twice"):
        new().fit(pd.DataFrame({"text": TEXTS, "text\u200b": TEXTS}), list(NAMES))


def test_what_a_user_writes_is_text_in_every_column(new: Any) -> None:
    """A label, a text or a question that names the model's end token is not the one without it."""
    fitted = new(ask="Which<|eos|>?").fit([f"{text} <|eos|>" for text in TEXTS], [f"{name}<|eos|>" for name in NAMES])
    encoder = fitted._shared.session.system.batcher.encoder
    (encoded,) = [encoder(fitted._layout.question({"text": "x<|eos|>"}, 1, labelled=False))]
    assert encoder.tokenizer.eos_token_id not in (*encoded.prefix, *sum(encoded.continuations, ()))
    assert encoder.tokenizer.decode(encoded.continuations[0]) == " bad<|eos|>"


def test_a_label_that_no_example_had_is_a_wrong_answer(new: Any) -> None:
    """As a fold without a rare label has it; it is no reason to fail."""
    words, truth = zip(*texts(8), strict=True)
    fitted = new().fit(words, truth)
    assert fitted.score(words[:2], ["never seen", fitted.predict(words[1:2])[0]]) == 0.5


@pytest.mark.parametrize("kind", ["string", "Int64"])
def test_what_pandas_calls_na_is_no_label(kind: str, new: Any) -> None:
    labels = pd.Series([None, "a", "b"] if kind == "string" else [None, 1, 0], dtype=kind)
    with pytest.raises(AbmllError, match=r"row 0 \(from 0\) has no label"):
        new().fit(["one", "two", "three"], labels)


def test_multiple_choice(new: Any) -> None:
    found = new().fit(ROWS)
    assert found.classes_.tolist() == [0, 1, 2, 3]
    assert found.predict_proba(ROWS[:3]).shape == (3, 4)
    short = {"question": "the sun?", "choices": ["yes", "no"]}
    assert found.predict_proba([short])[0, 2:].tolist() == [0, 0]
    wide = {"question": "the sun?", "choices": list("abcdef")}
    assert found.predict_proba([wide, short]).shape == (2, 6)
    assert found.score(ROWS) == np.mean(found.predict(ROWS) == [row["answer"] for row in ROWS])
    by_text = [row["choices"][row["answer"]] for row in ROWS]
    assert found.score(ROWS, by_text) == found.score(ROWS)
    questions = [
        abmll.Question(str(i), r["question"], tuple(r["choices"]), r["answer"], r["context"])
        for i, r in enumerate(ROWS)
    ]
    assert np.array_equal(new().fit(questions).predict_proba(questions), found.predict_proba(ROWS))
    frame = pd.DataFrame(ROWS)
    assert np.array_equal(new().fit(frame).predict_proba(frame), found.predict_proba(ROWS))


def test_cross_validation_over_lists_and_frames(new: Any) -> None:
    sharing._shared.cache_clear()
    assert len(cross_val_score(new(), list(TEXTS), list(NAMES), cv=2, error_score="raise")) == 2
    assert len(cross_val_score(new(), ROWS, cv=2, error_score="raise")) == 2
    frame = pd.DataFrame({"text": TEXTS, "label": NAMES})
    scores = cross_val_score(new(), frame, frame["label"], cv=2, scoring="neg_log_loss", error_score="raise")
    assert np.isfinite(scores).all()
    assert cross_val_predict(new(), frame, frame["label"], cv=2, method="predict_proba").shape == (16, 2)
    assert sharing._shared.cache_info().misses == 1, "one model for all folds"


def test_pipelines_and_searches(new: Any) -> None:
    lower = FunctionTransformer(lambda X: [text.lower() for text in X])
    pipe = Pipeline([("lower", lower), ("abmll", new())]).fit([t.upper() for t in TEXTS], list(NAMES))
    plain = new().fit(list(TEXTS), list(NAMES))
    assert np.array_equal(pipe.predict_proba([TEXTS[0].upper()]), plain.predict_proba([TEXTS[0]]))
    frame = pd.DataFrame({"text": TEXTS, "label": NAMES})
    assert 0 <= Pipeline([("abmll", new())]).fit(frame).score(frame) <= 1
    sharing._shared.cache_clear()
    found = GridSearchCV(new(), {"seed": np.arange(2)}, cv=2, error_score="raise").fit(list(TEXTS), list(NAMES))
    assert found.best_params_["seed"] in (0, 1)
    assert sharing._shared.cache_info().misses == 1, "one model for all of the search"


def test_two_estimators_on_one_model_do_not_disturb_each_other(new: Any) -> None:
    one = new().fit(list(TEXTS), list(NAMES))
    before = one.predict_proba(list(TEXTS))
    other = new(seed=3).fit(list(TEXTS), list(reversed(NAMES)))
    assert other._shared is one._shared
    assert not np.array_equal(other.predict_proba(list(TEXTS)), before)
    assert np.array_equal(one.predict_proba(list(TEXTS)), before)


def test_pickling_raises_and_names_save(new: Any) -> None:
    assert pickle.loads(pickle.dumps(new())).get_params() == new().get_params()
    found = new().fit(list(TEXTS), list(NAMES))
    for copied in (pickle.dumps, copy.deepcopy):
        with pytest.raises(AbmllError, match=r"save\(folder\)"):
            copied(found)


def test_a_saved_one_is_pickled_as_the_path_of_its_folder(new: Any, tmp_path: Path) -> None:
    found = new(steps=1).fit(list(TEXTS), list(NAMES))
    found.save(tmp_path / "kept")
    content = pickle.dumps(found)
    assert len(content) < 500
    assert str(tmp_path / "kept").encode() in content
    asked_of = list(TEXTS[:4])
    for again in (pickle.loads(content), copy.deepcopy(found), pickle.loads(pickle.dumps(pickle.loads(content)))):
        assert np.array_equal(again.predict_proba(asked_of), found.predict_proba(asked_of))
        assert again.get_params() == {**found.get_params(), "run": str(found.run), "settings": []}
    other = new(steps=1, seed=3).fit(list(TEXTS), list(reversed(NAMES)))
    other.save(tmp_path / "kept", replace=True)
    with pytest.raises(AbmllError, match="another Classifier was saved there"):
        pickle.loads(content)
    shutil.rmtree(tmp_path / "kept")
    with pytest.raises(AbmllError, match="not there, so this is no folder"):
        pickle.loads(content)
    with pytest.raises(AbmllError, match=r"save\(folder\)"):
        pickle.dumps(found.fit(list(TEXTS), list(NAMES)))  # what was saved is another


def test_what_is_there_is_replaced_only_where_that_is_asked_for(new: Any, tmp_path: Path) -> None:
    found = new(steps=1).fit(list(TEXTS), list(NAMES))
    found.save(tmp_path / "kept")
    before = (tmp_path / "kept" / "classifier.json").read_bytes()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, options, said in (
        ("kept", {}, r"is there already; choose another name, or replace it \(replace=True\)"),
        ("notes", {"replace": True}, "no folder of Classifier.save"),
        ("file", {"replace": True}, "no folder of Classifier.save"),
    ):
        with pytest.raises(AbmllError, match=said):
            found.save(tmp_path / name, **options)
    assert (tmp_path / "notes" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "kept" / "classifier.json").read_bytes() == before
    found.save(tmp_path / "kept", replace=True)
    Classifier.load(tmp_path / "kept")


@pytest.mark.parametrize("kind", ["texts", "questions"])
def test_save_and_load(kind: str, new: Any, tmp_path: Path) -> None:
    found = new().fit(list(TEXTS), list(NAMES)) if kind == "texts" else new().fit(ROWS)
    asked_of = list(TEXTS[:4]) if kind == "texts" else ROWS[:4]
    found.save(tmp_path / "kept")
    again = Classifier.load(tmp_path / "kept")
    assert np.array_equal(again.predict_proba(asked_of), found.predict_proba(asked_of))
    assert again.classes_.tolist() == found.classes_.tolist()
    assert again.get_params() == {**found.get_params(), "run": str(found.run), "settings": []}
    assert read_adapter(tmp_path / "kept").facts.slot == "task"
    again.save(tmp_path / "twice")
    assert np.array_equal(Classifier.load(tmp_path / "twice").predict_proba(asked_of), found.predict_proba(asked_of))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"abmll_classifier": 3}', '{"abmll_classifier": 1, "params": {"x": 1}}']
)
def test_a_damaged_folder_is_an_error_that_names_the_file(text: str, new: Any, tmp_path: Path) -> None:
    new(steps=1).fit(list(TEXTS), list(NAMES)).save(tmp_path / "kept")
    (tmp_path / "kept" / "classifier.json").write_text(text)
    with pytest.raises(AbmllError, match=r"classifier\.json"):
        Classifier.load(tmp_path / "kept")
    with pytest.raises(AbmllError, match=r"nowhere/classifier\.json: not there, so this is no folder of"):
        Classifier.load(tmp_path / "nowhere")


def test_a_number_that_is_none_is_an_error(new: Any) -> None:
    with pytest.raises(AbmllError, match=r"adaptation\.samples"):
        new(samples=0).fit(list(TEXTS), list(NAMES))


MISTAKES: dict[str, tuple[Any, Any, str]] = {
    "one label": (list(TEXTS[:2]), ["a", "a"], "two or more"),
    "no labels": (list(TEXTS), None, "row 0 .* has no label"),
    "a label missing": (list(TEXTS[:2]), ["a", None], "row 1 .* has no label"),
    "too few labels": (list(TEXTS), ["a"], "16 examples and 1 labels"),
    "no examples": ([], [], "no examples"),
    "one text": ("hello", ["a"], "not one str"),
    "no text": ([3, "a"], ["a", "b"], "row 0: text is 3, not text"),
    "no answer": ([{"question": "x", "choices": ["a", "b"]}], ["c"], "row 0: answer 'c' is not one of the choices"),
    "too few answers": (ROWS, [0], "12 examples and 1 labels"),
    "no column": (pd.DataFrame({"words": TEXTS, "n": 1}), list(NAMES), "row 0: text is missing.*15 more rows too"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_an_error_that_says_which_row(kind: str, new: Any) -> None:
    X, y, reason = MISTAKES[kind]
    with pytest.raises(AbmllError, match=reason):
        new().fit(X, y)


def test_rows_of_another_kind_are_refused(new: Any) -> None:
    found = new().fit(list(TEXTS), list(NAMES))
    with pytest.raises(AbmllError, match="row 0: is a question"):
        found.predict([abmll.Question("1", "x", ("a", "b"), None)])
    with pytest.raises(AbmllError, match="row 0: is str, not a question"):
        new().fit(ROWS).predict(["hello"])


def test_no_such_run_names_those_that_come_along(tmp_path: Path) -> None:
    with pytest.raises(AbmllError, match="nowhere: no run directory"):
        Classifier(tmp_path / "nowhere").fit(list(TEXTS), list(NAMES))


def test_the_model_reads_the_name_of_each_texts_own_label(new: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning would hide a swap: twenty examples teach either name. So what is asked is looked at."""
    asked_of: list[tuple[Question, ...]] = []
    fit, answer = sharing.SharedSession.fit, sharing.SharedSession.answer

    def fitting(shared: Any, name: str, questions: Any, tuning: Any) -> Any:
        asked_of.append(tuple(questions))
        return fit(shared, name, questions, tuning)

    def answering(shared: Any, posterior: Any, questions: Any, tuned: Any) -> Any:
        asked_of.append(tuple(questions))
        return answer(shared, posterior, questions, tuned)

    monkeypatch.setattr(sharing.SharedSession, "fit", fitting)
    monkeypatch.setattr(sharing.SharedSession, "answer", answering)
    found = new(steps=1).fit(list(TEXTS), list(NAMES))
    table = found.predict_proba(list(TEXTS))
    examples, rows = asked_of
    assert [q.choices[q.answer] for q in examples] == list(NAMES)
    assert [q.context for q in examples] == [q.context for q in rows] == list(TEXTS)
    assert {q.choices for q in (*examples, *rows)} == {tuple(found.classes_)}
    assert table.tolist() == [list(a.probabilities) for a in found.answers(list(TEXTS))]


def test_a_folder_of_a_newer_version_is_said_to_be_one(new: Any, tmp_path: Path) -> None:
    new(steps=1).fit(list(TEXTS), list(NAMES)).save(tmp_path / "kept")
    file = tmp_path / "kept" / "classifier.json"
    of = f"classifier.json of the adapter {checksum(file.parent)}"
    values = read_sealed_json(file, of)
    for change, words in (
        ({"abmll_classifier": 6}, "format 6 is not known here: upgrade abmll"),
        ({"layout": {}}, "the columns that a task was adapted with are not what was saved"),
    ):
        write_sealed_json(file, {**values, **change}, of)
        with pytest.raises(AbmllError) as caught:
            Classifier.load(tmp_path / "kept")
        assert str(caught.value) == f"{file}: {words}"


def test_no_rows_have_no_predictions(new: Any) -> None:
    found = new(steps=1).fit(list(TEXTS), list(NAMES))
    assert found.predict([]).tolist() == []
    assert found.predict_proba([]).shape == (0, 2)
    for y in ([], None):
        with pytest.raises(AbmllError, match=r"^no rows to score$"):
            found.score([], y)


def test_a_label_that_is_not_a_number_is_no_label(new: Any) -> None:
    """What a table of floats has where nothing was written."""
    with pytest.raises(AbmllError, match=r"row 2 \(from 0\) has no label"):
        new().fit(list(TEXTS[:4]), [1.0, 2.0, float("nan"), 1.0])
