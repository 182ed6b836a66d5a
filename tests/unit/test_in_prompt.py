"""`abmll adapt BASE ROWS --in-prompt`: labelled rows as examples in every prompt, in place of adapting."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import abmll.cli as command_line
from abmll.calibrators import ChoiceRows
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.classifier import Classifier
from abmll.errors import AbmllError
from abmll.everyday.bases import base_config
from abmll.everyday.labelled import read_labelled, read_unlabelled
from abmll.everyday.saved import load_posterior, read_posterior
from abmll.everyday.session import open_base, open_run
from abmll.prompts.examples import examples_from_json, examples_to_json
from abmll.question import Question
from abmll.tables.layouts import Layout
from tests.everyday import place_run, texts, write_csv, write_texts
from tests.tiny import save_tiny

Call = Callable[[str], tuple[int, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    save_tiny(tmp_path / "model")
    write_texts(tmp_path / "my.csv", 12)
    write_csv(tmp_path / "new.csv", ["text"], [[text] for text, _ in texts(5, seed=3)])
    monkeypatch.chdir(tmp_path)

    def run(words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["abmll", *words.split()])
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), " ".join((shown.out + shown.err).split())

    return run


def predicted(path: Path) -> np.ndarray:
    with path.open(newline="") as file:
        return np.array([[float(row["p_bad"]), float(row["p_good"])] for row in csv.DictReader(file)])


def test_answers_are_those_of_the_base_model_behind_the_written_out_rows(call: Call, tmp_path: Path) -> None:
    write_texts(tmp_path / "my.csv", 6)
    code, told = call("adapt model my.csv --save shown --in-prompt likelihood.kind=cloze adaptation.seed=4")
    assert code == 0, told
    assert "no adapting: 5 of 6 labelled rows fit" in told
    assert "6 rows as examples in the prompt" in told
    assert "Is it worth it" not in told
    assert call("predict runs/model --task shown new.csv -o out.jsonl --raw")[0] == 0
    labelled = read_labelled(Path("my.csv"), Layout())
    order = np.random.default_rng(4).permutation(6)
    written = "".join(
        f"{row.context}\n\nQuestion: {row.question}\nAnswer: {row.choices[row.answer or 0]}\n\n"
        for row in (labelled.rows[i] for i in order)
    )
    base = open_base(base_config("model"), {"likelihood": {"kind": "cloze"}})
    rows = [
        Question(row.id, row.question, row.choices, None, written + row.context)
        for row in read_unlabelled(Path("new.csv"), labelled.layout)
    ]
    expected = [answer.probabilities for answer in base.system.answer(rows, base.drawing)]
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([[row["p_bad"], row["p_good"]] for row in found], expected, atol=1e-6)
    plain = [answer.probabilities for answer in base.system.answer(read_unlabelled(Path("new.csv"), labelled.layout))]
    assert not np.allclose(plain, expected, atol=1e-4)


def test_its_temperature_is_learned_from_rows_behind_the_others_but_their_group(call: Call, tmp_path: Path) -> None:
    written = texts(8, seed=5)
    rows = [[text, label, f"g{i // 2}"] for i, (text, label) in enumerate(written)]
    write_csv(tmp_path / "my.csv", ["text", "label", "group"], rows)
    code, told = call("adapt model my.csv --save shown --in-prompt likelihood.kind=cloze adaptation.seed=2")
    assert code == 0, told
    found = read_posterior("runs/model", "shown").details["temperature"]
    assert (found["learned_from"], found["rows"]) == ("rows", 8)
    labelled, order = read_labelled(Path("my.csv"), Layout()).rows, np.random.default_rng(2).permutation(8)
    base, tables = open_base(base_config("model"), {"likelihood": {"kind": "cloze"}}), []
    for row in labelled:
        others = [labelled[i] for i in order if labelled[i].group != row.group]
        assert len(others) == 6
        asked = base.system.batcher.encoder.with_examples(row, others)
        tables.append(base.system.answer([asked], base.drawing)[0].probabilities)
    answers = np.array([row.answer for row in labelled])
    fitted = PosteriorTemperature().fit(ChoiceRows.from_scores(np.log(tables), answers))
    assert found["mean"] == pytest.approx(float(fitted.weights @ fitted.log_temperatures), abs=1e-5)
    for options in ("--raw", ""):
        assert call(f"predict runs/model --task shown new.csv -o out{options}.csv {options}")[0] == 0
    raw, tempered = (predicted(tmp_path / f"out{options}.csv") for options in ("--raw", ""))
    expected = fitted.apply(ChoiceRows.from_scores(np.log(raw), None))
    np.testing.assert_allclose(tempered, expected, atol=1e-5)
    assert call("adapt model my.csv --save bare --in-prompt --no-check likelihood.kind=cloze")[0] == 0
    assert read_posterior("runs/model", "bare").details["temperature"] is None


def test_a_task_without_examples_follows_one_with_them(call: Call) -> None:
    assert call("adapt model my.csv --save shown --in-prompt likelihood.kind=cloze")[0] == 0
    assert call("adapt model my.csv --save adapted --no-check likelihood.kind=cloze adaptation.steps=0")[0] == 0
    session = open_run(Path("runs/model"), {}, read_posterior("runs/model", "shown"))
    assert len(session.system.batcher.examples) == 12
    load_posterior("runs/model", "adapted", session.system)
    assert session.system.batcher.examples == ()


def test_rows_held_back_are_no_examples(call: Call) -> None:
    assert call("adapt model my.csv --save shown --in-prompt --hold-back 4 likelihood.kind=letter")[0] == 0
    saved = read_posterior("runs/model", "shown")
    rows = {row.context for row in read_labelled(Path("my.csv"), Layout()).rows}
    shown = {row.context for row in saved.examples_in_prompt}
    assert shown < rows
    assert len(shown) == 8
    assert len(saved.details["held_back"]["answers"]) == 4
    assert saved.details["temperature"]["rows"] == 8
    assert saved.details["steps"] == 0


def test_as_many_rows_as_fit_are_told(call: Call) -> None:
    code, told = call("adapt model my.csv --save few --in-prompt likelihood.kind=cloze likelihood.max_tokens=120")
    assert code == 0, told
    assert "labelled rows fit before a row in 120 tokens" in told
    assert "no adapting: 11 of 12" not in told


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("adapt model my.csv --in-prompt", "needs --save"),
        ("adapt model my.csv --save t --in-prompt adaptation.steps=3", "takes no adaptation.steps"),
        ("adapt model my.csv --save t --in-prompt likelihood.template=chat likelihood.kind=cloze", "no place for exam"),
        ("adapt runs/mine my.csv --save t --in-prompt", "--in-prompt is for a base model"),
    ],
)
def test_what_cannot_be_is_one_message(words: str, why: str, call: Call, tmp_path: Path) -> None:
    place_run(tmp_path)
    code, told = call(words)
    assert code == 2
    assert why in told


def test_no_adapter_is_made_of_it(call: Call) -> None:
    assert call("adapt model my.csv --save shown --in-prompt likelihood.kind=cloze")[0] == 0
    code, told = call("export runs/model --out out --task shown")
    assert code == 2
    assert "answers by labelled rows in the prompt" in told
    assert not Path("out").exists()


def test_examples_come_back_and_damaged_ones_are_refused(call: Call) -> None:
    rows = read_labelled(Path("my.csv"), Layout()).rows
    back = examples_from_json(json.loads(json.dumps(examples_to_json(rows))))
    kept = [(row.question, row.choices, row.answer, row.context) for row in rows]
    assert [(row.question, row.choices, row.answer, row.context) for row in back] == kept
    assert call("adapt model my.csv --save shown --in-prompt likelihood.kind=cloze")[0] == 0
    saved = read_posterior("runs/model", "shown")
    saved.details["examples_in_prompt"]["rows"][0]["answer"] = 2
    with pytest.raises(AbmllError, match=r"shown: its examples are damaged \(example 0: answer 2 of 2 choices\)"):
        _ = saved.examples_in_prompt


def shown_by_estimator(tmp_path: Path, **params: object) -> Classifier:
    settings = ("likelihood.kind=cloze",)
    found = Classifier("model", in_prompt=True, **{"seed": 4, "settings": settings, **params})  # type: ignore[arg-type]
    return found.fit(*zip(*texts(12), strict=True))


@pytest.mark.parametrize("kind", ["cloze", "auto"])
def test_the_estimator_answers_as_the_command(kind: str, call: Call, tmp_path: Path) -> None:
    """Held-back rows, temperature and probabilities; another estimator on the same model has no examples."""
    setting = f"likelihood.kind={kind}"
    code, told = call(f"adapt model my.csv --save shown --in-prompt --hold-back 3 adaptation.seed=4 {setting}")
    assert code == 0, told
    found = shown_by_estimator(tmp_path, hold_back=3, settings=(setting,))
    new = [text for text, _ in texts(5, seed=3)]
    saved = read_posterior("runs/model", "shown")
    assert [row.context for row in found._posterior.examples] == [row.context for row in saved.examples_in_prompt]
    assert found._temperature is not None
    assert found._temperature.mean == pytest.approx(saved.details["temperature"]["mean"], abs=1e-5)
    np.testing.assert_allclose(found._held_back.probabilities, saved.details["held_back"]["probabilities"], atol=1e-6)
    for options in ("--raw", ""):
        assert call(f"predict runs/model --task shown new.csv -o out{options}.csv {options}")[0] == 0
    before = found.predict_proba(new)
    np.testing.assert_allclose(before, predicted(tmp_path / "out.csv"), atol=1e-5)
    raw = [answer.probabilities for answer in found.answers(new, raw=True)]
    np.testing.assert_allclose(raw, predicted(tmp_path / "out--raw.csv"), atol=1e-5)
    other = Classifier("model", steps=0, settings=(setting,), temperature="none").fit(*zip(*texts(12), strict=True))
    assert other._shared is found._shared
    assert not np.allclose(other.predict_proba(new), raw, atol=1e-4)
    np.testing.assert_array_equal(found.predict_proba(new), before)
    found.save(tmp_path / "kept")
    np.testing.assert_allclose(Classifier.load(tmp_path / "kept").predict_proba(new), before, atol=1e-6)


def test_of_an_estimator_only_folds_give_a_temperature(call: Call, tmp_path: Path) -> None:
    assert shown_by_estimator(tmp_path, temperature="prior")._temperature is None
    assert shown_by_estimator(tmp_path, temperature="none")._temperature is None


def test_what_an_estimator_cannot_is_one_message(call: Call, tmp_path: Path) -> None:
    place_run(tmp_path)
    for params, why in (
        ({"steps": 3}, "in_prompt=True takes no steps (steps=3): nothing is adapted"),
        ({"settings": ("likelihood.kind=cloze", "likelihood.template=chat")}, "chat has no place for examples"),
        ({"run": "runs/mine"}, "in_prompt=True is for a base model"),
    ):
        with pytest.raises(AbmllError) as caught:
            Classifier(**{"run": "model", "in_prompt": True, **params}).fit(*zip(*texts(12), strict=True))  # type: ignore[arg-type]
        assert why in str(caught.value)
