"""Many scored runs -> one summary: `results.json`, and all that tables, figures and page are made from."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from abmll.errors import AbmllError
from abmll.metrics.baselines import LABEL_FREQUENCY, UNIFORM, label_frequency, uniform
from abmll.metrics.calibration import BINS, reliability_bins
from abmll.metrics.predictions import Predictions
from abmll.metrics.registered import definition, score_with
from abmll.metrics.scores import Scores, confidence_and_correct, risk_coverage
from abmll.metrics.statistics import standard_error
from abmll.report.evidence import INTERVAL_METRICS, Evidence, paired_tests
from abmll.report.folder import Cell, Comparison, Run, collect

__all__ = ["Comparison", "collect", "summarise"]

FORMAT = 1
COVERAGES = np.linspace(0.05, 1.0, 39)  # below 5 % of a small task the risk is that of a handful of questions

Summary = dict[str, Any]


def summarise(comparison: Comparison) -> Summary:
    """Everything that a report says, ready for JSON.

    A system's score is the unweighted mean over the unseen tasks, its counted seeds and adaptation draws;
    that of `label_frequency` is over the tasks with fixed labels only (`n_tasks`).

    Returns:
        {"systems": {NAME: {kind, n, n_tasks, n_seeds, n_draws, examples_consumed, METRIC, METRIC_interval,
        METRIC_standard_error, against_reference, before_adaptation, cost}}, "tasks": {TASK: {NAME: scores}},
        "curve", "reliability", "risk_coverage", "environment", "missing", "metrics" (of registered metrics, the
        definitions), "n_groups" (of the questions of all tasks; as many as questions if each stands alone), and the
        comparison's own fields}.

    Raises:
        AbmllError: no system has predictions for every task and draw.

    >>> summarise(collect(Path("runs/quickstart")))["systems"]["uniform"]["nll"]  # doctest: +SKIP
    0.991
    """
    if not comparison.runs:
        raise AbmllError(
            f"comparison {comparison.name!r}: nothing to report, no system has predictions for every "
            "task and draw yet; run `abmll compare` again. " + "; ".join(comparison.missing)
        )
    runs, tasks = _with_baselines(comparison)
    evidence = {system: Evidence(runs[system], tasks[system], comparison.draws) for system in runs}
    tests = paired_tests({system: evidence[system] for system in comparison.runs}, comparison.reference)
    systems = {system: _entry(runs[system], tasks[system], evidence[system]) for system in runs}
    for system, entry in systems.items():
        entry["kind"] = "system" if system in comparison.runs else "baseline"
        entry["against_reference"] = tests.get(system) or None
    return {
        "format": FORMAT,
        "name": comparison.name,
        "note": comparison.note,
        "reference": comparison.reference,
        "seeds": list(comparison.seeds),
        "draws": comparison.draws,
        "confidence": "choices",
        "bins": BINS,
        "metrics": {name: definition(name) for name in comparison.metrics},
        "n_groups": max(each.count_groups() for each in evidence.values()),
        "systems": systems,
        "tasks": {task: _task(runs, tasks, task, comparison.draws) for task in comparison.tasks},
        "curve": {system: _curve(found, comparison.cells()) for system, found in comparison.runs.items()},
        "reliability": {system: _reliability(_final(runs[system], tasks[system])) for system in comparison.runs},
        "risk_coverage": {system: _risk(_final(runs[system], tasks[system])) for system in comparison.runs},
        "environment": _environment(comparison),
        "missing": list(comparison.missing),
    }


def _with_baselines(comparison: Comparison) -> tuple[dict[str, Sequence[Run]], dict[str, list[str]]]:
    """Runs and tasks of every row. Baselines answer the questions of the reference, or the first system."""
    runs: dict[str, Sequence[Run]] = dict(comparison.runs)
    tasks = {system: list(comparison.tasks) for system in runs}
    source = runs.get(comparison.reference) or next(iter(runs.values()))
    answers = {run.seed: {cell: run.final[cell] for cell in comparison.cells()} for run in source}
    runs[UNIFORM] = [
        _baseline(UNIFORM, seed, {cell: uniform(found) for cell, found in cells.items()}, comparison.metrics)
        for seed, cells in answers.items()
    ]
    tasks[UNIFORM] = list(comparison.tasks)
    fixed = {
        seed: {cell: made for cell, found in cells.items() if (made := label_frequency(found))}
        for seed, cells in answers.items()
    }
    labelled = [
        t for t in comparison.tasks if all((d, t) in c for c in fixed.values() for d in range(comparison.draws))
    ]
    if labelled:
        metrics = comparison.metrics
        runs[LABEL_FREQUENCY] = [_baseline(LABEL_FREQUENCY, seed, cells, metrics) for seed, cells in fixed.items()]
        tasks[LABEL_FREQUENCY] = labelled
    return runs, tasks


def _baseline(system: str, seed: int, final: dict[Cell, Predictions], metrics: Sequence[str]) -> Run:
    scores = {cell: score_with(predictions, metrics) for cell, predictions in final.items()}
    return Run(system, seed, {0: scores}, final, before={}, cost=None, environment=None, ended=None)


def mean_scores(scores: Iterable[Scores]) -> dict[str, float | None]:
    """Mean of every metric; None for one that a file does not have."""
    rows = [one.to_dict() for one in scores]
    return _mean_rows(rows)


def _entry(runs: Sequence[Run], tasks: Sequence[str], evidence: Evidence) -> Summary:
    cells = [(draw, task) for task in tasks for draw in range(evidence.draws)]
    by_seed = [mean_scores(run.checkpoints[run.examples][cell] for cell in cells) for run in runs]
    before = [mean_scores(run.before[c] for c in cells) for run in runs if all(c in run.before for c in cells)]
    entry: Summary = {
        "n": sum(len(runs[0].final[0, task].rows) for task in tasks),
        "n_tasks": len(tasks),
        "n_seeds": len(runs),
        "n_draws": evidence.draws,
        "examples_consumed": runs[0].examples,
    }
    for metric, value in _mean_rows(by_seed).items():
        values = [seed[metric] for seed in by_seed if seed[metric] is not None]
        # a baseline has no training seed: its error over seeds would be 0 and look like a finding
        real = value is not None and runs[0].system not in (UNIFORM, LABEL_FREQUENCY)
        entry |= {
            metric: value,
            f"{metric}_standard_error": standard_error(np.array(values)) if real else None,
        }
        if metric in INTERVAL_METRICS:
            entry[f"{metric}_interval"] = evidence.interval(metric)
    entry["before_adaptation"] = _mean_rows(before) if before else None
    entry["cost"] = _cost([run.cost for run in runs if run.cost is not None])
    return entry


def _mean_rows(rows: Sequence[Mapping[str, int | float | None]]) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for metric in (name for name in rows[0] if name != "n"):
        values = [value for row in rows if (value := row[metric]) is not None]
        out[metric] = float(np.mean(values)) if len(values) == len(rows) else None
    return out


def _cost(costs: Sequence[Mapping[str, Any]]) -> Summary | None:
    """Mean over seeds of every number, the largest peak; what is no number is taken from the first seed."""
    if not costs:
        return None
    out = dict(costs[0])
    for key in costs[0]:
        values = [cost.get(key) for cost in costs]
        numbers = [float(v) for v in values if isinstance(v, int | float) and abs(v) <= sys.float_info.max]
        if len(numbers) == len(costs):
            found = max(numbers) if key == "peak_memory_bytes" else float(np.mean(numbers))
            out[key] = int(found) if all(isinstance(value, int) for value in values) else found
    return out


def _task(runs: Mapping[str, Sequence[Run]], tasks: Mapping[str, list[str]], task: str, draws: int) -> Summary:
    out: Summary = {}
    for system, found in runs.items():
        if task in tasks[system]:
            scores = [run.checkpoints[run.examples][draw, task] for run in found for draw in range(draws)]
            out[system] = {"n": scores[0].n, **mean_scores(scores)}
    return out


def _curve(runs: Sequence[Run], cells: list[Cell]) -> list[Summary]:
    """Scores over examples consumed, at the checkpoints that every counted seed has whole."""
    whole = [{e for e, found in run.checkpoints.items() if all(c in found for c in cells)} for run in runs]
    points = []
    for examples in sorted(set.intersection(*whole)):
        by_seed = [mean_scores(run.checkpoints[examples][cell] for cell in cells) for run in runs]
        point: Summary = {"examples_consumed": examples, "n_seeds": len(runs), **_mean_rows(by_seed)}
        for metric in ("accuracy", "ece", "nll"):
            point[f"{metric}_standard_error"] = standard_error(np.array([seed[metric] for seed in by_seed]))
        points.append(point)
    return points


def _final(runs: Sequence[Run], tasks: Sequence[str]) -> list[Predictions]:
    return [found for run in runs for (_, task), found in run.final.items() if task in tasks]


def _reliability(files: Sequence[Predictions]) -> Summary:
    """One diagram of all questions, seeds and draws together; None in an empty bin."""
    pairs = [confidence_and_correct(file.probabilities(), file.answers()) for file in files]
    confidence, correct = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    bins = reliability_bins(confidence, correct)
    return {
        "edges": bins.edges.tolist(),
        "count": bins.count.tolist(),
        "mean_confidence": [None if np.isnan(value) else float(value) for value in bins.mean_confidence],
        "mean_accuracy": [None if np.isnan(value) else float(value) for value in bins.mean_accuracy],
    }


def _risk(files: Sequence[Predictions]) -> Summary:
    """Risk at fixed coverages, each file's curve interpolated, then the mean over files (so over tasks)."""
    curves = [risk_coverage(*confidence_and_correct(file.probabilities(), file.answers())) for file in files]
    risks = [np.interp(COVERAGES, curve.coverage, curve.risk) for curve in curves]
    return {"coverage": COVERAGES.tolist(), "risk": np.mean(risks, axis=0).tolist()}


def _environment(comparison: Comparison) -> Summary:
    """Every key with the value that the runs agree on, or the list of values where they differ."""
    seen: dict[str, list[Any]] = {}
    for run in (run for runs in comparison.runs.values() for run in runs):
        for key, value in (run.environment or {}).items():
            if value not in seen.setdefault(key, []):
                seen[key].append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in seen.items()}
