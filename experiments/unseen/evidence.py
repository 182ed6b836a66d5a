"""The paired tests and the numbers of `summary.json.gz`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import ttest_1samp

from abmll.metrics.baselines import LABEL_FREQUENCY, UNIFORM
from abmll.metrics.calibration import calibration_noise_range
from abmll.metrics.paired import PairedTest, paired_ece_test, paired_test
from abmll.metrics.predictions import Predictions
from abmll.metrics.resampling import Groups, group_numbers
from abmll.metrics.scores import auroc_of_confidence, confidence_and_correct
from abmll.metrics.statistics import holm, stratified_bootstrap_interval, stratified_ece_bootstrap_interval
from abmll.report.evidence import question_values
from abmll.report.folder import Cell
from abmll.scoring.posterior import posterior_probabilities
from abmll.scoring.scores import nll_of_guessing, posterior_scores, score
from experiments.unseen.results import ENSEMBLE, UNSEEDED, Table, is_one_ensemble

REPEATS = 2000
"""Of the bootstrap of a system's own interval."""
LEVEL = 0.05
NOT_META_TRAINED = ("pretrained", *UNSEEDED, UNIFORM, LABEL_FREQUENCY)
"""A training seed decides nothing about them but where ten steps start, which was measured to be next to nothing."""
TESTED = ("nll_posterior", "nll_scaled", "accuracy", "nll", "brier")
PRIMARY = "nll_posterior"
AT_TEMPERATURE = (PRIMARY, "nll_scaled")
"""Metrics that depend on the draw of examples even before adapting."""
SOURCE = {"nll_scaled": "nll_scaled_cv"}
"""Our names, in which "scaled" means on held-out folds of the 20 examples -> the library's."""

POSTERIOR = {
    "nll_posterior": "nll_posterior",
    "nll_posterior_over_uniform": "nll_posterior_over_uniform",
    "brier_posterior": "brier_posterior",
    "ece_choices_posterior": "ece_posterior",
    "temperature_posterior": "temperature_posterior",
}
"""Our names of the scores at the posterior temperature -> the library's."""

Stacks = dict[str, Float[np.ndarray, "S D N"]]


class Values:
    """Per-question values of every system, each computed once."""

    def __init__(self, final: Table, tasks: Sequence[str], draws: int) -> None:
        self.final, self.tasks, self.draws = final, tuple(tasks), draws
        self._known: dict[tuple[str, int, Cell], dict[str, np.ndarray]] = {}
        self._scores: dict[tuple[str, int, Cell], dict[str, Any]] = {}

    def of(self, system: str, seed: int, cell: Cell) -> dict[str, np.ndarray]:
        """Metric -> values of a file's test questions, in their order."""
        key = (system, seed, cell)
        if key not in self._known:
            found = self.final[system][seed][cell]
            by_name = question_values(_temperature_for_all(found))
            self._known[key] = {name: np.array(list(column.values())) for name, column in by_name.items()}
        return self._known[key]

    def scores(self, system: str, seed: int, cell: Cell) -> dict[str, Any]:
        """The library's scores of a file."""
        key = (system, seed, cell)
        if key not in self._scores:
            self._scores[key] = score(_temperature_for_all(self.final[system][seed][cell])).to_dict()
        return self._scores[key]

    def mean_of(self, system: str, seed: int, metric: str) -> float:
        """Mean of a metric over the tasks and draws of a training seed."""
        cells = [(draw, task) for task in self.tasks for draw in range(self.draws_of((system,), (seed,)))]
        return float(np.mean([self.of(system, seed, cell)[metric].mean() for cell in cells]))

    def gain_of(self, system: str, task: str) -> float:
        """Nats over a uniform guess at the posterior temperature, mean over seeds and draws."""
        found = [(s, (draw, task)) for s in self.final[system] for draw in range(self.draws_of((system,), (s,)))]
        gains = [nll_of_guessing(self.final[system][s][c]) - self.of(system, s, c)[PRIMARY].mean() for s, c in found]
        return float(np.mean(gains))

    def draws_of(self, systems: Sequence[str], seeds: Sequence[int]) -> int:
        """Draws that all of them have of every task."""
        counts = [
            len({d for d, t in self.final[s][n] if t == task}) for s in systems for n in seeds for task in self.tasks
        ]
        return min([self.draws, *counts])

    def groups(self, system: str, tasks: Sequence[str]) -> Groups:
        """Task -> numbers of its test questions' groups."""
        first = self.final[system][min(self.final[system])]
        return {task: group_numbers([row.group for row in first[0, task].rows]) for task in tasks}

    def stacks(self, system: str, metric: str, seeds: Sequence[int], draws: int, tasks: Sequence[str]) -> Stacks:
        """Task -> one metric of its questions."""
        name = SOURCE.get(metric, metric)
        return {
            task: np.array([[self.of(system, seed, (draw, task))[name] for draw in range(draws)] for seed in seeds])
            for task in tasks
        }

    def confidences(self, system: str, seeds: Sequence[int], draws: int, tasks: Sequence[str]) -> dict[str, Any]:
        """Task -> (confidence, correct), for the ECE."""
        sure = self.stacks(system, "confidence", seeds, draws, tasks)
        right = self.stacks(system, "accuracy", seeds, draws, tasks)
        return {task: (sure[task], right[task]) for task in tasks}


