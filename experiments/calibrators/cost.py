"""What a calibrator costs: processor time and memory, on 1,000 questions of four choices and 20 held-out ones."""

import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from abmll.calibrators import TaskRows
from experiments.calibrators.compare import ENTRIES, Entry
from experiments.calibrators.worlds import TRAINING, WORLDS, simulated_task

ROWS = 1000
REPEATS = 7


def costs(entries: Sequence[Entry] = ENTRIES) -> dict[str, dict[str, float]]:
    """Entry -> milliseconds of `meta_fit` on 34 tasks, of `fit`, of `apply`; peaks of memory, KiB, of the first and of
    the other two together.
    """
    tasks = [simulated_task(WORLDS["T = 4, spread 6"], seed, ROWS) for seed in range(TRAINING)]
    return {entry.name: _cost(entry, tasks) for entry in entries}


def _cost(entry: Entry, tasks: Sequence[TaskRows]) -> dict[str, float]:
    short = [replace(task, test=task.held_out) for task in tasks]  # as many rows as are labelled
    held_out, content_free = tasks[0].held_out, tasks[0].content_free
    learned, meta = _timed(lambda: entry.calibrator.meta_fit(short) if entry.learns else entry.calibrator, repeats=1)
    fitted, fit = _timed(lambda: learned.fit(held_out, content_free))
    _, apply = _timed(lambda: fitted.apply(tasks[0].test))
    of_meta = _peak(lambda: entry.calibrator.meta_fit(short)) if entry.learns else 0.0
    memory = _peak(lambda: learned.fit(held_out, content_free).apply(tasks[0].test))
    times = {"meta_fit_ms": meta, "fit_ms": fit, "apply_ms": apply}
    return {**times, "meta_fit_kib": of_meta, "memory_kib": memory}


def _timed(work: Callable[[], Any], repeats: int = REPEATS) -> tuple[Any, float]:
    """The result, and the least processor time of several runs: others use the machine, too."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        times.append(1000 * (time.process_time() - start))
    return result, min(times)


def _peak(work: Callable[[], Any]) -> float:
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 1024
