"""README's tables of the results, between two comments that stay where they are."""

from collections.abc import Mapping
from typing import Any

START, END = "<!-- results -->", "<!-- /results -->"
NAMES = {
    "cheap tf-idf": "TF-IDF + regression",
    "cheap sentence vectors": "sentence vectors + regression",
    "as it is": "as it is + temperature",
    "prompt": "rows in the prompt",
    "adapted": "new LoRA + temperature",
}
POSTERIOR = ("as it is", "adapted")
"""Systems whose answers are used at the posterior temperature."""
TITLES = {
    "few": "20 labelled rows (2 a label where there are more than 12 labels)",
    "more": "60 labelled rows (5 a label where there are more than 12 labels)",
}


def with_tables(text: str, results: Mapping[str, Any], base: str) -> str:
    """A text with the tables between the two comments, or at its end where there are none.

    >>> with_tables("before\\n<!-- results -->old<!-- /results -->\\nafter", {"sets": {}, "advice": {}}, "q15")
    'before\\n<!-- results -->\\n\\n<!-- /results -->\\nafter'
    """
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    parts = [_table(results, size) for size in TITLES if any(size in of_set for of_set in results["sets"].values())]
    parts += [_seconds(results)] if results["sets"] else []
    parts += [_advice(size, said) for size, said in results["advice"].items() if said["cells"]]
    return before + START + "\n" + "\n\n".join(parts) + "\n" + END + after


def label_of(system: str) -> str:
    """What a system is called in tables and figures.

    >>> label_of("cheap tf-idf"), label_of("q15 adapted")
    ('TF-IDF + regression', 'q15: new LoRA + temperature')
    """
    if system in NAMES:
        return NAMES[system]
    folder, _, way = system.partition(" ")
    return f"{folder}: {NAMES.get(way, way)}"


def nll_of(system: str, scores: Mapping[str, float]) -> float:
    """The NLL of a system as its answers are used: at the posterior temperature, or, by regression, as stated."""
    return scores["nll_posterior" if system.endswith(POSTERIOR) else "nll"]


def systems_in(results: Mapping[str, Any], size: str | None = None) -> list[str]:
    """All systems, those without a language model first."""
    sizes = [of_set[s] for of_set in results["sets"].values() for s in of_set if size in (None, s)]
    names = {system for of_size in sizes for system in of_size}
    return sorted(names, key=lambda name: (not name.startswith("cheap"), name))


def _table(results: Mapping[str, Any], size: str) -> str:
    systems = systems_in(results, size)
    lines = [f"**{TITLES[size]}**: accuracy / NLL, nats", "", _line("", *map(label_of, systems))]
    lines.append("|---" * (len(systems) + 1) + "|")
    for name, of_set in results["sets"].items():
        found = of_set.get(size, {})
        best = min((nll_of(system, scores) for system, scores in found.items()), default=None)
        lines.append(_line(name, *(_entry(system, found.get(system), best) for system in systems)))
    return "\n".join(lines)


def _entry(system: str, scores: Mapping[str, float] | None, best: float | None) -> str:
    if scores is None:
        return ""
    nll = nll_of(system, scores)
    text = f"{scores['accuracy']:.3f} / " + (f"**{nll:.3f}**" if nll == best else f"{nll:.3f}")
    notes = [f"{scores['draws']:.0f} draws"] if scores["draws"] != 5 else []
    notes += [f"{scores['not_finite']:.0f} not finite"] if scores["not_finite"] else []
    return text + (f" ({', '.join(notes)})" if notes else "")


def _seconds(results: Mapping[str, Any]) -> str:
    systems, lines = (
        systems_in(results),
        ["**Seconds**: of answering 1,000 rows (of fitting, where that is more than 0)", ""],
    )
    lines += [_line("", *map(label_of, systems)), "|---" * (len(systems) + 1) + "|"]
    for name, of_set in results["sets"].items():
        entries = []
        for system in systems:
            found = of_set.get("few", {}).get(system)
            if found is None or found["seconds_per_1000"] is None:
                entries.append("")
                continue
            fitting = f" ({found['fit_seconds']:.2g})" if found["fit_seconds"] else ""
            entries.append(f"{found['seconds_per_1000']:.2g}{fitting}")
        lines.append(_line(name, *entries))
    return "\n".join(lines)


def _advice(size: str, said: Mapping[str, Any]) -> str:
    fixed = ", ".join(f"{row} {nll:.3f}" for row, nll in list(said["fixed"].items())[:4])
    chosen = ", ".join(f"{row} {count}" for row, count in said["chosen"].items())
    return (
        f"**The check's advice**, {TITLES[size]}: over {said['cells']} cells within .03 nats of the best in hindsight "
        f"in {100 * said['within']:.0f} %, {said['regret']:.3f} nats above it on average; its mean NLL is "
        f"{said['nll']:.3f}, that of one choice for all: {fixed}. Advised: {chosen}."
    )


def _line(*entries: str) -> str:
    return "| " + " | ".join(entries) + " |"
