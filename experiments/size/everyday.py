"""The check that `abmll adapt` ends with, on rows where adapting changes nothing: how often it says that it does."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from abmll.metrics.usefulness import FREQUENCY, PRETRAINED, RUN, SCALED, UNIFORM, losses_of, verdict_of
from abmll.systems.folds import FOLDS

ROWS = (24, 60)
CLUSTER, CORRELATION = 5, 0.6
LABELS = 2

Systems = dict[str, Float[np.ndarray, "N K"]]


def everyday_rows(count: int) -> Iterator[dict[str, Any]]:
    """Of `count` sets of rows, of how many the check says that adapting helps, and that it hurts."""
    for world in ("as good as pretrained", "a guess, as all are", "label shares learned by chance"):
        for rows in ROWS:
            yield _row(world, rows, count, grouped=True)
    for grouped in (True, False):
        yield _row("as good as pretrained, clusters of five", 60, count, grouped=grouped)


def _row(world: str, rows: int, count: int, grouped: bool) -> dict[str, Any]:
    said = [say(world, rows, seed, grouped) for seed in range(count)]
    counts = {"helps": said.count("helps"), "hurts": said.count("hurts")}
    return {"world": world, "rows": rows, "groups": grouped, **counts}


def say(world: str, rows: int, seed: int, grouped: bool = True) -> str:
    """The verdict on one set of rows."""
    rng = np.random.default_rng([seed, rows])
    size = CLUSTER if world.endswith("five") else 1
    answers = rng.integers(0, LABELS, rows)
    systems = (
        _learned(rng, answers) if world.startswith("label") else _alike(rng, answers, size, world.startswith("as"))
    )
    groups = np.arange(rows) // (size if grouped else 1)
    return verdict_of(losses_of(systems, answers), groups)[0]


def _alike(rng: np.random.Generator, answers: Int[np.ndarray, "N"], size: int, knows: bool) -> Systems:
    """The run and the pretrained model know the same and differ by noise; all else is worse."""

    def one() -> Float[np.ndarray, "N K"]:
        shared = np.repeat(rng.normal(size=(-(-len(answers) // size), LABELS)), size, axis=0)[: len(answers)]
        noise = rng.normal(size=(len(answers), LABELS))
        mixed = noise if size == 1 else np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * noise
        return np.asarray(2.0 * knows * (np.arange(LABELS) == answers[:, None]) + mixed)

    run, pretrained = one(), one()
    guess = np.full((len(answers), LABELS), 1 / LABELS)
    # a temperature that went wrong: never the best of what there is without adapting
    scaled = softmax(pretrained / 0.2, axis=1) if knows else guess
    return {
        UNIFORM: guess,
        FREQUENCY: guess,
        PRETRAINED: softmax(pretrained, axis=1),
        SCALED: scaled,
        RUN: softmax(run, axis=1),
    }


def _learned(rng: np.random.Generator, answers: Int[np.ndarray, "N"]) -> Systems:
    """The run learns how often each label is among the other folds' rows, which says nothing: both are as likely."""
    folds = rng.permutation(len(answers)) % FOLDS
    guess = np.full((len(answers), LABELS), 1 / LABELS)
    run = guess.copy()
    for fold in range(FOLDS):
        others = np.bincount(answers[folds != fold], minlength=LABELS)
        run[folds == fold] = (others + 1) / (others.sum() + LABELS)
    pretrained = softmax(rng.normal(size=guess.shape), axis=1)
    return {UNIFORM: guess, FREQUENCY: run, PRETRAINED: pretrained, SCALED: guess, RUN: run}
