"""Whatever is not finite is no answer: every path that leaves numbers refuses it before writing, and names the rows."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from abmll.adapters.folder import read_adapter, write_adapter
from abmll.classifier import Classifier
from abmll.errors import NonFiniteError
from abmll.everyday import shared_session as sharing
from abmll.everyday.check import check_usefulness
from abmll.everyday.labelled import Labelled, read_labelled
from abmll.everyday.saved import read_posterior, save_posterior
from abmll.everyday.session import open_run
from abmll.exporting import export_merged
from abmll.exporting.calibrated import nearest_temperature
from abmll.exporting.merge import merge
from abmll.files import write_json
from abmll.metrics.abstention import certify, thresholds
from abmll.metrics.calibration import apply_temperature, fit_temperature
from abmll.metrics.usefulness import FRESH, PRETRAINED, RUN, SCALED, UNIFORM, Usefulness, weigh
from abmll.models import load, load_model
from abmll.question import Task
from abmll.runs.train_run import train_run
from abmll.systems import build
from abmll.systems.build import build_system
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from abmll.systems.predict import Answer, summarise
from abmll.systems.system import System
from abmll.tables.layouts import Layout
from abmll.tables.write import writing
from abmll.tasks.episodes import adaptation_batches
from abmll.training.checkpoints import RunDirectory
from tests.commands import Command, command, place_saved_task
from tests.everyday import texts, write_csv
from tests.poison import SIGN, marked, poisoned_base, poisoned_load
from tests.runs import config_in, run_in, system_in
from tests.systems import TASKS, run_config, system_of, train
from tests.tiny import tiny_model, tiny_tokenizer

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with a saved task `t`, 26 rows held back."""
    return place_saved_task(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every model that is loaded is poisoned."""
    monkeypatch.setattr(build, "load_model", poisoned_load)
    sharing._shared.cache_clear()
    yield
    sharing._shared.cache_clear()


@pytest.fixture
def abmll(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in a copy of the home; gives exit code, output and errors."""
    shutil.copytree(home / "runs", tmp_path / "runs")
    shutil.copy(home / "my.csv", tmp_path)
    write_csv(tmp_path / "rows.csv", ["text"], [["the sun"], [f"the {SIGN} rain"], ["the rain"], [f"a {SIGN}"]])
    monkeypatch.chdir(tmp_path)
    call = command(monkeypatch, capsys)

    def unwrapped(line: str) -> tuple[int, str, str]:
        code, out, errors = call(line)
        return code, out, " ".join(errors.split())

    return unwrapped


# -------------------- predict, adapt, export on the command line


@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet"])
def test_trust_19_predict_names_the_rows_and_writes_nothing(end: str, abmll: Command, tmp_path: Path) -> None:
    out = tmp_path / f"out.{end}"
    out.write_text("what was there before")
    code, _, err = abmll(f"predict runs/mine rows.csv --task t -o {out.name}")
    assert code == 2
    assert "rows.csv:3, rows.csv:5: the probabilities of the choices are NaN or infinite" in err
    assert "computed in float32" in err
    assert out.read_text() == "what was there before"
    assert not list(tmp_path.glob(".*part"))


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("float16", "float16 ends at 65,504, so try model.dtype=float32 or model.dtype=bfloat16"),
        ("bfloat16", "computed in bfloat16: try model.dtype=float32"),
    ],
)
def test_trust_19_a_narrow_dtype_is_named_and_a_wider_one_advised(dtype: str, advice: str, abmll: Command) -> None:
    code, _, err = abmll(f"predict runs/mine rows.csv --task t -o out.jsonl model.dtype={dtype}")
    assert (code, advice in err) == (2, True), err


def test_trust_19_rows_that_are_finite_are_answered_by_the_same_model(abmll: Command, tmp_path: Path) -> None:
    write_csv(tmp_path / "good.csv", ["text"], [["the sun"], ["the rain"]])
    assert abmll("predict runs/mine good.csv --task t -o out.jsonl")[0] == 0
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        assert np.isfinite([v for v in json.loads(line).values() if isinstance(v, float)]).all()


