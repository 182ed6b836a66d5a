"""Packed files -> `summary.json.gz`, tables and figures; no model, no device."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from abmll.config import MethodConfig
from abmll.files import write_bytes, write_text
from abmll.metrics.baselines import UNIFORM
from abmll.report import summarise
from abmll.report.figures import pictures
from abmll.report.tables import TextTable, markdown, number, percent, signed
from experiments.short_json import write_gzipped
from experiments.unseen.cells import read_targets
from experiments.unseen.evidence import REPEATS, Values, against, entry, per_task
from experiments.unseen.figures import controls, reliability_after_scaling, seed_by_seed
from experiments.unseen.results import BEFORE, UNSEEDED, Results, comparison, read_results

REFERENCE = "abmll"
PRIMARY = "nll_posterior"
PLAIN = "pretrained"
"""Adapted as all others are, and never meta-trained."""
OURS = "abmll"
"""Names that begin so are ABMLL; the best of the others is the one to beat."""
BEFORE_TESTS = f"before_adaptation_against_{PLAIN}"
FEWEST_SEEDS = 3
"""Of a system that can be called the best other one: fewer than that settle nothing."""


def summary_of(results: Results, signal: Sequence[str]) -> dict[str, Any]:
    """Everything that `summary.json.gz` says. Differences are system minus abmll; p is Holm's."""
    values = Values(results.final, results.tasks, results.draws)
    systems = {name: entry(values, name, results.before.get(name, {})) for name in results.final}
    told = results.tasks, [t for t in results.tasks if t in signal]
    tests = against(values, REFERENCE, *told)
    others = {n: s[PRIMARY] for n, s in systems.items() if not n.startswith(OURS) and s[PRIMARY] is not None}
    tested = {n for n in others if systems[n]["n_seeds"] >= min(FEWEST_SEEDS, len(results.seeds))}
    best = min(tested, key=lambda name: others[name])
    return {
        "systems": systems,
        "fresh_moments": fresh_moments(results),
        "against_abmll": tests,
        "against_pretrained": against(values, PLAIN, *told) if PLAIN in results.final else {},
        BEFORE_TESTS: _against_before(results, *told),
        "primary": {
            "outcome": f"{PRIMARY}: mean over tasks, at the posterior temperature given 20 held-out examples",
            "best_other": best,
            "lowest_with_fewer_seeds": sorted((n for n in others if others[n] < others[best]), key=lambda n: others[n]),
            "tests": {metric: tests[best].get(metric) for metric in (PRIMARY, "nll_scaled", "accuracy")},
        },
        "difference": "system minus abmll, or pretrained; p by Holm over the systems, p_unadjusted without",
        "tasks": {task: {name: per_task(values, name)[task] for name in results.final} for task in results.tasks},
        "tasks_with_signal": [t for t in results.tasks if t in signal],
        "seeds": list(results.seeds),
        "draws": results.draws,
        "repeats": REPEATS,
        "devices": sorted({str(one.about["environment"]["device"]) for one in results.packed}),
        "commits": sorted({str(one.about["commit"] or one.about["environment"]["commit"]) for one in results.packed}),
    }


def fresh_moments(results: Results) -> list[str]:
    """Systems of structured LoRA that began each task without moments, as it is not by default."""
    methods = {o.about["system"]: MethodConfig(**yaml.safe_load(o.about["config"])["method"]) for o in results.packed}
    return sorted(
        name
        for name, method in methods.items()
        if method.name == "structured" and method.settings().get("inner_optimizer_state", "fresh") == "fresh"
    )


def _against_before(results: Results, tasks: Sequence[str], signal: Sequence[str]) -> dict[str, Any]:
    """Systems of `FEWEST_SEEDS` or more (or the most there are) against the base model, none of them adapted."""
    enough = min(FEWEST_SEEDS, max((len(cells) for cells in results.before.values()), default=0))
    found = {
        name: cells
        for name, cells in results.before.items()
        if name == PLAIN or (len(cells) >= enough and name not in UNSEEDED and not name.endswith("_mean"))
    }
    return against(Values(found, results.tasks, 1), PLAIN, tasks, signal, adapted=False) if PLAIN in found else {}


