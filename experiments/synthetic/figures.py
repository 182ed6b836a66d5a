"""The figures, drawn from the summary."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from abmll.report.theme import INK, MUTED, colour, settings, styles, to_png
from experiments.synthetic.problem import SPREADS
from experiments.synthetic.scores import tempered_coverage
from experiments.synthetic.settings import CENTRES, OUTER_STEPS, POINT, STD_STARTS
from experiments.synthetic.summary import REFERENCE, Summary

COMBINATIONS = [f"{outer}-{start}" for outer in OUTER_STEPS for start in STD_STARTS]
CENTRE = "-".join(POINT)
_STYLES = styles(COMBINATIONS)


def figures(summary: Summary) -> dict[str, bytes]:
    """Name -> PNG, of those that the summary has numbers for."""
    drawn: dict[str, Callable[[Summary], Figure]] = {"ratchet": _ratchet}
    if all(f"{spread}.{name}" in summary.get("combinations", {}) for spread in SPREADS for name in COMBINATIONS):
        drawn |= {"recovery": _recovery, "coverage": _coverage}
    if {"combinations", "beta", "std_lr", "std_init", "rank"} <= summary.keys():
        drawn |= {"beta": _beta, "sensitivity": _sensitivity}
    with settings():
        return {name: to_png(draw(summary)) for name, draw in drawn.items()}


def _recovery(summary: Summary) -> Figure:
    """Does var_theta rank as the truth, is it of the right size, is the mean right?"""
    rows = {
        "spearman": "rank correlation of var_theta with the truth",
        "log_ratio": "log10 (var_theta / truth), median",
        "mean_error": "error of mean_theta (root mean square)",
    }
    figure = Figure(figsize=(10.5, 7.6), layout="constrained")
    grid = figure.subplots(len(rows), len(SPREADS), sharey=True, sharex="row")
    for line, (metric, label) in zip(grid, rows.items(), strict=True):
        for axes, spread in zip(line, SPREADS, strict=True):
            _dots(axes, [_of(summary, spread, name)["theta"].get(metric) for name in COMBINATIONS])
            best = summary[REFERENCE][spread]["empirical_bayes"][metric]["mean"]
            axes.axvline(best, color=colour(MUTED), linestyle="--", linewidth=1)
            axes.set_title(spread.replace("_", " ") if metric == "spearman" else "")
            axes.set_xlabel(label if spread == "log_normal" else "")
    figure.suptitle("dashed: exact empirical Bayes on the same tasks", fontsize=9.5, color=colour(MUTED))
    return figure


def _coverage(summary: Summary) -> Figure:
    """Intervals of q(phi): how often they hold the true weights, and how far q is from the exact posterior."""
    figure = Figure(figsize=(10.5, 7.6), layout="constrained")
    rows = {
        "coverage_90%": "share of true weights in 90 % intervals",
        "coverage_50%": "share of true weights in 50 % intervals",
        "kl_exact": "KL(q || exact posterior), nats per weight (log scale)",
    }
    grid = figure.subplots(len(rows), len(SPREADS), sharey=True, sharex="row")
    for line, (metric, label) in zip(grid, rows.items(), strict=True):
        for axes, spread in zip(line, SPREADS, strict=True):
            for part, shift, filled in (("phi", -0.15, True), ("phi_converged", 0.15, False)):
                values = [_of(summary, spread, name)[part].get(metric) for name in COMBINATIONS]
                _dots(axes, values, shift=shift, filled=filled)
            for which, dashes in (("exact", "-"), ("mean_field", "--")):
                if (metric, which) != ("kl_exact", "exact"):
                    value = summary[REFERENCE][spread][which][metric]["mean"]
                    axes.axvline(value, color=colour(MUTED), linestyle=dashes, linewidth=1)
            axes.set_title(spread.replace("_", " ") if metric == "coverage_90%" else "")
            axes.set_xlabel(label if spread == "log_normal" else "")
            if metric == "kl_exact":
                _log_axis(axes, [0.1, 0.2, 0.5, 1, 2, 5])
    text = "filled: after 10 adaptation steps; open: after 60; line: exact posterior; dashed: best factorised Gaussian"
    figure.suptitle(text, fontsize=9.5, color=colour(MUTED))
    return figure


def _dots(axes: Axes, values: list[Any], shift: float = 0.0, *, filled: bool = True) -> None:
    """A row for each combination: mean and standard error."""
    for place, (name, value) in enumerate(zip(COMBINATIONS, values, strict=True)):
        style = _STYLES[name]
        axes.errorbar(
            value["mean"],
            place + shift,
            xerr=value["se"],
            fmt=style.marker,
            color=style.colour,
            markerfacecolor=style.colour if filled else "white",
            markersize=5,
        )
    axes.set_yticks(range(len(COMBINATIONS)), [name.replace("-", ", ") for name in COMBINATIONS])
    axes.set_ylim(len(COMBINATIONS) - 0.5, -0.5)


def _log_axis(axes: Axes, ticks: list[float]) -> None:
    """Logarithmic in x, its ticks as plain numbers."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _ratchet(summary: Summary) -> Figure:
    """var_theta over meta-training, against the truth; in the last panel the stds of phi can hardly move."""
    curves = {
        spread.replace("_", " "): {name: _curve(summary, "combinations", spread, name) for name in COMBINATIONS}
        for spread in SPREADS
    }
    curves["log normal, stds of phi still"] = {
        f"displacement-{start}": _curve(summary, "controls", "log_normal", f"still-phi-stds-{start}")
        for start in STD_STARTS
    }
    shown = {title: {k: v for k, v in of.items() if v} for title, of in curves.items() if any(of.values())}
    figure = Figure(figsize=(2.9 * len(shown), 3.4), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (title, of) in zip(panels, shown.items(), strict=True):
        for name, curve in of.items():
            style = _STYLES[name]
            axes.plot(*zip(*curve, strict=True), color=style.colour, linestyle=style.dashes, label=name)
        axes.axhline(0, color=colour(INK), linewidth=0.8)
        axes.set_title(title)
        axes.set_xlabel("meta-iteration")
    panels[0].set_ylabel("log10 (var_theta / truth), median")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def _curve(summary: Summary, group: str, spread: str, name: str) -> list[list[float]]:
    row = summary.get(group, {}).get(f"{spread}.{name}", {})
    return row.get("curve", [])


def _of(summary: Summary, spread: str, name: str) -> Any:
    return summary["combinations"][f"{spread}.{name}"]


_METRICS = {
    "spearman": ("theta", "rank correlation"),
    "coverage_90%": ("phi", "90 % coverage"),
    "nll": ("phi", "test NLL, nats per output"),
}


def _beta(summary: Summary) -> Figure:
    """The weight of the KL, in units of the true ELBO's."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, metric in zip(panels, _METRICS, strict=True):
        _sweep(axes, summary, "beta", metric)
        axes.set_xlabel("weight of the KL (1: the true ELBO)")
        axes.axvline(0.057, color=colour(MUTED), linestyle=":", linewidth=1)
    grid = np.logspace(-3, 2, 21)
    closed = [np.mean([tempered_coverage("log_normal", seed, b)["coverage_90%"] for seed in range(5)]) for b in grid]
    panels[1].plot(grid, closed, color=colour(MUTED), linestyle="--")
    panels[1].axhline(0.9, color=colour(INK), linewidth=0.8)
    text = "dotted: the library's default weight; dashed: the factorised optimum with the true prior; open: 60 steps"
    figure.suptitle(text, fontsize=9.5, color=colour(MUTED))
    return figure


def _sensitivity(summary: Summary) -> Figure:
    """Rates of the stds, inner and outer together, their start, the rank."""
    sweeps = ("std_lr", "std_init", "rank")
    figure = Figure(figsize=(10.5, 7.6), layout="constrained")
    grid = figure.subplots(len(_METRICS), len(sweeps), sharey="row", sharex="col")
    for line, metric in zip(grid, _METRICS, strict=True):
        for axes, sweep in zip(line, sweeps, strict=True):
            _sweep(axes, summary, sweep, metric)
            axes.set_ylabel(_METRICS[metric][1] if sweep == "std_lr" else "")
            axes.set_xlabel(sweep)
    text = "filled: after 10 adaptation steps; open: after 60; standard errors over seeds"
    figure.suptitle(text, fontsize=9.5, color=colour(MUTED))
    return figure


def _sweep(axes: Axes, summary: Summary, sweep: str, metric: str) -> None:
    """A metric against a setting's value; the grid's own value is where all sweeps meet."""
    part, label = _METRICS[metric]
    points = {float(name.removeprefix("log_normal.")): row for name, row in summary.get(sweep, {}).items()}
    points[CENTRES[sweep][1]] = _of(summary, "log_normal", CENTRE)
    for which, filled in ((part, True), ("phi_converged", False)):
        if which == part or part == "phi":
            style, values = _STYLES[CENTRE], [points[x][which][metric] for x in sorted(points)]
            means, errors = [v["mean"] for v in values], [v["se"] or 0.0 for v in values]
            face = style.colour if filled else "white"
            axes.errorbar(sorted(points), means, errors, color=style.colour, marker="o", markerfacecolor=face)
    _log_axis(axes, [float(f"{x:g}") for x in sorted(points)])
    axes.set_ylabel(label)
