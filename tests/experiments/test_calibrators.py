"""The comparison of calibrators: what it reads, that it leaves the scored task out, and its tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from scipy.stats import ttest_rel

from abmll.calibrators import Calibrator, ChoiceRows, TaskRows
from abmll.calibrators.temperature import NoCalibration
from abmll.errors import AbmllError
from abmll.metrics.predictions import Prediction, Predictions
from experiments.calibrators import cost, worlds
from experiments.calibrators.__main__ import main
from experiments.calibrators.compare import Entry, TaskScores, average_system, compare, difference
from experiments.calibrators.files import read_systems
from experiments.calibrators.weak import left_out
from experiments.short_json import read_gzipped
from experiments.unseen.packing import Packed, write_packed
from tests.calibrators import mean_nll, simulated_rows, simulated_tasks


def _predictions(system: str, task: str, seed: int, *, folds: bool = True) -> Predictions:
    def rows(count: int, first: int) -> tuple[Prediction, ...]:
        made = simulated_rows(first, count, temperature=3.0)
        pairs = zip(made.probabilities(), made.answers, strict=True)
        return tuple(Prediction(f"{first}-{i}", int(a), tuple(p.tolist())) for i, (p, a) in enumerate(pairs))

    test, learned = rows(30, 100 * seed), rows(20, 100 * seed + 1)
    held_out = rows(20, 100 * seed + 2) if folds else ()
    return Predictions(system, task, 0, 0, 0, test, learned, (5, 5, 5, 5), held_out)


TASKS = ("first", "second", "third")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two systems: one in a packed file, before and after adapting, one in predictions files of two checkpoints."""
    files = {("examples-00000010", 0, task): _predictions("pretrained", task, i) for i, task in enumerate(TASKS)}
    files |= {
        ("before-adaptation", 0, task): _predictions("pretrained", task, 10 + i, folds=False)
        for i, task in enumerate(TASKS)
    }
    write_packed(Packed({"seed": 0}, {"pretrained": files}), tmp_path / "stored" / "pretrained.parquet")
    for i, task in enumerate(TASKS):
        for number, checkpoint in enumerate(("before-adaptation", "examples-00000010", "examples-00000020")):
            path = tmp_path / "stored" / "reptile" / checkpoint / "draw-0" / f"{task}.jsonl"
            _predictions("reptile", task, 20 + 10 * number + i, folds=number > 0).write(path)
    return tmp_path / "stored"


def test_both_kinds_of_files_are_read_at_the_last_checkpoint(folder: Path) -> None:
    systems = read_systems([folder])
    assert sorted(systems) == ["pretrained", "pretrained, not adapted", "reptile"]
    for name, seed in (("pretrained", 0), ("reptile", 40)):
        assert [task.name for task in systems[name]] == list(TASKS)
        expected = TaskRows.from_predictions(_predictions(name, "first", seed))
        assert systems[name][0].held_out.log_probabilities == pytest.approx(
            expected.held_out.log_probabilities, abs=1e-5
        )
        assert systems[name][0].test.log_probabilities == pytest.approx(expected.test.log_probabilities, abs=1e-5)
    before = systems["pretrained, not adapted"][0]
    assert before.held_out.log_probabilities == pytest.approx(simulated_rows(1001, 20).log_probabilities, abs=1e-5)


def test_a_folder_without_held_out_rows_is_refused(tmp_path: Path) -> None:
    _predictions("lora", "first", 0, folds=False).write(tmp_path / "examples-00000001" / "draw-0" / "first.jsonl")
    with pytest.raises(AbmllError, match=r"adaptation\.folds"):
        read_systems([tmp_path])


class Recorder(NoCalibration):
    """Remembers which tasks it was taught by."""

    name: ClassVar[str] = "recorder"
    seen: tuple[str, ...] = ()
    taught: ClassVar[list[tuple[tuple[str, ...], int]]] = []

    def meta_fit(self, tasks: Sequence[TaskRows]) -> Calibrator:
        return self.model_copy(update={"seen": tuple(task.name for task in tasks)})

    def _fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None):
        self.taught.append((self.seen, len(held_out)))
        return super()._fit(held_out, content_free)


