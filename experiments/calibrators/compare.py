"""Every calibrator on every system: hyper-parameters from the other tasks, the rest from a task's held-out rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from abmll.calibrators import Calibrator, TaskRows, calibrator
from abmll.metrics.scores import confidence_and_correct, expected_calibration_error, negative_log_likelihood
from experiments.calibrators.files import Systems

POSTERIOR: dict[str, Any] = {"scale": {}}


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        name: in the table.
        calibrator: with its documented prior.
        learns: hyper-parameters are learned from the other tasks.
    """

    name: str
    calibrator: Calibrator
    learns: bool = True


ENTRIES = (
    Entry("none", calibrator("none"), False),
    Entry("temperature", calibrator("temperature"), False),
    Entry("posterior temperature, weak prior", calibrator("posterior_temperature"), False),
    Entry("its mode, weak prior", calibrator("posterior_temperature", {"answer": "mode"}), False),
    Entry("posterior temperature", calibrator("posterior_temperature")),
    Entry("its mode", calibrator("posterior_temperature", {"answer": "mode"})),
    Entry("vector scaling, weak prior", calibrator("vector_scaling"), False),
    Entry("vector scaling", calibrator("vector_scaling")),
    Entry("contextual", calibrator("contextual"), False),
    Entry("contextual, then posterior temperature", calibrator("contextual", POSTERIOR)),
    Entry("batch", calibrator("batch"), False),
    Entry("batch, then posterior temperature", calibrator("batch", POSTERIOR)),
    Entry("thermometer", calibrator("thermometer")),
    Entry("thermometer, inductive", calibrator("thermometer_inductive")),
    Entry("thermometer, then posterior", calibrator("thermometer_posterior")),
)
REFERENCES = ("uniform", "best temperature in hindsight")


@dataclass(frozen=True)
class TaskScores:
    """One entry's scores on the tasks that it could be fitted to, each a mean over draws and seeds.

    Attributes:
        nll: task -> NLL of the test rows.
        ece: task -> their ECE.
    """

    nll: dict[str, float] = field(default_factory=dict)
    ece: dict[str, float] = field(default_factory=dict)


def compare(
    systems: Systems, training: Systems | None = None, entries: Sequence[Entry] = ENTRIES
) -> dict[str, dict[str, TaskScores]]:
    """System -> entry -> scores.

    Args:
        systems: whose tasks are scored.
        training: whose tasks hyper-parameters are learned from; None: the others of `systems`, the scored one left out.
            A system that has none there is not scored: nothing could be learned for it.
        entries: rows of the table.
    """
    learned_from = systems if training is None else training
    scores = {}
    for system, tasks in systems.items():
        if system not in learned_from:
            continue
        others = learned_from[system]
        scores[system] = {entry.name: _scores(entry, tasks, others) for entry in entries}
        scores[system]["uniform"] = _mean_scores([(task, _uniform(task)) for task in tasks])
        hindsight = [(task, calibrator("temperature").fit(task.test).apply(task.test)) for task in tasks]
        scores[system][REFERENCES[1]] = _mean_scores(hindsight)
    return scores


def _scores(entry: Entry, tasks: Sequence[TaskRows], others: Sequence[TaskRows]) -> TaskScores:
    usable = [task for task in tasks if not entry.calibrator.unmet_need(task.held_out, task.content_free)]
    learned = {name: _learned(entry, name, others) for name in {task.name for task in usable}}
    return _mean_scores(
        [(task, learned[task.name].fit(task.held_out, task.content_free).apply(task.test)) for task in usable]
    )


def _learned(entry: Entry, name: str, others: Sequence[TaskRows]) -> Calibrator:
    """The calibrator of a task: what the others teach."""
    return (
        entry.calibrator.meta_fit([task for task in others if task.name != name]) if entry.learns else entry.calibrator
    )


def _uniform(task: TaskRows) -> np.ndarray:
    return task.test.real / task.test.choices[:, None]


def _mean_scores(answers: Sequence[tuple[TaskRows, np.ndarray]]) -> TaskScores:
    nll: dict[str, list[float]] = {}
    ece: dict[str, list[float]] = {}
    for task, probabilities in answers:
        confidence, correct = confidence_and_correct(probabilities, task.test.answers)
        nll.setdefault(task.name, []).append(negative_log_likelihood(probabilities, task.test.answers))
        ece.setdefault(task.name, []).append(expected_calibration_error(confidence, correct))
    return TaskScores(*({name: float(np.mean(v)) for name, v in values.items()} for values in (nll, ece)))


def average_system(scores: Mapping[str, Mapping[str, TaskScores]]) -> dict[str, TaskScores]:
    """Entry -> scores of each task, mean over systems (those that have the task)."""
    entries = next(iter(scores.values()))
    return {name: _over_systems([by_entry[name] for by_entry in scores.values()]) for name in entries}


def _over_systems(parts: Sequence[TaskScores]) -> TaskScores:
    names = {name for part in parts for name in part.nll}
    nll, ece = (
        {name: float(np.mean([values[name] for values in kind if name in values])) for name in sorted(names)}
        for kind in ([part.nll for part in parts], [part.ece for part in parts])
    )
    return TaskScores(nll, ece)


def difference(a: TaskScores, b: TaskScores) -> tuple[float, float, float]:
    """Mean over tasks of a's NLL less b's, on the tasks that both have, and its 95 % interval (paired t over tasks)."""
    values = np.array([a.nll[name] - b.nll[name] for name in sorted(a.nll.keys() & b.nll.keys())])
    if len(values) < 2 or np.ptp(values) == 0:
        return (float(values.mean()),) * 3
    low, high = ttest_1samp(values, 0.0).confidence_interval(0.95)
    return float(values.mean()), float(low), float(high)
