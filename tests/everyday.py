"""Tables of a user's own, for a tiny run: texts that the words sun and rain tell the label of, and questions."""

import csv
import json
import random
from pathlib import Path
from typing import Any

from abmll.everyday import adapt
from abmll.everyday.labelled import Labelled
from abmll.files import write_text
from abmll.question import Question
from tests.runs import config_in, place_tiny, train_run
from tests.tiny import tiny_tasks

LABELS = ("bad", "good")


def place_run(folder: Path, **sections: Any) -> Path:
    """A folder with a tiny model and `runs/mine`, trained for three iterations."""
    place_tiny(folder)
    config = config_in(folder, **sections)
    write_text(folder / "runs" / "mine" / "config.yaml", config.to_yaml())
    train_run(config, folder / "runs" / "mine")
    return folder


def hold_back(labelled: Labelled, count: int, seed: int) -> tuple[Labelled, tuple[Question, ...]]:
    """The rows that are adapted to, and those held back."""
    return adapt.parted(labelled, adapt.hold_back(labelled.clusters, count, seed))


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts and labels, in turn, so that both occur as often; no text twice."""
    rng = random.Random(seed)
    words = {"good": "sun", "bad": "rain"}
    labels = [LABELS[n % 2] for n in range(count)]
    return [
        (f"the {words[label]} is over the {rng.choice(('river', 'garden'))} {seed} {n}", label)
        for n, label in enumerate(labels)
    ]


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    """A CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_texts(path: Path, count: int, seed: int = 0) -> Path:
    """A CSV file of texts and labels."""
    return write_csv(path, ["text", "label"], [list(row) for row in texts(count, seed)])


def asked(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Labelled rows of questions with choices of their own."""
    rows = tiny_tasks(3, n_rows=count, n_test=0, seed=seed)[2].train
    return [
        {"question": q.question, "choices": list(q.choices), "context": q.context, "answer": q.answer} for q in rows
    ]


def write_asked(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