def test_trust_19_nothing_that_is_not_finite_is_answered_under_a_promise(abmll: Command, tmp_path: Path) -> None:
    line = "predict runs/mine rows.csv --task t --abstain-below-risk 0.9 -o out.csv"
    code, _, err = abmll(line)
    assert (code, "rows.csv:3, rows.csv:5: the probabilities" in err) == (2, True), err
    write_csv(tmp_path / "good.csv", ["text"], [["the sun"], ["the rain"]])
    held = [[text, label] for text, label in texts(9, seed=8)] + [[f"the rain {SIGN}", "bad"]]
    write_csv(tmp_path / "held.csv", ["text", "label"], held)
    code, _, err = abmll(line.replace("rows.csv", "good.csv") + " --held-back held.csv")
    assert (code, "held.csv:11: the probabilities" in err) == (2, True), err
    assert not (tmp_path / "out.csv").exists()


def test_trust_19_adapting_to_rows_that_are_not_finite_saves_nothing(abmll: Command, tmp_path: Path) -> None:
    rows = [[text, label] for text, label in texts(11)] + [[f"the rain {SIGN}", "bad"]]
    write_csv(tmp_path / "bad.csv", ["text", "label"], rows)
    code, _, err = abmll("adapt runs/mine bad.csv --save new --no-check")
    assert (code, "the loss or a gradient is not finite" in err, "computed in float32" in err) == (2, True, True), err
    assert not (tmp_path / "runs" / "mine" / "tasks" / "new").exists()


def test_trust_19_the_check_of_adapt_has_a_row_that_says_so(abmll: Command, tmp_path: Path) -> None:
    """One step meets two rows; the check asks about all of them, and one of the others is poison."""
    rows = [list(row) for row in texts(10)]
    write_csv(tmp_path / "few.csv", ["text", "label"], rows)
    asked = read_labelled(tmp_path / "few.csv", Layout()).rows
    _, batches = adaptation_batches(Task("c", asked), examples=10, steps=1, batch_size=2, seed=0, draw=0)
    met = {question.id for question in batches[0]} | {question.id for question in asked[:4]}  # four are timed
    place = next(i for i, question in enumerate(asked) if question.id not in met)
    rows[place][0] += f" {SIGN}"
    write_csv(tmp_path / "few.csv", ["text", "label"], rows)
    code, out, err = abmll(f"adapt runs/mine {tmp_path}/few.csv --save c adaptation.steps=1")
    assert code == 0, err
    assert out.count("not finite") >= 4
    assert "Adapting gives numbers that are not finite. Do not use it" in " ".join(out.split())
    check = read_posterior(tmp_path / "runs" / "mine", "c").details["check"]
    assert check["verdict"] == "not finite"
    assert f"few.csv:{place + 2}" in check["table"][RUN]["not_finite"]
    assert str(tmp_path) not in json.dumps(check)
    assert check["table"][RUN]["nll"] is None
    assert check["table"][UNIFORM]["nll"] == pytest.approx(np.log(2))
    card = (tmp_path / "runs" / "mine" / "tasks" / "c" / "README.md").read_text()
    assert "| this run | not finite | not finite |" in card


def test_trust_19_export_calibrated_refuses_questions_that_are_not_finite(abmll: Command, tmp_path: Path) -> None:
    write_csv(tmp_path / "ask.csv", ["text"], [["the sun"], [f"the {SIGN}"]])
    code, _, err = abmll("export runs/mine --task t --calibrated --questions ask.csv -o out")
    assert (code, "ask.csv:3: the probabilities" in err) == (2, True), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("draw", ["", " --draw 0"])
def test_trust_19_export_refuses_a_merged_model_that_is_not_finite(draw: str, abmll: Command, tmp_path: Path) -> None:
    """Its logits are looked at, of random tokens, and the sign is one of 512."""
    code, _, err = abmll(f"export runs/mine --merge{draw} -o out")
    assert (code, "logits of the adapters on their base are NaN or infinite" in err) == (2, True), err
    assert not (tmp_path / "out").exists()


# -------------------- Classifier


@pytest.fixture
def classifier(home: Path) -> Classifier:
    words, labels = zip(*texts(12), strict=True)
    return Classifier(home / "runs" / "mine", steps=3, samples=2).fit(list(words), list(labels))


@pytest.mark.parametrize("what", ["predict", "predict_proba", "answers"])
def test_trust_19_classifier_names_the_rows(what: str, classifier: Classifier) -> None:
    with pytest.raises(NonFiniteError, match=r"row 1: the probabilities .* computed in float32"):
        getattr(classifier, what)(["the sun", f"the {SIGN}"])