def report(packed: Path, out: Path, *, ranking: Path | None = None, kind: str = "cloze") -> dict[str, Any]:
    """Write `summary.json.gz`, `tables.md` and `figures/` into `out`; returns the summary.

    Tables and figures leave out the mean weights of all but the reference, which tell nothing apart.

    Raises:
        AbmllError: there is nothing to compare with, or a file is damaged.
    """
    signal = []
    if ranking is not None and ranking.exists():
        signal = [e["task"] for e in json.loads(ranking.read_text(encoding="utf-8"))["tasks"] if e["signal"]]
    results = read_results(read_targets(packed, kind))
    summary = summary_of(results, signal)
    write_gzipped(out / "summary.json.gz", summary)
    shown = {n for n in results.final if not n.endswith("_mean") or n == f"{REFERENCE}_mean"}
    told = {
        **summary,
        "systems": {n: s for n, s in summary["systems"].items() if n in shown},
        **{k: {n: t for n, t in summary[k].items() if n in shown} for k in ("against_abmll", "against_pretrained")},
    }
    write_text(out / "tables.md", tables(told))
    results = replace(results, final={n: cells for n, cells in results.final.items() if n in shown})
    values = Values(results.final, results.tasks, results.draws)
    write_bytes(out / "figures" / "controls.png", controls(told))
    write_bytes(out / "figures" / "seeds.png", seed_by_seed(told))
    write_bytes(out / "figures" / "reliability_scaled.png", reliability_after_scaling(values, list(results.final)))
    places = [{place for place, _, _ in files} - {BEFORE} for one in results.packed for files in one.found.values()]
    for picture in pictures(summarise(comparison(results))):
        if picture.name == "learning_curve" and max(map(len, places)) == 1:
            continue  # curves of one point
        write_bytes(out / "figures" / f"{picture.name}.png", picture.png())
    return summary


def tables(summary: dict[str, Any]) -> str:
    """The tables as Markdown."""
    parts = [
        "# Unseen tasks: tables",
        "Written by `python -m experiments.unseen report`; see README.md for the protocol. NLL posterior, and with it "
        "gain and ECE posterior: averaged over the posterior of the temperature, given held-out folds of the 20 "
        "examples; - where no answers are kept to score again. NLL scaled: at the most likely temperature of these "
        "folds. NLL, Brier, ECE: as stated. Gain: nats over a uniform guess. Floor: the ECE that calibrated answers of "
        "the same confidences show. ECE counts: whether the NLL is below a guess's at p < .05, as stated / at the "
        "posterior temperature. p, tasks drawn: tasks are a sample as well. There is no p where a training seed or a "
        "draw of examples was measured once, nor of ensembles that share members: nobody knows what another "
        "would show.",
    ]
    if fresh := summary["fresh_moments"]:
        parts.append(
            "Moments of the inner steps begin anew with each task (`inner_optimizer_state: fresh`) in "
            f"{', '.join(fresh)}; those of the paper's structured LoRA, the default of `structured`, go on from task "
            "to task."
        )
    for table in (score_table(summary), seed_table(summary), *difference_tables(summary), task_table(summary)):
        parts += [f"## {table.title}", markdown(table)]
    return "\n\n".join(parts) + "\n"


def score_table(summary: dict[str, Any]) -> TextTable:
    """The systems, best primary outcome first."""
    header = (
        "System",
        "Seeds",
        "Accuracy %",
        "NLL posterior",
        "Gain",
        "NLL",
        "NLL scaled",
        "Brier",
        "ECE",
        "Floor",
        "ECE posterior",
        "ECE counts",
    )
    order = sorted(summary["systems"].items(), key=lambda item: item[1].get(PRIMARY) or float("inf"))
    rows = [
        (
            name,
            "none" if name in UNSEEDED else str(e["n_seeds"]),
            percent(e["accuracy"]),
            number(e.get(PRIMARY)),
            signed(e.get(f"{PRIMARY}_over_uniform")),
            number(e["nll"]),
            number(e["nll_scaled"]),
            number(e["brier"]),
            number(e["ece_choices"]),
            number(e["ece_noise_floor"]),
            number(e.get("ece_choices_posterior")),
            _counts(e["ece_counts"]),
        )
        for name, e in order
    ]
    return TextTable("Scores, mean over tasks, seeds and draws", header, tuple(rows))


