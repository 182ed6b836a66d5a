"""What three systems say of a question: the base, the base with labelled rows in its prompt, and the adapted one."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError
from abmll.everyday.labelled import Labelled, read_labelled, read_own_rows, read_unlabelled
from abmll.everyday.session import with_base
from abmll.metrics.abstention import rows_needed
from abmll.question import Question
from abmll.showing.opening import Opened
from abmll.showing.tasks import ServedTask
from abmll.systems.predict import Answer
from abmll.tables.identity import context_key
from abmll.tables.normal import same_form
from abmll.tables.read import RowFile
from abmll.tables.rows import BadRow

RISKS = tuple(percent / 100 for percent in range(1, 51))
"""Shares of errors that the slider has."""
BASE, PROMPT = "/base", "/prompt"
"""Ends of the names of speakers; no task's name has a slash."""


@dataclass(frozen=True)
class Examples:
    """Labelled rows of a task.

    Attributes:
        shown: those that it was adapted to, which stand in the base's prompt.
        others: the rest.
    """

    shown: tuple[Question, ...] = ()
    others: tuple[Question, ...] = ()


def find_examples(task: ServedTask, file: Path | None) -> Examples:
    """The rows that a task was adapted to: in the file, or by themselves where it keeps or knows them.

    Raises:
        AbmllError: the file cannot be read, a row is bad, or none was adapted to.
    """
    source = str(task.saved.details.get("source", ""))
    if file is not None:
        labelled = read_labelled(file, task.layout, fixed=task.layout.labels is not None)
    elif kept := task.saved.examples_in_prompt:
        return Examples(kept)
    elif source.startswith("builtin:"):
        labelled = read_own_rows(source, None, "text", "label", None)
    else:
        return Examples()
    return _parted(task, labelled, str(file or source))


def _parted(task: ServedTask, labelled: Labelled, where: str) -> Examples:
    known = set(task.saved.details.get("adapted_to") or ())
    pairs = list(zip(labelled.rows, labelled.keys, strict=True))
    shown = [row for row, key in pairs if known & {key.question, key.group, context_key(row)}]
    if not shown:
        raise AbmllError(
            f"{where}: the task {task.name!r} was adapted to none of its rows; give the file it was adapted to"
        )
    chosen = set(map(id, shown))
    return Examples(tuple(shown), tuple(row for row, _ in pairs if id(row) not in chosen))


def read_rows(file: Path, task: ServedTask) -> tuple[Question, ...]:
    """Rows to show, with their answers where the file has a column of them.

    Raises:
        AbmllError: the file cannot be read, or a row is bad.
    """
    column = task.layout.label if task.layout.labels is not None else "answer"
    first = next((row for _, row in RowFile(file).rows() if not isinstance(row, BadRow)), {})
    if same_form(column) not in map(same_form, map(str, first)):
        return read_unlabelled(file, task.layout)
    return read_labelled(file, task.layout, fixed=task.layout.labels is not None).rows


def add_speakers(opened: Opened, task: ServedTask, examples: Sequence[Question]) -> None:
    """Let the base be asked too, and, where there are examples, with them in its prompt."""
    opened.speakers[task.name + BASE] = partial(with_base, config=task.config)
    if examples and task.config.likelihood.template != "chat":
        opened.speakers[task.name + PROMPT] = partial(with_base, config=task.config, examples=tuple(examples))


def of_questions(
    task: ServedTask, questions: Sequence[Question], stated: Mapping[str, Sequence[Answer]], seen: Sequence[bool] = ()
) -> list[dict[str, Any]]:
    """The bars of questions.

    Args:
        task: that they are of.
        questions: the rows.
        stated: by speaker, what it says of each.
        seen: whether the task was adapted to each.
    """
    adapted = stated[task.name]
    bars = {"base": stated[task.name + BASE], "raw": adapted, "scaled": task.scaled(adapted)}
    if task.name + PROMPT in stated:
        bars["prompt"] = stated[task.name + PROMPT]
    return [
        {
            "text": "\n".join(filter(None, (q.context, q.question if task.layout.labels is None else ""))),
            "choices": list(q.choices),
            "answer": q.answer,
            "seen": bool(seen[i]) if seen else False,
            "bars": {name: list(answers[i].probabilities) for name, answers in bars.items()},
        }
        for i, q in enumerate(questions)
    ]


def timed(opened: Opened, task: ServedTask, questions: list[Question]) -> tuple[dict[str, Any], dict[str, float]]:
    """What each speaker says of questions, and its seconds for one: the second time, as the first is slow."""
    stated, seconds = {}, {}
    for name in (task.name, task.name + BASE, task.name + PROMPT):
        if name in opened.speakers:
            opened.ask(name, questions[:2])
            began = time.perf_counter()
            stated[name] = opened.ask(name, questions)
            seconds[name.removeprefix(task.name) or "/adapted"] = (time.perf_counter() - began) / len(questions)
    return stated, {name[1:]: spent for name, spent in seconds.items()}


def slider(task: ServedTask) -> list[dict[str, Any]]:
    """What is promised at each share of errors, or why nothing is."""
    out = []
    for risk in RISKS:
        try:
            promise = task.promise(risk)
        except AbmllError:
            have = 0 if task.held_back is None else len(task.held_back.correct)
            out.append({"risk": risk, "promised": False, "needs": rows_needed(risk), "has": have})
            continue
        covered = promise.covered
        threshold = None if math.isinf(covered.threshold) else covered.threshold
        of = 0 if task.held_back is None else len(task.held_back.correct)
        one: dict[str, Any] = {"risk": risk, "promised": True, "threshold": threshold, "has": of}
        out.append(one | {"answered": covered.answered, "errors": covered.errors})
    return out


def about(task: ServedTask, examples: Sequence[Question]) -> dict[str, Any]:
    """What the page says of a task besides its questions."""
    details, temperature = task.saved.details, task.temperature
    check = details.get("check")
    return {
        "name": task.name,
        "labels": None if task.layout.labels is None else list(task.layout.labels),
        "column": task.layout.text,
        "stem": task.layout.stem,
        "in_prompt": len(examples),
        "examples": details.get("examples"),
        "steps": details.get("steps"),
        "temperature": None if temperature is None or not temperature.changes else temperature.temperature,
        "verdict": " ".join(map(str, check.get("text", ()))) if isinstance(check, dict) else None,
        "slider": slider(task),
    }
