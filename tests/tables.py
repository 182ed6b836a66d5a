"""The questions of one table, read by the ways that the library itself reads tables."""

from pathlib import Path

from abmll.everyday.labelled import read_unlabelled
from abmll.question import Question
from abmll.tables.collect import OnBadRow
from abmll.tables.layouts import Layout
from abmll.tasks.sources import load_tasks


def read_questions(
    path: Path, labelled: bool = True, *, merge_choices: bool = False, on_bad_row: OnBadRow = "error"
) -> tuple[Question, ...]:
    """The rows of a task of one file, or rows to predict."""
    if not labelled:
        return read_unlabelled(path, Layout())
    (task,) = load_tasks(path, merge_choices=merge_choices, on_bad_row=on_bad_row)
    return task.train or task.test
