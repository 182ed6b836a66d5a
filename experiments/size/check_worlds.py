"""The whole check of `abmll adapt` on simulated rows: how often "helps" is said, and what is advised.

A system s knows row n by z = a_s e_y + noise, noise ~ N(0, 1) in K dimensions, which correlates between systems by
`SHARED` (a hard row is hard for all). Then softmax(a_s z) is exactly its posterior over the K labels, so a_s sets its
NLL, and everything else about it is true. The run and the fresh LoRA state it too surely (to the power `SHARPER`); the
run's temperature is learned as the check learns it, from the answers in the other folds, by the prior of a run that
learned none or by that of a new LoRA on a base model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax

from abmll.calibrators.temperature import PosteriorTemperature
from abmll.everyday.check import calibrated_by_folds
from abmll.metrics.baselines import smoothed_shares
from abmll.metrics.usefulness import (
    AS_IT_IS,
    FREQUENCY,
    FRESH,
    PRETRAINED,
    PROMPT,
    RUN,
    RUN_SCALED,
    SCALED,
    TFIDF,
    UNIFORM,
    VECTORS,
    expected_nll,
    losses_of,
    verdict_of,
)
from abmll.systems.folds import Fold, deal
from abmll.systems.scale import NEW_LORA_PRIOR

COUNT = 400
ROWS = (24, 60)
LABELS = 3
SHARED = (0.7, 0.85)
SHARPER = 1.5
GAIN = 0.2
"""Nats between the run and the best of all that needs no adapting."""
RIVALS = {TFIDF: 0.25, VECTORS: 0.1, PRETRAINED: 0.3, PROMPT: 0.1}
"""How much worse each is than the best of them, where one is alone at the top; nats."""
BEST = 0.7
"""NLL of the best rival; a guess has 1.1."""

WEAK = PosteriorTemperature()
PRIORS = {"weak": WEAK, "new LoRA": NEW_LORA_PRIOR[0]}
"""Of the temperature of the run."""

Systems = dict[str, Float[np.ndarray, "N K"]]


@dataclass(frozen=True)
class World:
    """Which systems know how much.

    Attributes:
        name: in the table.
        nll: of each rival, exactly.
        run: of the run at its best temperature.
    """

    name: str
    nll: Mapping[str, float]
    run: float


def worlds() -> Iterator[World]:
    """Three in which the run is no better than the best of its rivals, and two in which it is by `GAIN`."""
    apart = {name: BEST + gap * (name != TFIDF) for name, gap in RIVALS.items()}
    together, guess = dict.fromkeys(RIVALS, BEST), float(np.log(LABELS))
    yield World("no gain: one rival is as good", apart, BEST)
    yield World("no gain: four rivals are as good", together, BEST)
    yield World("no gain: nothing knows anything", dict.fromkeys(RIVALS, guess), guess)
    yield World("a gain over one rival", apart, BEST - GAIN)
    yield World("a gain over four rivals", together, BEST - GAIN)


def check_rows(count: int = COUNT) -> Iterator[dict[str, Any]]:
    """Of `count` sets of rows of each world and size: how often the check says that adapting helps, and hurts."""
    for prior, world, shared, rows in product(PRIORS, worlds(), SHARED, ROWS):
        if (shared, rows) == (SHARED[0], ROWS[0]):
            continue  # the least that can be told
        said = [say(world, rows, shared, seed, PRIORS[prior]) for seed in range(count)]
        counts = {word: [verdict for verdict, _ in said].count(word) for word in ("helps", "hurts")}
        near = sum(advised in within(world) for _, advised in said)
        gain = world.run < min(world.nll.values())
        where = {"world": world.name, "prior": prior, "gain": gain, "shared": shared, "rows": rows}
        yield {**where, "sets": count, **counts, "advised_within_03": near}


def within(world: World, most: float = 0.03) -> set[str]:
    """The systems whose NLL is, by construction, at most so far above the best."""
    guess = float(np.log(LABELS))
    nll = {**world.nll, RUN_SCALED: world.run, SCALED: world.nll[PRETRAINED], UNIFORM: guess, FREQUENCY: guess}
    return {name for name, value in nll.items() if value <= min(nll.values()) + most}


def say(world: World, rows: int, shared: float, seed: int, prior: PosteriorTemperature = WEAK) -> tuple[str, str]:
    """The verdict on one set of rows, and what is advised."""
    rng = np.random.default_rng([seed, rows])
    answers = rng.integers(0, LABELS, rows)
    folds = deal(answers.tolist(), range(rows), seed=seed)
    measures = losses_of(systems_of(world, answers, folds, shared, rng, prior), answers)
    expected = expected_nll({n: nll for n, nll in measures["NLL"].items() if n not in AS_IT_IS}, np.arange(rows))
    return verdict_of(measures, np.arange(rows))[0], min(expected, key=lambda name: expected[name])


def systems_of(
    world: World,
    answers: Int[np.ndarray, "N"],
    folds: tuple[Fold, ...],
    shared: float,
    rng: np.random.Generator,
    prior: PosteriorTemperature = WEAK,
) -> Systems:
    """What each system says of rows whose right labels are `answers`."""
    of_row = rng.normal(size=(len(answers), LABELS))

    def says(nll: float, power: float = 1.0) -> Float[np.ndarray, "N K"]:
        a, own = signal(nll), rng.normal(size=of_row.shape)
        noise = np.sqrt(shared) * of_row + np.sqrt(1 - shared) * own
        return np.asarray(softmax(power * a * (a * (np.arange(LABELS) == answers[:, None]) + noise), axis=1))

    found = {name: says(nll) for name, nll in world.nll.items()}
    found[RUN], found[FRESH] = says(world.run, SHARPER), says(world.run + 0.1, SHARPER)
    found[SCALED] = calibrated_by_folds(found[PRETRAINED], folds, answers, WEAK)
    found[RUN_SCALED] = calibrated_by_folds(found[RUN], folds, answers, prior)
    found[UNIFORM] = np.full(of_row.shape, 1 / LABELS)
    found[FREQUENCY] = np.zeros(of_row.shape)
    for fold in folds:
        shares = smoothed_shares(np.bincount(answers[list(fold.fitted)], minlength=LABELS))
        found[FREQUENCY][list(fold.answered)] = shares
    return found


@cache
def signal(nll: float) -> float:
    """The a of a system with this NLL; 0 for a guess."""
    noise = np.random.default_rng(0).normal(size=(200_000, LABELS))

    def gap(a: float) -> float:
        scores = a * (a * (np.arange(LABELS) == 0) + noise)
        return float((logsumexp(scores, axis=1) - scores[:, 0]).mean()) - nll

    return 0.0 if nll >= np.log(LABELS) else float(brentq(gap, 0.0, 8.0, xtol=1e-4))
