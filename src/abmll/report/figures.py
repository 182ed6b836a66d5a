"""The figures of a report. A figure is a row or grid of panels: one picture as PNG, separate pictures on the page.

Everything is drawn from the summary (`results.json`), so a figure can be made again without the predictions.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.stats import binomtest

from abmll.metrics.baselines import UNIFORM
from abmll.report.theme import FAINT, INK, MUTED, PAPER, Style, colour, settings, styles, to_png, to_svg

Summary = dict[str, Any]

_WIDTH, _HEIGHT = 4.1, 3.0  # of a panel, inches: its type is readable on a telephone's width
_ROW = 0.34  # height of a system's row in a chart of rows
_FEW = 10  # answers in a bin
_LONGEST = 22  # letters of a name in a figure
_TOGETHER = 10  # lines in a panel: as many as there are colours


@dataclass(frozen=True)
class Panel:
    """A part of a figure: its title, how it is drawn, and its height in inches."""

    title: str
    draw: Callable[[FigureBase], None]
    height: float = _HEIGHT


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: file name without its ending.
        title: heading on the page.
        caption: how to read it, one sentence.
        panels: its parts, left to right.
        legend: label, style of each system that the lines and points show; empty if they are labelled directly.
        columns: panels in a row of the PNG.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, Style], ...] = ()
    columns: int = 3

    def png(self) -> bytes:
        """All panels, with the legend below, as PNG."""
        columns = min(self.columns, len(self.panels))
        rows = -(-len(self.panels) // columns)
        per_line = max(1, int(columns * _WIDTH / 1.9))
        below = 0.28 * -(-len(self.legend) // per_line) + 0.1 if self.legend else 0.0
        heights = [max(panel.height for panel in self.panels)] * rows + ([below] if below else [])
        with settings():
            figure = Figure(figsize=(columns * _WIDTH, sum(heights)), layout="constrained")
            parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
            for i, panel in enumerate(self.panels):
                if i % columns == 0:
                    line = parts[i // columns].subfigures(1, columns, squeeze=False)[0]
                _draw(panel, line[i % columns])
            if below:
                _draw_legend(parts[-1], self.legend, per_line)
            return to_png(figure)

    def svgs(self) -> list[str]:
        """Every panel as an SVG element, titles and legend being the page's."""
        out = []
        with settings():
            for panel in self.panels:
                figure = Figure(figsize=(_WIDTH, panel.height - 0.25), layout="constrained")
                panel.draw(figure)
                out.append(to_svg(figure, f"{self.name}: {panel.title}"))
        return out


def chips(summary: Summary) -> tuple[str, dict[str, str]]:
    """The line and marker of every system, for legends and tables of the page.

    Returns:
        `<symbol>` elements to put into the page once, and an `<svg>` element that shows each system's.
    """
    symbols, uses = [], {}
    with settings():
        for i, (name, style) in enumerate(styles(_systems(summary)).items()):
            figure = Figure(figsize=(0.42, 0.16))
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            axes.plot([0, 0.5, 1], [0, 0, 0], color=style.colour, markevery=[1], **_line(style))
            drawn = to_svg(figure, f"chip {i}")
            symbols.append(drawn.replace("<svg", f'<symbol id="chip-{i}"').replace("</svg>", "</symbol>"))
            uses[name] = f'<svg aria-hidden="true"><use href="#chip-{i}"/></svg>'
    return "".join(symbols), uses


def pictures(summary: Summary) -> list[Picture]:
    """Every figure for which the summary has something to show.

    >>> [picture.name for picture in pictures(summary)]  # doctest: +SKIP
    ['learning_curve', 'reliability', 'risk_coverage', 'adaptation_gain', 'cost']
    """
    made = (
        learning_curve(summary),
        reliability(summary),
        risk_coverage(summary),
        adaptation_gain(summary),
        cost(summary),
    )
    return [picture for picture in made if picture is not None]


