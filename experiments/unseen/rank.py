"""Which tasks have signal: the pretrained model's gain over uniform on `.train` rows, before anything is trained."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from abmll.config import RunConfig, check, merge
from abmll.metrics.calibration import apply_temperature, fit_temperature
from abmll.metrics.predictions import Prediction
from abmll.metrics.scores import floored_probabilities, mean_nll, question_nll
from abmll.metrics.statistics import bootstrap_interval
from abmll.models import LanguageModel
from abmll.question import Task
from abmll.systems.build import build_system
from abmll.systems.plans import PredictionPlan

MOST_ROWS = 400


def rank(config: RunConfig, base: LanguageModel, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Every task with its gain in nats over uniform, most signal first.

    The gain is after temperature scaling, fitted on one half of the rows and scored on the other, and back: without it
    an untrained model loses to a guess by its confidence alone. A task has signal where the 95 % interval of the
    gain, over questions, is above 0.
    """
    config = check(RunConfig, merge(config.model_dump(mode="json"), {"method": {"name": "pretrained"}}), "rank")
    system = build_system(config, base)
    try:
        system.method.begin_task(first=True)
        plan = PredictionPlan("mean", 1, config.adaptation.batch_tokens)
        found = [_told(task, system.predict(task.train[:MOST_ROWS], plan, ("rank",))) for task in tasks]
    finally:
        system.close()
    return sorted(found, key=lambda entry: -entry["gain"])


def _told(task: Task, rows: Sequence[Prediction]) -> dict[str, Any]:
    gain = gains(tuple(rows))
    low, high = bootstrap_interval(gain)
    return {
        "task": task.name,
        "rows": len(rows),
        "gain": float(gain.mean()),
        "interval": [low, high],
        "signal": low > 0,
        "gain_unscaled": float(np.mean(np.log([len(row.probabilities) for row in rows]))) - mean_nll(rows),
    }


def gains(rows: tuple[Prediction, ...]) -> np.ndarray:
    """log K + log p(answer) of each row, at the temperature that the other half of the rows asks for."""
    table, answers = floored_probabilities(rows), np.array([row.answer for row in rows])
    out = np.log([len(row.probabilities) for row in rows])
    halves = [np.arange(len(rows)) % 2 == half for half in (0, 1)]
    for fitted, scored in (halves, halves[::-1]):
        temperature = fit_temperature(table[fitted], answers[fitted])
        out[scored] -= question_nll(apply_temperature(table[scored], temperature), answers[scored])
    return out


def without_test(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks with their train rows alone: what may be looked at beforehand."""
    return tuple(replace(task, test=()) for task in tasks)
