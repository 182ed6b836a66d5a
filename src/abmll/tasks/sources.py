"""Where tasks come from: built-in families, the hub's sets, registered sources, a folder of tables, one table."""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from abmll.errors import AbmllError, unknown_name
from abmll.files import check_regular, is_device, without_home
from abmll.question import Task
from abmll.tables.collect import OnBadRow, Rows, collect, reject_repeats, settle
from abmll.tables.normal import same_form
from abmll.tables.read import EXTENSIONS, RowFile
from abmll.tables.rows import CHOICE_COLUMN, FIELDS, printable, question_from_row, shown
from abmll.tasks.builtin import builtin_names, builtin_task, builtin_tasks
from abmll.tasks.catalogue.entries import catalogue_names
from abmll.tasks.catalogue.load import load_hub_task
from abmll.tasks.registered import SOURCES, load_registered, nearest_source

_SPLIT_FILE = re.compile(rf"(?P<name>.+)\.(?P<split>train|test)\.(?:{'|'.join(EXTENSIONS)})", re.I | re.S)
_TASK_NAME = re.compile(r"[^\W_][\w .+-]{0,99}")  # it becomes a file name: predictions/NAME.jsonl


def load_tasks(
    spec: str | Path,
    names: Sequence[str] | None = None,
    *,
    merge_choices: bool = False,
    on_bad_row: OnBadRow = "error",
) -> tuple[Task, ...]:
    """The tasks that `spec` names, in a fixed order.

    Args:
        spec: "builtin" (all families for meta-training), "builtin:held-out" (the three others),
            "builtin:NAME"; "hub:NAME" (a set of the catalogue, from the Hugging Face hub) or "hub" with `names`;
            "NAME:REST" of a source that somebody registered (docs/add-a-source.md);
            or a folder with NAME.train.jsonl and NAME.test.jsonl (or .csv, .tsv, .xlsx, .parquet); or the path of one
            such task without ".train.jsonl"; or one file, all `train` if its name has no split.
        names: only these tasks, in this order; None for all.
        merge_choices: a choice that is given twice in a row is dropped rather than reported.
        on_bad_row: "error" refuses everything if any row is bad; "skip" leaves bad rows out, counts them in
            `Task.skipped` and says so in the log.

    Raises:
        AbmllError: nothing is there, a name is unknown, or any row is bad (all of them, as file:line: reason).

    >>> [task.name for task in load_tasks("builtin", names=["capitals", "plurals"])]
    ['capitals', 'plurals']
    """
    chosen = _distinct(names)
    kind, _, which = str(spec).partition(":")
    if isinstance(spec, str) and kind == "builtin":
        return _load_builtin(which, chosen)
    if isinstance(spec, str) and kind == "hub":
        return _load_hub(which, chosen, merge_choices, on_bad_row)
    if isinstance(spec, str) and kind in SOURCES.names():
        tasks = load_registered(spec, chosen, merge_choices, on_bad_row)
        for task in tasks:
            _task_name(task.name, Path(spec))
        return tasks
    files = _select(_find(_expanded(Path(spec))), chosen)
    read = {
        name: {split: _read(path, merge_choices) for split, path in splits.items()} for name, splits in files.items()
    }
    for splits in read.values():
        if len(splits) == 2:
            reject_repeats(splits["train"], splits["test"])
    if on_bad_row == "error":
        settle([rows for splits in read.values() for rows in splits.values()], on_bad_row)  # of all tasks at once
    return tuple(_task(name, splits, files[name], on_bad_row) for name, splits in read.items())


def check_files(spec: str) -> None:
    """Refuse the path of tasks, as `load_tasks` takes it, that has none; what is no path is not looked at.

    Raises:
        AbmllError: says what is there instead.
    """
    kind = spec.partition(":")[0]
    if kind not in ("builtin", "hub", *SOURCES.names()):
        _find(_expanded(Path(spec)))


def _read(path: Path, merge_choices: bool) -> Rows:
    table = RowFile(path)
    read = partial(question_from_row, untyped=table.untyped, merge_choices=merge_choices)
    return collect(printable(path), table.rows(_columns_of_a_question), read)


