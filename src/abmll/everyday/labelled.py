"""A user's labelled rows: read, and looked over for what would spoil what is made of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError
from abmll.everyday.survey import columns_of
from abmll.metrics.abstention import error_interval
from abmll.question import Question
from abmll.tables.collect import Rows, collect, good_rows, settle
from abmll.tables.identity import RowKeys, clusters, row_keys
from abmll.tables.labels import Classes
from abmll.tables.layouts import Layout, label_in, parse_labels
from abmll.tables.normal import gist, lookalikes, same_form
from abmll.tables.read import RowFile
from abmll.tables.rows import BadRow, printable, report, shown
from abmll.tasks.sources import check_files, load_tasks

FEWEST = 4
"""Different labelled rows, or groups of them, below which they are not dealt to parts: no check, no temperature."""
FEW = 20
"""Labelled rows below which a warning says how little they can show."""
ONE_SIDED = 0.8
"""Share of one answer above which a warning says so."""
MANY_LABELS = 100
"""Different values of a column above which some must repeat, or else it is hardly the one of the labels."""
MOST_LABELS = 1000
MOST_SHOWN = 10
"""Labels that a remark names."""


@dataclass(frozen=True)
class Labelled:
    """Labelled rows of one task.

    Attributes:
        layout: of their columns, with the labels for plain classification.
        rows: the questions, in the order of the file.
        keys: what says of each row with which others it is one: those that ask the same, are of its group, or, if it
            has none, share its context. Not given: made of these rows alone.
        left_out: what was not taken of the source, as a remark; "" if that is nothing.
    """

    layout: Layout
    rows: tuple[Question, ...]
    keys: tuple[RowKeys, ...] = ()
    left_out: str = ""

    def __post_init__(self) -> None:
        if not self.keys:
            object.__setattr__(self, "keys", row_keys(self.rows, by_context=True))

    @cached_property
    def clusters(self) -> tuple[int, ...]:
        """The number of each row's cluster; the rows of one go right and wrong together."""
        return clusters(self.keys)

    def remarks(self) -> list[str]:
        """What a user should know of the rows before anything is made of them: too few, one-sided, repeated."""
        rows, remarks = self.rows, [self.left_out] if self.left_out else []
        remarks += _few(len(rows))
        remarks += _sides(self)
        same = Counter(key.question for key in self.keys)
        if again := sum(count - 1 for count in same.values()):
            many = "1 row asks" if again == 1 else f"{again} rows ask"
            remarks.append(f"{many} the same as an earlier one; the check keeps them together")
        if self.layout.labels is None:
            remarks += _alike_choices(rows)
        groups = [key.group for key in self.keys if key.group is not None]
        if len(set(self.clusters)) < len(same):  # different questions belong together
            remarks.append(
                f"{len(groups)} rows are of {len(set(groups))} groups (a text that repeats, or the column group): a "
                "group counts as one in the check, and where it is held back one row of it counts"
            )
        if clash := _contradictions(self):
            remarks.append(f"the same question has two different answers: {', '.join(clash[:5])}")
        return remarks


def read_own_rows(source: str, labels: str | None, text: str, label: str, ask: str | None) -> Labelled:
    """The labelled rows of a file, or the train rows of one task of another source.

    Args:
        source: the file, or what `load_tasks` takes.
        labels: the labels as they were typed; None: those that occur.
        text: column of the texts.
        label: column of the labels.
        ask: what the model is asked about each text.

    Raises:
        AbmllError: nothing is there, a row is bad, or it is not one task with labelled rows.
    """
    columns = Layout(None if labels is None else parse_labels(labels), text, label, ask)
    if Path(source).is_file():
        return read_labelled(Path(source), columns)
    tasks = load_tasks(source)
    if len(tasks) != 1:
        raise AbmllError(f"{source}: {len(tasks)} tasks, --save takes one: give a file, or builtin:NAME")
    if columns.labels is not None:
        raise AbmllError(f"{source}: --labels is for a file of texts and labels; this is a task of questions")
    if not tasks[0].train:
        raise AbmllError(f"{source}: has no labelled rows to adapt to")
    left_out = f"{source}: its {len(tasks[0].test)} test rows are left alone" if tasks[0].test else ""
    return Labelled(Layout(), tasks[0].train, left_out=left_out)


def check_tasks_to_score(source: str | None) -> None:
    """Refuse tasks to score of which there are no files; no rows are read, which is done once, later.

    Raises:
        AbmllError: says what is wrong, or that one file of rows is for --save.
    """
    if source is None:
        return
    if Path(source).is_file():
        raise AbmllError(f"{source}: one file of rows; --save NAME adapts to it, and keeps the result")
    check_files(source)


def read_labelled(path: Path, columns: Layout, fixed: bool | None = None) -> Labelled:
    """Read a table of labelled rows.

    Args:
        path: .csv, .tsv, .xlsx, .jsonl or .parquet.
        columns: names of columns, and labels if the user gave them.
        fixed: plain classification, or not; None: unless the first row has a column `question`.

    Raises:
        AbmllError: the file cannot be read, has no rows, or any row is bad (all of them, as file:line: reason).
    """
    table = RowFile(path)
    layout = settle_layout(table, columns, fixed)
    return Labelled(layout, _read(table, layout, labelled=True))


