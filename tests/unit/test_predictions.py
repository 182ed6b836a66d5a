"""The predictions file: what is written is read back, and damage is named with its file and line."""

import importlib.util
import json
import sys
from dataclasses import replace
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


@pytest.fixture(scope="module", params=["annotations not enforced", "enforced"])
def plain_reader(request):
    """`read_predictions` as users have it: annotations not enforced; and as it is elsewhere under pytest."""
    if request.param == "enforced":
        yield read_predictions
        return
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


def test_a_prior_of_the_scale_is_kept_and_a_file_without_one_is_written_as_before(tmp_path):
    path, lines = _written(tmp_path)
    assert "scale_prior" not in json.loads(lines[0])
    known = replace(FULL, scale_prior=(0.25, 1.5))
    known.write(path)
    assert read_predictions(path) == known


@pytest.mark.parametrize("prior", [[1.0], [0.0, 0.0], [0.0, -1.0], "weak", [0.0, "1"], [True, 1.0]])
def test_a_prior_of_the_scale_that_is_none_is_damage(plain_reader, tmp_path, prior):
    path, lines = _written(tmp_path)
    path.write_text("\n".join([_with(lines[0], scale_prior=prior), *lines[1:]]))
    with pytest.raises(AbmllError, match=r":1: the header is damaged \(scale_prior\)$"):
        plain_reader(path)


def test_a_group_is_kept_and_rows_without_one_are_written_as_before(tmp_path):
    rows = (Prediction("q1", 0, (0.5, 0.5), group="story 1"), Prediction("q2", 0, (0.5, 0.5)))
    grouped = Predictions("lora", "toy", 0, 0, 0, rows=rows)
    path = tmp_path / "toy.jsonl"
    grouped.write(path)
    assert read_predictions(path) == grouped
    first, second = map(json.loads, path.read_text().splitlines()[1:])
    assert first["group"] == "story 1"
    assert "group" not in second


@pytest.mark.parametrize("group", [3, ["a"], True])
def test_a_group_that_is_no_text_is_damage(tmp_path, group):
    path, lines = _written(tmp_path)
    lines[1] = _with(lines[1], group=group)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(AbmllError, match=r"toy\.jsonl:2: group is .* not a text"):
        read_predictions(path)


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
    padded = pad_probabilities([row.probabilities for row in FULL.rows])
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


REASONS = {
    "cut in a row": r"not JSON \(.*\); the file is damaged, delete it$",
    "a list for a row": "expected an object, found list$",
    "another format": "not a predictions file of format 1; make it again with `abmll adapt`$",
    "an unknown header field": r"the header is damaged \(surprise\)$",
    "label counts that are no list": r"the header is damaged \(label_counts\)$",
    "label counts that are words": r"the header is damaged \(label_counts\)$",
    "a seed that is a word": r"the header is damaged \(seed\)$",
    "an answer that is no choice": "answer is 2 with 2 probabilities; the file is damaged, delete it$",
    "no choices": r"probabilities are \[\], not numbers in \[0, 1\]; the file is damaged, delete it$",
    "probabilities that sum to 0.9": "probabilities sum to 0.9, not to 1; the file is damaged, delete it$",
    "an unknown split": "split is 'train', none of 'test', 'adaptation', 'held_out', 'content_free'$",
    "a vocabulary confidence above 1": r"vocabulary_confidence is 1.5, not a number in \[0, 1\]; the file",
    "a spread of another length": r"spread is \[0.1\] with 2 probabilities; the file is damaged, delete it$",
    "a question twice": "question 'q1' occurs twice$",
}


@pytest.mark.parametrize("kind", REASONS)
def test_damage_is_said_as_what_it_is(plain_reader, tmp_path, kind):
    path, lines = _written(tmp_path)
    number, damage = DAMAGE[kind]
    lines[number - 1] = damage(lines[number - 1])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(AbmllError, match=REASONS[kind]):
        plain_reader(path)


