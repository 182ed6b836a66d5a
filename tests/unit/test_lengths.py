"""Lengths of questions beside their answers: asked for, written, read, and features of Thermometer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from abmll.calibrators import TaskRows, calibrated, calibrator
from abmll.errors import AbmllError
from abmll.metrics.baselines import uniform
from abmll.metrics.ensemble import ensemble
from abmll.metrics.predictions import Prediction, Predictions, read_predictions
from abmll.process.timer import Timer
from abmll.question import Task
from abmll.runs.cells import BEFORE, Cell, Cells
from experiments.unseen.packing import Packed, read_packed, write_packed
from tests.calibrators import simulated_rows
from tests.runs import run_in
from tests.systems import TASKS, run_config, system_of
from tests.tiny import tiny_tokenizer


def _rows(seed: int, count: int) -> tuple[Prediction, ...]:
    made = simulated_rows(seed, count, temperature=1.0 + seed % 5)
    rng = np.random.default_rng(seed)
    return tuple(
        Prediction(f"{seed}-{i}", int(a), tuple(p.tolist()), lengths=(int(rng.integers(5, 50)) * (1 + seed % 5), 7))
        for i, (p, a) in enumerate(zip(made.probabilities(), made.answers, strict=True))
    )


def _file(seed: int = 0) -> Predictions:
    return Predictions("reptile", f"toy{seed}", 0, 0, 0, _rows(seed, 30), held_out_rows=_rows(100 + seed, 20))


def test_they_are_written_where_they_are_known_and_read_again(tmp_path: Path) -> None:
    _file().write(tmp_path / "toy.jsonl")
    assert read_predictions(tmp_path / "toy.jsonl") == _file()
    plain = replace(_file(), rows=tuple(replace(row, lengths=None) for row in _file().rows), held_out_rows=())
    plain.write(tmp_path / "toy.jsonl")
    assert "lengths" not in (tmp_path / "toy.jsonl").read_text()
    assert read_predictions(tmp_path / "toy.jsonl") == plain


@pytest.mark.parametrize("damaged", ["[7]", "[7, 0]", "[7, true]", '"long"', "[7.5, 2]", "[1, 2, 3]"])
def test_what_is_no_pair_of_lengths_is_refused(tmp_path: Path, damaged: str) -> None:
    replace(_file(), held_out_rows=(), rows=_file().rows[:1]).write(tmp_path / "toy.jsonl")
    text = (tmp_path / "toy.jsonl").read_text()
    pair = list(_file().rows[0].lengths or ())
    (tmp_path / "toy.jsonl").write_text(text.replace(f'"lengths": {pair}', f'"lengths": {damaged}'))
    with pytest.raises(AbmllError, match=r"toy\.jsonl:2: lengths are"):
        read_predictions(tmp_path / "toy.jsonl")


def test_packed_files_ensembles_and_guesses_keep_them(tmp_path: Path) -> None:
    write_packed(Packed({"seed": 0}, {"reptile": {(BEFORE, 0, "toy0"): _file()}}), tmp_path / "packed.parquet")
    (packed,) = read_packed(tmp_path / "packed.parquet").found["reptile"].values()
    for made in (packed, ensemble([_file(), _file()], "ensemble"), uniform(_file())):
        assert [row.lengths for row in made.rows] == [row.lengths for row in _file().rows]


def test_a_run_that_asks_for_them_writes_the_numbers_of_tokens(tmp_path: Path) -> None:
    adaptation = {"examples": 6, "steps": 1, "test_questions": 4, "samples": 2, "folds": 2, "lengths": True}
    config = run_config("reptile", adaptation=adaptation)
    task = Task("unseen", TASKS[2].train, TASKS[2].test)
    run = run_in(tmp_path, config, TASKS[:1], (task,))
    Cells(run).make(system_of("reptile"), Cell(task, 0, 0, 0, "examples-00000000", run.adaptation), Timer())
    (path,) = tmp_path.glob("predictions/examples-*/draw-0/*.jsonl")
    found, tokenizer = read_predictions(path), tiny_tokenizer()
    for row, question in zip(found.rows, task.test, strict=False):
        prompt = f"{question.context}\n\nQuestion: {question.question}\nAnswer:"
        start = len(tokenizer(prompt)["input_ids"])
        choices = [len(tokenizer(f"{prompt} {choice}")["input_ids"]) - start for choice in question.choices]
        assert row.lengths == (start, sum(choices))
    assert all(row.lengths for row in (*found.adaptation_rows, *found.held_out_rows))


def test_thermometer_takes_their_logarithms_as_features() -> None:
    task = TaskRows.from_predictions(_file(), lengths=True)
    assert task.test.features == pytest.approx(np.log([row.lengths for row in _file().rows]))
    thermometer = calibrator("thermometer").meta_fit(
        [TaskRows.from_predictions(_file(seed), lengths=True) for seed in range(1, 9)]
    )
    assert abs(thermometer.coefficients[3]) > 0.1  # the longer, the higher the temperature of these tasks
    found = calibrated(_file(), thermometer, lengths=True)
    assert found.rows[0].probabilities != _file().rows[0].probabilities
    with pytest.raises(AbmllError, match="5 features a row"):
        calibrated(_file(), thermometer)


def test_rows_without_them_are_named() -> None:
    rows = (*_file().rows[:2], replace(_file().rows[2], lengths=None))
    with pytest.raises(AbmllError, match=r"question '0-2' has no lengths; predict with adaptation\.lengths=true"):
        TaskRows.from_predictions(replace(_file(), rows=rows), lengths=True)