def test_trust_19_classifier_is_not_fitted_to_what_is_not_finite(classifier: Classifier) -> None:
    with pytest.raises(NonFiniteError, match="the loss or a gradient is not finite"):
        classifier.fit([f"{text} {SIGN}" for text, _ in texts(8)], [label for _, label in texts(8)])


def test_trust_19_classifier_is_not_saved_with_a_posterior_that_is_not_finite(
    classifier: Classifier, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    name = next(iter(classifier._posterior.tensors))
    classifier._posterior.tensors[name][0, 0] = NAN
    with pytest.raises(NonFiniteError, match=f"saved: {name} holds NaN or infinity"):
        classifier.save(tmp_path / "saved", replace=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before


# -------------------- weights


def test_trust_19_an_adaptation_whose_last_step_breaks_it_is_refused() -> None:
    """What a finite gradient does at too high a rate: no loss sees it any more."""
    system = breaking(system_of("pretrained"))
    with pytest.raises(NonFiniteError, match=r"adapting to task tiny0: .*mean_b is not finite .*inner rates"):
        system.adapt(TASKS[0], AdaptationPlan(examples=4, steps=1), 0)


def breaking(system: System) -> System:
    """From here on every step leaves one number of phi that is not finite."""
    step = system.adapting.step

    def broken_step(skip: Any = None) -> None:
        step(skip)
        broken(system, "mean_b", INF)

    system.adapting.step = broken_step
    return system


@torch.no_grad()
def broken(system: System, factor: str, value: float = NAN) -> System:
    """One number of phi is not finite; of the values, as attention can swallow NaN in its queries."""
    layer = next(layer for path, layer in system.method.adapters.layers.items() if "v_proj" in path)
    getattr(layer.task, factor)[0, 0] = value
    return system


def test_trust_19_weights_that_are_not_finite_are_told_from_a_narrow_dtype() -> None:
    system = broken(system_of("abmll"), "mean_b")
    with pytest.raises(NonFiniteError, match=r"adapted weights are not finite \(.*mean_b\): lower the rates"):
        system.predict(TASKS[0].test[:2], PredictionPlan("mean", 1), (0,))


@pytest.mark.parametrize("factor", ["mean_b", "std_a"])
def test_trust_19_no_adapter_that_is_not_finite_is_written(factor: str, home: Path, tmp_path: Path) -> None:
    config = config_in(home)
    system = broken(system_in(config), factor, INF)
    with pytest.raises(NonFiniteError, match=f"{factor} holds NaN or infinity"):
        save_posterior(tmp_path, "t", config, system)
    assert not (tmp_path / "tasks").exists()
    stored = read_adapter(home / "runs" / "mine" / "adapter")
    tensors = {name: tensor.clone() for name, tensor in stored.tensors.items()}
    next(tensor for name, tensor in tensors.items() if name.endswith(factor))[0, 0] = INF
    with pytest.raises(NonFiniteError, match=f"{factor} holds NaN or infinity"):
        write_adapter(replace(stored, tensors=tensors), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_trust_19_a_merge_that_leaves_the_range_of_the_dtype_is_refused(tmp_path: Path) -> None:
    """W0 + D is 1e5 in one place: finite in float32, infinite in float16."""
    system = system_of("abmll")
    system.method.begin_task(first=True)
    path, layer = next(iter(system.method.adapters.layers.items()))
    with torch.no_grad():
        layer.task.mean_b.zero_()
        layer.task.mean_a.zero_()
        layer.task.mean_b[0, 0], layer.task.mean_a[0, 0] = 1e5 / layer.task.variance.scale, 1.0
    merge(system.method.adapters)
    system.language_model.model.half()
    with pytest.raises(NonFiniteError, match=rf"{path}: merged, .* computed in float16: .*model\.dtype=float32"):
        merge(system.method.adapters)


def test_trust_19_a_draw_that_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    system = broken(system_of("abmll"), "std_a", 1e30)
    with torch.no_grad():
        for layer in system.method.adapters.layers.values():
            layer.task.std_b.fill_(1e30)
    with pytest.raises(NonFiniteError, match="logits of the adapters on their base"):
        export_merged(system, tmp_path / "out", draw=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "value"), [("float32", NAN), ("float16", 1e6)])
def test_trust_19_a_base_model_with_weights_that_are_not_finite_is_refused(
    dtype: str, value: float, home: Path, tmp_path: Path
) -> None:
    """In the queries alone, which attention can make finite answers of; 10^6 is infinite in float16 only."""
    shutil.copytree(home / "model", tmp_path / "model")
    file, name = tmp_path / "model" / "model.safetensors", "model.layers.0.self_attn.q_proj.weight"
    weights = load_file(file)
    weights[name][0, 0] = value
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=rf"{name} holds NaN or infinity in {dtype}: .*model\.dtype=float32"):
        load_model(str(tmp_path / "model"), device="cpu", dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_trust_19_packed_weights_are_looked_at_too(dtype: torch.dtype) -> None:
    """torch has no order of numbers of 8 bits."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    layer = model.model.layers[0].self_attn.q_proj
    weight = layer.weight.detach().clone()
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    assert load._freeze(model, tokenizer, "packed", None).fingerprint
    weight[0, 0] = NAN
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    with pytest.raises(NonFiniteError, match=r"q_proj\.weight holds NaN or infinity in float8_"):
        load._freeze(model, tokenizer, "packed", None)


# -------------------- numbers on their own


TABLE = np.array([[0.5, 0.5], [NAN, 0.5]])


@pytest.mark.parametrize(
    "use",
    [
        lambda: fit_temperature(TABLE, np.array([0, 1])),
        lambda: apply_temperature(TABLE, 2.0),
        lambda: nearest_temperature(TABLE, np.full((2, 2), 0.5)),
        lambda: nearest_temperature(np.full((2, 2), 0.5), TABLE),
        lambda: thresholds(TABLE[:, 0], 400, 0.1),
        lambda: certify(TABLE[:, 0], np.array([True, True]), (-INF,), 0.1),
    ],
    ids=["fit", "apply", "nearest, mean", "nearest, averaged", "thresholds", "certify"],
)
def test_trust_19_no_temperature_and_no_threshold_from_what_is_not_finite(use: Callable[[], Any]) -> None:
    with pytest.raises(NonFiniteError, match=r"of row 1 \(from 0\) is NaN or infinite"):
        use()


@pytest.mark.parametrize("number", [NAN, INF])
@pytest.mark.parametrize("field", ["confidence", "spread", "information", "probabilities"])
def test_trust_19_there_is_no_answer_with_such_a_number(field: str, number: float) -> None:
    good = Answer((0.25, 0.75), 1, 0.75, 0.1, 0.1)
    with pytest.raises(NonFiniteError, match="which is no answer"):
        replace(good, **{field: (number, 0.5) if field == "probabilities" else number})
    with pytest.raises(NonFiniteError):
        summarise(np.array([[0.5, 0.5], [number, 0.5]]))


@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("value", [NAN, [0.5, INF]], ids=["number", "list"])
def test_trust_19_the_writers_of_rows_refuse_our_numbers_and_take_the_users(
    end: str, value: Any, tmp_path: Path
) -> None:
    """A user's own NaN, as Parquet may hold it, is no number of ours: it is written as nothing."""
    kind, out = (list if isinstance(value, list) else float), tmp_path / f"out.{end}"
    good = [0.5] if kind is list else 0.5

    def write() -> None:
        with writing(out, ["mine"], {"p": kind}) as writer:
            writer.write([{"mine": "x"}], [{"p": good}])
            writer.write([{"mine": "y"}], [{"p": value}])

    with pytest.raises(NonFiniteError, match=r"column 'p': .* is no answer"):
        write()
    assert not list(tmp_path.iterdir())
    with writing(tmp_path / "mine.jsonl", ["mine"], {"p": kind}) as writer:
        writer.write([{"mine": {"deep": [NAN, {"x": INF}]}}], [{"p": good}])
    assert json.loads((tmp_path / "mine.jsonl").read_text())["mine"] == {"deep": [None, {"x": None}]}


def test_trust_19_json_and_journals_name_the_entry(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"r\.json: systems\.abmll\.1 is inf"):
        write_json(tmp_path / "r.json", {"systems": {"abmll": [0.5, INF]}})
    with pytest.raises(NonFiniteError, match=r"journal\.jsonl: stds\.max is nan"):
        RunDirectory(tmp_path).log({"event": "step", "stds": {"max": NAN}})
    assert not list(tmp_path.iterdir())


# -------------------- the check of `adapt`


GOOD = np.tile([[0.99, 0.01], [0.01, 0.99]], (20, 1))
POOR = np.tile([[0.6, 0.4], [0.6, 0.4]], (20, 1))
ANSWERS = np.array([0, 1] * 20)


def weighed(broken: dict[str, str]) -> Usefulness:
    tables = {UNIFORM: np.full((40, 2), 0.5), PRETRAINED: POOR, SCALED: POOR, FRESH: POOR, RUN: GOOD}
    return weigh({name: t for name, t in tables.items() if name not in broken}, ANSWERS, 5, broken)


def test_trust_19_what_is_not_finite_is_compared_with_nothing() -> None:
    assert weighed({}).verdict == "helps"
    found = weighed({RUN: "why"})
    assert (found.verdict, found.text) == (
        "not finite",
        ("Adapting gives numbers that are not finite. Do not use it: why",),
    )
    found = weighed({PRETRAINED: "why", SCALED: "why"})
    assert found.verdict == "no evidence"
    assert found.text == ("No evidence that adapting helps: pretrained is not finite (why).",)
    found = weighed({FRESH: "why"})
    assert found.verdict == "helps"
    assert found.text[-1] == "A fresh LoRA fitted to the same rows is not finite, so nothing is said against it."
    assert [row.name for row in found.rows] == [UNIFORM, PRETRAINED, SCALED, FRESH, RUN]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["table"][FRESH]["not_finite"] == "why"
    with pytest.raises(NonFiniteError):
        weigh({PRETRAINED: POOR, RUN: np.full((40, 2), NAN)}, ANSWERS, 5)


def test_trust_19_a_fold_that_is_not_finite_is_a_row_of_the_check_and_others_go_on(home: Path) -> None:
    """The run breaks in every fold; a fresh LoRA does not."""
    session = open_run(home / "runs" / "mine", {"adaptation": {"samples": 2}})
    breaking(session.system)
    layout = Layout(("bad", "good"))
    rows = tuple(layout.question({"text": t, "label": x}, i, location=f"f:{i}") for i, (t, x) in enumerate(texts(10)))
    found = check_usefulness(session, Labelled(layout, rows))
    table = {row.name: row for row in found.rows}
    assert found.verdict == "not finite"
    assert "not finite" in str(table[RUN].not_finite)
    for name in (UNIFORM, PRETRAINED, SCALED, FRESH):
        assert table[name].not_finite is None
        assert np.isfinite([table[name].nll, table[name].accuracy]).all()


# -------------------- validation


def test_trust_19_a_validation_that_is_not_finite_is_worse_than_any_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By a number that is none, and by a validation that breaks: training goes on, and keeps the best of the rest."""
    found = iter([NAN, 3.0, None, 5.0])

    def validate() -> float:
        value = next(found)
        if value is None:
            raise NonFiniteError("task x: broken")
        return value

    training = {"iterations": 4, "validate_every": 1, "patience": 9}
    config = run_config("structured", inner_steps=0, training=training)
    with caplog.at_level(logging.WARNING):
        _, final = train(config, tmp_path, validate=validate)
    assert final == 2
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [e["validation_nll"] for e in events[:4]] == [None, 3.0, None, 5.0]
    assert events[2]["validation_not_finite"] == "task x: broken"
    assert "step 3: the validation is not finite, so it counts as worse than any other: task x: broken" in caplog.text


def test_trust_19_if_no_validation_is_finite_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = run_config("structured", inner_steps=0, training={"iterations": 3, "validate_every": 1, "patience": 2})
    with caplog.at_level(logging.WARNING):
        _, final = train(config, tmp_path, validate=lambda: INF)
    assert final == 2, "patience ends it as ever"
    assert "no validation was finite" in caplog.text


def test_trust_19_validating_by_a_task_that_is_not_finite(tmp_path: Path) -> None:
    """The real validation of a run: the model breaks on one of its test rows."""

    held = replace(TASKS[3], test=(*TASKS[3].test[:2], marked(TASKS[3].test[2])))
    config = run_config("structured", inner_steps=0, training={"iterations": 2, "validate_every": 1})
    run = run_in(tmp_path / "run", config, TASKS[:2], validation=(held,))
    train_run(run, lambda: build_system(config, poisoned_base()))
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines if '"step"' in line and '"end"' not in line]
    assert [step["validation_nll"] for step in steps] == [None, None]
    assert all(held.test[2].id in step["validation_not_finite"] for step in steps)
