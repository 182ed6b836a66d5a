"""The tasks as they are measured on: no leaks, capped, in a folder small enough to be carried. Never committed."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from abmll.config import CompareConfig
from abmll.files import write_json, write_text
from abmll.question import Question, Task
from abmll.runs.prepare import load_run_tasks
from abmll.runs.roles import RunTasks, check_roles, find_leaks, without_leaks
from abmll.tasks.leaks import overlaps, rows_of

TRAIN_ROWS = 500
"""Rows of a training task: 300 meta-iterations use 12 rows each, so about 106 of a task's."""
IN_DOMAIN = "in_domain"
IN_DOMAIN_ROWS = 200, 100
"""Rows of a training task to adapt on, out of those that training draws from, and of its `.test`, which it does not."""


def prepare(config: CompareConfig, out: Path, train_rows: int = TRAIN_ROWS) -> dict[str, Any]:
    """Write `train`, `validation`, `unseen` below `out`, capped first and then without rows that leak.

    Test rows are kept up to `adaptation.test_questions`, in the file's order; of a training task no test rows. These
    are in a folder of their own, `in_domain`, where none is nearly the same as a row that is trained on.

    Returns:
        Counts and what was dropped, also in `prepared.json`.
    """
    tasks = load_run_tasks(config)
    asked = config.adaptation.test_questions
    validation, unseen = (
        tuple(replace(t, test=t.test[:asked]) for t in held) for held in (tasks.validation, tasks.unseen)
    )
    capped = RunTasks(tuple(replace(t, train=t.train[:train_rows], test=()) for t in tasks.train), validation, unseen)
    leaks = find_leaks(capped)
    clean = without_leaks(capped, "drop")
    check_roles(clean, config.adaptation.examples)
    for role in ("train", "validation", "unseen"):
        for task in getattr(clean, role):
            write_task(task, out / role)
    for task in _in_domain(tasks.train, clean.train):
        write_task(task, out / IN_DOMAIN)
    told = {"rows": _counts(clean), "rows_before": _counts(capped), "leaks": [str(leak) for leak in leaks]}
    write_json(out / "prepared.json", told)
    return told


def _in_domain(raw: tuple[Task, ...], clean: tuple[Task, ...]) -> Iterator[Task]:
    """The training tasks as tasks to report on."""
    learn, ask = IN_DOMAIN_ROWS
    trained = tuple(row for task in clean for row in rows_of(task.name, task.train))
    tests = {task.name: task.test[: 2 * ask] for task in raw}
    seen = {
        id(pair.second.question)
        for pair in overlaps(trained, tuple(r for n, t in tests.items() for r in rows_of(n, t)))
    }
    for task in clean:
        kept = tuple(row for row in tests[task.name] if id(row) not in seen)
        yield replace(task, train=task.train[:learn], test=kept[:ask])


def _counts(tasks: RunTasks) -> dict[str, dict[str, list[int]]]:
    roles = ("train", "validation", "unseen")
    return {role: {t.name: [len(t.train), len(t.test)] for t in getattr(tasks, role)} for role in roles}


def write_task(task: Task, folder: Path) -> None:
    """Write a task's rows as a folder of tasks has them."""
    for split, rows in (("train", task.train), ("test", task.test)):
        if rows:
            write_text(folder / f"{task.name}.{split}.jsonl", _lines(rows))


def _lines(rows: Iterable[Question]) -> str:
    fields = ("id", "question", "context", "choices", "answer")
    return "".join(json.dumps({name: getattr(row, name) for name in fields}, ensure_ascii=False) + "\n" for row in rows)
