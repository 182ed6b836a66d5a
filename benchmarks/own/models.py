"""Answers of a base model to every cell: as it is, with the labelled rows in its prompt, and after adapting to them.

    python -m benchmarks.own models --model FOLDER --data SETS --out ANSWERS/qwen-1.5b --part 0/5 --seconds 540

Cells that are there are left alone, so a second call goes on; `--part i/n` takes every n-th cell, for several
processes on one card. No cell is begun after `--seconds`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abmll.config import RunConfig, check
from abmll.metrics.predictions import pad_probabilities
from abmll.models import LanguageModel
from abmll.question import Question, Task
from abmll.systems.build import build_system
from abmll.systems.folds import Fold, deal
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from abmll.systems.system import System
from benchmarks.own.draws import Cell, LabelledSet

PROMPT_TOKENS = 1024
"""Longest prompt with examples in it."""


@dataclass(frozen=True)
class Asked:
    """The rows of a cell: those to be answered, and the labelled ones with their folds."""

    labelled: tuple[Question, ...]
    test: tuple[Question, ...]
    folds: tuple[Fold, ...]


def ask(data: LabelledSet, cell: Cell) -> Asked:
    """The rows of a cell; folds as the check of `abmll adapt` deals them."""
    labelled = data.drawn(cell)
    folds = deal([row.answer for row in labelled], range(len(labelled)), seed=cell.draw)
    return Asked(labelled, data.test, folds)


def system_on(base: LanguageModel, model: dict[str, Any], kind: str, settings: dict[str, Any]) -> System:
    """A fresh LoRA on a base model."""
    values = {"model": model, "likelihood": {"kind": kind, "max_tokens": PROMPT_TOKENS}, **settings}
    return build_system(check(RunConfig, {"method": {"name": "pretrained"}, **values}, "benchmark"), base)


def with_rate(config: RunConfig, rate: float) -> RunConfig:
    """The configuration of a fresh LoRA at another rate."""
    values = config.model_dump(mode="json")
    return check(RunConfig, values | {"method": {"name": "pretrained", "inner_lr": rate}}, "benchmark")


def answers_of(system: System, asked: Asked, plan: PredictionPlan, systems: Sequence[str]) -> dict[str, np.ndarray]:
    """All answers to a cell, as `benchmarks.own.summary` reads them."""
    out = {
        "test_answers": np.array([row.answer for row in asked.test], dtype=np.int16),
        "own_answers": np.array([row.answer for row in asked.labelled], dtype=np.int16),
    }
    system.adapt(Task("cell", asked.labelled[:2]), AdaptationPlan(2, steps=0))
    ways = {
        "as it is": (lambda: _plain(system, asked.labelled, plan), lambda: _plain(system, asked.test, plan)),
        "prompt": (lambda: _prompted_by_folds(system, asked, plan), lambda: _prompted(system, asked, plan)),
    }
    for name in ways.keys() & set(systems):
        out |= _timed(name, *ways[name])
    if "adapted" in systems:
        out |= _adapted(system, asked, plan)
    return out


def _timed(name: str, own: Callable[[], np.ndarray], test: Callable[[], np.ndarray]) -> dict[str, np.ndarray]:
    began = time.perf_counter()
    by_folds = own()
    between = time.perf_counter()
    probabilities = test()
    seconds = (time.perf_counter() - between) / len(probabilities) * 1000
    return _entries(name, by_folds, probabilities, (between - began, seconds))


def _entries(name: str, own: np.ndarray, test: np.ndarray, seconds: tuple[float, float]) -> dict[str, np.ndarray]:
    return {
        f"{name}.own": own.astype(np.float32),
        f"{name}.test": test.astype(np.float32),
        f"{name}.seconds": np.array(seconds, dtype=np.float32),
    }


def _plain(system: System, rows: Sequence[Question], plan: PredictionPlan) -> np.ndarray:
    return pad_probabilities([answer.probabilities for answer in system.answer(rows, plan)])


def _prompted(system: System, asked: Asked, plan: PredictionPlan) -> np.ndarray:
    encoder = system.batcher.encoder
    return _plain(system, [encoder.with_examples(row, asked.labelled) for row in asked.test], plan)


def _prompted_by_folds(system: System, asked: Asked, plan: PredictionPlan) -> np.ndarray:
    encoder, rows = system.batcher.encoder, list(asked.labelled)
    for fold in asked.folds:
        examples = [asked.labelled[i] for i in fold.fitted]
        for i in fold.answered:
            rows[i] = encoder.with_examples(asked.labelled[i], examples)
    return _plain(system, rows, plan)


def _adapted(system: System, asked: Asked, plan: PredictionPlan) -> dict[str, np.ndarray]:
    own = system.answer_by_folds(asked.labelled, asked.folds, plan)
    began = time.perf_counter()
    system.adapt(Task("cell", asked.labelled))
    between = time.perf_counter()
    test = _plain(system, asked.test, plan)
    seconds = (between - began, (time.perf_counter() - between) / len(test) * 1000)
    return _entries("adapted", pad_probabilities([answer.probabilities for answer in own]), test, seconds)


def write_cell(folder: Path, cell: Cell, arrays: dict[str, Any]) -> None:
    """Write a cell's answers, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{cell.file}.part"
    with beside.open("wb") as file:
        np.savez_compressed(file, **arrays)
    beside.replace(folder / cell.file)
