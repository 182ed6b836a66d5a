"""Resident memory and open files over thousands of outer steps, and of evaluations of any size."""

import ctypes
import gc
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from abmll.models import LanguageModel
from abmll.systems.build import build_system
from abmll.systems.plans import PredictionPlan
from tests.survival.children import in_child
from tests.systems import run_config, tiny_base, train
from tests.tiny import tiny_model, tiny_tasks, tiny_tokenizer

MIB = 2**20


def train_and_watch(folder: Path, tasks: int, steps: int, every: int) -> list[tuple[int, float, int]]:
    """(step, resident MiB, open files) of training over so many tasks, in a process of its own."""

    def work() -> None:
        config = run_config("abmll", inner_steps=2, training={"iterations": steps, "checkpoint_every": every})
        process, seen = psutil.Process(), []

        def look(event: dict[str, Any]) -> None:
            if event["step"] % every == 0:
                gc.collect()
                seen.append((event["step"], process.memory_info().rss / MIB, process.num_fds()))

        train(config, folder / "run", tasks=tiny_tasks(tasks, n_rows=12, n_test=0), listener=look)
        (folder / "seen.json").write_text(json.dumps(seen))

    child = in_child(work, folder / "out.txt")
    assert child.wait(3600) == 0, child.text()
    return [tuple(row) for row in json.loads((folder / "seen.json").read_text())]


def slope(seen: list[tuple[int, float, int]]) -> float:
    """MiB per 1,000 steps, by least squares."""
    steps, sizes = [row[0] / 1000 for row in seen], [row[1] for row in seen]
    x, y = sum(steps) / len(steps), sum(sizes) / len(sizes)
    return sum((s - x) * (m - y) for s, m in zip(steps, sizes, strict=True)) / sum((s - x) ** 2 for s in steps)


def wide_base(vocabulary: int) -> LanguageModel:
    """The tiny model with a large vocabulary, of which the tokenizer uses the first part."""
    base = tiny_base()
    return LanguageModel(
        tiny_model(vocab_size=vocabulary),
        tiny_tokenizer(),
        "wide",
        None,
        base.dtype,
        base.device,
        "wide",
        "tiny",
    )


def return_freed_memory() -> None:
    """Let glibc give every freed tensor of 1 MiB and more back at once.

    By default it keeps freed blocks of up to 32 MiB, as many as chance has it: that is its memory, not the program's.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def peak_of_prediction(
    folder: Path, questions: int, vocabulary: int, batch_tokens: int, *, keep_freed: bool = False
) -> float:
    """Largest resident MiB while so many questions are predicted, in a process of its own."""

    def work() -> None:
        if not keep_freed:
            return_freed_memory()
        config = run_config("abmll")
        system = build_system(config, wide_base(vocabulary))
        rows = tiny_tasks(1, n_rows=questions, n_test=0)[0].train
        system.method.begin_task(first=True)
        system.predict(rows[:60], PredictionPlan("weight", 2, batch_tokens), (0,))  # what is loaded once is loaded
        peak = _peak_of(lambda: system.predict(rows, PredictionPlan("weight", 2, batch_tokens), (0,)))
        (folder / "peak.json").write_text(json.dumps(peak))

    child = in_child(work, folder / "out.txt")
    assert child.wait(3600) == 0, child.text()
    return float(json.loads((folder / "peak.json").read_text()))


def _peak_of(work: Callable[[], object]) -> float:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    with torch.no_grad():
        work()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def can_measure() -> bool:
    """Whether the system tells peaks, as Linux does."""
    return Path("/proc/self/clear_refs").exists()
