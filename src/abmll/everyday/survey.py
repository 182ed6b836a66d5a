"""A first look at a table of rows to answer, before any model is loaded: every row, and where the answers go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow

from abmll.errors import AbmllError
from abmll.files import MOST_JSON, check_name, strict_json
from abmll.tables.collect import Rows, good_rows
from abmll.tables.layouts import Layout
from abmll.tables.normal import same_form
from abmll.tables.read import RowFile, extension_of
from abmll.tables.rows import printable, report, shown
from abmll.tables.write import check_writable

CHUNK = 256
"""Rows in memory at once."""
DETAILS_FILE = "task.json"
"""Of a saved task: how it was adapted, and to what."""
MOST_PROBLEMS = 1000  # bad rows after which a survey ends; 50 are printed


@dataclass
class Survey:
    """A table of good rows to answer, and what a first look at it found.

    Attributes:
        table: the rows.
        layout: of their columns.
        out: where the answers go: .csv, .tsv, .jsonl or .parquet.
        prefix: goes before the names of our columns.
        abstains: whether rows may be left without a prediction.
        other: what is written as the prediction of these; None: nothing.
        rows: how many there are.
        columns: their names, in order of first appearance.
        schema: their types, where the output needs them.
    """

    table: RowFile
    layout: Layout
    out: Path
    prefix: str = ""
    abstains: bool = False
    other: str | None = None
    rows: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    schema: pyarrow.Schema | None = None

    @property
    def added(self) -> dict[str, type]:
        """Names and types of our columns, which are written beside a row's own."""
        prefix, labels = self.prefix, self.layout.labels
        names: dict[str, type] = {f"{prefix}prediction": str, f"{prefix}confidence": float}
        if self.abstains:
            names[f"{prefix}answered"] = bool
        if labels is None:
            names[f"{prefix}probabilities"] = list
        else:
            names |= {f"{prefix}p_{label}": float for label in labels}
        return names | {f"{prefix}spread": float, f"{prefix}information": float}


def survey(table: RowFile, layout: Layout, out: Path, *, prefix: str = "", abstains: bool = False) -> Survey:
    """Check every row of a table, and where the answers go, before any is answered.

    Args:
        table: the rows.
        layout: of their columns.
        out: the file to write.
        prefix: goes before the names of our columns.
        abstains: whether rows may be left without a prediction.

    Raises:
        AbmllError: the file cannot be read or has no rows, a row is bad (as file:line: reason), a column of ours is in
            it already, or `out` cannot be written or cannot hold its columns.
    """
    check_writable(out)
    found, label = Survey(table, layout, out, prefix, abstains, schema=table.schema()), printable(table.path)
    problems, as_question = Rows(label), partial(layout.question, labelled=False, untyped=table.untyped)
    typed = extension_of(out) == "parquet" and table.extension == "jsonl"
    rows, answerable = table.rows(), 0
    while batch := list(islice(rows, CHUNK)):
        good = [row for row, _ in good_rows(problems, batch, as_question)]
        found.rows += len(batch)
        found.columns.update(dict.fromkeys(name for row in good for name in row))
        answerable += len(good)
        if len(problems.problems) > MOST_PROBLEMS:
            problems.problems.append(f"{label}: and maybe more after line {batch[-1][0]}, which were not looked at")
            break
        if typed:
            found.schema = _unified(found.schema, good, out, f"{label}:{batch[0][0]}")
    if problems.problems:
        raise report(problems.messages(answerable), len(problems.problems))
    if not found.rows:
        raise AbmllError(f"{label}:1: the file has no rows")
    _refuse_taken(found)
    return found


def _refuse_taken(surveyed: Survey) -> None:
    theirs = set(map(same_form, map(str, surveyed.columns)))
    if taken := [name for name in surveyed.added if same_form(name) in theirs]:
        raise AbmllError(
            f"{printable(surveyed.table.path)}: has a column {shown(taken[0])} already, which would be ours; --prefix "
            "puts something before our names"
        )


def _unified(schema: pyarrow.Schema | None, rows: Sequence[Any], out: Path, where: str) -> pyarrow.Schema | None:
    """The types of rows of JSON, together with those of earlier ones."""
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        here = pyarrow.schema([(name, pyarrow.array([row.get(name) for row in rows]).type) for name in names])
        return pyarrow.unify_schemas([schema, here] if schema else [here], promote_options="permissive")
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise AbmllError(
            f"{where}: here or soon after, a column changes its type, which {printable(out)} cannot hold "
            f"({shown(str(error))}); write .jsonl"
        ) from error


def columns_of(run: str, task: str) -> Layout | None:
    """The columns that a saved task was adapted with, as its file has them, so that rows can be surveyed at once.

    Nothing is promised by it: who reads the task whole checks it, and says what is wrong where this gives None.

    Args:
        run: a run directory, or the name of an adapter that comes with the package, which has tasks in `runs/NAME`.
        task: its name.
    """
    for folder in (Path(run), Path("runs") / run):
        file = folder / "tasks" / check_name("task", task) / DETAILS_FILE
        try:
            return Layout.from_dict(strict_json(file.read_bytes(), MOST_JSON)["details"]["layout"])
        except (OSError, ValueError, KeyError, TypeError):  # AbmllError is a ValueError
            continue
    return None
