"""Which rate and how many steps a fresh LoRA takes: chosen on validation tasks, never on the sets of the benchmark.

    python -m benchmarks.own rates --model FOLDER --data VALIDATION --out RATES --part 0/5
    python -m benchmarks.own rates --out RATES --choose

20 examples of each task; a file for each task, draw and setting.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from abmll.config import ModelConfig, RunConfig, check
from abmll.methods.base import Schedule
from abmll.metrics.predictions import pad_probabilities
from abmll.models import LanguageModel
from abmll.question import Question, Task
from abmll.systems.build import build_system
from abmll.systems.folds import deal
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from abmll.systems.system import System
from benchmarks.own.answers import read_answers
from benchmarks.own.cells import answer_entries
from benchmarks.own.draws import Cell

EXAMPLES, QUESTIONS = 20, 100


class Setting(NamedTuple):
    """How a fresh LoRA is fitted, and how its examples are answered out of their fold."""

    rate: float
    steps: int
    schedule: Schedule = "constant"
    folds: int = 5


SETTINGS = (
    *(Setting(rate, steps) for rate, steps in itertools.product((1e-4, 3e-4, 1e-3), (10, 20, 40))),
    *(Setting(rate, steps, "linear") for rate, steps in itertools.product((3e-4, 5e-4, 1e-3), (20, 40))),
    Setting(3e-4, 40, "linear", folds=10),
    Setting(3e-4, 20, "linear", folds=10),
)


def trials(tasks: list[str], settings: Sequence[int], draws: int) -> Iterator[tuple[Cell, Setting]]:
    """Every task and draw in every setting; `size` of a cell is the setting's number."""
    for draw, name, number in itertools.product(range(draws), tasks, settings):
        yield Cell(name, number, draw), SETTINGS[number]


def try_setting(
    system: System, task: Task, cell: Cell, setting: Setting, plan: PredictionPlan
) -> dict[str, np.ndarray]:
    """Answers after adapting to a task's examples, and of each example after adapting to those of the other folds."""
    rows = np.random.default_rng(cell.draw).permutation(len(task.train))[:EXAMPLES]
    examples = tuple(task.train[i] for i in rows)
    folds = deal([row.answer for row in examples], range(len(examples)), setting.folds, cell.draw)
    usual = AdaptationPlan(EXAMPLES, setting.steps, 2, cell.draw, setting.schedule)
    own = system.answer_by_folds(examples, folds, plan, lambda n: replace(usual, examples=n))
    system.adapt(Task(task.name, examples), usual)
    test = task.test[:QUESTIONS]
    answered = system.answer(test, plan)
    tables = [pad_probabilities([answer.probabilities for answer in answers]) for answers in (own, answered)]
    right = {"test_answers": _answers(test), "own_answers": _answers(examples)}
    return answer_entries("adapted", tables[0], tables[1], (0.0, 0.0)) | right


def letters_on(base: LanguageModel, model: ModelConfig) -> System:
    """A LoRA from zero on a base model that is asked for letters, on rows of up to 1,024 tokens."""
    sections = {"model": model.model_dump(mode="json"), "likelihood": {"kind": "letter", "max_tokens": 1024}}
    return build_system(check(RunConfig, {**sections, "method": {"name": "pretrained"}}, "benchmarks.own"), base)


def with_rate(config: RunConfig, rate: float) -> RunConfig:
    """The configuration of a LoRA from zero at another rate."""
    values = config.model_dump(mode="json")
    return check(RunConfig, values | {"method": {"name": "pretrained", "inner_lr": rate}}, "benchmarks.own")


def _answers(rows: tuple[Question, ...]) -> np.ndarray:
    return np.array([row.answer for row in rows], dtype=np.int16)


def choose(folder: Path) -> list[dict[str, Any]]:
    """Mean scores of every setting, the best by the NLL at the posterior temperature first."""
    by_setting: dict[int, list[dict[str, float]]] = {}
    for _, cell, answers in read_answers(folder):
        by_setting.setdefault(cell.size, []).append(answers.scores())
    rows = []
    for number, scores in by_setting.items():
        means = {key: float(np.mean([s[key] for s in scores])) for key in ("nll_posterior", "nll", "accuracy")}
        rows.append({**SETTINGS[number]._asdict(), "cells": len(scores), **means})
    return sorted(rows, key=lambda row: row["nll_posterior"])


def tell(folder: Path) -> None:
    """Print `choose` as JSON lines."""
    for row in choose(folder):
        print(json.dumps({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}))
