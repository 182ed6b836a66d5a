"""Seconds: those spent, by name, over the calls that a run takes; and those that a unit of work takes."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Any

ONCE = ("scale_seconds", "precision_seconds")
"""What is learned over training tasks, by runs that ask for it."""


class Timer:
    """Adds up seconds under names, on top of what was `spent` before; those of `ONCE` only where there were some.

    >>> timer = Timer()
    >>> with timer("train_seconds"):
    ...     pass
    >>> sorted(timer.seconds)
    ['adapt_seconds', 'predict_seconds', 'train_seconds']
    """

    def __init__(self, spent: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.seconds = dict.fromkeys(("train_seconds", "adapt_seconds", "predict_seconds"), 0.0)
        self.seconds |= {name: spent[name] for name in (*self.seconds, *ONCE) if name in spent}
        self._name, self._began = "", 0.0

    def __call__(self, name: str) -> "Timer":
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.perf_counter() - self._began


FEWEST, RECENT = 3, 30
"""Measurements without which there is no pace; and those that count, the last ones."""


class Pace:
    """Seconds that a unit of work takes: the median of the last ones, so that a slow first one counts for nothing.

    Args:
        clock: seconds since some time or other.

    >>> pace = Pace(clock=iter([0.0, 300.0, 301.0, 302.0]).__next__)
    >>> for _ in range(3):
    ...     pace.add(1)
    >>> pace.unit_seconds
    1.0
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, clock()
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def restart(self) -> None:
        """What happened since the last unit (a model was loaded) is part of none."""
        self._last = self._clock()

    def add(self, units: int | float = 1) -> None:
        """So many more units are done; none leave the time to the next one."""
        if units > 0:
            now = self._clock()
            self._recent.append(((now - self._last) / units, units))
            self._last = now

    @property
    def unit_seconds(self) -> float | None:
        """Median of the seconds a unit, each unit counted once; None before a few measurements."""
        if len(self._recent) < FEWEST:
            return None
        rates = sorted(self._recent)
        below = list(accumulate(units for _, units in rates))
        return next(seconds for (seconds, _), units in zip(rates, below, strict=True) if units >= below[-1] / 2)