def _temperature_for_all(found: Predictions) -> Predictions:
    """A file that learned nothing has no folds: its examples were held out as they are."""
    if found.held_out_rows or not found.adaptation_rows:
        return found
    return replace(found, held_out_rows=found.adaptation_rows)


def paired(
    values: Values,
    a: str,
    b: str,
    metric: str,
    tasks: Sequence[str],
    *,
    resample_tasks: bool = False,
    adapted: bool = True,
) -> PairedTest | None:
    """System a against b, on the seeds and draws that both have; None where they share no seed.

    Without adapting, a draw of examples decides nothing but the temperature that is fitted to them. Ensembles of four
    of five seeds share members: how far five independent ones would scatter nobody knows, so they have no p.
    """
    seeds = [s for s in values.final[a] if s in values.final[b]]
    draws = values.draws_of((a, b), seeds) if seeds else 0
    if not draws:
        return None
    options: dict[str, Any] = {"resample_tasks": resample_tasks, "groups": values.groups(a, tasks)}
    options["constant"] = {
        *({"seeds"} if {a, b} <= set(NOT_META_TRAINED) else ()),
        *(() if adapted or metric in AT_TEMPERATURE else {"draws"}),
    }
    if metric == "ece_choices":
        test = paired_ece_test(*(values.confidences(name, seeds, draws, tasks) for name in (a, b)), **options)
    else:
        test = paired_test(*(values.stacks(name, metric, seeds, draws, tasks) for name in (a, b)), **options)
    if ENSEMBLE in (a, b):
        return replace(test, p_value=None, measured_once=(*test.measured_once, "members"))
    return test


def against(
    values: Values,
    reference: str,
    tasks: Sequence[str],
    signal: Sequence[str],
    *,
    adapted: bool = True,
    metrics: Sequence[str] = (*TESTED, "ece_choices"),
) -> dict[str, dict[str, Any]]:
    """Every system minus the reference: difference, p after Holm over the systems, and with tasks resampled.

    Returns:
        system -> metric -> {difference, interval, p, p_unadjusted, seeds, draws, tasks_resampled: {interval, p},
        with_signal: {difference, p}}. A p is None where one seed or draw was measured (`measured_once`). An ECE stands
        here for the record: who wins it, `ece_counts` says.
    """
    found: dict[str, dict[str, Any]] = {
        name: {} for name in values.final if name not in (reference, f"{reference}_mean")
    }
    for metric in metrics:
        for name in found:
            test = paired(values, name, reference, metric, tasks, adapted=adapted)
            if test is not None:
                found[name][metric] = _told(values, (name, reference), metric, (tasks, signal), test, adapted)
        for key in ("p", "tasks_resampled", "with_signal"):
            _adjust(found, metric, key)
    return found


def _told(
    values: Values,
    pair: tuple[str, str],
    metric: str,
    of: tuple[Sequence[str], Sequence[str]],
    test: PairedTest,
    adapted: bool,
) -> dict[str, Any]:
    tasks, signal = of
    wide = paired(values, *pair, metric, tasks, resample_tasks=True, adapted=adapted)
    some = paired(values, *pair, metric, signal, adapted=adapted) if signal else None
    return {
        "difference": test.difference,
        "interval": [test.low, test.high],
        "p": test.p_value,
        "p_unadjusted": test.p_value,
        "p_over_seeds": _over_seeds(values, *pair, metric, tasks),
        "seeds": test.seeds,
        "draws": test.draws,
        "questions": test.questions,
        "groups": test.groups,
        "measured_once": list(test.measured_once),
        "tasks_resampled": short(wide),
        "with_signal": short(some),
    }


