"""What the second section's answers come to, also in README.md."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.own.answers import ADAPTED, Answers, Found, with_learned_priors
from benchmarks.own.draws import Cell
from experiments.user_tasks.report import differences, means, numbers_of, row_of
from experiments.user_tasks.second.protocol import ALL, PERMITTED, Second
from experiments.user_tasks.second.rates import Rates, choose_rates, folder, read_by_folder
from experiments.user_tasks.work import NEW

START, END = "<!-- second results -->", "<!-- /second results -->"
CHOSEN = f"{PERMITTED}, chosen rate"
ENOUGH = 9
"""Sets of twelve with a lower NLL than the new LoRA, for an adapter that comes along."""
Scores = dict[Cell, dict[str, float]]
BySeed = dict[int, Mapping[Cell, Answers]]


def report(second: Second, answers: Path) -> dict[str, Any]:
    """Scores of every set and system, their differences to the new LoRA, and what is decided.

    A system's temperatures have the prior that the same seed's answers to the other sets give. Scores of a cell are
    means over the seeds that have it; differences are of these, means over sets.
    """
    found = read_by_folder(answers)
    rates = choose_rates(second, found)
    systems = systems_of(second, found, rates)
    by_seed = {name: {seed: _scores(cells) for seed, cells in seeds.items()} for name, seeds in systems.items()}
    by_system = {name: _over_seeds(seeds) for name, seeds in by_seed.items() if seeds}
    against = {
        name: differences(by_system, name, NEW) | {"seeds": _each_seed(by_seed[name], by_system[NEW])}
        for name in by_system
        if name != NEW and NEW in by_system
    }
    return {
        "rates": rates,
        "sets": {name: means(cells) for name, cells in by_system.items()},
        "against_new": against,
        "against_first_rate": {
            name: differences(by_system, name, PERMITTED) for name in by_system if name not in (NEW, PERMITTED)
        },
        "is_worth_shipping": _is_worth(against.get(CHOSEN, {})),
        "not_finite": sorted(f"{f} {c.file}" for f, cells in found.items() for c, a in cells.items() if a.not_finite),
    }


def systems_of(second: Second, found: Mapping[str, Mapping[Cell, Answers]], rates: Rates) -> dict[str, BySeed]:
    """The answers of every system by seed; those of the chosen rates come out of several folders."""
    first = second.rates[0]
    out: dict[str, BySeed] = {NEW: {0: found.get(NEW, {})}, CHOSEN: {}}
    for seed in second.seeds:
        chosen: dict[Cell, Answers] = {}
        for fold, scored in second.folds.items():
            for reading, rate in rates[fold].items():
                cells = found.get(folder(PERMITTED, rate, seed), {})
                chosen |= {c: a for c, a in cells.items() if c.name in scored and second.reading(c) == reading}
        out[CHOSEN][seed] = chosen
    for rate in second.rates:
        name = PERMITTED if rate == first else f"{PERMITTED}, {rate:g}"
        out[name] = {seed: found.get(folder(PERMITTED, rate, seed), {}) for seed in second.seeds}
    out[ALL] = {seed: found.get(folder(ALL, first, seed), {}) for seed in second.seeds}
    return {name: {seed: cells for seed, cells in seeds.items() if cells} for name, seeds in out.items()}


def with_tables(text: str, results: Mapping[str, Any]) -> str:
    """A text with the tables between the two comments.

    >>> nothing = {"sets": {}, "against_new": {}, "against_first_rate": {}, "rates": {}}
    >>> with_tables(f"a{START}old{END}c", nothing).splitlines()[:2]
    ['a<!-- second results -->', '| set |']
    """
    before, _, rest = text.partition(START)
    names = list(results["sets"])
    sets = sorted({name for of_system in results["sets"].values() for name in of_system})
    lines = ["| set |" + "".join(f" {name} |" for name in names), "|---|" + "---|" * len(names)]
    lines += [row_of(one, [results["sets"][name].get(one) for name in names]) for one in sets]
    lines += ["", "| system | against | cells | seeds | NLL | standard error | sets with a lower NLL | accuracy |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for key, what in (("against_new", NEW), ("against_first_rate", PERMITTED)):
        lines += [_line(name, what, row) for name, row in results[key].items() if row["sets"]]
    lines += ["", "| fold | cloze | letter |", "|---|---|---|"]
    lines += [f"| {fold} | {of['cloze']:g} | {of['letter']:g} |" for fold, of in results["rates"].items()]
    return before + START + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


def _line(name: str, what: str, row: Mapping[str, Any]) -> str:
    seeds = row.get("seeds", {})
    each = ", ".join(f"{s['sets_with_lower_nll']} of {s['sets']}" for s in seeds.values())
    wins = f"{row['sets_with_lower_nll']} of {row['sets']}" + (f" (by seed: {each})" if len(seeds) > 1 else "")
    return f"| {name} | {what} | {row['cells']} | {len(seeds) or ''} | {numbers_of(row, wins)} |"


def _scores(cells: Mapping[Cell, Answers]) -> Scores:
    found: Found = {(ADAPTED, cell): said for cell, said in cells.items()}
    return {cell: said.scores() for (_, cell), said in with_learned_priors(found).items()}


def _over_seeds(seeds: Mapping[int, Scores]) -> Scores:
    """Mean scores of every cell over the seeds that have it."""
    cells = dict.fromkeys(cell for scores in seeds.values() for cell in scores)
    out: Scores = {}
    for cell in cells:
        found = [scores[cell] for scores in seeds.values() if cell in scores]
        out[cell] = {key: fmean(one[key] for one in found) for key in found[0]}
    return out


def _each_seed(seeds: Mapping[int, Scores], new: Scores) -> dict[str, Any]:
    """The differences of every seed by itself."""
    return {str(seed): differences({"it": scores, NEW: new}, "it", NEW) for seed, scores in seeds.items()}


def _is_worth(row: Mapping[str, Any]) -> bool | None:
    """What the protocol decides; None as long as answers of a seed are missing."""
    seeds = row.get("seeds", {}).values()
    if len(seeds) < 3 or any(of_seed.get("cells", 0) < 60 for of_seed in seeds):
        return None
    return bool(row["sets_with_lower_nll"] >= ENOUGH)
