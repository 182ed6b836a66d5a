"""The temperature of a saved task: learned out of folds, stored, and used by whatever gives its probabilities."""

import json
import logging
import math
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import softmax
from scipy.stats import norm
from sklearn.metrics import log_loss

from abmll.adapters.folder import checksum
from abmll.calibrators import ChoiceRows, calibrated
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.classifier import Classifier
from abmll.config import RunConfig, check, merge
from abmll.errors import AbmllError
from abmll.everyday import shared_session as sharing
from abmll.everyday.adapt import HeldBackRows
from abmll.everyday.bases import base_config
from abmll.everyday.labelled import Labelled, read_labelled
from abmll.everyday.saved import read_posterior, write_details
from abmll.everyday.session import OWN_DEFAULTS, open_run
from abmll.files import read_sealed_json, write_sealed_json
from abmll.metrics.predictions import Prediction, Predictions
from abmll.question import Task
from abmll.systems.folds import deal
from abmll.systems.plans import resolve
from abmll.systems.scale import MEAN, NEW_LORA_PRIOR, OWN, Scale, write_scale
from abmll.systems.temperature import TaskTemperature, choice_rows, learn_temperature, read_temperature
from abmll.tables.layouts import Layout
from benchmarks.own.draws import ASK
from tests.commands import Command, command, place_saved_task
from tests.everyday import texts, write_csv
from tests.runs import config_in

NAN, ROOT = float("nan"), Path(__file__).parents[2]
RAW = {"sampler": "mean", "likelihood": {}}


def of(log_temperatures: tuple[float, ...], weights: tuple[float, ...], **more: Any) -> TaskTemperature:
    """One that was learned from 20 rows."""
    x, w = np.array(log_temperatures), np.array(weights)
    numbers = {"mean": float(w @ x), "sd": float(np.sqrt(w @ (x - w @ x) ** 2))}
    about = {"learned_from": "rows", "rows": 20, "prior": {"mu": 1.0, "sd": 1.5, "tasks": 0}, **RAW, **numbers}
    return TaskTemperature.model_validate({**about, "log_temperatures": log_temperatures, "weights": weights, **more})


