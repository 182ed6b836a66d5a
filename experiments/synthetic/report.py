"""summary.json.gz, tables.md and the figures, from the results."""

from pathlib import Path
from typing import Any

from abmll.files import write_bytes, write_text
from experiments.short_json import write_gzipped
from experiments.synthetic.figures import CENTRE, COMBINATIONS, figures
from experiments.synthetic.problem import SPREADS
from experiments.synthetic.settings import CENTRES, LONG
from experiments.synthetic.summary import REFERENCE, Summary, summarise

_THETA = {
    "spearman": "Spearman",
    "pearson_log": "Pearson of logs",
    "auroc_free": "AUROC of what varies",
    "log_ratio": "log10 var_theta / truth",
    "mean_error": "error of the mean",
}
_PHI = {
    "coverage_50%": "50 % holds",
    "coverage_90%": "90 % holds",
    "kl_exact": "KL to exact",
    "kl_mean_field": "KL to best factorised",
    "nll": "test NLL",
    "nll_draws": "with 10 draws",
    "nll_mean_weights": "with mean weights",
}
_REFERENCES = {
    "exact": "exact posterior",
    "mean_field": "best factorised Gaussian",
    "empirical_bayes": "exact, prior by EM on the same tasks",
    "ridge_oracle": "ridge with oracle variances",
    "least_squares": "least squares",
    "prior_mean": "the tasks' mean, no adaptation",
}


def report(folder: Path) -> None:
    """Write `summary.json.gz`, `tables.md` and the figures beside the results."""
    summary = summarise(folder)
    write_gzipped(folder / "summary.json.gz", summary)
    write_text(folder / "tables.md", tables(summary))
    for name, png in figures(summary).items():
        write_bytes(folder / f"{name}.png", png)


def tables(summary: Summary) -> str:
    """All tables, as Markdown: means over seeds, their standard errors behind them."""
    parts = []
    for spread in SPREADS:
        rows = {name: summary.get("combinations", {}).get(f"{spread}.{name}") for name in COMBINATIONS}
        found = {name: row for name, row in rows.items() if row}
        if found:
            parts += [f"### {spread}: theta\n", _theta_table(found, summary[REFERENCE][spread])]
            parts += [f"### {spread}: q(phi)\n", _phi_table(found, summary, spread)]
    if controls := _controls(summary):
        parts += ["### Controls (log_normal)\n", _plain(controls)]
    for sweep in CENTRES:
        if sweep in summary:
            parts += [f"### {sweep} (log_normal)\n", _plain(_sweep(summary, sweep), sweep)]
    return "\n".join(parts)


def _controls(summary: Summary) -> dict[str, Any]:
    """The grid's point, and rows that differ from it by more than a number."""
    labels = {"true-theta": "true theta, stds start by ", "controls": "", "long": f"{LONG} meta-iterations, "}
    rows = {CENTRE: summary.get("combinations", {}).get(f"log_normal.{CENTRE}")}
    for group, label in labels.items():
        rows |= {label + _short(name): row for name, row in summary.get(group, {}).items()}
    return {name: row for name, row in rows.items() if row}


def _sweep(summary: Summary, sweep: str) -> dict[str, Any]:
    """Rows in the order of their value, the grid's own one among them."""
    rows = {float(_short(name)): row for name, row in summary[sweep].items()}
    name, value = CENTRES[sweep]
    if row := summary.get("combinations", {}).get(f"log_normal.{name}"):
        rows[value] = row
    return {f"{value:g}": rows[value] for value in sorted(rows)}


def _short(name: str) -> str:
    return name.partition(".")[2]


def _theta_table(rows: dict[str, Any], reference: dict[str, Any]) -> str:
    lines = [[name.replace("-", ", "), *(_cell(row["theta"].get(m)) for m in _THETA)] for name, row in rows.items()]
    lines.append(["*EM on the same tasks*", *(_cell(reference["empirical_bayes"].get(m)) for m in _THETA)])
    lines.append(["*before training*", *(_cell(reference["converged"]["untrained"].get(m)) for m in _THETA)])
    return _table(["outer step, stds start", *_THETA.values()], lines)


def _phi_table(rows: dict[str, Any], summary: Summary, spread: str) -> str:
    lines = []
    for name, row in rows.items():
        for part, steps in (("phi", 10), ("phi_converged", 60)):
            lines.append([name.replace("-", ", "), str(steps), *(_cell(row[part].get(m)) for m in _PHI)])
    for group in ("points", "rank-reptile"):
        for name, row in summary.get(group, {}).items():
            if name.startswith(f"{spread}."):
                label = _point(_short(name), row) if group == "points" else f"reptile, rank {_short(name)}"
                lines += [
                    [label, str(steps), *(_cell(row[part].get(m)) for m in _PHI)]
                    for part, steps in (("phi", 10), ("phi_converged", 60))
                ]
    for name in ("exact", "mean_field"):
        values = summary[REFERENCE][spread]["converged"][name]
        lines.append([f"*{_REFERENCES[name]}, first task*", "60", *(_cell(values.get(m)) for m in _PHI)])
    for name, label in _REFERENCES.items():
        lines.append([f"*{label}*", "", *(_cell(summary[REFERENCE][spread][name].get(m)) for m in _PHI)])
    return _table(["outer step, stds start", "steps", *_PHI.values()], lines)


def _point(name: str, row: dict[str, Any]) -> str:
    """A point method, with what of its settings is not what its name says by default."""
    moments = row["setting"]["settings"].get("inner_optimizer_state")
    return name if moments is None else f"{name}, moments {moments}"


def _plain(rows: dict[str, Any], first: str = "") -> str:
    """A few columns: after 10 steps, and the last two after 60."""
    columns = [("theta", m) for m in ("spearman", "log_ratio", "mean_error")]
    columns += [(part, m) for part in ("phi", "phi_converged") for m in ("coverage_90%", "kl_exact", "nll")]
    names = {**_THETA, **_PHI}
    head = [names[m] + (", 60 steps" if part == "phi_converged" else "") for part, m in columns]
    lines = [[name, *(_cell(row[part].get(m)) for part, m in columns)] for name, row in rows.items()]
    return _table([first, *head], lines)


def _cell(value: dict[str, Any] | None) -> str:
    """`mean ± standard error`, to two or three digits."""
    if value is None:
        return ""
    digits = 2 if abs(value["mean"]) < 10 else 1
    error = "" if value["se"] is None else f" ± {value['se']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{error}"


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