def read_unlabelled(path: Path, layout: Layout) -> tuple[Question, ...]:
    """The rows of a table whose labels, if there are any, are not looked at.

    Raises:
        AbmllError: as `read_labelled`.
    """
    return _read(RowFile(path), layout, labelled=False)


def check_questions(path: Path, run: str, task: str | None) -> None:
    """Refuse a table of rows for a run, or for a saved task of it, before a model is loaded; no answer is looked at.

    Raises:
        AbmllError: as `read_labelled`.
    """
    layout = Layout() if task is None else columns_of(run, task)
    if layout is not None:  # else whoever reads the task says what is wrong with it
        read_unlabelled(path, layout)


def _read(table: RowFile, layout: Layout, labelled: bool) -> tuple[Question, ...]:
    as_question = partial(layout.question, labelled=labelled, untyped=table.untyped)
    rows = collect(printable(table.path), table.rows(), as_question)
    settle([rows], "error")
    return tuple(rows.questions)


def settle_layout(table: RowFile, columns: Layout, fixed: bool | None = None) -> Layout:
    """The layout of a table of labelled rows: which kind of rows they are, and their labels if they share some."""
    if fixed is None:
        first = next((row for _, row in table.rows() if not isinstance(row, BadRow)), {})
        fixed = columns.labels is not None or "question" not in map(same_form, map(str, first))
    if not fixed:
        return Layout()
    return columns if columns.labels is not None else columns.with_labels(_labels_in(table, columns))


def _labels_in(table: RowFile, layout: Layout) -> list[str]:
    """The labels that occur, sorted; all that is wrong with any row is told at once."""
    classes, problems = Classes(()), Rows(printable(table.path))
    advice = "is it the column of labels? --label names another, --labels says which labels there are"

    def add_label(row: Any, line: int) -> None:
        layout.text_and_group(row)
        classes.add(label_in(row, layout.label))
        if len(classes.texts) > MOST_LABELS:
            raise AbmllError(
                f"{problems.location(line)}: more than {MOST_LABELS:,} different values of {layout.label!r}; {advice}"
            )

    rows = sum(1 for _ in good_rows(problems, table.rows(), add_label))
    if problems.problems:
        raise report(problems.messages(good=len(classes.texts)), len(problems.problems))
    texts = classes.ordered().texts
    if len(texts) > MANY_LABELS and 4 * len(texts) > 3 * rows:
        raise AbmllError(
            f"{problems.label}: {len(texts)} different values of {layout.label!r} in {rows} rows; {advice}"
        )
    if len(texts) < 2:
        what = f"every row is labelled {shown(texts[0])}" if texts else "the file has no rows"
        raise AbmllError(f"{problems.label}: {what}; --labels says which labels there are")
    return sorted(texts)


def _few(count: int) -> list[str]:
    if count >= FEW:
        return []
    low, high = error_interval(count // 2, count, 0.95)
    return [
        f"{count} labelled rows are few: an accuracy measured on them is uncertain by up to {50 * (high - low):.0f} "
        f"points either way (95 %). {FEW} or more are better"
    ]


def _sides(labelled: Labelled) -> list[str]:
    counts = Counter(row.answer for row in labelled.rows)
    (choice, most), total = counts.most_common(1)[0], len(labelled.rows)
    assert choice is not None
    labels, remarks = labelled.layout.labels, []
    if labels is not None:
        if missing := [label for number, label in enumerate(labels) if not counts[number]]:
            remarks.append(f"no row is labelled {_some(missing)}: nothing can be learned about it")
        single = [label for number, label in enumerate(labels) if counts[number] == 1]
        if single:
            remarks.append(f"one row alone is labelled {_some(single)}: too few to learn from and check")
        remarks += _alike(labels)
    if total > 1 and most > ONE_SIDED * total:
        what = f"labelled {labels[choice]!r}" if labels else f"answered by choice {choice} (from 0)"
        remarks.append(
            f"one-sided: {most} of {total} rows are {what}, so saying so always is right {100 * most / total:.0f} % of "
            "the time"
        )
    return remarks


def _some(labels: Sequence[str]) -> str:
    """The first labels by name, and how many more there are."""
    more = f" or {len(labels) - MOST_SHOWN} more" if len(labels) > MOST_SHOWN else ""
    return ", ".join(map(repr, labels[:MOST_SHOWN])) + more


def _alike(labels: Sequence[str]) -> list[str]:
    return [f"{shown(one)} and {shown(other)} are two labels, and look alike" for one, other in lookalikes(labels)]


def _alike_choices(rows: Sequence[Question]) -> list[str]:
    pairs = [(row, *pair) for row in rows for pair in lookalikes(row.choices)]
    if not pairs:
        return []
    row, one, other = pairs[0]
    again = f"; so do choices of {len(pairs) - 1} more" if len(pairs) > 1 else ""
    return [f"{row.location or row.id}: {shown(one)} and {shown(other)} are two choices, and look alike{again}"]


def _contradictions(labelled: Labelled) -> list[str]:
    """Pairs of rows, as file:line, that ask the same and have different answers."""
    first: dict[str, tuple[Question, str]] = {}
    pairs = []
    for row, key in zip(labelled.rows, labelled.keys, strict=True):
        answer = "" if row.answer is None else gist(row.choices[row.answer])
        other, theirs = first.setdefault(key.question, (row, answer))
        if theirs != answer:
            pairs.append(f"{other.location or other.id} and {row.location or row.id}")
    return pairs
