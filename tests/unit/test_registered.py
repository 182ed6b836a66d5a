"""Sources and metrics of somebody else's: their rows and numbers are checked as the library's own are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abmll.config import CompareConfig
from abmll.errors import AbmllError
from abmll.metrics.predictions import Prediction, Predictions
from abmll.report import write_report
from abmll.report.tables import score_table
from abmll.runs.prepare import comparison_runs
from abmll.scoring.registered import SCORES, register_metric, score_with
from abmll.tasks.registered import RawTask, register_source
from abmll.tasks.sources import load_tasks
from tests.registries import fresh_registries
from tests.report_folder import make_folder


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Nothing that a test registers is left for others."""
    with fresh_registries():
        yield


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"question": f"Is {number} even?", "choices": ["yes", "no"], "answer": number % 2, **changes}


def two_tasks(rest: str) -> Iterator[RawTask]:
    yield RawTask("numbers", map(row, range(4)), [row(9)], licence="CC0-1.0")
    yield RawTask("more numbers", [row(n, id=f"n{n}") for n in range(10, 12)])


def test_rows_of_a_source_become_tasks() -> None:
    register_source("twos", two_tasks)
    numbers, more = load_tasks("twos:here")
    assert (numbers.name, numbers.source, numbers.licence, numbers.skipped) == ("numbers", "twos:here", "CC0-1.0", 0)
    assert [question.answer for question in numbers.train] == [0, 1, 0, 1]
    assert numbers.train[0].location == "twos:here/numbers.train:1"
    assert [question.id for question in more.train] == ["n10", "n11"]
    assert more.test == ()
    assert [task.name for task in load_tasks("twos", names=["more numbers"])] == ["more numbers"]
    with pytest.raises(AbmllError, match=r"unknown task 'number'. Did you mean 'numbers'"):
        load_tasks("twos", names=["number"])


def test_a_source_is_called_with_what_follows_the_colon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def source(rest: str) -> list[RawTask]:
        asked.append(rest)
        return [RawTask("a", [row(1)])]

    monkeypatch.setenv("HOME", str(tmp_path))
    register_source("asked", source)
    for spec in ("asked", "asked:", "asked:a:b", "asked:~/quiz.db", f"asked:{tmp_path}/quiz.db"):
        (task,) = load_tasks(spec)
    assert asked == ["", "", "a:b", f"{tmp_path}/quiz.db", f"{tmp_path}/quiz.db"]
    assert task.source == "asked:~/quiz.db", "a path below the home folder is kept as ~"


def test_every_bad_row_of_a_source_is_named_at_once_or_skipped() -> None:
    bad = [row(1), row(2, answer="maybe"), 7, row(3, question=" ")]
    register_source(
        "bad", lambda rest: [RawTask("a", iter(bad), [row(1)]), RawTask("b", [row(1), row(5, choices=["x"])])]
    )
    with pytest.raises(AbmllError) as refused:
        load_tasks("bad")
    message = str(refused.value)
    for line in ("a.train:2: answer 'maybe'", "a.train:3: not a mapping but 7", "a.train:4: question is empty"):
        assert f"bad/{line}" in message
    assert "bad/a.test:1: the same question is in a.train:1" in message
    assert "bad/b.train:2: has 1 choice" in message
    with pytest.raises(AbmllError, match=r"a.test:1"):
        load_tasks("bad", on_bad_row="skip")  # a split without a good row
    (task,) = load_tasks("bad", names=["b"], on_bad_row="skip")
    assert (len(task.train), task.skipped) == (1, 1)


def fails(rest: str) -> Iterator[RawTask]:
    yield RawTask("a", [row(1)])
    raise RuntimeError("the server is away")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (fails, r"source 'it:x' cannot be read \(RuntimeError: the server is away\)"),
        (lambda rest: [RawTask("a", iter([row(1), 1 / 0]))], "cannot be read .*ZeroDivisionError"),
        (lambda rest: [], "gives no task"),
        (lambda rest: 7, "cannot be read .*TypeError"),
        (lambda rest: ["a"], "cannot be read .*AttributeError"),
        (lambda rest: [RawTask("a", [row(1)]), RawTask("a", [row(2)])], "gives two tasks of one name"),
        (lambda rest: [RawTask("../a", [row(1)])], "cannot name a task"),
        (lambda rest: [RawTask("a", [])], "a.train:1: the file has no rows"),
    ],
)
def test_a_source_that_fails_ends_in_one_message(source: Any, message: str) -> None:
    register_source("it", source)
    with pytest.raises(AbmllError, match=message):
        load_tasks("it:x")