def test_what_is_not_ours_and_what_was_edited_are_told_apart(plain_reader, tmp_path):
    path, lines = _written(tmp_path)
    path.write_text("\n".join([lines[0], _with(lines[1], answer=1), *lines[2:]]) + "\n")
    with pytest.raises(AbmllError, match=r"damaged or edited \(its SHA-256 is not the one it was .*\); delete it$"):
        plain_reader(path)
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(AbmllError, match=r":1: the header counts other rows than the \[3, 0\] that are there; .* cut$"):
        plain_reader(path)
    path.write_text("[]\n")
    with pytest.raises(AbmllError, match=r":1: not a predictions file of `abmll adapt` or `abmll compare`$"):
        plain_reader(path)


def test_a_file_of_an_early_version_has_no_seal(tmp_path):
    path, lines = _written(tmp_path)
    assert predictions_module.SEAL in json.loads(lines[0])
    head = {name: value for name, value in json.loads(lines[0]).items() if name != predictions_module.SEAL}
    path.write_text("\n".join([json.dumps(head), *lines[1:]]) + "\n")
    assert read_predictions(path) == FULL


def test_the_same_question_may_be_in_two_splits(tmp_path):
    row = Prediction("q", 0, (0.5, 0.5))
    both = Predictions("lora", "toy", 0, 0, 0, (row,), (row,), held_out_rows=(row,))
    both.write(tmp_path / "both.jsonl")
    assert read_predictions(tmp_path / "both.jsonl") == both


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({"probabilities": [1, 0], "spread": [0, 0.5]}, True),
        ({"probabilities": [1 + 5e-10, 0.0]}, True),
        ({"probabilities": [1 + 1e-8, 0.0]}, False),
        ({"probabilities": [0.50009, 0.5]}, True),
        ({"probabilities": [0.50011, 0.5]}, False),
        ({"vocabulary_confidence": 1 + 5e-10}, True),
        ({"vocabulary_confidence": 1 + 1e-8}, False),
        ({"vocabulary_confidence": 0}, True),
        ({"vocabulary_confidence": -1e-3}, False),
        ({"spread": [-0.1, 0.1]}, False),
        ({"spread": []}, False),
        ({"answer": 1}, True),
        ({"answer": True}, False),
        ({"id": 7}, False),
        ({"probabilities": [True, 0]}, False),
    ],
)
def test_numbers_are_taken_up_to_rounding(plain_reader, tmp_path, changes, taken):
    path, lines = _written(tmp_path)
    head = {name: value for name, value in json.loads(lines[0]).items() if name != predictions_module.SEAL}
    path.write_text("\n".join([json.dumps(head), _with(lines[1], **changes), *lines[2:]]) + "\n")
    if taken:
        row = plain_reader(path).rows[0]
        for name, value in changes.items():
            found = getattr(row, name)
            assert (list(found) if isinstance(found, tuple) else found) == value
            assert isinstance(found, int) == (name == "answer")
    else:
        with pytest.raises(AbmllError, match=r"toy\.jsonl:2: "):
            plain_reader(path)


def test_half_of_a_character_that_is_written_as_an_escape_is_damage(plain_reader, tmp_path):
    path, lines = _written(tmp_path)
    head = {name: value for name, value in json.loads(lines[0]).items() if name != predictions_module.SEAL}
    path.write_text("\n".join([json.dumps(head), _with(lines[1], id="half \ud83d"), *lines[2:]]) + "\n")
    with pytest.raises(
        AbmllError, match=r"toy\.jsonl:2: not JSON \('utf-8' codec can't encode .*\); the file is damaged"
    ):
        plain_reader(path)
    path.write_text("\n".join([json.dumps(head), _with(lines[1], id="whole \U0001f986"), *lines[2:]]) + "\n")
    assert plain_reader(path).rows[0].id == "whole \U0001f986"
