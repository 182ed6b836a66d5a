"""A cell's rows, and the file of its answers: which keys it has, written whole or not at all, by one process alone."""

import fcntl
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abmll.files import write_bytes
from abmll.question import Question
from abmll.systems.folds import Fold, deal
from benchmarks.own.draws import Cell, LabelledSet

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Asked:
    """The rows of a cell: those to be answered, and the labelled ones with their folds."""

    labelled: tuple[Question, ...]
    test: tuple[Question, ...]
    folds: tuple[Fold, ...]


def ask(data: LabelledSet, cell: Cell) -> Asked:
    """The rows of a cell; folds as the check of `abmll adapt` deals them."""
    labelled = data.drawn(cell)
    folds = deal([row.answer for row in labelled], range(len(labelled)), seed=cell.draw)
    return Asked(labelled, data.test, folds)


def right_answers(asked: Asked) -> Arrays:
    """The entries of a cell's file that every system shares."""
    return {
        "test_answers": np.array([row.answer for row in asked.test], dtype=np.int16),
        "own_answers": np.array([row.answer for row in asked.labelled], dtype=np.int16),
    }


def answer_entries(name: str, own: np.ndarray, test: np.ndarray, seconds: tuple[float, float]) -> Arrays:
    """A system's entries: its probabilities of the labelled rows out of their fold and of the test rows, and its time.

    Args:
        name: of the system.
        own, test: probabilities.
        seconds: of fitting, and of answering 1,000 rows.
    """
    return {
        f"{name}.own": own.astype(np.float32),
        f"{name}.test": test.astype(np.float32),
        f"{name}.seconds": np.array(seconds, dtype=np.float32),
    }


def not_finite_entries(name: str, why: str) -> Arrays:
    """The entry of a system that has no answers, as some number of it was not finite."""
    return {f"{name}.not_finite": np.array(why)}


def write_cell(folder: Path, cell: Cell, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a cell's answers, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(folder / cell.file, buffer.getvalue())


@contextmanager
def claimed(folder: Path, cell: Cell) -> Iterator[bool]:
    """Whether this process alone is to answer a cell: it has no file yet, and no living process is at it.

    The claim ends with the process, whatever ends it.
    """
    path = folder / "claims" / cell.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as claim:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield not (folder / cell.file).exists()
