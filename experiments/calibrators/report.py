"""The table and its numbers as JSON, from scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from abmll.calibrators import calibrator
from experiments.calibrators.compare import ENTRIES, REFERENCES, TaskScores, average_system, difference
from experiments.calibrators.weak import Pair, left_out

Scores = Mapping[str, Mapping[str, TaskScores]]
ALL = "all systems"
COMPARED = ("none", "temperature", "posterior temperature")


def numbers(scores: Scores) -> dict[str, dict[str, Any]]:
    """System (and all together) -> entry -> tasks, NLL, ECE, and differences of the NLL with 95 % intervals."""
    systems = {**scores, ALL: average_system(scores)}
    return {name: {entry: _numbers(by_entry, entry) for entry in by_entry} for name, by_entry in systems.items()}


def _numbers(by_entry: Mapping[str, TaskScores], entry: str) -> dict[str, Any]:
    own = by_entry[entry]
    if not own.nll:
        return {"tasks": 0}
    against = {f"minus_{other}": difference(own, by_entry[other]) for other in COMPARED}
    worst = max(own.nll[name] - by_entry["uniform"].nll[name] for name in own.nll)
    single = {"nll": _mean(own.nll), "ece": _mean(own.ece), "worst_over_uniform": worst}
    gaps = {name: [round(x, 4) for x in values] for name, values in against.items()}
    return {"tasks": len(own.nll), **{name: round(value, 4) for name, value in single.items()}, **gaps}


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def rounded(table: Mapping[str, Mapping[str, float]], digits: int) -> dict[str, dict[str, float]]:
    """The numbers of a table with fewer digits."""
    return {row: {column: round(value, digits) for column, value in cells.items()} for row, cells in table.items()}


def weak_numbers(priors: Mapping[Pair, Mapping[str, float]]) -> dict[str, Any]:
    """The grid of weak priors: mean NLL of each, and what leaving one task out chooses."""
    nll, chosen = left_out(priors)
    grid = [{"mu": mu, "sd": sd, "nll": round(_mean(v), 4)} for (mu, sd), v in priors.items()]
    times = [{"mu": mu, "sd": sd, "times": count} for (mu, sd), count in chosen.items()]
    return {"grid": grid, "left_out": {"nll": round(nll, 4), "chosen": times}}


def markdown(results: Mapping[str, Any]) -> str:
    """All tables of a result."""
    parts = ["# Calibrators\n\nWritten by `python -m experiments.calibrators`; README.md says what is what."]
    for name, title in (("training", "Training tasks, one left out"), ("others", "Other tasks")):
        if name in results:
            parts += [f"## {title}", _overview(results[name][ALL]), "NLL by system:", _by_system(results[name])]
    if "weak_prior" in results:
        parts += ["## The weak prior", _grid(results["weak_prior"])]
    if left_out := results.get("left_out"):
        parts += [f"Not scored, as no training tasks are there to learn from: {', '.join(left_out)}."]
    if "worlds" in results:
        parts += ["## Where the best temperature is known", _losses(results["worlds"])]
        parts += ["## Cost", _costs(results["cost"])]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its first column of words."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _overview(entries: Mapping[str, Any]) -> str:
    head = ("calibrator", "tasks", "NLL", "ECE", *(f"minus {other}" for other in COMPARED), "worst task, over uniform")
    rows = []
    for name, own in entries.items():
        if own["tasks"]:
            cells = [str(own["tasks"]), f"{own['nll']:.4f}", f"{own['ece']:.3f}"]
            gaps = ["-" if other == name else _gap(own[f"minus_{other}"]) for other in COMPARED]
            rows.append([name, *cells, *gaps, f"{own['worst_over_uniform']:+.3f}"])
    return table(head, rows)


def _gap(values: Sequence[float]) -> str:
    mean, low, high = values
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


def _by_system(systems: Mapping[str, Any]) -> str:
    names = [*(entry.name for entry in ENTRIES), *REFERENCES]
    shown = [name for name in names if systems[ALL][name]["tasks"] == systems[ALL]["none"]["tasks"]]
    rows = [[system, *(f"{entries[name]['nll']:.3f}" for name in shown)] for system, entries in systems.items()]
    return table(("system", *shown), rows)


def _grid(weak: Mapping[str, Any]) -> str:
    means, sds = (sorted({point[key] for point in weak["grid"]}) for key in ("mu", "sd"))
    nll = {(point["mu"], point["sd"]): point["nll"] for point in weak["grid"]}
    rows = [[f"{mu:g}", *(f"{nll[mu, sd]:.4f}" for sd in sds)] for mu in means]
    chosen = ", ".join(f"({p['mu']:g}, {p['sd']:g}) {p['times']} times" for p in weak["left_out"]["chosen"])
    default = calibrator("posterior_temperature").to_dict()["settings"]
    text = (
        f"NLL, mean over systems and tasks. Best on the other tasks, with one left out: {chosen}; so chosen, the NLL "
        f"is {weak['left_out']['nll']}. The default is mu {default['mu']:g}, sd {default['sd']:g}."
    )
    return f"{text}\n\n" + table(("mu \\ sd", *(f"{sd:g}" for sd in sds)), rows)


def _losses(worlds: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(worlds.values())))
    rows = [[estimator, *(f"{losses[name]:.3f}" for name in names)] for estimator, losses in worlds.items()]
    return "NLL over that at the best temperature:\n\n" + table(("estimator", *names), rows)


def _costs(cost: Mapping[str, Mapping[str, float]]) -> str:
    base = cost["none"]
    head = (
        "calibrator",
        "meta_fit, ms",
        "fit, ms",
        "apply, ms",
        "apply over none",
        "meta_fit, KiB",
        "memory, KiB",
        "memory over none",
    )
    rows = []
    for name, own in cost.items():
        times = [f"{own[key]:.2f}" for key in ("meta_fit_ms", "fit_ms", "apply_ms")]
        ratio = f"{own['apply_ms'] / base['apply_ms']:.0f}" if base["apply_ms"] else "-"
        memory = [f"{own[key]:.0f}" for key in ("meta_fit_kib", "memory_kib")]
        rows.append([name, *times, ratio, *memory, f"{own['memory_kib'] / base['memory_kib']:.1f}"])
    return table(head, rows)