def learning_curve(summary: Summary) -> Picture | None:
    """Accuracy and ECE over the examples consumed in meta-training: the paper's Figure 2; None if nothing is finite.

    More systems than there are colours are dealt to several pairs of panels, in the table's order, each with a
    legend; rows of mean weights are left out of these.
    """
    names = _systems(summary)
    if all(point["not_finite"] for points in summary["curve"].values() for point in points):
        return None
    groups = _groups(names)
    apart = len(groups) > 1
    panels = tuple(
        Panel(
            title,
            partial(_draw_curves, summary=summary, names=group, metric=metric, scale=scale, apart=apart),
            _HEIGHT + (0.25 * -(-len(group) // 2) if apart else 0.0),
        )
        for group in groups
        for title, metric, scale in (("Accuracy, %", "accuracy", 100), ("ECE", "ece", 1))
    )
    finite = [name for name in names if not summary["systems"][name]["not_finite"]]
    return Picture(
        "learning_curve",
        "Learning curve",
        "After adaptation to the unseen tasks, mean over them; higher accuracy and lower ECE are better. Bars are "
        "standard errors over seeds, the dotted line is a system without meta-training, the grey dashes a uniform "
        "guess. At 0 examples nothing is meta-trained yet: systems differ there by how they adapt (rates, steps, "
        "noise), and not by what they learned."
        + (" Systems are in panels by their order in the table, all on one scale." if apart else "")
        + (" A cross at the foot is a point that is not finite." if _has_broken_points(summary) else ""),
        panels,
        () if apart else _legend(names, finite),
        columns=2,
    )


def _groups(names: Sequence[str]) -> list[list[str]]:
    """The systems of each pair of panels: all in one if colours tell them apart."""
    if len(names) <= _TOGETHER:
        return [list(names)]
    means = {f"{name}_mean" for name in names}
    parts = [names[start : start + _TOGETHER] for start in range(0, len(names), _TOGETHER)]
    return [left for part in parts if (left := [name for name in part if name not in means])]


def _has_broken_points(summary: Summary) -> bool:
    return any(point["not_finite"] for points in summary["curve"].values() for point in points)


def _draw_curves(
    area: FigureBase, summary: Summary, names: Sequence[str], metric: str, scale: int, apart: bool
) -> None:
    axes, looks = area.subplots(), styles(_systems(summary))
    _draw_broken(axes, summary, names)
    for name in names:
        style = looks[name]
        points = _finite_points(summary, name)
        x = [point["examples_consumed"] for point in points]
        y = [scale * point[metric] for point in points]
        errors = [scale * (point[f"{metric}_standard_error"] or 0) for point in points]
        if len(points) == 1 and x[0] == 0:
            axes.axhline(y[0], color=style.colour, linestyle=":", linewidth=1.4)
        shown = errors if any(errors) else None
        axes.errorbar(x, y, yerr=shown, color=style.colour, elinewidth=1.4, **_line(style))
    guess = scale * summary["systems"][UNIFORM][metric]
    axes.axhline(guess, color=colour(FAINT), linestyle="--", linewidth=1.1)
    axes.set_xlabel("examples consumed")
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 0 else ""))
    axes.margins(y=0.12)
    if apart:
        every = [point for name in _systems(summary) for point in _finite_points(summary, name)]
        heights = [guess, *(scale * point[metric] for point in every)]
        margin = 0.08 * (max(heights) - min(heights)) or 0.01 * scale
        furthest = max(point["examples_consumed"] for point in every) or 1
        axes.set(xlim=(-0.06 * furthest, 1.06 * furthest), ylim=(min(heights) - margin, max(heights) + margin))
        finite = [name for name in names if not summary["systems"][name]["not_finite"]]
        _draw_legend(area, _legend(names, finite, looks), 2, "outside lower center")


def _finite_points(summary: Summary, name: str) -> list[dict[str, Any]]:
    return [point for point in summary["curve"][name] if not point["not_finite"]]


