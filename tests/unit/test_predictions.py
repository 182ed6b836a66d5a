"""The predictions file: what is written is read back, and damage is named with its file and line."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import abmll.metrics.predictions as predictions_module
from abmll.errors import AbmllError, NonFiniteError
from abmll.metrics.predictions import Prediction, Predictions, pad_probabilities, read_predictions

FULL = Predictions(
    system="abmll",
    task="toy",
    seed=2,
    draw=4,
    examples_consumed=4800,
    rows=(
        Prediction("q1", 0, (0.1 + 0.2, 0.7), vocabulary_confidence=0.55, spread=(0.01, 0.01)),
        Prediction("q2", 2, (1 / 3, 1 / 3, 1 / 3)),
        Prediction('q"3\u2028é\n', 1, (1.0, 0.0)),
    ),
    adaptation_rows=(Prediction("s1", 1, (0.25, 0.75)),),
    label_counts=(12, 8),
)


@pytest.fixture(scope="module")
def plain_reader():
    """`read_predictions` as users have it: annotations not enforced, as they are elsewhere under pytest."""
    spec = importlib.util.spec_from_file_location("plain_predictions", predictions_module.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module.read_predictions
    del sys.modules[spec.name]


def _written(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "toy.jsonl"
    FULL.write(path)
    return path, path.read_text().splitlines()


def _with(line: str, **changes) -> str:
    return json.dumps({**json.loads(line), **changes})


def test_round_trip_is_exact(tmp_path):
    path, _ = _written(tmp_path)
    assert read_predictions(path) == FULL


def test_round_trip_of_a_file_without_options(tmp_path):
    small = Predictions("lora", "toy", 0, 0, 0, rows=())
    small.write(tmp_path / "small.jsonl")
    assert read_predictions(tmp_path / "small.jsonl") == small


def test_file_is_json_lines_with_one_row_a_line(tmp_path):
    _, lines = _written(tmp_path)
    values = [json.loads(line) for line in lines]
    assert values[0]["abmll_predictions"] == 1
    assert [value["split"] for value in values[1:]] == ["test", "test", "test", "adaptation"]
    assert values[1]["probabilities"] == [0.1 + 0.2, 0.7]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["probabilities", "spread", "vocabulary_confidence"])
def test_trust_19_what_is_not_finite_is_no_prediction(where, number):
    values = {"probabilities": (0.5, 0.5), "spread": (0.1, 0.1), "vocabulary_confidence": 0.2}
    values[where] = number if where == "vocabulary_confidence" else (number, 0.5)
    with pytest.raises(NonFiniteError, match=r"question 'a': .* which is no prediction"):
        Prediction("a", 0, **values)


def test_padding_has_zeros_after_the_last_choice():
    padded = pad_probabilities(FULL.rows)
    assert padded.dtype == np.float64
    assert padded.tolist() == [[0.1 + 0.2, 0.7, 0], [1 / 3, 1 / 3, 1 / 3], [1, 0, 0]]
    assert pad_probabilities(()).shape == (0, 0)
    assert FULL.answers().tolist() == [0, 2, 1]


DAMAGE = {
    "cut in a row": (2, lambda line: line[: len(line) // 2]),
    "cut in the header": (1, lambda line: line[:20]),
    "a list for a row": (3, lambda line: "[1, 2]"),
    "a number for the header": (1, lambda line: "7"),
    "an empty line": (3, lambda line: ""),
    "another format": (1, lambda line: _with(line, abmll_predictions=99)),
    "an unknown header field": (1, lambda line: _with(line, surprise=1)),
    "label counts that are no list": (1, lambda line: _with(line, label_counts=3)),
    "an answer that is no choice": (2, lambda line: _with(line, answer=2)),
    "a negative answer": (2, lambda line: _with(line, answer=-1)),
    "no answer": (2, lambda line: _with(line, answer=None)),
    "no choices": (2, lambda line: _with(line, probabilities=[])),
    "probabilities that sum to 0.9": (2, lambda line: _with(line, probabilities=[0.3, 0.6])),
    "a probability that is NaN": (4, lambda line: _with(line, probabilities=[float("nan"), 1])),
    "a probability that is infinite": (4, lambda line: _with(line, probabilities=[float("inf"), 1])),
    "a probability that is a word": (4, lambda line: _with(line, probabilities=["high", 1])),
    "probabilities that are a number": (5, lambda line: _with(line, probabilities=1)),
    "a spread that is a number": (2, lambda line: _with(line, spread=0.1)),
    "an unknown split": (3, lambda line: _with(line, split="train")),
    "a split that is a list": (3, lambda line: _with(line, split=["test"])),
    "a negative probability": (2, lambda line: _with(line, probabilities=[1.5, -0.5])),
    "an answer that is a fraction": (2, lambda line: _with(line, answer=0.7)),
    "a vocabulary confidence that is a word": (2, lambda line: _with(line, vocabulary_confidence="high")),
    "a vocabulary confidence above 1": (2, lambda line: _with(line, vocabulary_confidence=1.5)),
    "a spread of another length": (2, lambda line: _with(line, spread=[0.1])),
    "a seed that is a word": (1, lambda line: _with(line, seed="two")),
    "label counts that are words": (1, lambda line: _with(line, label_counts=["a", "b"])),
    "a spread that is larger than any float": (2, lambda line: _with(line, spread=[10**400, 0])),
    "a question twice": (3, lambda line: _with(line, id="q1")),
}


def _check_damage(reader, folder: Path, number: int, damage) -> None:
    path, lines = _written(folder)
    lines[number - 1] = damage(lines[number - 1])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(AbmllError) as caught:
        reader(path)
    assert str(caught.value).startswith(f"{path}:{number}: ")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_with_file_and_line(plain_reader, tmp_path, kind):
    _check_damage(plain_reader, tmp_path, *DAMAGE[kind])


def test_missing_header_field_is_named(plain_reader, tmp_path):
    path, lines = _written(tmp_path)
    header = json.loads(lines[0])
    del header["seed"]
    path.write_text("\n".join([json.dumps(header), *lines[1:]]))
    with pytest.raises(AbmllError, match="seed") as caught:
        plain_reader(path)
    assert f"{path}:1: " in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", None])
def test_unreadable_empty_and_absent_files_are_named(plain_reader, tmp_path, content):
    path = tmp_path / "toy.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AbmllError, match=r"toy\.jsonl"):
        plain_reader(path)
