"""summary.json, tables.md and the figures, from the results."""

from pathlib import Path
from typing import Any

from abmll.files import write_bytes, write_json, write_text
from experiments.synthetic.figures import COMBINATIONS, figures
from experiments.synthetic.problem import SPREADS
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
_SWEEPS = ("beta", "std_lr", "std_init", "rank", "outer_lr")


def report(folder: Path) -> None:
    """Write `summary.json`, `tables.md` and the figures beside the results."""
    summary = summarise(folder)
    write_json(folder / "summary.json", summary)
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
    others = {k: v for group in ("true-theta", "controls", "long") for k, v in summary.get(group, {}).items()}
    if others:
        parts += ["### Controls\n", _plain({_short(name): row for name, row in others.items()})]
    for sweep in _SWEEPS:
        if sweep in summary:
            order = sorted(summary[sweep].items(), key=lambda item: float(_short(item[0])))
            parts += [f"### {sweep}\n", _plain({_short(name): row for name, row in order}, sweep)]
    return "\n".join(parts)


def _short(name: str) -> str:
    return name.partition(".")[2]


def _theta_table(rows: dict[str, Any], reference: dict[str, Any]) -> str:
    lines = [[name.replace("-", ", "), *(_cell(row["theta"].get(m)) for m in _THETA)] for name, row in rows.items()]
    lines.append(["*EM on the same tasks*", *(_cell(reference["empirical_bayes"].get(m)) for m in _THETA)])
    return _table(["outer step, stds start", *_THETA.values()], lines)


def _phi_table(rows: dict[str, Any], summary: Summary, spread: str) -> str:
    lines = []
    for name, row in rows.items():
        for part, steps in (("phi", 10), ("phi_converged", 60)):
            lines.append([name.replace("-", ", "), str(steps), *(_cell(row[part].get(m)) for m in _PHI)])
    for group in ("points", "rank-reptile"):
        for name, row in summary.get(group, {}).items():
            if name.startswith(f"{spread}."):
                label = _short(name) if group == "points" else f"reptile, rank {_short(name)}"
                lines += [
                    [label, str(steps), *(_cell(row[part].get(m)) for m in _PHI)]
                    for part, steps in (("phi", 10), ("phi_converged", 60))
                ]
    for name, label in _REFERENCES.items():
        lines.append([f"*{label}*", "", *(_cell(summary[REFERENCE][spread][name].get(m)) for m in _PHI)])
    return _table(["outer step, stds start", "steps", *_PHI.values()], lines)


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