def _draw_broken(axes: Axes, summary: Summary, names: Sequence[str]) -> None:
    """A cross at the foot for every point that is not finite, one system's above another's."""
    looks = styles(_systems(summary))
    for height, name in enumerate(names):
        for point in summary["curve"][name]:
            if point["not_finite"]:
                x, y, foot = point["examples_consumed"], 0.03 + 0.05 * height, axes.get_xaxis_transform()
                axes.plot(x, y, "x", transform=foot, color=looks[name].colour, markeredgewidth=1.8)


def reliability(summary: Summary) -> Picture | None:
    """Reliability diagrams, a panel a system, each with a histogram of its confidences; None if none is finite."""
    panels = tuple(
        Panel(_short(name), partial(_draw_reliability, summary=summary, name=name, style=style), 3.6)
        for name, style in styles(_systems(summary)).items()
        if name in summary["reliability"]
    )
    if not panels:
        return None
    return Picture(
        "reliability",
        "Reliability",
        "Points on the diagonal are honest: of answers given with 70 % confidence, 70 % are right; below it the "
        "system is overconfident. Vertical bars are 95 % binomial intervals, as if all answers were independent; "
        "the histogram below counts the answers in each bin, all tasks, seeds and draws together; bins of fewer "
        "than 10 are pale.",
        panels,
    )


def _draw_reliability(area: FigureBase, summary: Summary, name: str, style: Style) -> None:
    top, bottom = area.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = summary["reliability"][name]
    top.plot([0, 1], [0, 1], color=colour(FAINT), linewidth=1.1, linestyle="--")
    for x, y, count in zip(bins["mean_confidence"], bins["mean_accuracy"], bins["count"], strict=True):
        if count:
            strength = 1.0 if count >= _FEW else 0.35  # a bin of few answers should not catch the eye
            low, high = binomtest(round(y * count), count).proportion_ci(0.95, method="wilson")
            top.vlines(x, y, x, color=style.colour, linewidth=5, alpha=0.22 * strength)
            top.vlines(x, low, high, color=style.colour, linewidth=1, alpha=strength)
            top.plot(x, y, "o", color=style.colour, markersize=4, markeredgewidth=0, alpha=strength)
    top.set(ylim=(-0.03, 1.03), ylabel="share right", yticks=(0, 0.5, 1))
    width = bins["edges"][1] - bins["edges"][0]
    bottom.bar(bins["edges"][:-1], bins["count"], width=0.92 * width, align="edge", color=style.colour, alpha=0.75)
    bottom.set(xlim=(-0.02, 1.02), xlabel="confidence", xticks=(0, 0.25, 0.5, 0.75, 1), ylabel="answers")
    bottom.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    area.align_ylabels([top, bottom])


def risk_coverage(summary: Summary) -> Picture | None:
    """Error rate among the most confident answers; None if no system is finite."""
    if not summary["risk_coverage"]:
        return None
    return Picture(
        "risk_coverage",
        "Risk and coverage",
        "Error rate if only the most confident share of questions is answered, mean over tasks: a line that falls "
        "to the left means that confidence tells right from wrong; lower is better.",
        (Panel("Error rate, %", partial(_draw_risk, summary=summary), 3.2),),
        _legend(_systems(summary), summary["risk_coverage"]),
    )


def _draw_risk(area: FigureBase, summary: Summary) -> None:
    axes = area.subplots()
    for name, curve in summary["risk_coverage"].items():
        style = styles(_systems(summary))[name]
        coverage, risk = 100 * np.array(curve["coverage"]), 100 * np.array(curve["risk"])
        axes.plot(coverage, risk, color=style.colour, markevery=6, **_line(style))
    axes.set(xlabel="share of questions answered, %", xlim=(0, 102))
    axes.set_ylim(bottom=0)


