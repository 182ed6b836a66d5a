"""Predictions: what a system said of each question, and the file it is kept in.

Every score is computed from these files alone; no model is needed. A file is JSON lines: a header object,
then one object per question.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from abmll.errors import AbmllError, NonFiniteError
from abmll.files import SEAL, check_regular, seal, write_text

FORMAT = 1
SPLITS = ("test", "adaptation", "held_out", "content_free")
"""Of the rows of a file. Early versions know the first two or three, and a file without the others is written so."""
ROWS_OF = dict(zip(SPLITS, ("rows", "adaptation_rows", "held_out_rows", "content_free_rows"), strict=True))
"""The field of `Predictions` that has a split's rows."""
CONTENT_FREE = "content_free"
NO_ANSWER = -1
LATER = ("adapted", "scale_prior")
"""Fields that files of early versions do not have, written where they are known."""
LATER_COLUMNS = ("group", "lengths")
"""The same of rows."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was said of one question.

    Attributes:
        id: the question's id.
        answer: index of the right choice; -1 for a question without content, which has none.
        probabilities: over the choices, in their order, summing to 1 (confidence kind `choices`).
        vocabulary_confidence: raw probability of the predicted letter's token, before renormalising over the
            options (confidence kind `vocabulary`); None for `cloze`, where it is undefined.
        spread: standard deviation of each probability over posterior draws; None without draws.
        group: questions of one group belong together, see `abmll.Question`; None: it stands alone.
        lengths: tokens of the prompt, and of all the choices; None where they were not asked for.

    Raises:
        NonFiniteError: a number is NaN or infinite: that is no prediction.

    >>> Prediction("a", 0, (float("nan"), 0.5))
    Traceback (most recent call last):
    ...
    abmll.errors.NonFiniteError: question 'a': a probability, spread or confidence is nan, which is no prediction
    """

    id: str
    answer: int
    probabilities: tuple[float, ...]
    vocabulary_confidence: float | None = None
    spread: tuple[float, ...] | None = None
    group: str | None = None
    lengths: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are not finite."""
        confidence = () if self.vocabulary_confidence is None else (self.vocabulary_confidence,)
        for value in (*self.probabilities, *(self.spread or ()), *confidence):
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"question {self.id!r}: a probability, spread or confidence is {value}, which is no prediction"
                )


@dataclass(frozen=True)
class Predictions:
    """All predictions of one system, training seed, adaptation draw and checkpoint on one task.

    Attributes:
        system: name of the system, as in a comparison's table.
        task: name of the task.
        seed: training seed.
        draw: number of the adaptation draw (which examples were drawn to adapt on).
        examples_consumed: examples that meta-training had used at this checkpoint; 0 before it.
        rows: the scored (test) questions.
        adaptation_rows: the same for the examples adapted on, after adapting: what temperature scaling
            may be fitted to.
        held_out_rows: the same examples, each predicted after adapting to those of the other folds: what temperature
            scaling should be fitted to; empty if that was not done.
        label_counts: how often each label is the answer among the adaptation examples, for a task with fixed
            labels; None where the choices differ between questions.
        adapted: whether the task was adapted to before predicting; None where a file of an early version does not say.
        scale_prior: mean and standard deviation of log T over the tasks that the system was trained on, by which T is
            learned from the held-out rows; None where they were not predicted.
        content_free_rows: answers, after adapting, to questions without content ("N/A", an empty text), for contextual
            calibration; empty where they were not asked for or the choices differ between questions.
    """

    system: str
    task: str
    seed: int
    draw: int
    examples_consumed: int
    rows: tuple[Prediction, ...]
    adaptation_rows: tuple[Prediction, ...] = ()
    label_counts: tuple[int, ...] | None = None
    held_out_rows: tuple[Prediction, ...] = ()
    adapted: bool | None = None
    scale_prior: tuple[float, float] | None = None
    content_free_rows: tuple[Prediction, ...] = ()

    @property
    def splits(self) -> dict[str, tuple[Prediction, ...]]:
        """All the rows, by `SPLITS`."""
        return {split: getattr(self, name) for split, name in ROWS_OF.items()}

    def with_splits(self, splits: Mapping[str, tuple[Prediction, ...]], **header: Any) -> "Predictions":
        """The same with other rows in some splits, and other fields of the header."""
        changes: dict[str, Any] = {**header, **{ROWS_OF[split]: rows for split, rows in splits.items()}}
        return replace(self, **changes)

    def answers(self) -> Int[np.ndarray, "N"]:
        """Right choices of the test questions."""
        return np.array([row.answer for row in self.rows], dtype=np.int64)

    def probabilities(self) -> Float[np.ndarray, "N K"]:
        """Choice probabilities of the test questions, float64, zero where a question has fewer choices."""
        return pad_probabilities([row.probabilities for row in self.rows])

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        header = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.endswith("rows")}
        header = {name: value for name, value in header.items() if name not in LATER or value is not None}
        splits = self.splits
        head = {"abmll_predictions": FORMAT, **header, "row_counts": _counts(splits)}
        lines = []
        for split, rows in splits.items():
            lines += [json.dumps({"split": split, **_columns(row)}, allow_nan=False) for row in rows]
        head[SEAL] = _seal(head, lines)
        write_text(path, "\n".join([json.dumps(head), *lines]) + "\n")


def _columns(row: Prediction) -> dict[str, Any]:
    """The fields of a row; `group` and `lengths` only where there are any, as files of early versions have none."""
    return {name: value for name, value in asdict(row).items() if value is not None or name not in LATER_COLUMNS}


def _counts(splits: Mapping[str, Sequence[Prediction]]) -> list[int]:
    """Rows of each split, up to the last that has any, and of two at least."""
    counts = [len(splits[name]) for name in SPLITS]
    last = max((i for i, count in enumerate(counts) if count), default=0)
    return counts[: max(2, last + 1)]


def _seal(head: dict[str, Any], lines: Sequence[str]) -> str:
    """SHA-256 of everything else in a file: a flipped bit in a digit would make another prediction of it."""
    return seal("\n".join([json.dumps(head), *lines]))


def pad_probabilities(rows: Sequence[Sequence[float]], width: int = 0) -> Float[np.ndarray, "N K"]:
    """Stack the choice probabilities of questions, float64, with zeros after a question's last choice.

    Args:
        rows: one for each question.
        width: the least number of columns; there are more where a question has more choices.

    >>> pad_probabilities([(0.9, 0.1), (0.2, 0.3, 0.5)]).tolist()
    [[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]]
    """
    out = np.zeros((len(rows), max([width, *map(len, rows)])))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def read_predictions(path: Path) -> Predictions:
    """Read and check a predictions file.

    Raises:
        AbmllError: the file is missing, cut short, not one of ours, or damaged; names file and line.
    """
    try:
        check_regular(path)
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AbmllError(f"{path}: cannot be read ({error})") from error
    if '"abmll_predictions"' not in lines[0]:  # whose it is we do not know: it is not to be deleted
        raise AbmllError(f"{path}:1: not a predictions file of `abmll adapt` or `abmll compare`")
    header = _object(path, 1, lines[0])
    expected = header.pop(SEAL, None)  # files of early versions have none
    intact = expected is None or expected == _seal(header, lines[1:])
    if header.pop("abmll_predictions", None) != FORMAT:
        raise AbmllError(f"{path}:1: not a predictions file of format {FORMAT}; make it again with `abmll adapt`")
    rows: dict[str, list[Prediction]] = {name: [] for name in SPLITS}
    seen: set[tuple[str, str]] = set()
    for number, line in enumerate(lines[1:], start=2):
        value = _object(path, number, line)
        split = value.pop("split", None)
        if split not in SPLITS:
            raise AbmllError(f"{path}:{number}: split is {split!r}, none of {', '.join(map(repr, SPLITS))}")
        row = _prediction(path, number, value, split == CONTENT_FREE)
        if (split, row.id) in seen:
            raise AbmllError(f"{path}:{number}: question {row.id!r} occurs twice")
        seen.add((split, row.id))
        rows[split].append(row)
    counts = _counts(rows)
    if header.pop("row_counts", None) != counts:
        raise AbmllError(f"{path}:1: the header counts other rows than the {counts} that are there; the file was cut")
    found = _with_header(path, header, {ROWS_OF[split]: tuple(of_split) for split, of_split in rows.items()})
    if not intact:
        raise AbmllError(f"{path}: damaged or edited (its SHA-256 is not the one it was written with); delete it")
    return found


def _with_header(path: Path, header: dict[str, Any], rows: Mapping[str, Any]) -> Predictions:
    kinds = {"system": str, "task": str, "seed": int, "draw": int, "examples_consumed": int}
    counts, adapted, prior = (header.pop(name, None) for name in ("label_counts", *LATER))
    wrong = {name for name, kind in kinds.items() if type(header.get(name)) is not kind} | (
        header.keys() - kinds.keys()
    )
    wrong |= set() if adapted is None or isinstance(adapted, bool) else {"adapted"}
    wrong |= set() if prior is None or (_numbers(prior) and len(prior) == 2 and prior[1] > 0) else {"scale_prior"}
    if wrong or not (counts is None or (isinstance(counts, list) and all(type(c) is int for c in counts))):
        raise AbmllError(f"{path}:1: the header is damaged ({', '.join(sorted(wrong)) or 'label_counts'})")
    return Predictions(
        **header,
        **rows,
        label_counts=None if counts is None else tuple(counts),
        adapted=adapted,
        scale_prior=None if prior is None else (float(prior[0]), float(prior[1])),
    )


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():  # an escaped half of a surrogate pair is no character, and cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise AbmllError(f"{path}:{number}: not JSON ({str(error)[:60]}); the file is damaged, delete it") from error
    if not isinstance(value, dict):
        raise AbmllError(f"{path}:{number}: expected an object, found {type(value).__name__}")
    return value


def _prediction(path: Path, number: int, value: dict[str, Any], content_free: bool) -> Prediction:
    fault = _fault(value, content_free)
    if fault:
        raise AbmllError(f"{path}:{number}: {fault}; the file is damaged, delete it")
    spread, vocabulary, lengths = (value.get(name) for name in ("spread", "vocabulary_confidence", "lengths"))
    return Prediction(
        id=value["id"],
        answer=value["answer"],
        probabilities=tuple(float(p) for p in value["probabilities"]),
        vocabulary_confidence=None if vocabulary is None else float(vocabulary),
        spread=None if spread is None else tuple(float(s) for s in spread),
        group=value.get("group"),
        lengths=None if lengths is None else (lengths[0], lengths[1]),
    )


def _fault(value: dict[str, Any], content_free: bool) -> str:
    """What is wrong with a row, or nothing; one without content has no right answer."""
    probabilities: Any = value.get("probabilities")
    answer, spread, vocabulary = value.get("answer"), value.get("spread"), value.get("vocabulary_confidence")
    if not isinstance(value.get("id"), str):
        return f"id is {value.get('id')!r}, not a text"
    if not _numbers(probabilities) or not all(0 <= p <= 1 + 1e-9 for p in probabilities):
        return f"probabilities are {probabilities!r}, not numbers in [0, 1]"
    if abs(math.fsum(probabilities) - 1) > 1e-4:
        return f"probabilities sum to {math.fsum(probabilities):.6g}, not to 1"
    right = range(NO_ANSWER, 0) if content_free else range(len(probabilities))
    if type(answer) is not int or answer not in right:
        return f"answer is {answer!r} with {len(probabilities)} probabilities"
    if spread is not None and not (_numbers(spread) and len(spread) == len(probabilities) and min(spread) >= 0):
        return f"spread is {spread!r} with {len(probabilities)} probabilities"
    if vocabulary is not None and not (_numbers([vocabulary]) and 0 <= vocabulary <= 1 + 1e-9):
        return f"vocabulary_confidence is {vocabulary!r}, not a number in [0, 1]"
    if not isinstance(value.get("group"), str | None):
        return f"group is {value['group']!r}, not a text"
    lengths = value.get("lengths")
    if lengths is not None and not (
        _numbers(lengths) and [type(n) for n in lengths] == [int, int] and min(lengths) > 0
    ):
        return f"lengths are {lengths!r}, not two numbers of tokens"
    return ""


def _numbers(values: Any) -> bool:
    """Whether these are one or more finite numbers (JSON's integers may be larger than any float)."""
    return (
        isinstance(values, list)
        and bool(values)
        and all(type(v) in (int, float) and abs(v) <= sys.float_info.max for v in values)
    )