def _over_seeds(values: Values, a: str, b: str, metric: str, tasks: Sequence[str]) -> float | None:
    """p of a paired t-test on the seeds' means, for the record: draws and questions, shared by all seeds, escape it."""
    seeds = [s for s in values.final[a] if s in values.final[b]]
    if metric == "ece_choices" or len(seeds) < 2:
        return None
    draws = values.draws_of((a, b), seeds)
    left, right = (values.stacks(name, metric, seeds, draws, tasks) for name in (a, b))
    gap = np.mean([(left[t] - right[t]).mean(axis=(1, 2)) for t in tasks], axis=0)
    return float(ttest_1samp(gap, 0).pvalue) if gap.std() > 0 else None


def short(test: PairedTest | None) -> dict[str, Any] | None:
    return (
        None if test is None else {"difference": test.difference, "interval": [test.low, test.high], "p": test.p_value}
    )


def _adjust(found: dict[str, dict[str, Any]], metric: str, key: str) -> None:
    """Holm over the systems, in place."""
    holders: dict[str, dict[str, Any]] = {}
    for name, tests in found.items():
        if metric in tests:
            holder = tests[metric] if key == "p" else tests[metric][key]
            holders |= {name: holder} if holder else {}
    for name, p in holm({name: holder["p"] for name, holder in holders.items()}).items():
        holders[name]["p"] = p


def entry(values: Values, name: str, before: Mapping[int, Mapping[Cell, Predictions]]) -> dict[str, Any]:
    """The numbers of one system: means over tasks, seeds and draws."""
    seeds, tasks = sorted(values.final[name]), values.tasks
    draws = values.draws_of((name,), seeds)
    cells = [(draw, task) for task in tasks for draw in range(draws)]
    scores = {s: [values.scores(name, s, c) for c in cells] for s in seeds}
    means = {key: _mean([_mean([one[key] for one in scores[s]]) for s in seeds]) for key in scores[seeds[0]][0]}
    told: dict[str, Any] = {
        "n_seeds": 1 if is_one_ensemble(name, values.final) else len(seeds),
        "n_draws": draws,
        "accuracy": means["accuracy"],
        **posterior_numbers(values, name),
        "nll": means["nll"],
        "brier": means["brier"],
        "ece_choices": means["ece"],
        "ece_vocabulary": means["ece_vocabulary"],
        "nll_scaled": means["nll_scaled_cv"],
        "nll_over_uniform": means["nll_over_uniform"],
        "nll_scaled_over_uniform": _minus(_add(means["nll"], means["nll_over_uniform"]), means["nll_scaled_cv"]),
        "brier_scaled": means["brier_scaled_cv"],
        "ece_choices_scaled": means["ece_scaled_cv"],
        "temperature": means["temperature_cv"],
        "nll_scaled_in_sample": means["nll_scaled"],
        "temperature_in_sample": means["temperature"],
        "ece_noise_floor": means["ece_noise_floor"],
        "auroc": means["auroc"],
        "auroc_of_spread": _mean([auroc_of_spread(values.final[name][s][c]) for s in seeds for c in cells]),
        "aurc": means["aurc"],
        "by_seed": {
            str(s): {k: _mean([o[SOURCE.get(k, k)] for o in scores[s]]) for k in ("accuracy", *AT_TEMPERATURE)}
            for s in seeds
        },
        "standard_errors": {
            k: _error([_mean([o[SOURCE.get(k, k)] for o in scores[s]]) for s in seeds]) for k in TESTED
        },
    }
    options: dict[str, Any] = {"groups": values.groups(name, tasks), "repeats": REPEATS}
    for metric in ("accuracy", "nll_scaled"):
        stacks = values.stacks(name, metric, seeds, draws, tasks)
        told[f"{metric}_interval"] = list(stratified_bootstrap_interval(stacks, **options))
    told["ece_choices_interval"] = list(
        stratified_ece_bootstrap_interval(values.confidences(name, seeds, draws, tasks), **options)
    )
    told["ece_choices_noise_range"] = _noise_range([values.final[name][seeds[0]][c] for c in cells])
    zero = [score(before[s][c]).to_dict() for s in before for c in before[s]] if before else []
    told["before_adaptation"] = (
        {k: _mean([one[k] for one in zero]) for k in ("accuracy", "nll", "ece")} if zero else None
    )
    told["beats_uniform"] = _beats_uniform(values, name)
    # flattening is not calibration: an ECE below another's is no win where the NLL does not beat a guess
    told["ece_counts"] = {k: is_below(t) for k, t in told["beats_uniform"].items()}
    return told


