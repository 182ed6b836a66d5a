"""Open a run once for several of its saved tasks, and find out before anybody asks that each of them can answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from abmll.errors import AbmllError
from abmll.everyday.labelled import read_unlabelled
from abmll.everyday.predict import PILOT
from abmll.everyday.session import Session, open_run, with_task
from abmll.everyday.shipped import find_run
from abmll.question import Question
from abmll.showing.tasks import ServedTask, read_served, take_held_back
from abmll.systems.predict import Answer


@dataclass(frozen=True)
class ToServe:
    """What is served.

    Attributes:
        run: what `find_run` takes.
        tasks: names of saved tasks.
        risk: share of wrong answers that is promised where a request does not say; None: nothing is.
        pilots: task -> file of rows without labels, whose confidences fix the thresholds that are tested.
        examples: task -> file of the labelled rows that it was adapted to, for the page.
        overrides: values laid on the configuration.
    """

    run: Path | str
    tasks: Sequence[str]
    risk: float | None = None
    pilots: Mapping[str, Path] = field(default_factory=dict)
    examples: Mapping[str, Path] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)


Put = Callable[[Session], Session]
"""Makes the loaded model answer as one of its speakers: a saved task, or the base."""


@dataclass
class Opened:
    """A loaded run with its tasks, to be asked by one thread at a time.

    Attributes:
        session: the run, as it answers now.
        tasks: by name.
        speakers: what puts each of them in.
        speaking: the one that is in; None: none is known to be.
    """

    session: Session
    tasks: Mapping[str, ServedTask]
    speakers: dict[str, Put]
    speaking: str | None = None

    def ask(self, speaker: str, questions: list[Question]) -> tuple[Answer, ...]:
        """Answers as the model states them; no question is kept.

        Raises:
            AbmllError: a question does not fit the model.
            NonFiniteError: a probability is NaN or infinite.
        """
        if speaker != self.speaking:
            self.speaking = None
            self.session = self.speakers[speaker](self.session)
            self.speaking = speaker
        encoder = self.session.system.batcher.encoder
        encoder.forget()
        try:
            return self.session.system.answer(questions, self.session.drawing)
        finally:
            encoder.forget()


def open_tasks(asked: ToServe) -> Opened:
    """Load the base model once, and put each task in once.

    Raises:
        AbmllError: there is no such run or task, one is damaged or does not belong to this base model, a file of rows
            is bad, or the promise cannot be made.
    """
    folder = find_run(asked.run)
    if not asked.tasks:
        raise AbmllError(f"{folder}: no task to serve; --task NAME says which")
    if repeated := [name for name in asked.tasks if asked.tasks.count(name) > 1]:
        raise AbmllError(f"--task {repeated[0]}: is given twice")
    for option, files in (("--pilot", asked.pilots), ("--examples", asked.examples)):
        if strange := set(files) - set(asked.tasks):
            raise AbmllError(f"{option} {min(strange)}=...: is no task that is served")
    tasks = {name: read_served(folder, name, asked.overrides) for name in asked.tasks}
    pilots = {name: read_unlabelled(file, tasks[name].layout) for name, file in asked.pilots.items()}
    speakers: dict[str, Put] = {
        name: partial(with_task, saved=task.saved, config=task.config) for name, task in tasks.items()
    }
    session = open_run(folder, asked.overrides, tasks[asked.tasks[0]].saved)
    for name, task in tasks.items():
        session = speakers[name](session)
        take_held_back(task, session)
        if name in pilots:
            answers = session.answer(list(islice(pilots[name], PILOT)))
            task.pilot = np.array([answer.confidence for answer in answers])
        if asked.risk is not None:
            task.promise(asked.risk)
    return Opened(session, tasks, speakers)