def test_the_scored_task_does_not_teach() -> None:
    tasks = simulated_tasks(3)
    twice = [*tasks, tasks[0]]  # a second draw of the first task
    Recorder.taught.clear()
    scores = compare({"toy": twice}, entries=[Entry("recorder", Recorder())])["toy"]
    names = [task.name for task in twice]
    assert [seen for seen, _ in Recorder.taught] == [tuple(n for n in names if n != name) for name in names]
    assert list(scores["recorder"].nll) == [task.name for task in tasks]
    expected = mean_nll(tasks[1].test.probabilities(), tasks[1].test)
    assert scores["recorder"].nll[tasks[1].name] == pytest.approx(expected)
    assert scores["uniform"].nll[tasks[1].name] == pytest.approx(np.log(4))
    assert scores["best temperature in hindsight"].nll[tasks[1].name] <= expected


def test_other_tasks_learn_from_the_training_tasks() -> None:
    training, others = simulated_tasks(3), simulated_tasks(2, seed=5)
    Recorder.taught.clear()
    scores = compare({"toy": others, "new": others}, {"toy": training}, [Entry("recorder", Recorder())])
    assert {seen for seen, _ in Recorder.taught} == {tuple(task.name for task in training)}
    assert list(scores) == ["toy"], "nothing can be learned for a system without training tasks, so it is not averaged"


def test_differences_have_the_interval_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = (TaskScores({f"t{i}": float(x) for i, x in enumerate(rng.normal(size=9))}) for _ in range(2))
    mean, low, high = difference(a, b)
    test = ttest_rel(list(a.nll.values()), list(b.nll.values()))
    assert mean == pytest.approx(np.mean(list(a.nll.values())) - np.mean(list(b.nll.values())))
    assert (low, high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert difference(a, a) == (0.0, 0.0, 0.0)
    part = TaskScores({"t3": a.nll["t3"]})
    assert difference(part, b)[0] == pytest.approx(a.nll["t3"] - b.nll["t3"])


def test_a_task_is_averaged_over_the_systems_that_have_it() -> None:
    both, one = TaskScores({"t": 1.0, "u": 2.0}, {"t": 0.1, "u": 0.2}), TaskScores({"t": 3.0}, {"t": 0.3})
    average = average_system({"a": {"none": both}, "b": {"none": one}})["none"]
    assert average.nll == {"t": 2.0, "u": 2.0}
    assert average.ece == {"t": pytest.approx(0.2), "u": 0.2}


def test_a_left_out_task_does_not_choose_its_prior() -> None:
    priors = {(0.0, 1.0): {"a": 0.0, "b": 0.0, "c": 9.0}, (1.0, 1.0): {"a": 1.0, "b": 1.0, "c": 1.0}}
    nll, chosen = left_out(priors)  # "c" alone speaks against the first
    assert chosen == {(0.0, 1.0): 1, (1.0, 1.0): 2}
    assert nll == pytest.approx((1.0 + 1.0 + 9.0) / 3)


def test_end_to_end(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(worlds, "TASKS", 2)
    monkeypatch.setattr(worlds, "TRAINING", 2)
    monkeypatch.setattr(worlds, "PRIORS", worlds.PRIORS[:1])
    monkeypatch.setattr(cost, "TRAINING", 2)
    monkeypatch.setattr(cost, "ROWS", 20)
    out = tmp_path / "results"
    main([str(folder), "--out", str(out)])
    results = read_gzipped(out / "results.json.gz")
    assert set(results) == {"environment", "training", "weak_prior", "worlds", "cost"}
    assert results["training"]["all systems"]["posterior temperature"]["tasks"] == 3
    assert results["training"]["reptile"]["none"]["minus_none"] == [0.0, 0.0, 0.0]
    tables = (out / "tables.md").read_text(encoding="utf-8")
    assert "| posterior temperature | 3 |" in tables
    assert "nan" not in tables.lower()

    _predictions("lora", "first", 7).write(tmp_path / "more" / "lora" / "examples-00000010" / "draw-0" / "first.jsonl")
    main([str(folder), "--others", str(folder), str(tmp_path / "more"), "--out", str(out)])
    others = read_gzipped(out / "others.json.gz")
    assert set(others["others"]) == {"all systems", "pretrained", "pretrained, not adapted", "reptile"}
    assert others["left_out"] == ["lora"]
    assert "learn from: lora." in (out / "others.md").read_text(encoding="utf-8")
    assert read_gzipped(out / "results.json.gz") == results, "it is left as it was"
    with pytest.raises(SystemExit):
        main([str(folder), "--others", str(tmp_path / "more"), "--out", str(out)])
    assert "no system of the training tasks among the others (lora)" in capsys.readouterr().err

    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "nowhere"), "--out", str(out)])
    assert stop.value.code == 2
    assert "no predictions with held-out rows" in capsys.readouterr().err