def world(rng: np.random.Generator, rows: int, choices: int = 4, log_temperature: float = 1.0) -> tuple[Any, Any]:
    """Probabilities that are too sure by e^log_temperature, and right answers."""
    logits = 2 * rng.normal(size=(rows, choices))
    true = softmax(logits, axis=1)
    answers = (true.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return softmax(logits * np.exp(log_temperature), axis=1), answers


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return config_in(tmp_path_factory.mktemp("place"), adaptation={"sampler": "mean"})


# -------------------- learning


def test_it_is_what_the_calibrator_makes_of_a_predictions_file(config: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (held, truth), (asked, answers) = world(rng, 20), world(rng, 30)
    rows, held_out = (
        tuple(Prediction(str(n), int(k), tuple(p)) for n, (p, k) in enumerate(zip(table, right, strict=True)))
        for table, right in ((asked, answers), (held, truth))
    )
    expected = calibrated(Predictions("s", "t", 0, 0, 0, rows, held_out_rows=held_out), PosteriorTemperature())
    found = learn_temperature(tmp_path, config, choice_rows(held.tolist(), truth))
    assert (found.learned_from, found.rows, found.prior.tasks) == ("rows", 20, 0)
    np.testing.assert_allclose(found.apply(asked.tolist()), [row.probabilities for row in expected.rows], rtol=1e-9)


def test_it_is_the_posterior_that_scipy_integrates(config: Any, tmp_path: Path) -> None:
    held, truth = world(np.random.default_rng(1), 20)
    logs, row = np.log(held), np.log([0.7, 0.2, 0.06, 0.04])

    def density(x: float) -> float:
        of_rows = np.log(softmax(logs / np.exp(x), axis=1)[np.arange(20), truth]).sum()
        return float(np.exp(of_rows + 20) * norm.pdf(x, 1, 1.5))

    total = quad(density, -4, 6, limit=200)[0]
    expected = [quad(lambda x, k=k: softmax(row / np.exp(x))[k] * density(x), -4, 6)[0] / total for k in range(4)]
    mean = quad(lambda x: x * density(x), -4, 6)[0] / total
    found = learn_temperature(tmp_path, config, choice_rows(held.tolist(), truth))
    np.testing.assert_allclose(found.apply([np.exp(row).tolist()])[0], expected, rtol=1e-5)
    assert found.mean == pytest.approx(mean, rel=1e-4)
    assert found.sd == pytest.approx((quad(lambda x: (x - mean) ** 2 * density(x), -4, 6)[0] / total) ** 0.5, rel=1e-3)


def test_the_nll_of_answers_that_are_too_sure_falls(config: Any, tmp_path: Path) -> None:
    rng, gains = np.random.default_rng(2), []
    for _ in range(20):
        (held, truth), (asked, answers) = world(rng, 20), world(rng, 200)
        found = learn_temperature(tmp_path, config, choice_rows(held.tolist(), truth))
        labels = list(range(4))
        after = log_loss(answers, np.array(found.apply(asked.tolist())), labels=labels)
        gains.append(log_loss(answers, asked, labels=labels) - after)
    assert np.mean(gains) > 0.3
    assert np.mean(np.array(gains) > 0) >= 0.9


def test_the_weak_prior_alone_changes_nothing_and_says_so(config: Any, tmp_path: Path) -> None:
    found = learn_temperature(tmp_path, config)
    assert (found.learned_from, found.changes, found.temperature) == ("nothing", False, 1.0)
    assert found.apply([(0.9, 0.1)]) == ((0.9, 0.1),)
    assert "as the model states them" in found.describe()


def test_a_new_lora_on_a_base_has_the_prior_that_its_like_had_on_other_data(tmp_path: Path) -> None:
    """Without rows, too; but not where it is fitted in another way, or begins elsewhere."""
    usual = check(RunConfig, merge(base_config("base.gguf").model_dump(mode="json"), OWN_DEFAULTS), "base")
    alone = learn_temperature(tmp_path, usual)
    assert (alone.learned_from, alone.prior.tasks) == ("prior", 12)
    assert (alone.mean, alone.sd) == pytest.approx((0.23, 0.32), abs=1e-6)
    held, truth = world(np.random.default_rng(1), 20)
    assert learn_temperature(tmp_path, usual, choice_rows(held.tolist(), truth)).prior == alone.prior
    other: dict[str, Any] = {"steps": {"adaptation": {"steps": 40}}, "rate": {"method": {"inner_lr": 1e-3}}}
    other |= {"posterior": {"posterior": {"name": "laplace"}}, "start": {"adapter": {"start": "folder"}}}
    other["answers the other way round"] = {"likelihood": {"kind": "channel"}}
    for values in other.values():
        config = check(RunConfig, merge(usual.model_dump(mode="json"), values), "other")
        assert learn_temperature(tmp_path, config).learned_from == "nothing"


def test_the_prior_of_a_new_lora_is_the_one_that_the_benchmark_has() -> None:
    found = json.loads((ROOT / "benchmarks/own/results.json").read_text(encoding="utf-8"))["prior_of_new_lora"]
    prior, sets = NEW_LORA_PRIOR
    assert (prior.mu, prior.sd) == pytest.approx((found["mu"], found["sd"]), abs=0.005)
    assert sets == len(ASK)


ROW = st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda row: sum(row) > 0)


@given(st.lists(ROW, min_size=1, max_size=5), st.floats(-20, 20), st.floats(0, 1))
def test_the_order_of_the_choices_never_changes(rows: list[list[float]], x: float, weight: float) -> None:
    stated = [tuple(p / sum(row) for p in row) for row in rows]
    scaled = of((x, x + 1), (weight, 1 - weight)).apply(stated)
    for before, after in zip(stated, scaled, strict=True):
        assert sum(after) == pytest.approx(1)
        assert after[int(np.argmax(before))] == max(after)
        order = np.argsort(before, kind="stable")
        assert (np.diff(np.array(after)[order]) >= 0).all()


def test_numbers_that_are_not_finite_are_refused() -> None:
    one = of((0.0, 1.0), (0.5, 0.5))
    with pytest.raises(AbmllError, match="not all finite"):
        one.apply([(0.5, 0.5), (NAN, 0.5)])
    with pytest.raises(AbmllError):
        one.apply([(float("inf"), 0.5)])


GOOD = of((0.0, 1.0), (0.5, 0.5)).model_dump(mode="json")
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "another version": ({"version": 2}, "its temperature is of version 2, not 1"),
    "NaN": ({"log_temperatures": [NAN, 1.0]}, "finite number"),
    "infinite": ({"weights": [float("inf"), 0.5]}, "finite number"),
    "far away": ({"log_temperatures": [0.0, 1e9]}, "rising numbers within 40 of 0"),
    "falling": ({"log_temperatures": [1.0, 0.0]}, "rising numbers within 40 of 0"),
    "other lengths": ({"weights": [1.0]}, "not 1 rising numbers"),
    "negative": ({"weights": [1.5, -0.5]}, "not shares that sum to 1"),
    "no distribution": ({"weights": [0.5, 0.4]}, "not shares that sum to 1"),
    "none": ({"weights": [], "log_temperatures": []}, "at least 1 item"),
    "very many": ({"weights": [1e-6] * 10**6, "log_temperatures": [0.0] * 10**6}, "at most 65 items"),
    "another mean": ({"mean": 0.1}, "mean and sd: not those"),
    "another sd": ({"sd": 0.1}, "mean and sd: not those"),
    "rows of nothing": ({"rows": 0}, "learned from rows"),
    "nothing that changes": ({"learned_from": "nothing", "rows": 0}, "changes probabilities"),
    "a prior of no width": ({"prior": {"mu": 0.0, "sd": 0.0, "tasks": 3}}, "temperature.prior.sd"),
    "a text": ({"mean": "warm"}, "temperature.mean"),
    "more": ({"hint": 1}, "temperature.hint"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_temperature_is_refused(what: str) -> None:
    change, message = HOSTILE[what]
    with pytest.raises(AbmllError, match=message) as refused:
        read_temperature({**GOOD, **change}, Path("task.json"))
    assert str(refused.value).startswith("task.json: ")
    assert "adapt again" in str(refused.value)


@pytest.mark.parametrize("value", [[], "warm", 3, True])
def test_what_is_no_mapping_is_refused(value: Any) -> None:
    with pytest.raises(AbmllError, match=r"task\.json: temperature"):
        read_temperature(value, Path("task.json"))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    one = of((-0.123456789, 0.2, 1.7), (0.25, 0.5, 0.25))
    assert read_temperature(json.loads(json.dumps(one.model_dump(mode="json"))), tmp_path) == one
    assert read_temperature(None, tmp_path) is None


# -------------------- abstaining


def test_a_promise_by_scaled_confidences_is_kept() -> None:
    """Temperatures are learned from 20 rows, a threshold from 120 others; the rest shows the error rate."""
    risk, broken, promised = 0.2, 0, 0
    for repeat in range(150):
        rng = np.random.default_rng(repeat)
        (fitted, truth), (held, right), (asked, answers) = (world(rng, n, 3) for n in (20, 120, 4000))
        calibrator = PosteriorTemperature().fit(ChoiceRows.from_scores(np.log(fitted), truth))
        x, w = calibrator.log_temperatures, calibrator.weights
        one = of(tuple(x.tolist()), tuple(w.tolist()))
        confidence = np.array(one.apply(asked.tolist())).max(axis=1)
        rows = HeldBackRows(tuple(map(tuple, held.tolist())), tuple(right.tolist()))
        try:
            threshold = rows.threshold(confidence[:500], risk, one)
        except AbmllError:
            continue
        answered = confidence >= threshold
        promised += 1
        broken += (asked.argmax(axis=1) != answers)[answered].mean() > risk
    assert promised > 100
    assert broken <= 25  # of 150; 10 % are allowed, and of 150 at 10 % more than 25 come once in 500 times


def test_rows_held_back_are_judged_by_the_choice_as_it_was_stated() -> None:
    """At a high temperature two probabilities may round to one: the choice is still the first one's."""
    rows = HeldBackRows(((0.5 - 1e-12, 0.5 + 1e-12),), (1,))
    judged = rows.judged(of((30.0,), (1.0,)))
    assert judged.correct.tolist() == [True]
    assert judged.confidence.tolist() == [0.5]


# -------------------- the command


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, and a task adapted to 24 rows with 26 held back."""
    return place_saved_task(tmp_path_factory.mktemp("home"))


@pytest.fixture
def abmll(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    shutil.copytree(home / "runs", tmp_path / "runs")
    shutil.copy(home / "my.csv", tmp_path)
    write_csv(tmp_path / "rows.csv", ["text"], [[text] for text, _ in texts(9, seed=3)])
    monkeypatch.chdir(tmp_path)
    return command(monkeypatch, capsys)


RUN = Path("runs/mine")


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def table(name: str) -> np.ndarray:
    return np.array([[line["p_bad"], line["p_good"]] for line in lines(name)])


def predicted(abmll: Command, options: str, name: str = "out.jsonl") -> np.ndarray:
    code, _, err = abmll(f"predict runs/mine rows.csv -o {name} {options}")
    assert code == 0, err
    return table(name)


def warm(name: str = "t", x: float = 1.0) -> None:
    """Give a saved task a temperature."""
    saved = read_posterior(RUN, name)
    session = open_run(RUN, saved=saved)
    settings = learn_temperature(RUN, session.config).model_dump(mode="json", include={"sampler", "likelihood"})
    session.system.close()
    write_details(RUN, name, {**saved.details, "temperature": of((x,), (1.0,), **settings).model_dump(mode="json")})


def out_of_folds(run: Path, labelled: Labelled, steps: int) -> np.ndarray:
    """Probabilities of each row after adapting to those of the other folds."""
    session = open_run(run, {"adaptation": {"steps": steps}})
    answers = [row.answer for row in labelled.rows]
    stated = np.zeros((len(answers), 2))
    for number, fold in enumerate(deal(answers, labelled.clusters, seed=session.config.adaptation.seed)):
        task = Task(f"fold {number}", tuple(labelled.rows[i] for i in fold.fitted))
        session.system.adapt(task, session.plan(len(fold.fitted)))
        asked = session.system.predict([labelled.rows[i] for i in fold.answered], session.drawing)
        stated[list(fold.answered)] = [row.probabilities for row in asked]
    session.system.close()
    return stated


def test_the_check_learns_it_and_predict_uses_it(abmll: Command) -> None:
    code, out, err = abmll("adapt runs/mine my.csv --save c adaptation.steps=3")
    assert code == 0, err
    saved = read_posterior(RUN, "c")
    kept = read_temperature(saved.details["temperature"], Path("task.json"))
    assert kept is not None
    assert (kept.learned_from, kept.rows) == ("rows", 50)
    assert f"Temperature of the answers: {kept.temperature:.2f} (log T" in out
    labelled = read_labelled(Path("my.csv"), Layout(("bad", "good")))
    right = np.array([row.answer for row in labelled.rows])
    stated = out_of_folds(RUN, labelled, 3)
    by_hand = PosteriorTemperature().fit(ChoiceRows.from_scores(np.log(stated), right))
    assert kept.mean == pytest.approx(float(by_hand.weights @ by_hand.log_temperatures), abs=1e-4)
    scaled, raw = predicted(abmll, "--task c"), predicted(abmll, "--task c --raw")
    np.testing.assert_allclose(by_hand.apply(ChoiceRows.from_scores(np.log(raw))), scaled, atol=1e-5)
    assert np.abs(scaled - raw).max() > 0.01
    assert (scaled.argmax(axis=1) == raw.argmax(axis=1)).all()


def test_an_old_task_answers_as_before(abmll: Command) -> None:
    """As they were saved before there were temperatures: without one, and with the confidences of rows held back."""
    saved = read_posterior(RUN, "t")
    raw = predicted(abmll, "--task t --raw")
    held = saved.details["held_back"]
    confidence = [0.9] * 60
    old = {name: value for name, value in saved.details.items() if name != "temperature"}
    old["held_back"] = {"confidence": confidence, "correct": [True] * 60, "settings": held["settings"]}
    write_details(RUN, "t", old)
    np.testing.assert_array_equal(predicted(abmll, "--task t"), raw)
    assert abmll("predict runs/mine rows.csv --task t --abstain-below-risk 0.1 -o sure.csv")[0] == 0
    write_details(RUN, "t", {**old, "held_back": {**old["held_back"], "correct": [True]}})
    code, _, err = abmll("predict runs/mine rows.csv --task t --abstain-below-risk 0.1 -o sure.csv")
    assert (code, "held-back answers are damaged" in " ".join(err.split())) == (2, True)


def test_a_damaged_temperature_is_one_message(abmll: Command) -> None:
    saved = read_posterior(RUN, "t")
    write_details(RUN, "t", {**saved.details, "temperature": {**GOOD, "weights": [2.0, -1.0]}})
    code, _, err = abmll("predict runs/mine rows.csv --task t -o out.jsonl")
    text = " ".join(err.split())
    assert (code, "task.json: temperature: " in text, "adapt again" in text) == (2, True, True), text
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize("raw", [False, True])
def test_rows_are_abstained_from_by_the_confidences_that_are_given(raw: bool, abmll: Command) -> None:
    """300 rows held back: the least sure 60 of them are wrong; the threshold follows the scale of the answers."""
    warm(x=1.0)
    saved = read_posterior(RUN, "t")
    sure = np.linspace(0.5, 1, 300)
    held = {"probabilities": [[p, 1 - p] for p in sure.tolist()], "answers": [int(n < 60) for n in range(300)]}
    write_details(RUN, "t", {**saved.details, "held_back": {**saved.details["held_back"], **held}})
    option = " --raw" if raw else ""
    code, _, err = abmll(f"predict runs/mine rows.csv --task t --abstain-below-risk 0.1 -o out.jsonl{option}")
    assert code == 0, err
    scale = 1.0 if raw else np.exp(-1.0)
    answered = [line for line in lines("out.jsonl") if line["answered"]]
    silent = [line for line in lines("out.jsonl") if not line["answered"]]
    least = min([line["confidence"] for line in answered], default=1.0)
    assert all(line["confidence"] < least for line in silent)
    said = float(err.split("confidence")[1].split()[0])
    scaled = 1 / (1 + ((1 - sure) / sure) ** scale)
    assert int(err.split("Of the rows held back")[1].split()[0]) == pytest.approx((scaled >= said).sum(), abs=1)


def test_without_a_check_it_is_the_prior_that_the_run_learned(abmll: Command) -> None:
    code, out, _ = abmll("adapt runs/mine my.csv --save weak --no-check adaptation.steps=1")
    assert (code, "Temperature of the answers: none" in out) == (0, True)
    assert read_posterior(RUN, "weak").details["temperature"]["learned_from"] == "nothing"
    session = open_run(RUN)
    run = resolve(session.config)
    session.system.close()
    priors = {name: PosteriorTemperature(mu=mu, sd=0.3).to_dict() for name, mu in ((OWN, -2.0), (MEAN, 0.8))}
    write_scale(RUN, run, 3, Scale(fitted_tasks=5, calibrators=priors, tasks={}, left_out={}))
    code, out, err = abmll("adapt runs/mine my.csv --save prior --no-check adaptation.steps=1")
    assert (code, "from the prior of the run alone" in " ".join(out.split())) == (0, True), err
    kept = read_posterior(RUN, "prior").details["temperature"]
    assert kept["learned_from"] == "prior"
    assert kept["prior"] == {"mu": 0.8, "sd": 0.3, "tasks": 5}
    assert (kept["mean"], kept["sd"]) == (pytest.approx(0.8, abs=1e-6), pytest.approx(0.3, abs=1e-6))
    scaled, raw = predicted(abmll, "--task prior"), predicted(abmll, "--task prior --raw")
    x, weights = np.polynomial.hermite_e.hermegauss(40)
    at = [softmax(np.log(raw) / np.exp(0.8 + 0.3 * each), axis=1) for each in x]
    np.testing.assert_allclose(scaled, np.tensordot(weights / weights.sum(), at, axes=1), atol=1e-5)


def test_answers_of_another_kind_are_as_stated(abmll: Command, caplog: pytest.LogCaptureFixture) -> None:
    warm()
    with caplog.at_level(logging.WARNING):
        drawn = predicted(abmll, "--task t adaptation.samples=2")
    raw = predicted(abmll, "--task t --raw adaptation.samples=2")
    np.testing.assert_array_equal(drawn, raw)
    assert "another adaptation.sampler" in caplog.text
    assert np.abs(predicted(abmll, "--task t") - predicted(abmll, "--task t --raw")).max() > 0.01


def test_raw_needs_a_task(abmll: Command) -> None:
    code, _, err = abmll("predict runs/mine rows.csv -o out.csv --labels bad,good --raw")
    assert (code, "--raw is for --task" in err) == (2, True)


# -------------------- exporting


def documented_client() -> Callable[[list[float], dict[str, Any]], list[float]]:
    """The function that docs/adapters-and-exports.md shows."""
    page = (Path(__file__).parents[2] / "docs" / "adapters-and-exports.md").read_text(encoding="utf-8")
    code = page[page.index("    def at_task_temperature") :]
    code = code[: code.index("return out") + len("return out")]
    names: dict[str, Any] = {"math": math}
    exec(textwrap.dedent(code), names)  # our own page
    return names["at_task_temperature"]


def test_an_export_answers_as_the_task_does(abmll: Command) -> None:
    """By the mean weights no model is asked, and no questions are needed."""
    warm(x=0.7)
    code, out, err = abmll("export runs/mine -o served --task t --calibrated")
    assert (code, "Temperature of the task: 2.01" in out, "loading" in err) == (0, True, False), err
    scaled, raw = predicted(abmll, "--task t"), predicted(abmll, "--task t --raw")
    found, client = json.loads(Path("served/calibration.json").read_text()), documented_client()
    served = [client(q, found["task_temperature"]) for q in raw.tolist()]
    np.testing.assert_allclose(served, scaled, atol=1e-9)
    assert (found["format"], found["draws"], found["before"], found["relative_temperature"]) == (2, 0, None, 1.0)
    assert "task_temperature" in found["use"]
    code, _, err = abmll("export runs/mine -o raw --task t --calibrated --questions rows.csv adaptation.sampler=weight")
    assert code == 0, err
    assert json.loads(Path("raw/calibration.json").read_text())["task_temperature"] is None


def test_a_task_without_one_is_exported_as_before(abmll: Command) -> None:
    code, _, err = abmll("export runs/mine -o out --task t --calibrated")
    assert (code, "--calibrated with --task needs --questions" in " ".join(err.split())) == (2, True)
    assert abmll("export runs/mine -o out --task t --calibrated --questions rows.csv")[0] == 0
    found = json.loads(Path("out/calibration.json").read_text())
    assert found["task_temperature"] is None
    assert "task_temperature" not in found["use"]
    assert found["draws"] > 0


# -------------------- Classifier

TEXTS, NAMES = (list(column) for column in zip(*texts(24), strict=True))
NEW = [text for text, _ in texts(9, seed=3)]


@pytest.fixture(scope="module")
def fitted(home: Path) -> Classifier:
    return Classifier(home / "runs" / "mine", steps=3).fit(TEXTS, NAMES)


def test_a_classifier_learns_it_from_answers_out_of_folds(fitted: Classifier) -> None:
    """The same adaptations, by hand: the order of the rows is by the name of the fold."""
    layout = Layout(("bad", "good"))
    rows = [layout.question({"text": t, "label": x}, n) for n, (t, x) in enumerate(zip(TEXTS, NAMES, strict=True))]
    right = np.array([int(name == "good") for name in NAMES])
    stated = out_of_folds(Path(fitted.run), Labelled(layout, tuple(rows)), 3)
    by_hand = PosteriorTemperature().fit(ChoiceRows.from_scores(np.log(stated), right))
    raw = np.array([answer.probabilities for answer in fitted.answers(NEW, raw=True)])
    expected = by_hand.apply(ChoiceRows.from_scores(np.log(raw)))
    np.testing.assert_allclose(fitted.predict_proba(NEW), expected, atol=1e-5)
    assert np.abs(expected - raw).max() > 0.01
    plain = Classifier(fitted.run, steps=3, temperature="none").fit(TEXTS, NAMES)
    np.testing.assert_allclose(plain.predict_proba(NEW), raw, atol=1e-6)
    assert plain.predict(NEW).tolist() == fitted.predict(NEW).tolist()


def test_a_saved_classifier_answers_the_same(fitted: Classifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "kept")
    loaded = Classifier.load(tmp_path / "kept")
    np.testing.assert_array_equal(loaded.predict_proba(NEW), fitted.predict_proba(NEW))
    file = tmp_path / "kept" / "classifier.json"
    of_adapter = f"classifier.json of the adapter {checksum(tmp_path / 'kept')}"
    values = read_sealed_json(file, of_adapter)
    write_sealed_json(file, {**values, "temperature": {**values["temperature"], "mean": 3.0}}, of_adapter)
    with pytest.raises(AbmllError, match=r"classifier\.json: temperature: .*mean and sd"):
        Classifier.load(tmp_path / "kept")
    old = {name: value for name, value in values.items() if name != "temperature"}
    old["params"] = {name: value for name, value in values["params"].items() if name != "temperature"}
    write_sealed_json(file, {**old, "abmll_classifier": 3}, of_adapter)
    raw = [answer.probabilities for answer in fitted.answers(NEW, raw=True)]
    np.testing.assert_allclose(Classifier.load(tmp_path / "kept").predict_proba(NEW), raw, atol=1e-12)


def test_a_classifier_by_the_prior_alone_takes_no_folds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "deal", None)
    found = Classifier(home / "runs" / "mine", steps=1, temperature="prior").fit(TEXTS, NAMES)
    raw = [answer.probabilities for answer in found.answers(NEW, raw=True)]
    np.testing.assert_array_equal(found.predict_proba(NEW), raw)
    with pytest.raises(AbmllError, match="temperature='warm': expected one of folds, prior, none"):
        Classifier(home / "runs" / "mine", temperature="warm").fit(TEXTS, NAMES)


def test_too_few_examples_for_parts_are_told(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = Classifier(home / "runs" / "mine", steps=1).fit(TEXTS[:3], NAMES[:3])
    assert "fewer than 4 different rows" in caplog.text
    assert found.answers(NEW) == found.answers(NEW, raw=True)
