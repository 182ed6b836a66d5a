"""The tasks as they are measured on: no leaks, capped, in a folder small enough to be carried. Never committed."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from abmll.config import CompareConfig
from abmll.files import write_json, write_text
from abmll.running.build import check_tasks
from abmll.running.roles import RunTasks, find_leaks, load_run_tasks, without_leaks
from abmll.tasks.question import Question, Task

TRAIN_ROWS = 500
"""Rows of a training task: 300 meta-iterations use 12 rows each, so about 106 of a task's."""


def prepare(config: CompareConfig, out: Path, train_rows: int = TRAIN_ROWS) -> dict[str, Any]:
    """Write `train`, `validation`, `unseen` below `out`, capped first and then without rows that leak.

    Test rows are kept up to `adaptation.test_questions`, in the file's order; of a training task no test rows.

    Returns:
        Counts and what was dropped, also in `prepared.json`.
    """
    tasks = load_run_tasks(config)
    asked = config.adaptation.test_questions
    capped = RunTasks(
        tuple(replace(t, train=t.train[:train_rows], test=()) for t in tasks.train),
        *(tuple(replace(t, test=t.test[:asked]) for t in held) for held in (tasks.validation, tasks.unseen)),
    )
    leaks = find_leaks(capped)
    dropping = config.model_copy(update={"tasks": config.tasks.model_copy(update={"leak_check": "drop"})})
    clean = without_leaks(dropping, capped)
    check_tasks(config, clean.train, clean.unseen + clean.validation)
    for role in ("train", "validation", "unseen"):
        for task in getattr(clean, role):
            _write(task, out / role)
    told = {"rows": _counts(clean), "rows_before": _counts(capped), "leaks": [str(leak) for leak in leaks]}
    write_json(out / "prepared.json", told)
    return told


def _counts(tasks: RunTasks) -> dict[str, dict[str, list[int]]]:
    roles = ("train", "validation", "unseen")
    return {role: {t.name: [len(t.train), len(t.test)] for t in getattr(tasks, role)} for role in roles}


def _write(task: Task, folder: Path) -> None:
    for split, rows in (("train", task.train), ("test", task.test)):
        if rows:
            write_text(folder / f"{task.name}.{split}.jsonl", _lines(rows))


def _lines(rows: Iterable[Question]) -> str:
    fields = ("id", "question", "context", "choices", "answer")
    return "".join(json.dumps({name: getattr(row, name) for name in fields}, ensure_ascii=False) + "\n" for row in rows)
