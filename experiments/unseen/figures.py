"""Figures of the evidence that the library's report does not have."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from abmll.metrics.baselines import LABEL_FREQUENCY, UNIFORM
from abmll.metrics.calibration import reliability_bins
from abmll.report.theme import FAINT, INK, MUTED, colour, settings, to_png
from experiments.unseen.evidence import Values, reliability_scaled


def controls(summary: Mapping[str, Any], reference: str = "abmll") -> bytes:
    """Each system's difference to the reference in scaled NLL and accuracy, with its interval."""
    tests = summary["against_abmll"]
    names = sorted((n for n in tests if "nll_scaled" in tests[n]), key=lambda n: tests[n]["nll_scaled"]["difference"])
    with settings():
        figure = Figure(figsize=(9, 0.34 * len(names) + 1.3), layout="constrained")
        for axes, metric, label in zip(
            figure.subplots(1, 2, sharey=True),
            ("nll_scaled", "accuracy"),
            ("NLL (scaled), nats", "accuracy"),
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
    """Scaled NLL and accuracy of every training seed, a line at a uniform guess."""
    systems = {n: s for n, s in summary["systems"].items() if n != LABEL_FREQUENCY}
    names = sorted(systems, key=lambda n: -systems[n]["nll_scaled"])
    with settings():
        figure = Figure(figsize=(9, 0.3 * len(names) + 1.2), layout="constrained")
        axes_of = figure.subplots(1, 2, sharey=True)
        for axes, metric, label in zip(
            axes_of, ("nll_scaled", "accuracy"), ("NLL (scaled), nats", "accuracy"), strict=True
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


def sensitivity(found: Mapping[str, Any]) -> bytes:
    """Scaled NLL and accuracy at each value of each setting, one line per system, a grey one for a uniform guess."""
    metrics = (("nll_scaled", "NLL (scaled), nats"), ("accuracy", "accuracy"))
    with settings():
        figure = Figure(figsize=(2.6 * max(2, len(found)), 4.6), layout="constrained")
        grid = figure.subplots(2, len(found), squeeze=False, sharey="row")
        for column, (question, systems) in enumerate(found.items()):
            values = sorted({one["value"] for told in systems.values() for one in told})
            shown = [name for name in systems if name not in (LABEL_FREQUENCY, UNIFORM) and not name.endswith("_mean")]
            for axes, (metric, label) in zip(grid[:, column], metrics, strict=True):
                for number, name in enumerate(sorted(shown)):
                    line = sorted((one["value"], one[metric]) for one in systems[name] if one.get(metric) is not None)
                    x, y = [values.index(value) for value, _ in line], [score for _, score in line]
                    axes.plot(x, y, "o-", markersize=3, color=colour(f"series{number}"), label=name)
                for one in systems.get(UNIFORM, ())[:1]:
                    axes.axhline(one[metric], color=colour(MUTED), linewidth=1)
                axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
                axes.set_ylabel(label if column == 0 else "")
            grid[1, column].set_xlabel(question)
            grid[0, column].legend(fontsize=6)
        return to_png(figure)