def test_a_spec_that_is_nearly_a_source_gets_a_hint() -> None:
    register_source("twos", two_tasks)
    with pytest.raises(AbmllError, match=r"no such folder or file.* Did you mean twos:"):
        load_tasks("tows:here")
    with pytest.raises(AbmllError, match="Did you mean builtin:"):
        load_tasks("builtn:capitals")
    for name in ("builtin", "hub"):
        with pytest.raises(AbmllError, match="is abmll's own"):
            register_source(name, two_tasks)


def spread_of_answers(predictions: Predictions) -> float | None:
    """How many of the choices were ever predicted, as a share.

    More about it, which no report shows.
    """
    probabilities = predictions.probabilities()
    return len(set(probabilities.argmax(1).tolist())) / probabilities.shape[1]


PREDICTIONS = Predictions("s", "t", 0, 0, 0, (Prediction("a", 0, (0.75, 0.25)), Prediction("b", 1, (0.75, 0.25))))


def test_a_metric_is_a_number_beside_the_library_s_own() -> None:
    register_metric("spread", spread_of_answers)
    scores = score_with(PREDICTIONS, ["spread"])
    assert scores.more == {"spread": 0.5}
    assert list(json.loads(json.dumps(scores.to_dict()))) == ["n", *SCORES, "spread"]
    assert score_with(PREDICTIONS, []).to_dict().keys() == {"n", *SCORES}


def test_a_report_has_a_column_a_definition_and_a_key_for_a_metric(tmp_path: Path) -> None:
    register_metric("spread", spread_of_answers)
    folder = make_folder(tmp_path, seeds=1, draws=1, questions=20, systems=("lora", "abmll"))
    file = folder / "comparison.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "metrics": ["spread"]}), encoding="utf-8")
    summary = write_report(folder)
    assert summary["metrics"] == {"spread": "How many of the choices were ever predicted, as a share."}
    assert 0 < summary["systems"]["lora"]["spread"] <= 1
    assert summary["systems"]["lora"]["spread_standard_error"] is None
    assert summary["tasks"]["boolean"]["uniform"]["spread"] == 0.5  # always the first of two
    table = score_table(summary)
    assert table.header[-1] == "spread"
    assert table.rows[0][-1] == f"{summary['systems']['lora']['spread']:.3f}"
    assert "spread: How many of the choices" in (folder / "table.md").read_text()
    assert "How many of the choices" in (folder / "report.html").read_text()


def test_a_metric_that_is_missing_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    register_metric("spread", spread_of_answers)
    folder = make_folder(tmp_path, seeds=1, draws=1, questions=20, systems=("lora", "abmll"))
    file = folder / "comparison.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "metrics": ["spred"]}), encoding="utf-8")
    with pytest.raises(AbmllError, match=r"unknown metric 'spred'. Did you mean 'spread'\?.*docs/add-a-metric.md"):
        write_report(folder)
    config = {"model": {"shape": "tiny-llama"}, "systems": {"lora": {}}, "reference": "lora", "metrics": ["spred"]}
    tasks = {"train": {"source": "builtin:plurals"}, "unseen": {"source": "builtin:capitals"}}
    with pytest.raises(AbmllError, match="Did you mean 'spread'"):
        comparison_runs(CompareConfig.model_validate({**config, "tasks": tasks}))
    with pytest.raises(AbmllError, match="metric 'nll' is abmll's own and is not named here"):
        comparison_runs(CompareConfig.model_validate({**config, "tasks": tasks, "metrics": ["nll"]}))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda predictions: 1 / 0, r"metric 'it' fails \(ZeroDivisionError"),
        (lambda predictions: float("nan"), "metric 'it' gives nan"),
        (lambda predictions: "0.5", "metric 'it' fails .TypeError"),
    ],
)
def test_a_metric_that_fails_or_is_not_finite_is_an_error(metric: Any, message: str) -> None:
    metric.__doc__ = "It."
    register_metric("it", metric)
    with pytest.raises(AbmllError, match=message):
        score_with(PREDICTIONS, ["it"])


@pytest.mark.parametrize("name", ["accuracy", "nll_scaled_cv", "kind", "n", "mine_interval", "mine_standard_error"])
def test_a_metric_cannot_take_a_key_of_results_json(name: str) -> None:
    with pytest.raises(AbmllError, match="choose another name"):
        register_metric(name, spread_of_answers)


def test_a_metric_needs_a_definition() -> None:
    with pytest.raises(AbmllError, match="has no docstring"):
        register_metric("mine", lambda predictions: 1.0)
