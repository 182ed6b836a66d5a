"""What stands in the place of a predictions file where adapting or predicting gave numbers that are not finite.

That a system breaks is a result: it is kept, so that it is told in every table and not tried again by itself. The file
`TASK.not-finite.json` lies where `TASK.jsonl` would; deleting it lets `abmll compare` try again. It holds the questions
as (id, right answer, number of choices), and their groups, so that baselines can be made beside the broken system.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from abmll.errors import AbmllError
from abmll.files import read_sealed_json, write_sealed_json
from abmll.metrics.predictions import CONTENT_FREE, SPLITS, Prediction, Predictions

FORMAT = 1
END = ".not-finite.json"
TRAINING, ADAPTING, PREDICTING = "training", "adapting", "predicting"
MOST_CHOICES = 1000  # of a question, in a file that somebody may have made up
ANSWERED = tuple(split for split in SPLITS if split != CONTENT_FREE)
"""Splits of questions that have a right answer, so that a baseline can be scored on them."""
_KIND = "abmll_not_finite"


@dataclass(frozen=True)
class NotFinite:
    """A cell of a comparison without predictions, since they are not finite.

    Attributes:
        asked: whose predictions they would be, and the questions, every choice equally probable.
        stage: what broke: `TRAINING`, `ADAPTING` or `PREDICTING`.
        why: in words.
    """

    asked: Predictions
    stage: str
    why: str

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        asked = self.asked
        splits = {split: asked.splits[split] for split in ANSWERED}
        value = _File(
            system=asked.system,
            task=asked.task,
            seed=asked.seed,
            draw=asked.draw,
            examples_consumed=asked.examples_consumed,
            adapted=asked.adapted,
            label_counts=asked.label_counts,
            stage=self.stage,
            why=self.why,
            questions={s: tuple((r.id, r.answer, len(r.probabilities)) for r in rows) for s, rows in splits.items()},
            groups={s: tuple(r.group for r in rows) for s, rows in splits.items() if any(r.group for r in rows)},
        )
        left_out = set() if value.groups else {"groups"}  # which early versions do not know
        write_sealed_json(path, {_KIND: FORMAT, **value.model_dump(mode="json", exclude=left_out)})


class _File(BaseModel):
    """The file's fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    system: str
    task: str
    seed: int
    draw: int
    examples_consumed: int
    adapted: bool | None = None
    label_counts: tuple[int, ...] | None = None
    stage: str
    why: str
    questions: dict[str, tuple[tuple[str, int, int], ...]] = Field(default_factory=dict)
    groups: dict[str, tuple[str | None, ...]] = Field(default_factory=dict)


def read_not_finite(path: Path) -> NotFinite:
    """The inverse of `NotFinite.write`.

    Raises:
        AbmllError: the file is missing, damaged, or none of these.
    """
    value = read_sealed_json(path)
    if value.pop(_KIND, None) != FORMAT:
        raise AbmllError(f"{path}: not a file of format {FORMAT} of `abmll compare`; delete it to try again")
    try:
        found = _File.model_validate_json(json.dumps(value))  # by JSON: there lists are tuples
        rows = {name: _rows(found.questions.get(name, ()), found.groups.get(name)) for name in ANSWERED}
    except (ValidationError, ValueError) as error:
        raise AbmllError(f"{path}: damaged ({str(error)[:100]}); delete it to try again") from error
    asked = Predictions(
        system=found.system,
        task=found.task,
        seed=found.seed,
        draw=found.draw,
        examples_consumed=found.examples_consumed,
        rows=rows["test"],
        adaptation_rows=rows["adaptation"],
        label_counts=found.label_counts,
        held_out_rows=rows["held_out"],
        adapted=found.adapted,
    )
    return NotFinite(asked, found.stage, found.why)


def _rows(questions: Sequence[tuple[str, int, int]], groups: Sequence[str | None] | None) -> tuple[Prediction, ...]:
    bad = [name for name, answer, choices in questions if not 0 <= answer < choices <= MOST_CHOICES]
    if bad:
        raise ValueError(f"question {bad[0]!r} has no such choice")
    groups = (None,) * len(questions) if groups is None else groups
    if len(groups) != len(questions):
        raise ValueError(f"{len(groups)} groups of {len(questions)} questions")
    return tuple(
        Prediction(name, answer, (1 / choices,) * choices, group=group)
        for (name, answer, choices), group in zip(questions, groups, strict=True)
    )
