"""Seconds spent, by name, over the calls that a run takes."""

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class Timer:
    """Adds up seconds under names, on top of what was `spent` before; `scale_seconds` only where there were some.

    >>> timer = Timer()
    >>> with timer("train_seconds"):
    ...     pass
    >>> sorted(timer.seconds)
    ['adapt_seconds', 'predict_seconds', 'train_seconds']
    """

    def __init__(self, spent: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.seconds = dict.fromkeys(("train_seconds", "adapt_seconds", "predict_seconds"), 0.0)
        self.seconds |= {name: spent[name] for name in (*self.seconds, "scale_seconds") if name in spent}
        self._name, self._began = "", 0.0

    def __call__(self, name: str) -> "Timer":
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.perf_counter() - self._began
