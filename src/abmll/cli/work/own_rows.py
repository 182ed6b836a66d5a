"""The first work of `abmll adapt`: rows are read before models and kernels are imported."""

from pathlib import Path

from abmll.cli.console import note
from abmll.errors import AbmllError
from abmll.everyday.labelled import Labelled, read_labelled
from abmll.tables.layouts import Layout, parse_labels
from abmll.tasks.sources import load_tasks


def check_tasks_to_score(source: str | None) -> None:
    """Refuse tasks to score that are not there or have bad rows; those of the hub, or of a plugin, are looked at later.

    Raises:
        AbmllError: says what is wrong, or that one file of rows is for --save.
    """
    if source is None or ":" in source:
        return
    if Path(source).is_file():
        raise AbmllError(f"{source}: one file of rows; --save NAME adapts to it, and keeps the result")
    load_tasks(source)


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
    layout = Layout(None if labels is None else parse_labels(labels), text, label, ask)
    if Path(source).is_file():
        return read_labelled(Path(source), layout)
    tasks = load_tasks(source)
    if len(tasks) != 1:
        raise AbmllError(f"{source}: {len(tasks)} tasks, --save takes one: give a file, or builtin:NAME")
    if layout.labels is not None:
        raise AbmllError(f"{source}: --labels is for a file of texts and labels; this is a task of questions")
    if not tasks[0].train:
        raise AbmllError(f"{source}: has no labelled rows to adapt to")
    if tasks[0].test:
        note(f"{source}: its {len(tasks[0].test)} test rows are left alone")
    return Labelled(Layout(), tasks[0].train)
