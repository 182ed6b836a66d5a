"""Answers that are kept -> what `summary.json.gz` had not when it was made: the scores at the posterior temperature.

The prior of log T is learned on the training tasks that the same system answered, where these answers are kept
(`results/in_domain`, one seed, 34 tasks), and is the weak one elsewhere; `scale_prior` says which. The baselines need
no answers and are made anew: their accuracy is now what a guess is expected to score. All else stays as it was computed
from the whole files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from abmll.calibrators import TaskRows
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.files import write_text
from abmll.metrics.baselines import LABEL_FREQUENCY, UNIFORM
from abmll.metrics.statistics import holm
from experiments.short_json import read_gzipped, write_gzipped
from experiments.unseen.cells import read_targets
from experiments.unseen.evidence import Values, against, entry, is_below, paired, per_task, posterior_numbers, short
from experiments.unseen.report import PLAIN, PRIMARY, REFERENCE, tables
from experiments.unseen.results import Results, Table, read_results

BASELINES = (UNIFORM, LABEL_FREQUENCY)
BY_TIES = ("accuracy", "ece_choices")
"""Metrics in which a guess is no longer the first choice."""
GAIN = f"{PRIMARY}_over_uniform"
Prior = tuple[float, float]


def learned_priors(training: Path) -> dict[str, Prior]:
    """System -> (mu, sd) of log T over its training tasks, by empirical Bayes from the weak prior."""
    final = read_results(read_targets(training)).final
    out = {}
    for system, by_seed in final.items():
        if system not in BASELINES:
            tasks = [TaskRows.from_predictions(found) for cells in by_seed.values() for found in cells.values()]
            fitted = PosteriorTemperature().meta_fit(tasks)
            out[system] = (fitted.mu, fitted.sd)
    return out


def rescore(place: Path, training: Path | None) -> dict[str, Any]:
    """Add the scores at the posterior temperature to `summary.json.gz` of a folder, and write its `tables.md` again.

    Args:
        place: with `summary.json.gz` and `packed/`.
        training: a folder of packed answers to training tasks; None: the weak prior for all.

    Raises:
        AbmllError: a file is damaged.
    """
    priors = {} if training is None else learned_priors(training)
    results = read_results(read_targets(place / "packed"))
    results = replace(results, final=with_priors(results.final, priors))
    summary = read_gzipped(place / "summary.json.gz")
    added = rescored(summary, results)
    write_gzipped(place / "summary.json.gz", added)
    if "tasks" in added:  # of so many training tasks they are in the tables alone
        write_text(place / "tables.md", tables(shown(added)))
    return added


def with_priors(final: Table, priors: Mapping[str, Prior]) -> Table:
    """The predictions with the prior of their system."""
    return {
        system: {
            seed: {cell: replace(found, scale_prior=priors.get(system)) for cell, found in cells.items()}
            for seed, cells in by_seed.items()
        }
        for system, by_seed in final.items()
    }


def rescored(summary: dict[str, Any], results: Results) -> dict[str, Any]:
    """The summary with the new numbers; Holm's correction of theirs is over the systems whose answers are kept."""
    values = Values(results.final, results.tasks, results.draws)
    systems, tasks = dict(summary["systems"]), {task: dict(found) for task, found in summary.get("tasks", {}).items()}
    for name in (name for name in results.final if name in systems):
        systems[name] = entry(values, name, {}) if name in BASELINES else with_posterior(systems[name], values, name)
        for task in tasks:
            found = per_task(values, name)[task] if name in BASELINES else tasks[task][name]
            tasks[task][name] = {**found, GAIN: values.gain_of(name, task)}
    out = {**summary, "systems": systems, **({"tasks": tasks} if tasks else {})}
    told = results.tasks, summary["tasks_with_signal"]
    for key, reference in ((f"against_{REFERENCE}", REFERENCE), (f"against_{PLAIN}", PLAIN)):
        if summary.get(key):
            made = against(values, reference, *told, metrics=(PRIMARY,))
            baselines = replace_final(values, (*BASELINES, reference))
            anew = against(baselines, reference, *told)
            all_tests = {n: _with_tests(tests, made.get(n, {}), anew.get(n, {})) for n, tests in summary[key].items()}
            out[key] = _adjust_again(all_tests)
    return out


def with_posterior(told: dict[str, Any], values: Values, name: str) -> dict[str, Any]:
    """An entry with its numbers at the posterior temperature, after the accuracy."""
    numbers = posterior_numbers(values, name)
    guess = short(paired(values, name, UNIFORM, PRIMARY, values.tasks))
    against_guess = {"beats_uniform": {**told["beats_uniform"], PRIMARY: guess}}
    against_guess["ece_counts"] = {**told["ece_counts"], PRIMARY: is_below(guess)}
    by_seed = {
        seed: {**one, PRIMARY: values.mean_of(name, int(seed), PRIMARY)} for seed, one in told["by_seed"].items()
    }
    old = {key: value for key, value in told.items() if key not in numbers}
    before = {key: old.pop(key) for key in ("n_seeds", "n_draws", "accuracy")}
    return {**before, **numbers, **old, **against_guess, "by_seed": by_seed}


def replace_final(values: Values, names: Sequence[str]) -> Values:
    """The values of some systems alone."""
    return Values({name: values.final[name] for name in names}, values.tasks, values.draws)


def _with_tests(old: dict[str, Any], new: dict[str, Any], of_baseline: dict[str, Any]) -> dict[str, Any]:
    """The tests of a system, the new metric first; of a baseline those that ties decided are made anew."""
    anew = {metric: of_baseline[metric] for metric in BY_TIES if metric in of_baseline}
    return {**new, **{metric: anew.get(metric, test) for metric, test in old.items() if metric != PRIMARY}}


def _adjust_again(tests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Holm's correction, over all systems, of the metrics in which those of the baselines were made anew."""
    out = {name: dict(found) for name, found in tests.items()}
    for metric in BY_TIES:
        plain = {name: found[metric]["p_unadjusted"] for name, found in out.items() if metric in found}
        for name, p in holm(plain).items():
            out[name][metric] = {**out[name][metric], "p": p}
    return out


def shown(summary: dict[str, Any]) -> dict[str, Any]:
    """What the tables show: without the mean weights of all but the reference, which tell nothing apart."""
    names = {n for n in summary["systems"] if not n.endswith("_mean") or n == f"{REFERENCE}_mean"}
    parts = {k: {n: t for n, t in summary[k].items() if n in names} for k in ("against_abmll", "against_pretrained")}
    return {**summary, "systems": {n: s for n, s in summary["systems"].items() if n in names}, **parts}
