"""Answering only above a confidence: how often the promised error rate holds, and where it must fail."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from abmll.metrics.abstention import best, certify, thresholds

RISK = 0.1
REPEATS = 400
HELD = (22, 30, 120)
EXCHANGEABLE = (
    "just above the risk",
    "good above a half",
    "ties: five values",
    "ties: one value",
    "worst in the middle",
)
SHIFTED = "shifted: the rows to come are harder"
FIVE_VALUES = (0.5, 0.6, 0.7, 0.8, 0.9)

Rows = tuple[Float[np.ndarray, "N"], Bool[np.ndarray, "N"]]
"""Confidences, and whether the answers are right."""


def promise_rows() -> Iterator[dict[str, Any]]:
    """Of `REPEATS` times, how often the promise held (or none was made), and how often one was made."""
    for world in (*EXCHANGEABLE, SHIFTED):
        for held in HELD:
            kept, made = count_kept(world, held)
            yield {"world": world, "held_back": held, "repeats": REPEATS, "kept": kept, "made": made}


def count_kept(world: str, held: int, repeats: int = REPEATS) -> tuple[int, int]:
    """How often the promise held, or none was made; and how often one was made."""
    kept, made = 0, 0
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, held])
        unlabelled, _ = draw(world, rng, 100, to_come=True)
        chosen = best(certify(*draw(world, rng, held), thresholds(unlabelled, held, RISK), RISK))
        made += chosen is not None
        kept += chosen is None or _true_risk(world, round(chosen.threshold, 2)) <= RISK + 1e-3
    return kept, made


def draw(world: str, rng: np.random.Generator, rows: int, to_come: bool = False) -> Rows:
    """Rows of a world; those to come differ from those held back in the shifted one alone.

    Error rates sit where mistakes are easiest: just above the risk.
    """
    confidence = rng.random(rows)
    if world == "ties: five values":
        confidence = rng.choice(FIVE_VALUES, rows)
        rate = np.select([confidence > 0.85, confidence > 0.75], [0.02, 0.21], 0.12)
    elif world == "ties: one value":
        confidence, rate = np.full(rows, 0.9), np.full(rows, 0.105)
    elif world == "good above a half":
        rate = np.where(confidence > 0.5, 0.02, 0.3)
    elif world == "worst in the middle":
        rate = np.select([confidence > 0.8, confidence > 0.6], [0.02, 0.35], 0.05)
    elif world == SHIFTED:
        rate = np.full(rows, 0.2 if to_come else 0.02)
    else:
        rate = np.full(rows, 0.105)
    return confidence, rng.random(rows) >= rate


@cache
def _true_risk(world: str, threshold: float) -> float:
    confidence, correct = draw(world, np.random.default_rng(99), 400_000, to_come=True)
    answered = confidence >= threshold
    return 1 - float(correct[answered].mean()) if answered.any() else 0.0
