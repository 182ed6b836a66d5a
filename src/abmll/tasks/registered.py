"""Sources of tasks that are not the library's own: rows by a name, from wherever somebody's code reads them."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError, unknown_name
from abmll.files import without_home
from abmll.question import Task
from abmll.registry import Registry
from abmll.tables.collect import OnBadRow, Rows, collect, reject_repeats, settle
from abmll.tables.rows import BadRow, question_from_row, shown


@dataclass(frozen=True)
class RawTask:
    """A task as a source reads it, its rows unchecked.

    Attributes:
        name: of the task.
        train: rows to learn or adapt from: mappings with `question`, `choices` and `answer`, and maybe `context`,
            `group` and `id`, as a line of a JSONL file has them.
        test: rows to score.
        licence: of the rows, if known.
    """

    name: str
    train: Iterable[Any]
    test: Iterable[Any] = ()
    licence: str = ""


Source = Callable[[str], Iterable[RawTask]]
"""What a recipe's `NAME:REST` calls, with REST; "" for NAME alone."""


def _check_source(name: str, source: object) -> None:
    if not callable(source):
        raise AbmllError(f"source {name!r}: {source!r} is no function")


SOURCES: Registry[Source] = Registry(
    "source",
    "abmll.sources",
    {},
    check=_check_source,
    guide="docs/add-a-source.md",
    reserved=("builtin", "hub"),
)
"""Every source that a recipe can name before a colon, besides `builtin` and `hub`."""


def register_source(name: str, source: Source) -> None:
    """Let recipes name a source of tasks that is not the library's own, in this process: `source: NAME:REST`.

    An installed package does without: it declares the function as an entry point of the group `abmll.sources`.

    Args:
        name: what stands before the colon.
        source: takes REST and gives `RawTask` values. Their rows are checked, and bad ones reported, as those of files
            are. `abmll.testing.check_source("NAME:REST")` tests it.

    Raises:
        AbmllError: the name is taken.

    >>> register_source("hub", lambda rest: [])
    Traceback (most recent call last):
    abmll.errors.AbmllError: source 'hub' is abmll's own; choose another name
    """
    SOURCES.register(name, source)


def load_registered(
    spec: str, names: Sequence[str] | None, merge_choices: bool, on_bad_row: OnBadRow
) -> tuple[Task, ...]:
    """The tasks of a spec `NAME` or `NAME:REST`, with NAME registered; arguments and errors as of `load_tasks`."""
    raw = {task.name: task for task in _read(spec)}
    for name in names or ():
        if name not in raw:
            raise unknown_name("task", name, raw)
    label = without_home(spec)
    read = {name: _rows(f"{label}/{name}", raw[name], merge_choices) for name in names or raw}
    if on_bad_row == "error":
        settle([rows for splits in read.values() for rows in splits.values()], on_bad_row)  # of all tasks at once
    return tuple(_task(raw[name], splits, label, on_bad_row) for name, splits in read.items())


def nearest_source(spec: str) -> str:
    """A hint for a message about a spec, where what stands before its colon is nearly the name of a source."""
    name, colon, _ = spec.partition(":")
    near = difflib.get_close_matches(name, ("builtin", "hub", *SOURCES.names()), n=2, cutoff=0.5) if colon else []
    return f". Did you mean {' or '.join(f'{known}:' for known in near)}?" if near else ""


def _read(spec: str) -> list[RawTask]:
    """Call the source; its iterables are used up here, where what they raise is caught."""
    name, _, rest = spec.partition(":")
    source = SOURCES.lookup(name)
    try:
        given = source(str(Path(rest).expanduser()) if rest.startswith("~/") else rest)
        tasks = [RawTask(task.name, list(task.train), list(task.test), task.licence) for task in given]
    except AbmllError:
        raise
    except Exception as error:  # whatever a stranger's function raises
        raise AbmllError(f"source {spec!r} cannot be read ({type(error).__name__}: {error})") from error
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise AbmllError(f"source {spec!r} gives {f'two tasks of one name ({names})' if tasks else 'no task'}")
    return tasks


def _rows(label: str, task: RawTask, merge_choices: bool) -> dict[str, Rows]:
    """The rows of each split, checked as those of files are; no `test` where the source gives none."""
    splits = {"train": list(task.train), "test": list(task.test)}
    as_question = partial(question_from_row, merge_choices=merge_choices)
    read = {
        split: collect(f"{label}.{split}", enumerate(map(_mapping, rows), start=1), as_question)
        for split, rows in splits.items()
        if rows or split == "train"
    }
    if "test" in read:
        reject_repeats(read["train"], read["test"])
    return read


def _mapping(row: object) -> Mapping[str, Any] | BadRow:
    return row if isinstance(row, Mapping) else BadRow(f"not a mapping but {shown(row)}")


def _task(raw: RawTask, splits: Mapping[str, Rows], source: str, on_bad_row: OnBadRow) -> Task:
    skipped = settle(list(splits.values()), on_bad_row)
    questions = {split: tuple(rows.questions) for split, rows in splits.items()}
    return Task(raw.name, questions["train"], questions.get("test", ()), source, raw.licence, skipped)
