"""The sets, and the labelled rows that are drawn of them: every label at least once."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abmll.question import Question
from abmll.tables.layouts import Layout

MANY = 12
"""Labels up to which rows are counted in all; beyond, by label."""
SIZES, PER_LABEL = (20, 60), (2, 5)
DRAWS = 5
MOST_TEST = 300
"""Test rows of each set that are answered: its first ones, whose order is random."""
MOST_READ = 2048
"""Characters of a text that are read, about: the rest is cut."""
ASK = {
    "banking77": "What does this bank customer want?",
    "clinc150": "What is the user asking the assistant to do?",
    "airline_complaints": "What is this airline customer complaining about?",
    "unfair_terms": "Which kind of potentially unfair clause is this, if any?",
    "code_comments": "What kind of information does this Java class comment give?",
    "financial_phrasebank": "Is this news good, bad or neutral for an investor?",
    "goemotions": "Which emotion does this comment express?",
    "cs_abstract_roles": "What is the role of this sentence in the paper's abstract?",
    "movie_reviews": "Did the reviewer like the film?",
    "gnad10": "In which section of the newspaper did this article appear?",
    "morfitt": "Which medical specialty is this abstract about?",
    "cold": "Is this comment offensive?",
}
"""What the model is asked about each text of a set, as its README has it."""


@dataclass(frozen=True)
class Cell:
    """A set, a number of labelled rows, and which of them.

    Attributes:
        name: of the set.
        size: labelled rows in all; of a set with many labels, of each label.
        draw: number of the draw.
    """

    name: str
    size: int
    draw: int

    @property
    def file(self) -> str:
        """Of the answers."""
        return f"{self.name}-{self.size}-{self.draw}.npz"


@dataclass(frozen=True)
class LabelledSet:
    """A set: its labels, and its rows as questions."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Question, ...]
    test: tuple[Question, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many labelled rows are drawn of it, see `Cell`."""
        return SIZES if len(self.labels) <= MANY else PER_LABEL

    @property
    def work(self) -> int:
        """What a cell takes, about: characters of the rows to be answered, with the labels that each is read with."""
        labels = sum(map(len, self.labels))
        return sum(min(len(row.context), MOST_READ) + labels for row in self.test)

    def drawn(self, cell: Cell) -> tuple[Question, ...]:
        """The labelled rows of a cell, in random order."""
        answers = np.array([row.answer for row in self.train])
        rng = np.random.default_rng([cell.draw, cell.size])
        order = rng.permutation(len(answers))
        least = 1 if len(self.labels) <= MANY else cell.size
        first = [i for label in range(len(self.labels)) for i in order[answers[order] == label][:least]]
        count = cell.size if len(self.labels) <= MANY else len(first)
        rest = [i for i in order if i not in set(first)]
        chosen = (first + rest)[:count]
        return tuple(self.train[i] for i in rng.permutation(chosen))


def read_set(folder: Path, name: str, most_test: int = MOST_TEST) -> LabelledSet:
    """A set of `NAME.train.jsonl` and `NAME.test.jsonl`, of rows with text and label; of the test rows the first."""
    rows = {part: list(_rows(folder / f"{name}.{part}.jsonl")) for part in ("train", "test")}
    labels = tuple(sorted({row["label"] for row in rows["train"]}))
    layout = Layout(labels, ask=ASK[name])
    train, test = ([layout.question(row, i) for i, row in enumerate(rows[part])] for part in ("train", "test"))
    return LabelledSet(name, labels, tuple(train), tuple(test[:most_test]))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def cells_of(sets: Sequence[LabelledSet], draws: int = DRAWS) -> list[Cell]:
    """All cells: the smaller size of every set first, its draws one after the other.

    So the first so many of them are of all sets alike. Within a draw, those that take longest come first.
    """
    longest = sorted(sets, key=lambda s: -s.work)
    return [Cell(s.name, s.sizes[size], draw) for size in (0, 1) for draw in range(draws) for s in longest]
