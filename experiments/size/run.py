"""The designs that are simulated, and the tests that are tried on each."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from abmll.metrics.paired import paired_test
from experiments.size.components import Components
from experiments.size.rivals import crossed_bootstrap, over_seeds, studentised_bootstrap
from experiments.size.worlds import LEVEL, Design, tasks_drawn, worlds

META_TRAINED = ("nll_scaled, median", "nll_scaled, largest", "accuracy, median", "nll, largest")
THOROUGHLY = META_TRAINED[:2]
PLAIN = ("nll_scaled, not meta-trained", "accuracy, not meta-trained", "nll, not meta-trained")
TEST, DRAWN, ALONE = "the test", "the test, tasks drawn", "the test, groups ignored"
BOOTSTRAP, STUDENTISED, SEEDS = "crossed bootstrap", "studentised bootstrap", "t-test over seeds"

SEVERAL = tuple(Design(seeds, tasks=tasks) for seeds in (3, 5) for tasks in (8, 14))
FEW = (Design(2), Design(2, tasks=14), Design(3, draws=2), Design(3, tasks=3))
WITHHELD = (Design(1), Design(3, draws=1), Design(1, draws=1, tasks=3))
CLUSTERED = (Design(3, cluster=5), Design(5, cluster=5))
SLOW = (Design(3), Design(5))
"""Designs that the studentised bootstrap is tried on, with the components of `META_TRAINED[1]`."""
FALLEN = (Design(3, fallen=0.25), Design(5, fallen=0.25))
ONE_SEED = (Design(1), Design(1, draws=2), Design(1, draws=1), Design(1, cluster=5))


def comparison_rows(components: Mapping[str, Mapping[str, float]], count: int) -> Iterator[dict[str, Any]]:
    """A row for each design and components: of `count` worlds without a difference, how many each test rejects."""
    for name in META_TRAINED:
        more = (*FEW, *WITHHELD, *CLUSTERED) if name in THOROUGHLY else ()
        for design in (*SEVERAL, *more, *(FALLEN if name == META_TRAINED[0] else ())):
            yield row(name, Components(**components[name]), design, count, meta_trained=True)
    for name in PLAIN:
        for design in ONE_SEED:
            yield row(name, Components(**components[name]), design, count, meta_trained=False)


def row(name: str, parts: Components, design: Design, count: int, meta_trained: bool) -> dict[str, Any]:
    """One design: rejections of each test; None for one that gives no p."""
    collected: dict[str, list[float | None]] = {}
    for number, block in enumerate(worlds(design, parts, count, seed=0)):
        by_test = {BOOTSTRAP: crossed_bootstrap(block), SEEDS: over_seeds(block)}
        drawn = tasks_drawn(block, parts, seed=number)
        by_test |= {
            TEST: p_values(block, design, meta_trained),
            DRAWN: p_values(drawn, design, meta_trained, drawn=True),
        }
        if design.cluster > 1:
            by_test[ALONE] = p_values(block, Design(**{**asdict(design), "cluster": 1}), meta_trained)
        if design in SLOW and name == META_TRAINED[1]:
            by_test[STUDENTISED] = studentised_bootstrap(block)
        for test, values in by_test.items():
            collected.setdefault(test, []).extend(values)
    rejected = {test: count_below(values) for test, values in collected.items()}
    return {"components": name, "meta_trained": meta_trained, "design": asdict(design), "rejected": rejected}


def p_values(block: np.ndarray, design: Design, meta_trained: bool, drawn: bool = False) -> list[float | None]:
    """The library's p of each world."""
    zeros = np.zeros(block.shape[2:])
    groups = None
    if design.cluster > 1:
        groups = {str(i): np.arange(design.questions) // design.cluster for i in range(design.tasks)}
    out = []
    for world in block:
        a = {str(i): values.astype(np.float64) for i, values in enumerate(world)}
        options: dict[str, Any] = {"groups": groups, "resample_tasks": drawn}
        out.append(
            paired_test(a, dict.fromkeys(a, zeros), constant=() if meta_trained else ("seeds",), **options).p_value
        )
    return out


def count_below(p_values: list[float | None]) -> int | None:
    """How many p are below the level; None if there are none."""
    known = [p for p in p_values if p is not None]
    return sum(p < LEVEL for p in known) if len(known) == len(p_values) else None
