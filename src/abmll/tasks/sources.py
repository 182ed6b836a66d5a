"""Where tasks come from: built-in families, a folder of tables, one table."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from abmll.errors import AbmllError, unknown_name
from abmll.tasks.builtin import builtin_names, builtin_task, builtin_tasks
from abmll.tasks.question import Question, Task
from abmll.tasks.rows import BadRow, printable, question_from_row, report, same_question, shown
from abmll.tasks.tables import EXTENSIONS, read_rows

_SPLIT_FILE = re.compile(rf"(?P<name>.+)\.(?P<split>train|test)\.(?:{'|'.join(EXTENSIONS)})", re.I | re.S)
_TASK_NAME = re.compile(r"[^\W_][\w .+-]{0,99}")  # it becomes a file name: predictions/NAME.jsonl


def load_tasks(
    spec: str | Path, names: Sequence[str] | None = None, *, merge_choices: bool = False
) -> tuple[Task, ...]:
    """The tasks that `spec` names, in a fixed order.

    Args:
        spec: "builtin" (all families for meta-training), "builtin:held-out" (the three others),
            "builtin:NAME"; or a folder with NAME.train.jsonl and NAME.test.jsonl (or .csv, .parquet); or the
            path of one such task without ".train.jsonl"; or one file, all `train` if its name has no split.
        names: only these tasks, in this order; None for all.
        merge_choices: a choice that is given twice in a row is dropped rather than reported.

    Raises:
        AbmllError: nothing is there, a name is unknown, or any row is bad (all of them, as file:line: reason).

    >>> [task.name for task in load_tasks("builtin", names=["capitals", "plurals"])]
    ['capitals', 'plurals']
    """
    wanted = _wanted(names)
    if isinstance(spec, str) and (spec == "builtin" or spec.startswith("builtin:")):
        return _load_builtin(spec.removeprefix("builtin").removeprefix(":"), wanted)
    files = _select(_find(Path(spec)), wanted)
    problems: list[str] = []
    tasks = tuple(_load_task(name, splits, merge_choices, problems) for name, splits in files.items())
    if problems:
        raise report(problems)
    return tasks


def read_questions(path: str | Path, labelled: bool = True, *, merge_choices: bool = False) -> tuple[Question, ...]:
    """The questions of one JSONL, CSV or Parquet file.

    Args:
        path: the file.
        labelled: False allows rows without an answer (rows to predict); their `answer` is None.
        merge_choices: a choice that is given twice in a row is dropped rather than reported.

    Raises:
        AbmllError: the file cannot be read, has no rows, or any row is bad (all of them, as file:line: reason).
    """
    rows = _read(Path(path), labelled, merge_choices)
    if rows.problems:
        raise report(rows.problems)
    return tuple(rows.questions)


@dataclass
class _Rows:
    path: Path
    questions: list[Question] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def reject(self, line: int, reason: object) -> None:
        self.problems.append(f"{printable(self.path)}:{line}: {reason}")


def _read(path: Path, labelled: bool, merge_choices: bool) -> _Rows:
    rows = _Rows(path)
    ids: dict[str, int] = {}
    untyped = path.suffix.lower() == ".csv"
    for line, row in read_rows(path):
        try:
            if isinstance(row, BadRow):
                raise row
            question = question_from_row(row, str(line), labelled, untyped, merge_choices)
        except BadRow as reason:
            rows.reject(line, reason)
            continue
        first = ids.setdefault(question.id, line)
        if first != line:
            rows.reject(line, f"id {shown(question.id)} is that of line {first} too")
        rows.questions.append(question)
        rows.lines.append(line)
    if not rows.questions and not rows.problems:
        rows.reject(1, "the file has no rows")
    return rows


def _load_task(name: str, splits: dict[str, Path], merge_choices: bool, problems: list[str]) -> Task:
    """One task from its files; what is wrong is added to `problems`."""
    read = {split: _read(path, True, merge_choices) for split, path in splits.items()}
    if len(read) == 2:
        _reject_leaks(read["train"], read["test"])
    for rows in read.values():
        problems += rows.problems
    questions = {split: tuple(rows.questions) for split, rows in read.items()}
    source = ", ".join(str(path) for path in splits.values())
    return Task(name, questions.get("train", ()), questions.get("test", ()), source)


def _reject_leaks(train: _Rows, test: _Rows) -> None:
    seen = {same_question(q): line for q, line in zip(train.questions, train.lines, strict=True)}
    for question, line in zip(test.questions, test.lines, strict=True):
        if (first := seen.get(same_question(question))) is not None:
            test.reject(line, f"the same question is in {printable(train.path.name)}:{first}, the train rows")


def _wanted(names: Sequence[str] | None) -> list[str] | None:
    if names is None:
        return None
    wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not wanted:
        raise AbmllError("no task is named: give at least one name, or none at all for every task")
    return wanted


def _load_builtin(which: str, wanted: list[str] | None) -> tuple[Task, ...]:
    known = builtin_names(held_out=which == "held-out") if which in ("", "held-out") else (which,)
    if which not in ("", "held-out", *builtin_names(), *builtin_names(held_out=True)):
        raise unknown_name("built-in task", which, ["held-out", *builtin_names(), *builtin_names(held_out=True)])
    if wanted is None and which in ("", "held-out"):
        return builtin_tasks(held_out=which == "held-out")
    for name in wanted or ():
        if name not in known:
            raise unknown_name("task", name, known)
    return tuple(builtin_task(name) for name in wanted or known)


def _select(files: dict[str, dict[str, Path]], wanted: list[str] | None) -> dict[str, dict[str, Path]]:
    for name in wanted or ():
        if name not in files:
            raise unknown_name("task", name, files)
    return {name: files[name] for name in wanted or files}


def _find(path: Path) -> dict[str, dict[str, Path]]:
    """Task name -> split -> file."""
    try:
        if path.is_dir():
            return _in_folder(path, path.iterdir())
        if path.is_file():
            match = _SPLIT_FILE.fullmatch(path.name)
            if match:
                return {_task_name(match["name"], path): {match["split"].lower(): path}}
            return {_task_name(path.stem, path): {"train": path}}
        if path.parent.is_dir():
            beside = [file for file in path.parent.iterdir() if _stem(file) == path.name]
            whole = [file for file in beside if not _SPLIT_FILE.fullmatch(file.name)]
            if beside and not whole:
                return _in_folder(path.parent, beside)
            if len(beside) == 1:
                return _find(beside[0])
            if beside:
                raise AbmllError(f"{printable(path)} may be {' or '.join(sorted(f.name for f in beside))}")
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise AbmllError(f"{printable(path)}: cannot be read ({printable(error)})") from None
    except ValueError as error:
        if isinstance(error, AbmllError):
            raise
        raise AbmllError(f"{path!r} is not a path ({error})") from None
    raise AbmllError(
        f"{printable(path)}: no such folder or file. Tasks are 'builtin', a folder of NAME.train.jsonl and "
        "NAME.test.jsonl (or .csv, .parquet), or one such file"
    )


def _stem(file: Path) -> str:
    match = _SPLIT_FILE.fullmatch(file.name)
    if match:
        return match["name"]
    return file.stem if file.suffix[1:].lower() in EXTENSIONS else ""


def _task_name(name: str, path: Path) -> str:
    if not _TASK_NAME.fullmatch(name):
        raise AbmllError(
            f"{printable(path)}: {shown(name)} cannot name a task: letters, digits, '_', '-', '+', '.' and spaces"
        )
    return name


def _in_folder(folder: Path, candidates: Iterable[Path]) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    home = folder.resolve()
    for file in sorted(candidates):
        if file.name.startswith(".") or file.suffix[1:].lower() not in EXTENSIONS:
            continue
        match = _SPLIT_FILE.fullmatch(file.name)
        if not match:
            raise AbmllError(f"{printable(file)}: name it NAME.train{file.suffix} or NAME.test{file.suffix}")
        if not file.resolve().is_relative_to(home):
            raise AbmllError(f"{printable(file)}: a link that leaves the folder; put the file itself there")
        splits = found.setdefault(_task_name(match["name"], file), {})
        if (other := splits.setdefault(match["split"].lower(), file)) != file:
            raise AbmllError(f"{printable(file)}: {other.name} holds the same rows; keep one")
    if not found:
        raise AbmllError(
            f"{printable(folder)}: no NAME.train.jsonl or NAME.test.jsonl (or .csv, "
            ".parquet) in it; folders inside are not searched"
        )
    return {name: dict(sorted(splits.items(), reverse=True)) for name, splits in found.items()}  # train first
