"""What the learned stds of theta look like, layer by layer, and whether two training seeds agree on them."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from abmll.adapters.facts import StoredAdapter
from abmll.adapters.folder import read_adapter
from abmll.adapters.gaussian import LowRankGaussian
from abmll.errors import AbmllError
from abmll.kernels import Variance
from abmll.report.theme import MUTED, colour, settings, to_png

ENTRIES = 4000
"""Of a layer, evenly spaced."""

Sample = tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]


def layer_samples(stored: StoredAdapter) -> dict[str, Sample]:
    """Layer -> its std as a multiple of f, which it began with, and its mean, at the same entries of every adapter."""
    facts, found = stored.facts, {}
    for path, layer in facts.layers.items():
        if facts.std_form is None or facts.std_floor is None or layer.std_init is None:
            raise AbmllError("an adapter without stds has none to describe")
        variance = Variance(facts.std_form, layer.std_init, facts.std_floor, facts.alpha / facts.rank)
        gaussian = LowRankGaussian(layer.out_features, layer.in_features, facts.rank, variance, with_std=True)
        gaussian.load_state_dict({name: stored.tensors[f"{path}.{name}"] for name in gaussian.state_dict()})
        at = np.linspace(0, gaussian.entries - 1, min(ENTRIES, gaussian.entries)).astype(int)
        std, mean = (dense.detach().flatten().numpy()[at] for dense in (gaussian.dense_std(), gaussian.dense_mean()))
        found[path] = std / layer.std_init, mean
    return found


def stds_of(adapters: Mapping[str, Path]) -> dict[str, Any]:
    """Quantiles of std / f of every layer, and rank correlations.

    Returns:
        layers: layer -> adapter -> [5 %, median, 95 %]; with_mean: adapter -> rank correlation of a weight's std with
        the size of its mean, mean over layers; between: pair -> that of the stds, and of the sizes of the means, of
        two adapters.

    Raises:
        AbmllError: a folder is no adapter, or has no stds.
    """
    samples = {name: layer_samples(read_adapter(folder)) for name, folder in adapters.items()}
    paths = list(next(iter(samples.values())))
    quantiles = {
        path: {name: [float(q) for q in np.quantile(of[path][0], (0.05, 0.5, 0.95))] for name, of in samples.items()}
        for path in paths
    }
    with_mean = {n: _correlation([(of[p][0], np.abs(of[p][1])) for p in paths]) for n, of in samples.items()}
    between = {
        f"{a}, {b}": {
            "stds": _correlation([(samples[a][p][0], samples[b][p][0]) for p in paths]),
            "means": _correlation([(np.abs(samples[a][p][1]), np.abs(samples[b][p][1])) for p in paths]),
        }
        for a, b in combinations(samples, 2)
    }
    return {"layers": quantiles, "with_mean": with_mean, "between": between}


def _correlation(pairs: list[Sample]) -> float:
    return float(np.mean([spearmanr(a, b).statistic for a, b in pairs]))


def stds_by_layer(told: Mapping[str, Any]) -> bytes:
    """The median std of each layer as a multiple of the one it began with, a line per adapter, 5 to 95 % shaded."""
    kinds = sorted({path.rsplit(".", 1)[-1] for path in told["layers"]})
    with settings():
        figure = Figure(figsize=(4.5 * len(kinds), 3.2), layout="constrained")
        for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
            layers = [of for path, of in told["layers"].items() if path.endswith(kind)]
            for number, name in enumerate(told["with_mean"]):
                low, middle, high = np.array([of[name] for of in layers]).T
                axes.plot(middle, color=colour(f"series{number % 6}"), linewidth=1.2, label=name)
                axes.fill_between(range(len(layers)), low, high, color=colour(f"series{number % 6}"), alpha=0.08)
            axes.axhline(1, color=colour(MUTED), linewidth=1)
            axes.set_title(kind)
            axes.set_xlabel("layer")
        figure.axes[0].set_ylabel("std / the std it began with")
        figure.axes[0].legend(fontsize=7)
        return to_png(figure)
