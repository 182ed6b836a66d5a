"""Figures of the evidence that the library's report does not have."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from abmll.metrics.baselines import LABEL_FREQUENCY, UNIFORM
from abmll.metrics.calibration import reliability_bins
from abmll.report.theme import FAINT, INK, MUTED, colour, settings, to_png
from experiments.unseen.evidence import Values, reliability_scaled


def controls(summary: Mapping[str, Any], reference: str = "abmll") -> bytes:
    """Each system's difference to the reference in the primary NLL and accuracy, with its interval."""
    tests = summary["against_abmll"]
    names = [n for n in tests if "nll_posterior" in tests[n]]
    names.sort(key=lambda n: tests[n]["nll_posterior"]["difference"])
    with settings():
        figure = Figure(figsize=(9, 0.34 * len(names) + 1.3), layout="constrained")
        for axes, metric, label in zip(
            figure.subplots(1, 2, sharey=True),
            ("nll_posterior", "accuracy"),
            ("NLL posterior, nats", "accuracy"),
            strict=True,
        ):
            found = [tests[n][metric] for n in names]
            centre = np.array([t["difference"] for t in found])
            ends = np.array([t["interval"] for t in found])
            axes.errorbar(
                centre,
                range(len(names)),
                xerr=np.abs(ends.T - centre),
                fmt="o",
                color=colour("series0"),
                ecolor=colour(FAINT),
            )
            axes.axvline(0, color=colour(MUTED), linewidth=1)
            axes.locator_params(axis="x", nbins=5)
            axes.set_yticks(range(len(names)), [f"{n} ({tests[n][metric]['seeds']})" for n in names])
            axes.set_xlabel(f"{label}: system minus {reference} (seeds)")
        return to_png(figure)


def seed_by_seed(summary: Mapping[str, Any]) -> bytes:
    """NLL at the posterior temperature and accuracy of every training seed, a line at a uniform guess."""
    systems = {n: s for n, s in summary["systems"].items() if n != LABEL_FREQUENCY}
    names = sorted((n for n in systems if "nll_posterior" in systems[n]), key=lambda n: -systems[n]["nll_posterior"])
    with settings():
        figure = Figure(figsize=(9, 0.3 * len(names) + 1.2), layout="constrained")
        axes_of = figure.subplots(1, 2, sharey=True)
        for axes, metric, label in zip(
            axes_of, ("nll_posterior", "accuracy"), ("NLL posterior, nats", "accuracy"), strict=True
        ):
            for place, name in enumerate(names):
                found = [one[metric] for one in systems[name]["by_seed"].values()]
                axes.plot(found, [place] * len(found), "o", color=colour("series0"), alpha=0.6, markersize=5)
            axes.axvline(systems[UNIFORM][metric], color=colour(MUTED), linewidth=1)
            axes.set_yticks(range(len(names)), names)
            axes.set_xlabel(f"{label}, each training seed")
        return to_png(figure)


def reliability_after_scaling(values: Values, names: list[str]) -> bytes:
    """Reliability diagrams after temperature scaling on held-out folds, all tasks, seeds and draws together."""
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    with settings():
        figure = Figure(figsize=(2.6 * columns, 2.5 * rows), layout="constrained")
        for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
            bins = reliability_bins(*reliability_scaled(values, name))
            some = bins.count >= 10
            axes.plot([0, 1], [0, 1], color=colour(FAINT), linestyle="--", linewidth=1)
            axes.plot(bins.mean_confidence[some], bins.mean_accuracy[some], "o-", color=colour("series0"), markersize=3)
            axes.set_title(name, color=colour(INK))
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
        for axes in figure.axes[len(names) :]:
            axes.set_visible(False)
        return to_png(figure)


def sensitivity(found: Mapping[str, Any], columns: int = 3) -> bytes:
    """Scaled NLL and accuracy at each value of each setting, a line per system, a cross where training was not finite.

    The grey line is a uniform guess. NLL is cut a tenth above it, which an arrow says.
    """
    baselines = (LABEL_FREQUENCY, UNIFORM)
    names = sorted({n for told in found.values() for n in told if n not in baselines and not n.endswith("_mean")})
    colours = {name: colour(f"series{number}") for number, name in enumerate(names)}
    scales = {metric: _scale(found, metric) for metric in ("nll_scaled", "accuracy")}
    low, high = scales["nll_scaled"]
    guesses = [one["nll_scaled"] for told in found.values() for one in told.get(UNIFORM, ())]
    scales["nll_scaled"] = low, min(high, max(guesses, default=high) + 0.1)
    blocks = -(-len(found) // columns)
    with settings():
        figure = Figure(figsize=(3.1 * columns, 3.4 * blocks), layout="constrained")
        grid = figure.subplots(2 * blocks, columns, squeeze=False)
        for place, (question, systems) in enumerate(found.items()):
            block, column = divmod(place, columns)
            values = sorted({one["value"] for told in systems.values() for one in told})
            for row, (metric, label) in enumerate((("nll_scaled", "NLL (scaled), nats"), ("accuracy", "accuracy"))):
                axes = grid[2 * block + row, column]
                for name in (n for n in names if n in systems):
                    line = sorted((one["value"], one[metric]) for one in systems[name] if "failed" not in one)
                    x, y = [values.index(value) for value, _ in line], [score for _, score in line]
                    axes.plot(x, y, "o-", markersize=3, color=colours[name], label=name)
                    above = [at for at, score in zip(x, y, strict=True) if score > scales[metric][1]]
                    axes.plot(
                        above, [0.97] * len(above), "^", color=colours[name], transform=axes.get_xaxis_transform()
                    )
                    lost = [values.index(one["value"]) for one in systems[name] if "failed" in one]
                    axes.plot(lost, [0.96] * len(lost), "x", color=colours[name], transform=axes.get_xaxis_transform())
                for one in systems.get(UNIFORM, ())[:1]:
                    axes.axhline(one[metric], color=colour(MUTED), linewidth=1)
                axes.set_xlim(-0.3, len(values) - 0.7)
                axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
                axes.set_ylabel(label if column == 0 else "")
            axes.set_xlabel(question)
        for axes in [axes for row in grid for axes in row if not axes.has_data()]:
            axes.set_visible(False)
        for row, metric in enumerate(("nll_scaled", "accuracy")):  # one scale for each metric
            for axes in grid[row::2].flat:
                axes.set_ylim(*scales[metric])
        handles = [Line2D([], [], marker="o", markersize=3, color=colours[name], label=name) for name in names]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(names))
        return to_png(figure)


def _scale(found: Mapping[str, Any], metric: str) -> tuple[float, float]:
    shown = [one[metric] for told in found.values() for points in told.values() for one in points if metric in one]
    return min(shown) - 0.01, max(shown) + 0.01
