"""Many scored runs -> one summary: `results.json`, and all that tables, figures and page are made from."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from abmll.errors import AbmllError
from abmll.metrics.baselines import LABEL_FREQUENCY, UNIFORM, label_frequency, uniform
from abmll.metrics.calibration import BINS, reliability_bins
from abmll.metrics.predictions import Predictions
from abmll.metrics.scores import confidence_and_correct, risk_coverage
from abmll.metrics.statistics import standard_error
from abmll.report.evidence import INTERVAL_METRICS, Evidence, paired_tests
from abmll.report.folder import Cell, Comparison, ScoredRun, collect
from abmll.scoring.registered import SCORES, definition, score_with
from abmll.scoring.scores import Scores

__all__ = ["Comparison", "collect", "summarise"]

FORMAT = 1
COVERAGES = np.linspace(0.05, 1.0, 39)  # below 5 % of a small task the risk is that of a handful of questions
_LISTED = 3  # cells spelt out in a sentence

Summary = dict[str, Any]


def summarise(comparison: Comparison) -> Summary:
    """Everything that a report says, ready for JSON.

    A system's score is the unweighted mean over the unseen tasks, its counted seeds and adaptation draws;
    that of `label_frequency` is over the tasks with fixed labels only (`n_tasks`). A system that is not finite in any
    of these has no scores: every METRIC is null, and `not_finite` lists where (of the others it is empty).

    Returns:
        {"systems": {NAME: {kind, n, n_tasks, n_seeds, n_draws, examples_consumed, METRIC, METRIC_interval,
        METRIC_standard_error, against_reference, before_adaptation, cost, not_finite}},
        "tasks": {TASK: {NAME: scores}}, "primary" (the score that systems are judged by), "curve", "reliability",
        "risk_coverage", "environment", "missing",
        "not_finite", "metrics" (of registered metrics, the definitions), "n_groups" (of the questions of all tasks; as
        many as questions if each stands alone), and the comparison's own fields}.

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
    finite = comparison.finite_runs()
    evidence = {
        s: Evidence(runs[s], tasks[s], comparison.draws) for s in runs if s in finite or s not in comparison.runs
    }
    tests = paired_tests({system: evidence[system] for system in finite}, comparison.reference)
    systems = {
        system: _entry(runs[system], tasks[system], evidence[system])
        if system in evidence
        else _without_scores(runs[system], comparison)
        for system in runs
    }
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
        "primary": _primary(entry for entry in systems.values() if entry["kind"] == "system"),
        "metrics": {name: definition(name) for name in comparison.metrics},
        "n_groups": max(each.count_groups() for each in evidence.values()),
        "systems": systems,
        "tasks": {task: _task(runs, tasks, task, comparison) for task in comparison.tasks},
        "curve": {system: _curve(found, comparison) for system, found in comparison.runs.items()},
        "reliability": {system: _reliability(_final(runs[system], tasks[system])) for system in finite},
        "risk_coverage": {system: _risk(_final(runs[system], tasks[system])) for system in finite},
        "environment": _environment(comparison),
        "missing": list(comparison.missing),
        "not_finite": [line for runs in comparison.runs.values() for run in runs for line in _told_broken(run)],
    }


def _primary(entries: Iterable[Mapping[str, Any]]) -> str:
    """`nll_posterior` where every system that is finite has it, else `nll`."""
    finite = [entry for entry in entries if not entry["not_finite"]]
    return "nll_posterior" if finite and all(entry["nll_posterior"] is not None for entry in finite) else "nll"


def _with_baselines(comparison: Comparison) -> tuple[dict[str, Sequence[ScoredRun]], dict[str, list[str]]]:
    """Runs and tasks of every row.

    Baselines answer the questions of the reference or, where it is not finite, of the first system that is: markers of
    early versions do not know the groups of their questions.
    """
    runs: dict[str, Sequence[ScoredRun]] = dict(comparison.runs)
    tasks = {system: list(comparison.tasks) for system in runs}
    finite = comparison.finite_runs() or runs
    source = finite.get(comparison.reference) or next(iter(finite.values()))
    answers = {run.seed: {cell: _asked(run, cell) for cell in comparison.cells()} for run in source}
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


def _asked(run: ScoredRun, cell: Cell) -> Predictions:
    """The questions of a cell, which it has even if the answers to them are not finite."""
    return run.final[cell] if cell in run.final else run.broken[cell].asked


def _told_broken(run: ScoredRun) -> list[str]:
    """A sentence for each reason why cells of any checkpoint are not finite."""
    found = [(f"after {examples:,} examples", cells) for examples, cells in sorted(run.not_finite.items())]
    found += [("before adaptation", run.before_not_finite)]
    reasons: dict[str, list[str]] = {}
    for when, cells in found:
        for (draw, task), broken in cells.items():
            reasons.setdefault(f"{broken.stage}: {broken.why}", []).append(f"{task} draw {draw} {when}")
    return [f"{run.system} seed {run.seed}, {_some(cells)}, {reason}" for reason, cells in reasons.items()]


