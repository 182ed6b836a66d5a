"""The figure: NLL of every system on every set, at both sizes, as a share of a uniform guess's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from abmll.report.theme import MUTED, colour, settings, styles, to_png
from benchmarks.own.tables import TITLES, label_of, nll_of, systems_in

LETTER = 0.08
"""Inches of a letter in the legend, about."""


def draw(results: Mapping[str, Any], base: str) -> bytes:
    """A row for each set, the one that the adapted base model answers best first; a panel for each size."""
    sizes = [size for size in TITLES if any(size in of_set for of_set in results["sets"].values())]
    systems, names = systems_in(results), _ordered(results, f"{base} adapted")
    looks, width = styles(systems), 5.2 * len(sizes)
    columns = max(1, int(width / (0.6 + LETTER * max(len(label_of(system)) for system in systems))))
    legend = 0.22 * -(-len(systems) // columns)
    with settings():
        figure = Figure(figsize=(width, 0.36 * len(names) + 1.5 + legend), layout="constrained")
        panels = np.atleast_1d(np.array(figure.subplots(1, len(sizes), sharey=True)))
        for axes, size in zip(panels, sizes, strict=True):
            for system in systems:
                found = [(name, results["sets"][name].get(size, {}).get(system)) for name in names]
                points = [(nll_of(system, s) / s["nll_uniform"], i) for i, (_, s) in enumerate(found) if s is not None]
                look = looks[system]
                x, y = zip(*points, strict=True) if points else ((), ())
                axes.plot(x, y, look.marker, color=look.colour, markersize=6, alpha=0.85, label=label_of(system))
            axes.axvline(1, color=colour(MUTED), linewidth=1)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_title(TITLES[size].partition(" (")[0])
            axes.set_xlabel("NLL, as a share of a uniform guess's")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        return to_png(figure)


def _ordered(results: Mapping[str, Any], system: str) -> list[str]:
    def share(name: str) -> float:
        found = results["sets"][name].get("few", {}).get(system)
        return np.inf if found is None else nll_of(system, found) / found["nll_uniform"]

    return sorted(results["sets"], key=share)
