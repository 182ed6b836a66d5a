"""How sure a number is: intervals over questions, and paired tests between systems."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from abmll.metrics.paired import paired_test
from abmll.metrics.predictions import Predictions
from abmll.metrics.resampling import group_numbers
from abmll.metrics.scores import confidence_and_correct, question_brier, question_nll, scaled_probabilities
from abmll.metrics.statistics import holm, stratified_bootstrap_interval, stratified_ece_bootstrap_interval
from abmll.report.folder import Cell, ScoredRun
from abmll.scoring.posterior import posterior_probabilities

INTERVAL_METRICS = ("accuracy", "nll_posterior", "nll", "ece", "brier")
TEST_METRICS = ("accuracy", "nll_posterior", "nll", "nll_scaled", "nll_scaled_cv")
REPEATS = 2000

Values = dict[str, dict[str, float]]
"""Metric -> question id -> value, of one predictions file."""


class Evidence:
    """The per-question numbers of a system's runs, computed once and read by every interval and test.

    Args:
        runs: the counted runs of one system, one a seed.
        tasks: the tasks to average over.
        draws: adaptation draws in each.
    """

    def __init__(self, runs: Sequence[ScoredRun], tasks: Sequence[str], draws: int) -> None:
        self.tasks = tuple(tasks)
        self.draws = draws
        self.is_meta_trained = any(run.examples > 0 for run in runs)
        self._group = {
            task: {row.id: row.group for run in runs for draw in range(draws) for row in run.final[draw, task].rows}
            for task in tasks
        }
        self.values: dict[int, dict[Cell, Values]] = {
            run.seed: {(draw, task): question_values(run.final[draw, task]) for task in tasks for draw in range(draws)}
            for run in runs
        }

    def ids(self, task: str) -> list[str]:
        """Questions of a task that every seed and draw answered, in order."""
        sets = [cells[draw, task]["nll"].keys() for cells in self.values.values() for draw in range(self.draws)]
        return sorted(reduce(lambda a, b: a & b, sets, set(sets[0])))

    def groups(self, task: str, ids: Sequence[str]) -> Int[np.ndarray, "N"]:
        """Numbers of the groups that these questions are of."""
        return group_numbers([self._group[task][name] for name in ids])

    def stack(self, metric: str, task: str, ids: list[str], seeds: Sequence[int]) -> Float[np.ndarray, "S D N"]:
        """One metric of a task's questions. Raises KeyError if a file does not have the metric."""
        return np.array(
            [
                [[self.values[seed][draw, task][metric][name] for name in ids] for draw in range(self.draws)]
                for seed in seeds
            ]
        )

    def has(self, metric: str) -> bool:
        """Whether every file has this metric."""
        return all(metric in values for cells in self.values.values() for values in cells.values())

    def interval(self, metric: str) -> list[float] | None:
        """95 % bootstrap interval over questions (or groups of them) within tasks.

        Returns:
            None if the draws share no questions, a file does not have the metric, or the questions of a task are all of
            one group: how far another group would be off, nobody knows.
        """
        if not self.has("confidence" if metric == "ece" else metric):
            return None
        ids = {task: self.ids(task) for task in self.tasks}
        groups = {task: self.groups(task, ids[task]) for task in self.tasks}
        if any(not len(numbers) or (len(numbers) > 1 and numbers.max() == 0) for numbers in groups.values()):
            return None
        stacks = {
            name: {task: self.stack(name, task, ids[task], list(self.values)) for task in self.tasks}
            for name in (("confidence", "accuracy") if metric == "ece" else (metric,))
        }
        if metric != "ece":
            return list(stratified_bootstrap_interval(stacks[metric], groups=groups, repeats=REPEATS))
        pairs = {task: (stacks["confidence"][task], stacks["accuracy"][task]) for task in self.tasks}
        return list(stratified_ece_bootstrap_interval(pairs, groups=groups, repeats=REPEATS))

    def count_groups(self) -> int:
        """Groups of questions of all tasks together: as many as questions if each stands alone."""
        return sum(len(set(self.groups(task, list(self._group[task])).tolist())) for task in self.tasks)


def question_values(predictions: Predictions) -> Values:
    """Every question's accuracy, NLL, Brier, confidence and, if a temperature can be learned, NLL at it.

    `nll_posterior`: at the posterior temperature (`abmll.scoring.posterior`); `nll_scaled`: at the one that suits the
    learned examples best; `nll_scaled_cv`: at the one that suits the held-out examples best.
    """
    probabilities, answers = predictions.probabilities(), predictions.answers()
    confidence, correct = confidence_and_correct(probabilities, answers)
    columns = {
        "accuracy": correct,
        "confidence": np.minimum(confidence, 1.0),
        "nll": question_nll(probabilities, answers),
        "brier": question_brier(probabilities, answers),
    }
    if (at_posterior := posterior_probabilities(predictions)) is not None:
        columns["nll_posterior"] = question_nll(at_posterior, answers)
    for name, fitted in (("", predictions.adaptation_rows), ("_cv", predictions.held_out_rows)):
        if fitted:
            columns[f"nll_scaled{name}"] = question_nll(scaled_probabilities(predictions, fitted), answers)
    names = [row.id for row in predictions.rows]
    return {metric: dict(zip(names, column.tolist(), strict=True)) for metric, column in columns.items()}


def paired_tests(evidence: dict[str, Evidence], reference: str) -> dict[str, dict[str, Any]]:
    """Every system against the reference, with Holm's correction over the systems, metric by metric.

    Returns:
        system -> metric -> {difference, interval, p, p_holm, n, groups, seeds, draws, levels, measured_once}; p and
        p_holm are None where a level was measured once, such as the training seed: what another one would show nobody
        knows. A system or a metric that shares no seed or no question with the reference is left out.
    """
    found: dict[str, dict[str, Any]] = {system: {} for system in evidence if system != reference}
    for metric in TEST_METRICS if reference in evidence else ():
        for system in found:
            test = _paired_test(evidence[system], evidence[reference], metric)
            found[system] |= {metric: test} if test else {}
        corrected = holm({system: tests[metric]["p"] for system, tests in found.items() if metric in tests})
        for system, p_value in corrected.items():
            found[system][metric]["p_holm"] = p_value
    return found


def _paired_test(a: Evidence, b: Evidence, metric: str) -> dict[str, Any] | None:
    seeds = [seed for seed in a.values if seed in b.values]
    ids = {task: [name for name in a.ids(task) if name in set(b.ids(task))] for task in a.tasks}
    if not seeds or not all(ids.values()):
        return None
    try:
        left, right = ({t: side.stack(metric, t, ids[t], seeds) for t in a.tasks} for side in (a, b))
    except KeyError:
        return None
    groups = {task: b.groups(task, ids[task]) for task in a.tasks}
    # a training seed decides nothing where nothing was meta-trained: experiments/size has the measured size of that
    constant = () if a.is_meta_trained or b.is_meta_trained else ("seeds",)
    test = paired_test(left, right, groups=groups, constant=constant)
    return {
        "difference": test.difference,
        "interval": [test.low, test.high],
        "p": test.p_value,
        "n": test.questions,
        "groups": test.groups,
        "seeds": test.seeds,
        "draws": test.draws,
        "levels": list(test.levels),
        "measured_once": list(test.measured_once),
    }
