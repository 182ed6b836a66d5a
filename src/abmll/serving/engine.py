"""The thread that owns the base model: it answers the rows of all requests, those of one task together."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from abmll.errors import AbmllError
from abmll.everyday.survey import CHUNK
from abmll.question import Question
from abmll.systems.predict import Answer

logger = logging.getLogger(__name__)
Ask = Callable[[str, list[Question]], tuple[Answer, ...]]
"""Answers of one of the model's speakers: a saved task, or the base."""
Heard = Callable[[str, int, float], None]
"""Hears of a batch: who answered, rows, seconds."""


class Busy(Exception):
    """More rows wait than are let in.

    Attributes:
        seconds: after which it is worth trying again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many rows wait; try again in {seconds:.0f} s")
        self.seconds = seconds


class Closed(Exception):
    """The server stops, or its thread has died: nothing is answered any more."""


@dataclass(eq=False)
class _Request:
    """Rows of one request, some of which may be answered already."""

    speaker: str
    questions: Sequence[Question]
    future: "Future[tuple[Answer, ...]]"
    answers: list[Answer] = field(default_factory=list)
    given: int = 0

    @property
    def left(self) -> int:
        return len(self.questions) - self.given


_Part = tuple[_Request, Sequence[Question]]


class Engine:
    """Answers questions of many clients on one base model.

    Rows that wait are taken by `CHUNK` at most, as `abmll predict` takes them: those of the request that has waited
    longest, and, where they leave room, those of other requests of the same task that fit whole. What is left of a long
    request goes to the end, so that short ones pass it. A request that nobody else waits beside is thus answered in the
    very batches of `abmll predict`.

    Args:
        ask: the model, which no other thread asks from now on.
        most: rows that may wait.
        heard: hears of each batch.
    """

    def __init__(self, ask: Ask, most: int, heard: Heard = lambda name, rows, seconds: None) -> None:
        self._ask, self.most, self._heard = ask, most, heard
        self._waiting: deque[_Request] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._row_seconds = 0.01  # of one row, smoothed
        self._thread = threading.Thread(target=self._run, name="abmll-base", daemon=True)

    def start(self) -> "Engine":
        """Start the thread."""
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        with self._change:
            return sum(request.left for request in self._waiting)

    def submit(self, speaker: str, questions: Sequence[Question]) -> "Future[tuple[Answer, ...]]":
        """Answers as the model states them, once they are there; cancelled, rows that still wait are left out.

        Raises:
            Busy: too many rows wait.
            Closed: the engine stops.
        """
        request = _Request(speaker, questions, Future())
        with self._change:
            if not self.alive:
                raise Closed("the server is stopping")
            rows = sum(other.left for other in self._waiting)
            if rows + len(questions) > self.most:
                raise Busy(max(1.0, rows * self._row_seconds))
            self._waiting.append(request)
            self._change.notify()
        if not questions:
            request.future.set_result(())
        return request.future

    def close(self, seconds: float | None = None) -> None:
        """Answer what waits, then stop; after so many seconds, leave it unanswered."""
        with self._change:
            self._closing = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._leave_unanswered()

    def _run(self) -> None:
        try:
            while batch := self._next():
                self._answer(batch)
        except BaseException:
            logger.exception("the thread that answers has died")
            self._leave_unanswered()
            raise

    def _leave_unanswered(self) -> None:
        with self._change:
            left, self._waiting = list(self._waiting), deque()
        for request in left:
            _settle(request.future, error=Closed("the server has stopped"))

    def _next(self) -> list[_Part]:
        """The next batch; nothing at the end."""
        with self._change:
            while True:
                self._waiting = deque(r for r in self._waiting if r.left and not r.future.done())
                if self._waiting:
                    return self._taken()
                if self._closing:
                    return []
                self._change.wait()

    def _taken(self) -> list[_Part]:
        first = self._waiting.popleft()
        batch, room = [_take(first, CHUNK)], CHUNK - min(CHUNK, len(first.questions))
        for request in [r for r in self._waiting if r.speaker == first.speaker]:
            if request.left <= room and request.given == 0:
                room -= request.left
                batch.append(_take(request, request.left))
        if first.left:
            self._waiting.append(first)
        return batch

    def _answer(self, batch: list[_Part]) -> None:
        began, speaker = time.perf_counter(), batch[0][0].speaker
        rows = sum(len(part) for _, part in batch)
        self._say(speaker, batch)
        seconds = time.perf_counter() - began
        self._row_seconds += 0.2 * (seconds / rows - self._row_seconds)
        self._heard(speaker, rows, seconds)

    def _say(self, speaker: str, batch: list[_Part]) -> None:
        """Answer a batch; where that fails each request alone, so that one client's row is no other's failure."""
        try:
            answers = self._ask(speaker, [question for _, part in batch for question in part])
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    self._say(speaker, [one])
                return
            if not isinstance(error, AbmllError):
                logger.error("%d rows of %s were not answered: %s", len(batch[0][1]), speaker, type(error).__name__)
            _settle(batch[0][0].future, error=error)
            return
        start = 0
        for request, part in batch:
            request.answers += answers[start : start + len(part)]
            start += len(part)
            if len(request.answers) == len(request.questions):
                _settle(request.future, tuple(request.answers))


def _take(request: _Request, most: int) -> _Part:
    part = request.questions[request.given : request.given + most]
    request.given += len(part)
    return request, part


def _settle(
    future: "Future[tuple[Answer, ...]]", answers: tuple[Answer, ...] = (), error: Exception | None = None
) -> None:
    """Tell who waits, if somebody still does."""
    try:
        if error is None:
            future.set_result(answers)
        else:
            future.set_exception(error)
    except InvalidStateError:  # cancelled meanwhile
        pass