def _columns_of_a_question(names: list[str]) -> list[str]:
    """All where there is no question, so that what there is can be said."""
    forms = {name: same_form(name) for name in names}
    needed = [name for name, form in forms.items() if form in FIELDS or CHOICE_COLUMN.fullmatch(form)]
    return needed if "question" in forms.values() else names


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, or no home
        return path


def _task(name: str, splits: dict[str, Rows], files: dict[str, Path], on_bad_row: OnBadRow) -> Task:
    skipped = settle(list(splits.values()), on_bad_row)
    questions = {split: tuple(rows.questions) for split, rows in splits.items()}
    source = ", ".join(without_home(str(path)) for path in files.values())
    return Task(name, questions.get("train", ()), questions.get("test", ()), source, skipped=skipped)


def _distinct(names: Sequence[str] | None) -> list[str] | None:
    if names is None:
        return None
    chosen = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not chosen:
        raise AbmllError("no task is named: give at least one name, or none at all for every task")
    return chosen


def _load_builtin(which: str, chosen: list[str] | None) -> tuple[Task, ...]:
    known = builtin_names(held_out=which == "held-out") if which in ("", "held-out") else (which,)
    if which not in ("", "held-out", *builtin_names(), *builtin_names(held_out=True)):
        raise unknown_name("built-in task", which, ["held-out", *builtin_names(), *builtin_names(held_out=True)])
    if chosen is None and which in ("", "held-out"):
        return builtin_tasks(held_out=which == "held-out")
    for name in chosen or ():
        if name not in known:
            raise unknown_name("task", name, known)
    return tuple(builtin_task(name) for name in chosen or known)


def _load_hub(which: str, chosen: list[str] | None, merge_choices: bool, on_bad_row: OnBadRow) -> tuple[Task, ...]:
    names = [which] if which else chosen
    if names is None:
        raise AbmllError(
            "source 'hub' alone would fetch the whole catalogue: name tasks (names: [arc_easy, ...], or hub:arc_easy). "
            "`abmll tasks list` shows them"
        )
    if which and chosen not in (None, [which]):
        raise unknown_name("task", next(name for name in chosen or () if name != which), [which])
    for name in names:
        if name not in catalogue_names():
            raise unknown_name("hub task", name, catalogue_names())
    return tuple(load_hub_task(name, merge_choices=merge_choices, on_bad_row=on_bad_row) for name in names)


def _select(files: dict[str, dict[str, Path]], chosen: list[str] | None) -> dict[str, dict[str, Path]]:
    for name in chosen or ():
        if name not in files:
            raise unknown_name("task", name, files)
    return {name: files[name] for name in chosen or files}


def _find(path: Path) -> dict[str, dict[str, Path]]:
    """Task name -> split -> file."""
    try:
        if path.exists():
            check_regular(path)
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
        f"{printable(path)}: no such folder or file. Tasks are 'builtin', 'hub:NAME', a folder of NAME.train.jsonl and "
        f"NAME.test.jsonl (or .csv, .tsv, .xlsx, .parquet), or one such file{nearest_source(str(path))}"
    )


def _stem(file: Path) -> str:
    match = _SPLIT_FILE.fullmatch(file.name)
    if match:
        return match["name"]
    return file.stem if file.suffix[1:].lower() in EXTENSIONS else ""


def _task_name(name: str, path: Path) -> str:
    if not _TASK_NAME.fullmatch(name) or name[-1] in " ." or is_device(name):
        raise AbmllError(
            f"{printable(path)}: {shown(name)} cannot name a task: letters, digits, '_', '-', '+', '.' and spaces, the "
            "last no '.' or space, and not a device's name such as CON"
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
            f"{printable(folder)}: no NAME.train.jsonl or NAME.test.jsonl (or .csv, .tsv, .xlsx, "
            ".parquet) in it; folders inside are not searched"
        )
    return {name: dict(sorted(splits.items(), reverse=True)) for name, splits in found.items()}  # train first
