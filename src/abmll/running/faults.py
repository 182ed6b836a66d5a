"""What ends a phase of the work, and how all ranks end it together."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from abmll.errors import AbmllError
from abmll.errors import NonFiniteError as NonFiniteError
from abmll.methods.base import Place
from abmll.running.stopping import Stopped
from abmll.running.world import News, World
from abmll.tasks.question import Question


@dataclass(frozen=True)
class FailedBatch:
    """A batch on which a loss or gradient was not finite; the weights are as they were before it.

    Attributes:
        questions: of the batch; empty where an outer step has no query batch.
        place: (seed, meta-iteration, position, inner step): it names the noise.
        outer: whether it was the batch of an outer step.
    """

    questions: tuple[Question, ...]
    place: Place
    outer: bool = False


NOTHING, NON_FINITE, FAILED = 0, 1000, 1001
"""Codes that ranks tell each other; one in between is the number of the signal that stopped a rank."""


@contextmanager
def together(world: World, *, long: bool = False) -> Iterator[None]:
    """Ranks meet at the end of the block: what any of them ran into there ends it for all.

    Nothing in the block may wait for another rank.

    Args:
        world: the ranks.
        long: some rank may be at work for hours, others wait.

    Raises:
        Stopped: a rank was asked to stop, and nothing worse happened.
        NonFiniteError: on a rank, and nothing worse happened.
        AbmllError: a rank failed; says which, and of what.
    """
    problem: BaseException | None = None
    try:
        yield
    except BaseException as error:
        if world.size == 1:
            raise
        problem = error
    news = world.tell(_code(problem), "" if problem is None else f"{problem}" or type(problem).__name__, long=long)
    if not news:
        return
    worst = max(news, key=lambda found: found.code)
    if problem is not None and _code(problem) == worst.code:
        raise problem
    raise _as_error(worst) from problem


def _code(problem: BaseException | None) -> int:
    if problem is None:
        return NOTHING
    if isinstance(problem, Stopped):
        return problem.signal
    return NON_FINITE if isinstance(problem, NonFiniteError) else FAILED


def _as_error(news: News) -> BaseException:
    if news.code < NON_FINITE:
        return Stopped(news.code)
    kind = NonFiniteError if news.code == NON_FINITE else AbmllError
    return kind(f"rank {news.rank}: {news.text}")