def _counts(told: dict[str, bool | None]) -> str:
    """Whether the ECE as stated, and at the posterior temperature, counts."""
    words = {None: "no p", True: "yes", False: "no"}
    return " / ".join(words[told[key]] for key in ("nll", PRIMARY) if key in told) or "-"


def seed_table(summary: dict[str, Any]) -> TextTable:
    """NLL at the posterior temperature and accuracy of each training seed: a mean hides a run that fell apart."""
    seeds = sorted({seed for e in summary["systems"].values() for seed in e["by_seed"]}, key=int)
    rows = []
    for name, e in sorted(summary["systems"].items()):
        found = e["by_seed"]
        cells = [
            f"{number(found[seed].get(PRIMARY))} / {percent(found[seed]['accuracy'])}" if seed in found else "-"
            for seed in seeds
        ]
        rows.append((name, *cells, number(e["auroc"]), number(e["auroc_of_spread"])))
    header = ("System", *(f"Seed {seed}" for seed in seeds), "AUROC, confidence", "AUROC, spread")
    return TextTable("NLL posterior / accuracy % of each training seed, and what ranks errors", header, tuple(rows))


def difference_tables(summary: dict[str, Any]) -> list[TextTable]:
    """Each system against the reference, the plain model, and the plain model before any of them adapts."""
    shared = "on the seeds that both have (p after Holm's correction)"
    usual, before = ("accuracy", PRIMARY, "nll_scaled"), ("accuracy", "nll", "nll_scaled")
    asked = {
        f"against_{REFERENCE}": (f"Paired differences to {REFERENCE}, {shared}", REFERENCE, usual),
        f"against_{PLAIN}": (f"Paired differences to {PLAIN}, {shared}", PLAIN, usual),
        BEFORE_TESTS: (f"Before adapting, without any example: differences to {PLAIN}, {shared}", PLAIN, before),
    }
    return [
        _difference_table(title, reference, metrics, summary[key])
        for key, (title, reference, metrics) in asked.items()
        if summary[key]
    ]


def _difference_table(title: str, reference: str, metrics: Sequence[str], found: dict[str, Any]) -> TextTable:
    """Where one seed or draw is shared a difference has no p: what another one would show, nobody knows."""
    names = {PRIMARY: "NLL posterior", "nll_scaled": "NLL scaled", "nll": "NLL", "accuracy": "Accuracy"}
    parts = (part for metric in metrics for part in (names[metric], "p", "p, tasks drawn"))
    rows = []
    for name, tests in sorted(found.items()):
        cells: list[str] = [name]
        for metric in metrics:
            test = tests.get(metric)
            cells.append("-" if test is None else signed(test["difference"]))
            cells += [number(test["p"]), number(test["tasks_resampled"]["p"])] if test else ["-", "-"]
        first = tests.get("nll_scaled") or {"seeds": 0, "draws": 0}
        seeds = "one seed" if "seeds" in first.get("measured_once", ()) else str(first["seeds"])
        rows.append((*cells, seeds, str(first["draws"])))
    return TextTable(title, (f"System minus {reference}", *parts, "Seeds", "Draws"), tuple(rows))


def task_table(summary: dict[str, Any]) -> TextTable:
    """Gain over uniform at the posterior temperature, nats, task by task."""
    names = [n for n in summary["systems"] if n != UNIFORM]
    rows = [
        (
            f"{task}{' (signal)' if task in summary['tasks_with_signal'] else ''}",
            *(signed(found[n].get(f"{PRIMARY}_over_uniform")) for n in names),
        )
        for task, found in summary["tasks"].items()
    ]
    return TextTable("Nats over uniform at the posterior temperature, by task", ("Task", *names), tuple(rows))
