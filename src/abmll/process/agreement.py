"""A failure, a stop or a number that is not finite on one rank ends the phase on all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from abmll.errors import AbmllError, NonFiniteError
from abmll.process.stopping import Stopped, asked, is_gentle
from abmll.process.world import News, World, cannot_meet, shares_passes

NOTHING, NON_FINITE, FAILED = 0, 1000, 1001
"""Codes that ranks tell each other; one in between is the number of the signal that stopped a rank."""


@contextmanager
def agree_on_failure(world: World, *, long: bool = False) -> Iterator[None]:
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
        if world.size == 1 or cannot_meet():
            raise
        problem = error
    if world.size > 1 and shares_passes():
        world.meet(long=long)
        if problem is None and asked() and not is_gentle():  # the signal came while this rank followed others' passes
            problem = Stopped(asked())
    news = world.tell(_code(problem), "" if problem is None else f"{problem}" or type(problem).__name__, long=long)
    if not news:
        return
    worst = max(news, key=lambda each: each.code)
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
