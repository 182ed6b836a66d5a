"""The page as one HTML file: script and style inside, no address in it, and what users wrote as text alone."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from abmll.errors import AbmllError
from abmll.everyday.predict import PILOT
from abmll.showing.bars import Examples, about, add_speakers, find_examples, of_questions, read_rows, timed
from abmll.showing.opening import ToServe, open_tasks
from abmll.showing.tasks import ServedTask

MOST = 40
"""Questions of a page, if nobody says otherwise."""


@dataclass(frozen=True)
class PageRequest:
    """What is shown.

    Attributes:
        run: what `find_run` takes.
        task: a saved task.
        rows: file of the questions; None: those of `examples`, first the ones that were not adapted to.
        examples: file that the task was adapted to, for the base's prompt; None: as `find_examples` finds them.
        most: questions.
        overrides: values laid on the configuration.
    """

    run: Path | str
    task: str
    rows: Path | None = None
    examples: Path | None = None
    most: int = MOST
    overrides: Mapping[str, Any] = field(default_factory=dict)


def make_page(asked: PageRequest) -> tuple[str, int]:
    """The page of a saved task with answers to some questions, and how many these are.

    Raises:
        AbmllError: there is no such run or task, a file is bad, or there are no questions.
    """
    opened = open_tasks(ToServe(asked.run, (asked.task,), overrides=asked.overrides))
    task = opened.tasks[asked.task]
    examples = find_examples(task, asked.examples)
    add_speakers(opened, task, examples.shown)
    if asked.rows is not None:
        questions, adapted_to = list(read_rows(asked.rows, task)), 0
    else:
        questions, adapted_to = _of_examples(examples, asked.most)
    if not questions:
        raise AbmllError(
            f"task {task.name!r}: no questions to show, as a task keeps no rows: --rows gives some, or --examples the "
            "file that it was adapted to"
        )
    questions = questions[: asked.most]
    fresh = len(questions) - adapted_to
    stated, seconds = timed(opened, task, questions)
    if asked.rows is not None:  # rows without regard to their labels: they fix the thresholds that are tested
        task.pilot = np.array([answer.confidence for answer in task.scaled(stated[task.name])[:PILOT]])
    seen = [i >= fresh for i in range(len(questions))]
    shown = of_questions(task, questions, stated, seen)
    data = {"live": False, "tasks": [{**about(task, examples.shown), "seconds": seconds, "questions": shown}]}
    return render(data), len(questions)


def live_page(task: ServedTask, examples: Examples) -> dict[str, Any]:
    """What a server's page says of a task: its rows are to be picked from, and their bars are asked for one by one."""
    questions, adapted_to = _of_examples(examples, MOST)
    fresh, shown = len(questions) - adapted_to, []
    for i, q in enumerate(questions):
        own = {"question": q.question, "choices": list(q.choices), "context": q.context}
        row = own if task.layout.labels is None else {task.layout.text: q.context}
        text = "\n".join(filter(None, (q.context, q.question if task.layout.labels is None else "")))
        shown.append({"text": text, "choices": list(q.choices), "answer": q.answer, "seen": i >= fresh, "row": row})
    return {**about(task, examples.shown), "seconds": {}, "questions": shown}


def _of_examples(examples: Examples, most: int) -> tuple[list[Any], int]:
    """Rows of the task itself, and how many of them, the last ones, it was adapted to."""
    others = list(examples.others[:most])
    shown = list(examples.shown[: most - len(others)])
    return others + shown, len(shown)


def render(data: Mapping[str, Any]) -> str:
    """The page of what `make_page` found, or of a server, which is asked for the rest.

    >>> page = render({"live": False, "tasks": [{"name": "</script><script>alert(1)</script>"}]})
    >>> "alert(1)</script>" in page, "http:" in page or "https:" in page
    (False, False)
    """
    here = files("abmll.showing")
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    template = (here / "page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template).render(
        policy=policy + ("; connect-src 'self'" if data["live"] else ""),
        style=style,
        script=script,
        data=_inside_script(data),
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inside_script(value: Any) -> str:
    """JSON that ends no element and begins none: it is ASCII, and without angle brackets and ampersands."""
    text = json.dumps(value, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