def _some(cells: Sequence[str]) -> str:
    return "; ".join(cells[:_LISTED]) + (f"; and {len(cells) - _LISTED} more" if len(cells) > _LISTED else "")


def _baseline(system: str, seed: int, final: dict[Cell, Predictions], metrics: Sequence[str]) -> ScoredRun:
    scores = {cell: score_with(predictions, metrics) for cell, predictions in final.items()}
    return ScoredRun(system, seed, {0: scores}, final, before={}, cost=None, environment=None, ended=None)


def mean_scores(scores: Iterable[Scores]) -> dict[str, float | None]:
    """Mean of every metric; None for one that a file does not have."""
    rows = [one.to_dict() for one in scores]
    return _mean_rows(rows)


def _entry(runs: Sequence[ScoredRun], tasks: Sequence[str], evidence: Evidence) -> Summary:
    cells = [(draw, task) for task in tasks for draw in range(evidence.draws)]
    by_seed = [mean_scores(run.checkpoints[run.examples][cell] for cell in cells) for run in runs]
    before = [mean_scores(run.before[c] for c in cells) for run in runs if all(c in run.before for c in cells)]
    entry = _counts(runs, tasks, evidence.draws)
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
    return {**entry, "not_finite": []}


def _counts(runs: Sequence[ScoredRun], tasks: Sequence[str], draws: int) -> Summary:
    return {
        "n": sum(len(_asked(runs[0], (0, task)).rows) for task in tasks),
        "n_tasks": len(tasks),
        "n_seeds": len(runs),
        "n_draws": draws,
        "examples_consumed": runs[0].examples,
    }


def _without_scores(runs: Sequence[ScoredRun], comparison: Comparison) -> Summary:
    """The entry of a system that is not finite somewhere: to average the rest would hide that it breaks."""
    entry = _counts(runs, comparison.tasks, comparison.draws)
    for metric in (*SCORES, *comparison.metrics):
        entry |= {metric: None, f"{metric}_standard_error": None}
        entry |= {f"{metric}_interval": None} if metric in INTERVAL_METRICS else {}
    entry["before_adaptation"] = None
    entry["cost"] = _cost([run.cost for run in runs if run.cost is not None])
    entry["not_finite"] = [
        {"seed": run.seed, "draw": draw, "task": task, "stage": broken.stage, "why": broken.why}
        for run in runs
        for (draw, task), broken in run.broken.items()
    ]
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


def _task(
    runs: Mapping[str, Sequence[ScoredRun]], tasks: Mapping[str, list[str]], task: str, comparison: Comparison
) -> Summary:
    out: Summary = {}
    for system, found in runs.items():
        if task not in tasks[system]:
            continue
        cells = [(run, (draw, task)) for run in found for draw in range(comparison.draws)]
        n = len(_asked(found[0], (0, task)).rows)
        if any(cell in run.broken for run, cell in cells):
            out[system] = {"n": n, **dict.fromkeys((*SCORES, *comparison.metrics)), "not_finite": True}
        else:
            scores = mean_scores(run.checkpoints[run.examples][cell] for run, cell in cells)
            out[system] = {"n": n, **scores, "not_finite": False}
    return out


def _curve(runs: Sequence[ScoredRun], comparison: Comparison) -> list[Summary]:
    """Scores over examples consumed, at the checkpoints that every counted seed has whole; null where not finite."""
    cells = comparison.cells()
    whole = [{e for e in run.checkpoints if all(_is_there(run, e, c) for c in cells)} for run in runs]
    return [_point(runs, comparison, examples) for examples in sorted(set.intersection(*whole))]


def _is_there(run: ScoredRun, examples: int, cell: Cell) -> bool:
    return cell in run.checkpoints[examples] or cell in run.not_finite.get(examples, {})


def _point(runs: Sequence[ScoredRun], comparison: Comparison, examples: int) -> Summary:
    point: Summary = {"examples_consumed": examples, "n_seeds": len(runs)}
    errors = [f"{metric}_standard_error" for metric in ("accuracy", "ece", "nll_posterior", "nll")]
    if any(examples in run.not_finite for run in runs):
        return {**point, **dict.fromkeys((*SCORES, *comparison.metrics, *errors)), "not_finite": True}
    by_seed = [mean_scores(run.checkpoints[examples][cell] for cell in comparison.cells()) for run in runs]
    point |= _mean_rows(by_seed)
    for metric, name in zip(("accuracy", "ece", "nll_posterior", "nll"), errors, strict=True):
        values = [value for seed in by_seed if (value := seed[metric]) is not None]
        point[name] = standard_error(np.array(values)) if len(values) == len(by_seed) else None
    return {**point, "not_finite": False}


def _final(runs: Sequence[ScoredRun], tasks: Sequence[str]) -> list[Predictions]:
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
