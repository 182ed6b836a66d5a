"""python -m experiments.label_next FOLDER: the twelve own sets, the ways of `choose.py`; results.json, no rows."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.feature_extraction.text import TfidfVectorizer

from abmll.files import write_text
from abmll.process.environment import environment
from abmll.question import Question
from abmll.text_classifiers import TfidfClassifier
from abmll.text_classifiers.tfidf import TOKEN
from benchmarks.own.draws import ASK, Cell, LabelledSet, read_set
from experiments.label_next.choose import RANDOM, WAYS, Choose, Pool
from experiments.short_json import short_json

RESULTS = Path(__file__).with_name("results.json")
SEEDS, ROUNDS, EACH = 20, 4, 5
"""Draws of labelled rows, and rounds of so many rows that are added to them: 20 in all."""
BAR = 10
"""Sets of twelve on which the NLL must be lower than by random rows: p = .02 by the sign test."""


def nll_after(data: LabelledSet, seed: int, choose: Choose) -> tuple[float, float]:
    """NLL on the test rows before rows are added, and after."""
    texts, answers = [row.context for row in data.train], _answers(data.train)
    vectors = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    number = {row.id: i for i, row in enumerate(data.train)}
    labelled = [number[row.id] for row in data.drawn(Cell(data.name, data.sizes[0], seed))]
    rng, losses = np.random.default_rng([seed, 21]), []
    for left in range(ROUNDS, -1, -1):
        fitted = TfidfClassifier().fit([texts[i] for i in labelled], answers[labelled], len(data.labels))
        stated = fitted.probabilities([row.context for row in data.test])
        losses.append(float(-np.log(stated[np.arange(len(data.test)), _answers(data.test)]).mean()))
        if left:
            pool = np.setdiff1d(np.arange(len(texts)), labelled)
            unsure = fitted.probabilities([texts[i] for i in pool])
            chosen = choose(Pool(vectors[pool], vectors[labelled], unsure), EACH, rng)
            labelled += [int(i) for i in pool[chosen]]
    return losses[0], losses[-1]


def _answers(rows: Sequence[Question]) -> np.ndarray:
    return np.array([row.answer for row in rows])


def of_set(data: LabelledSet, seeds: int = SEEDS) -> dict[str, Any]:
    """Mean NLL over seeds before and after, by each way, and on how many seeds it is lower than by random rows."""
    found = {way: np.array([nll_after(data, seed, choose) for seed in range(seeds)]) for way, choose in WAYS.items()}
    after = {way: values[:, 1] for way, values in found.items()}
    lower = {way: int((values < after[RANDOM]).sum()) for way, values in after.items() if way != RANDOM}
    return {
        "labels": len(data.labels),
        "start": float(found[RANDOM][:, 0].mean()),
        "after": {way: float(values.mean()) for way, values in after.items()},
        "seeds_lower": lower,
    }


def summary(sets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """On how many sets each way has the lower mean NLL, the p of the sign test, and whether that meets the bar."""
    out = {}
    for way in WAYS:
        if way != RANDOM:
            gains = [one["after"][RANDOM] - one["after"][way] for one in sets.values()]
            won = sum(gain > 0 for gain in gains)
            p_value = float(binomtest(won, len(gains), 0.5, alternative="greater").pvalue)
            out[way] = {"sets_lower": won, "p": p_value, "mean_gain": float(np.mean(gains)), "ships": won >= BAR}
    return out


def main(given: Sequence[str] | None = None) -> None:
    """Measure, and write results.json."""
    parser = argparse.ArgumentParser(prog="python -m experiments.label_next", description=__doc__)
    parser.add_argument("folder", type=Path, help="NAME.train.jsonl and NAME.test.jsonl of the twelve sets")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(given)
    sets = {}
    for name in sorted(ASK):
        sets[name] = of_set(read_set(arguments.folder, name))
        print(name, sets[name], flush=True)
    results = {
        "model": "TF-IDF of words and pairs + logistic regression",
        "seeds": SEEDS,
        "added": ROUNDS * EACH,
        "summary": summary(sets),
        "sets": sets,
        "environment": environment(torch.device("cpu")),
    }
    write_text(arguments.out, short_json(results))


if __name__ == "__main__":
    main()