def adaptation_gain(summary: Summary) -> Picture | None:
    """Scores before and after adaptation to the unseen tasks; None if nothing was scored before."""
    entries = {n: e for n, e in summary["systems"].items() if n in summary["curve"] and e["before_adaptation"]}
    if not entries:
        return None
    height = 0.95 + _ROW * len(entries)
    primary = summary["primary"]
    nll = primary if all(entry["before_adaptation"][primary] is not None for entry in entries.values()) else "nll"
    named = "NLL posterior, nats" if nll == "nll_posterior" else "NLL, nats"
    panels = tuple(
        Panel(
            title,
            partial(_draw_gain, summary=summary, names=list(entries), metric=metric, scale=scale),
            height,
        )
        for title, metric, scale in (("Accuracy, %", "accuracy", 100), (named, nll, 1), ("ECE", "ece", 1))
    )
    return Picture(
        "adaptation_gain",
        "Adaptation gain",
        "From the hollow point (before adaptation) to the full one (after): how much a system learns from the few "
        "examples of an unseen task.",
        panels,
    )


def _draw_gain(area: FigureBase, summary: Summary, names: Sequence[str], metric: str, scale: int) -> None:
    axes = area.subplots()
    looks = styles(_systems(summary))
    for row, name in enumerate(names):
        entry = summary["systems"][name]
        start, end = scale * entry["before_adaptation"][metric], scale * entry[metric]
        style = looks[name]
        axes.plot([start, end], [row, row], color=style.colour, linewidth=2.2, zorder=2)
        axes.plot(start, row, "o", color=style.colour, markerfacecolor=colour(PAPER), markersize=7, zorder=3)
        axes.plot(end, row, "o", color=style.colour, markersize=7, zorder=3)
    axes.margins(x=0.1)
    _rows(axes, names)


def cost(summary: Summary) -> Picture | None:
    """Training time, peak memory and trained parameters, a bar a system; None if none was recorded."""
    entries = {name: entry["cost"] for name, entry in summary["systems"].items() if entry["cost"]}
    kinds = (
        ("Training, seconds", "train_seconds", 1.0),
        ("Peak memory, GiB", "peak_memory_bytes", 2.0**30),
        ("Shared parameters, millions", "shared_parameters", 1e6),
    )
    panels = []
    for title, key, unit in kinds:
        values = {name: found[key] / unit for name, found in entries.items() if found.get(key) is not None}
        if values:
            draw = partial(_draw_bars, summary=summary, values=values)
            panels.append(Panel(title, draw, 0.75 + _ROW * len(values)))
    if not panels:
        return None
    caption = "What a system costs to train, mean over seeds; memory is the largest peak of any seed."
    return Picture("cost", "Cost", caption, tuple(panels))


def _draw_bars(area: FigureBase, summary: Summary, values: dict[str, float]) -> None:
    axes = area.subplots()
    looks = styles(_systems(summary))
    for row, (name, value) in enumerate(values.items()):
        axes.barh(row, value, height=0.62, color=looks[name].colour)
        axes.annotate(_compact(value), (value, row), (4, 0), textcoords="offset points", va="center", color=colour(INK))
    axes.set_xlim(0, max(max(values.values()) * 1.22, 1e-9))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    _rows(axes, list(values))


def _compact(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{round(value, 2):.3g}"


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """A row a system, the first on top, named at the left."""
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=colour(INK))
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)


def _line(style: Style) -> dict[str, Any]:
    return {"marker": style.marker, "markersize": 4.5, "linewidth": 1.8, "linestyle": style.dashes}


def _draw(panel: Panel, area: Any) -> None:
    area.suptitle(panel.title, x=0.03, ha="left", fontsize=10.5, fontweight="bold", color=colour(INK))
    panel.draw(area)


def _draw_legend(area: Any, legend: Sequence[tuple[str, Style]], columns: int, where: str = "center") -> None:
    handles = [Line2D([], [], color=style.colour, **_line(style)) for _, style in legend]
    names = [name for name, _ in legend]
    area.legend(handles, names, loc=where, ncols=min(columns, len(names)), labelcolor=colour(MUTED), fontsize=9)


def _legend(
    names: Sequence[str], finite: Collection[str], looks: Mapping[str, Style] | None = None
) -> tuple[tuple[str, Style], ...]:
    """Every system, also one that has no line: it says why."""
    looks = looks or styles(names)
    return tuple((_short(name) + ("" if name in finite else " (not finite)"), looks[name]) for name in names)


def _systems(summary: Summary) -> list[str]:
    return list(summary["curve"])


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
