"""Packed files -> runs of each system, as the library's report takes them; and rows that no file holds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from abmll.errors import AbmllError
from abmll.metrics.baselines import LABEL_FREQUENCY, UNIFORM, label_frequency, uniform
from abmll.metrics.ensemble import ensemble
from abmll.metrics.predictions import Predictions
from abmll.report.folder import Cell, Comparison, ScoredRun
from abmll.scoring.scores import score
from experiments.unseen.groups import read_groups, with_groups
from experiments.unseen.packing import Packed

BEFORE = "before-adaptation"
MEMBERS = 4
ENSEMBLE_OF = "reptile"
ENSEMBLE = "reptile_ensemble"
UNSEEDED = ("in_context",)
"""Systems that no training seed changes: repeated to every seed that another has."""

Table = dict[str, dict[int, dict[Cell, Predictions]]]
"""System -> training seed -> (draw, task) -> its last predictions."""


@dataclass(frozen=True)
class Results:
    """Everything that was measured with one likelihood.

    Attributes:
        packed: the files.
        final, before: predictions after and without adaptation.
        curve: system -> training seed -> earlier points of training -> (draw, task) -> predictions.
        seeds: training seeds of the reference; other systems may have more.
        draws: adaptation draws that every system has.
        tasks: names, in the order of the protocol.
    """

    packed: tuple[Packed, ...]
    final: Table
    before: Table
    curve: dict[str, dict[int, list[dict[Cell, Predictions]]]]
    seeds: tuple[int, ...]
    draws: int
    tasks: tuple[str, ...]


def of_tasks(targets: Iterable[Packed], names: Sequence[str] | None) -> list[Packed]:
    """The targets with the answers to some tasks alone; None: to all.

    Raises:
        AbmllError: a target has no answers to one of them.
    """
    if names is None:
        return list(targets)
    out = []
    for one in targets:
        kept = {row: {k: f for k, f in files.items() if k[2] in names} for row, files in one.found.items()}
        for row, files in kept.items():
            if missing := sorted(set(names) - {task for _, _, task in files}):
                raise AbmllError(f"{row}: no answers to {', '.join(missing)}")
        out.append(Packed(one.about, kept))
    return out


def read_results(targets: Iterable[Packed], reference: str = "abmll") -> Results:
    """Repeat systems without training seeds, and make the baselines and the ensemble.

    Args:
        targets: of one likelihood, as `read_targets` returns them.
        reference: the system whose seeds, draws and tasks are reported.

    Raises:
        AbmllError: there is no file of the reference, or a file is damaged.
    """
    groups = read_groups()
    packed = tuple(with_groups(one, groups) for one in targets)
    final: Table = {}
    before: Table = {}
    curve: dict[str, dict[int, list[dict[Cell, Predictions]]]] = {}
    for one in packed:
        seed = int(one.about["seed"])
        for row, files in one.found.items():
            places = sorted({place for place, _, _ in files} - {BEFORE})
            points = [{(d, t): f for (p, d, t), f in files.items() if p == place} for place in places]
            final.setdefault(row, {})[seed] = points.pop()
            curve.setdefault(row, {})[seed] = points
            before.setdefault(row, {})[seed] = {(d, t): f for (p, d, t), f in files.items() if p == BEFORE}
    if reference not in final:
        raise AbmllError(f"no packed file of {reference!r}: nothing to compare with; run it first")
    seeds = tuple(sorted(final[reference]))
    tasks = tuple(dict.fromkeys(task for _, task in final[reference][seeds[0]]))
    everywhere = sorted({seed for by_seed in final.values() for seed in by_seed})
    for name in UNSEEDED:
        for table in (final, before):
            if name in table:
                (only,) = list(table[name].values())[:1]
                table[name] = {s: {c: replace(f, seed=s) for c, f in only.items()} for s in everywhere}
    draws = min(len({d for d, _ in cells}) for cells in final[reference].values())
    final |= _made(final)
    return Results(packed, final, before, curve, seeds, draws, tasks)


def _made(final: Table) -> Table:
    """Rows that are transforms of others: baselines, and ensembles of four seeds (all but one, if there are five)."""
    source: dict[int, dict[Cell, Predictions]] = {}  # of every seed, the file with the most draws and tasks
    for seed, cells in (pair for by_seed in final.values() for pair in by_seed.items()):
        source[seed] = max(source.get(seed, {}), cells, key=len)
    made: Table = {UNIFORM: {s: {c: uniform(f) for c, f in cells.items()} for s, cells in source.items()}}
    # a task without fixed labels has nothing to count: uniform there, so that the mean is over the same tasks
    made[LABEL_FREQUENCY] = {
        s: {c: label_frequency(f) or replace(uniform(f), system=LABEL_FREQUENCY) for c, f in cells.items()}
        for s, cells in source.items()
    }
    members = final.get(ENSEMBLE_OF, {})
    if len(members) > MEMBERS:
        made[ENSEMBLE] = {s: _ensemble([c for o, c in members.items() if o != s], s) for s in members}
    elif len(members) == MEMBERS:
        made[ENSEMBLE] = {s: _ensemble(list(members.values()), s) for s in source}
    return made


def is_one_ensemble(name: str, final: Table) -> bool:
    """Whether this is an ensemble of all there are, which stands at every seed but is only one."""
    return name == ENSEMBLE and len(final.get(ENSEMBLE_OF, {})) == MEMBERS


def _ensemble(members: Sequence[Mapping[Cell, Predictions]], seed: int) -> dict[Cell, Predictions]:
    cells = [cell for cell in members[0] if all(cell in other for other in members)]
    return {cell: ensemble([member[cell] for member in members], ENSEMBLE, seed) for cell in cells}


def comparison(results: Results, reference: str = "abmll", note: str = "") -> Comparison:
    """The results as a comparison of the library's report: its tables and figures."""
    cells = [(draw, task) for task in results.tasks for draw in range(results.draws)]
    about = {(row, int(one.about["seed"])): one.about for one in results.packed for row in one.found}
    runs: dict[str, tuple[ScoredRun, ...]] = {}
    missing = []
    for name, by_seed in results.final.items():
        if name in (UNIFORM, LABEL_FREQUENCY):
            continue
        whole = {s: f for s, f in by_seed.items() if all(c in f for c in cells)}
        missing += [f"{name} seed {s}: not run" for s in results.seeds if s not in by_seed]
        missing += [f"{name} seed {s}: fewer draws, not counted here" for s in by_seed if s not in whole]
        earlier = results.curve.get(name, {})
        made = tuple(
            _run(name, s, [*earlier.get(s, ()), whole[s]], results.before, about.get((name, s))) for s in sorted(whole)
        )
        runs |= {name: made} if made else {}
    return Comparison(
        name="unseen",
        note=note,
        systems=tuple(runs),
        seeds=results.seeds,
        draws=results.draws,
        reference=reference,
        tasks=results.tasks,
        runs=runs,
        missing=tuple(missing),
    )


def _run(
    name: str,
    seed: int,
    points: Sequence[Mapping[Cell, Predictions]],
    before: Table,
    about: Mapping[str, Any] | None,
) -> ScoredRun:
    """One seed of a system; the last of its points is what is reported."""
    curve = {
        next(iter(cells.values())).examples_consumed: {cell: score(found) for cell, found in cells.items()}
        for cells in points
    }
    zero = {cell: score(found) for cell, found in before.get(name, {}).get(seed, {}).items()}
    cost = None if about is None else about["cost"]
    environment = None if about is None else about["environment"]
    return ScoredRun(name, seed, curve, dict(points[-1]), zero, cost, environment, True)
