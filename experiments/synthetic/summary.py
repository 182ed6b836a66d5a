"""Results of all runs -> means over seeds with standard errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.synthetic.run import rounded
from experiments.synthetic.scores import more_references

Summary = dict[str, dict[str, Any]]
PARTS = ("theta", "phi", "phi_converged")
REFERENCE = "reference"


def summarise(folder: Path) -> Summary:
    """Group -> SPREAD.NAME -> part -> metric -> {mean, se, seeds}; the group `reference` is exact inference."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/*.json")):
        name, _, _ = path.stem.rpartition("-")
        runs.setdefault((path.parent.name, name), []).append(json.loads(path.read_text(encoding="utf-8")))
    found: Summary = {}
    for (group, name), results in runs.items():
        parts = {part: _mean_of([r["scores"].get(part, {}) for r in results]) for part in PARTS}
        curves = [r["log_ratio_curve"] for r in results]
        found.setdefault(group, {})[name] = {**parts, "curve": _curve(curves), "setting": results[0]["setting"]}
    found[REFERENCE] = _references([r for results in runs.values() for r in results])
    return rounded(found)


def _references(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each spread, over all of its seeds; `converged` is of the first unseen task alone."""
    by_seed = {(r["setting"]["spread"], r["seed"]): r["reference"] for r in results}
    found = {}
    for spread in sorted({spread for spread, _ in by_seed}):
        each = [reference for (of, _), reference in by_seed.items() if of == spread]
        found[spread] = {name: _mean_of([reference[name] for reference in each]) for name in each[0]}
        alone = [more_references(spread, seed) for of, seed in by_seed if of == spread]
        found[spread]["converged"] = {name: _mean_of([reference[name] for reference in alone]) for name in alone[0]}
    return found


def _mean_of(rows: list[dict[str, float | None]]) -> dict[str, Any]:
    found = {}
    for metric in rows[0]:
        values = np.array([row[metric] for row in rows if row[metric] is not None])
        if len(values):
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
            found[metric] = {"mean": float(values.mean()), "se": error, "seeds": len(values)}
    return found


def _curve(curves: list[list[list[float]]]) -> list[list[float]]:
    """Step and mean over seeds."""
    if not curves[0] or curves[0][0][1] is None:
        return []
    return [[step, float(np.mean([curve[i][1] for curve in curves]))] for i, (step, _) in enumerate(curves[0])]