def posterior_numbers(values: Values, name: str) -> dict[str, Any]:
    """The primary score of a system and what belongs to it, each a mean over tasks, seeds and draws.

    `scale_prior` is that of log T, learned on the training tasks; None: the weak one.
    """
    seeds, tasks = sorted(values.final[name]), values.tasks
    draws = values.draws_of((name,), seeds)
    cells = [(s, (draw, task)) for s in seeds for task in tasks for draw in range(draws)]
    scores = [posterior_scores(_temperature_for_all(values.final[name][s][cell])) for s, cell in cells]
    priors = {values.final[name][s][cell].scale_prior for s, cell in cells}
    stacks = values.stacks(name, "nll_posterior", seeds, draws, tasks)
    ends = stratified_bootstrap_interval(stacks, groups=values.groups(name, tasks), repeats=REPEATS)
    told = {key: _mean([one[source] for one in scores]) for key, source in POSTERIOR.items()}
    prior = priors.pop() if len(priors) == 1 else None
    return {**told, "nll_posterior_interval": list(ends), "scale_prior": None if prior is None else list(prior)}


def is_below(test: Mapping[str, Any] | None) -> bool | None:
    """Whether a difference is below 0 by its test; None without a p."""
    return None if test is None or test["p"] is None else bool(test["difference"] < 0 and test["p"] < LEVEL)


def _beats_uniform(values: Values, name: str) -> dict[str, Any]:
    if name == UNIFORM:
        return {}
    return {metric: short(paired(values, name, UNIFORM, metric, values.tasks)) for metric in ("nll", *AT_TEMPERATURE)}


def auroc_of_spread(found: Predictions) -> float | None:
    """How well the posterior's spread of the predicted choice ranks wrong answers above right ones; None without."""
    if (spread := spread_of_chosen(found)) is None:
        return None
    return auroc_of_confidence(1 - spread, found.probabilities().argmax(axis=1) == found.answers())


def spread_of_chosen(found: Predictions) -> Float[np.ndarray, " N"] | None:
    """Std over posterior draws of the predicted choice's probability; None without draws."""
    chosen = found.probabilities().argmax(axis=1)
    spread = [row.spread[k] for row, k in zip(found.rows, chosen, strict=True) if row.spread is not None]
    return np.array(spread) if spread and len(spread) == len(found.rows) else None


def _noise_range(files: Sequence[Predictions]) -> list[float]:
    """Where the mean ECE of calibrated files with these confidences lies: means of the ends, one per file."""
    sure = [np.minimum(confidence_and_correct(f.probabilities(), f.answers())[0], 1.0) for f in files]
    return [float(v) for v in np.mean([calibration_noise_range(c, repeats=300) for c in sure], axis=0)]


def per_task(values: Values, name: str) -> dict[str, dict[str, float | None]]:
    """Task -> its numbers, in nats over uniform too."""
    seeds = sorted(values.final[name])
    draws, out = values.draws_of((name,), seeds), {}
    for task in values.tasks:
        rows = [values.scores(name, s, (d, task)) for s in seeds for d in range(draws)]
        mean = {key: _mean([row[key] for row in rows]) for key in rows[0]}
        chance = _add(mean["nll"], mean["nll_over_uniform"])
        out[task] = {
            "n": int(rows[0]["n"]),
            "accuracy": mean["accuracy"],
            "nll_posterior_over_uniform": mean["nll_posterior_over_uniform"],
            "nll_over_uniform": mean["nll_over_uniform"],
            "nll_scaled_over_uniform": _minus(chance, mean["nll_scaled_cv"]),
            "ece_choices": mean["ece"],
            "ece_noise_floor": mean["ece_noise_floor"],
            "spread": _mean(
                [_mean(spread_of_chosen(values.final[name][s][d, task])) for s in seeds for d in range(draws)]
            ),
        }
    return out


def reliability_scaled(values: Values, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Confidence at the posterior temperature and correctness, all files together."""
    pairs = []
    for cells in values.final[name].values():
        for found in map(_temperature_for_all, cells.values()):
            at_posterior = posterior_probabilities(found)
            scaled = found.probabilities() if at_posterior is None else at_posterior
            pairs.append((scaled.max(axis=1), confidence_and_correct(found.probabilities(), found.answers())[1]))
    return np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])


def _mean(values: Sequence[Any] | np.ndarray | None) -> float | None:
    return None if values is None or not len(values) or any(v is None for v in values) else float(np.mean(values))


def _error(values: Sequence[Any]) -> float | None:
    return (
        None
        if len(values) < 2 or any(v is None for v in values)
        else float(np.std(values, ddof=1) / np.sqrt(len(values)))
    )


def _add(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
