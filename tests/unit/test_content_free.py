"""Answers to questions without content: asked for, written, read, and what contextual calibration makes of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from abmll.calibrators import TaskRows, calibrated, calibrator
from abmll.errors import AbmllError
from abmll.metrics.baselines import uniform
from abmll.metrics.ensemble import ensemble
from abmll.metrics.predictions import Prediction, Predictions, read_predictions
from abmll.process.timer import Timer
from abmll.process.world import World
from abmll.question import CONTENT_FREE, Question, Task, without_content
from abmll.runs.cells import BEFORE, Cell, Cells
from abmll.runs.compare import complete_run
from abmll.runs.overrides import OWN_ROWS
from abmll.systems.build import build_system
from abmll.systems.plans import adaptation_plan
from abmll.systems.system import System
from experiments.unseen.packing import Packed, read_packed, write_packed
from tests.runs import run_in
from tests.systems import TASKS, run_config, system_of, tiny_base

FREE = tuple(Prediction(f"content-free {text!r}", -1, p) for text, p in (("", (0.9, 0.1)), ("N/A", (0.5, 0.5))))
FILE = Predictions(
    "reptile",
    "toy",
    0,
    0,
    0,
    rows=(Prediction("a", 0, (0.7, 0.3)), Prediction("b", 1, (0.4, 0.6))),
    adaptation_rows=(Prediction("c", 1, (0.2, 0.8)),),
    label_counts=(0, 1),
    content_free_rows=FREE,
)
LABELLED, OPEN = TASKS[1], TASKS[2]
SETTINGS: dict[str, Any] = {"examples": 6, "steps": 2, "test_questions": 4, "samples": 2}


def test_a_file_with_such_rows_is_read_as_it_was_written(tmp_path: Path) -> None:
    FILE.write(tmp_path / "toy.jsonl")
    assert read_predictions(tmp_path / "toy.jsonl") == FILE
    head = json.loads((tmp_path / "toy.jsonl").read_text().splitlines()[0])
    assert head["row_counts"] == [2, 1, 0, 2]
    assert head["abmll_predictions"] == 1


def test_a_file_without_them_says_nothing_of_them(tmp_path: Path) -> None:
    plain = replace(FILE, content_free_rows=())
    for held_out, counts in (((), [2, 1]), (plain.adaptation_rows, [2, 1, 1])):
        replace(plain, held_out_rows=held_out).write(tmp_path / "toy.jsonl")
        text = (tmp_path / "toy.jsonl").read_text()
        assert json.loads(text.splitlines()[0])["row_counts"] == counts
        assert "content_free" not in text


def test_a_row_without_content_has_no_right_answer(tmp_path: Path) -> None:
    replace(FILE, content_free_rows=(replace(FREE[0], answer=0),)).write(tmp_path / "toy.jsonl")
    with pytest.raises(AbmllError, match=r"toy\.jsonl:5: answer is 0"):
        read_predictions(tmp_path / "toy.jsonl")


def test_a_packed_file_keeps_them(tmp_path: Path) -> None:
    write_packed(Packed({"seed": 0}, {"reptile": {(BEFORE, 0, "toy"): FILE}}), tmp_path / "packed.parquet")
    (found,) = read_packed(tmp_path / "packed.parquet").found["reptile"].values()
    assert [row.id for row in found.content_free_rows] == [row.id for row in FREE]
    for mine, theirs in zip(found.content_free_rows, FREE, strict=True):
        assert (mine.answer, mine.probabilities) == (-1, pytest.approx(theirs.probabilities, abs=1e-6))


def test_an_ensemble_averages_them_and_a_guess_guesses_them() -> None:
    other = replace(FILE, content_free_rows=tuple(replace(row, probabilities=(0.3, 0.7)) for row in FREE))
    made = ensemble([FILE, other], "ensemble")
    assert [row.probabilities for row in made.content_free_rows] == [
        pytest.approx((0.6, 0.4)),
        pytest.approx((0.4, 0.6)),
    ]
    assert {row.probabilities for row in uniform(FILE).content_free_rows} == {(0.5, 0.5)}


def test_contextual_calibration_divides_by_their_mean() -> None:
    found = calibrated(FILE, calibrator("contextual"))
    prior = np.array([0.7, 0.3])
    for row, stated in zip(found.rows, FILE.rows, strict=True):
        expected = np.array(stated.probabilities) / prior
        assert row.probabilities == pytest.approx((expected / expected.sum()).tolist())
    assert found.content_free_rows == ()
    task = TaskRows.from_predictions(FILE)
    assert task.content_free is not None
    assert task.content_free.probabilities() == pytest.approx(np.array([[0.9, 0.1], [0.5, 0.5]]))
    with pytest.raises(AbmllError, match="contextual"):
        calibrated(replace(FILE, content_free_rows=()), calibrator("contextual"))


def _complete(folder: Path, system: System, tasks: tuple[Task, ...], **adaptation: Any) -> dict[str, Predictions]:
    """What a comparison writes of a system after adapting, by task."""
    config = run_config("reptile", adaptation={**SETTINGS, **adaptation})
    run = run_in(folder / "reptile" / "seed-0", config, TASKS[:1], tasks)
    complete_run(run, system, lambda event: None, World())
    files = (folder / "reptile" / "seed-0" / "predictions").glob("examples-*/draw-0/*.jsonl")
    return {path.stem: read_predictions(path) for path in files}


def _unseen(task: Task) -> Task:
    return Task(f"unseen-{task.name}", task.train, task.test)


def test_a_comparison_writes_what_the_adapted_system_says_of_such_texts(tmp_path: Path) -> None:
    system = system_of("reptile", adaptation={**SETTINGS, "content_free": True})
    tasks = _unseen(LABELLED), _unseen(OPEN)
    found = _complete(tmp_path, system, tasks, content_free=True)
    assert found[tasks[1].name].content_free_rows == ()  # its choices differ from question to question
    rows = found[tasks[0].name].content_free_rows
    system.adapt(tasks[0], adaptation_plan(system.config))
    labels = tasks[0].fixed_labels
    assert labels is not None
    asked = tuple(Question(f"mine {i}", text, labels, 0) for i, text in enumerate(CONTENT_FREE))
    for row, own in zip(rows, system.predict(asked), strict=True):
        assert row.answer == -1
        assert row.probabilities == pytest.approx(own.probabilities, abs=1e-6)
    contextual = calibrated(found[tasks[0].name], calibrator("contextual", {"scale": {}}))
    assert all(sum(row.probabilities) == pytest.approx(1.0) for row in contextual.rows)


def _forwards(folder: Path, **adaptation: Any) -> list[torch.Size]:
    """Shapes of the forward passes of making a cell of a task with fixed labels."""
    config = run_config("reptile", adaptation={**SETTINGS, **adaptation})
    task = _unseen(LABELLED)
    run = run_in(folder, config, TASKS[:1], (task,))
    base = tiny_base()
    system = build_system(config, base)
    shapes: list[torch.Size] = []
    base.model.model.register_forward_pre_hook(
        lambda module, given, named: shapes.append(named["input_ids"].shape), with_kwargs=True
    )
    Cells(run).make(system, Cell(task, 0, 0, 0, "examples-00000000", run.adaptation), Timer())
    return shapes


def test_a_run_that_does_not_ask_for_them_computes_nothing_more(tmp_path: Path) -> None:
    plain = _forwards(tmp_path / "plain")
    assert len(plain) == 2 + 1 + 1  # steps of adaptation; the scored questions; the examples
    assert [shape[0] for shape in plain] == [2, 2, 4, 6]
    asked = _forwards(tmp_path / "asked", content_free=True)
    assert asked[:-1] == plain
    assert asked[-1][0] == len(CONTENT_FREE)


def test_one_text_is_what_a_premise_is_to_the_likelihood() -> None:
    plain, pmi = system_of("reptile"), system_of("reptile", likelihood={"premise": "N/A"})
    labels = LABELLED.fixed_labels
    assert labels is not None
    free = plain.predict((without_content(labels, "N/A"),))
    stated = replace(FILE, rows=plain.predict(LABELLED.test), content_free_rows=free)
    for row, expected in zip(
        calibrated(stated, calibrator("contextual")).rows, pmi.predict(LABELLED.test), strict=True
    ):
        assert row.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_it_is_no_setting_for_rows_of_ones_own() -> None:
    assert "adaptation.content_free" in OWN_ROWS
