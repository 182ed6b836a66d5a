"""What the check of `abmll adapt` would have advised in a cell, by that very function, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from abmll.everyday.check import calibrated_by_folds, tables_without_adapting
from abmll.metrics.baselines import smoothed_shares
from abmll.metrics.scores import negative_log_likelihood
from abmll.metrics.usefulness import (
    FREQUENCY,
    PRETRAINED,
    PROMPT,
    RUN,
    RUN_SCALED,
    SCALED,
    TFIDF,
    UNIFORM,
    VECTORS,
    weigh,
)
from abmll.question import Question
from abmll.systems.folds import deal
from benchmarks.own.answers import Answers, floored
from benchmarks.own.draws import Cell

OF_BASE = {RUN: "adapted", PRETRAINED: "as it is", PROMPT: "prompt"}
CHEAP = {TFIDF: "cheap tf-idf", VECTORS: "cheap sentence vectors"}
TEMPERED = {RUN_SCALED: RUN, SCALED: PRETRAINED}
"""Rows of the check's table whose answers are another row's at the posterior temperature."""


@dataclass(frozen=True)
class Advised:
    """What was advised, and the NLL of the test rows by that and by every other row of the table.

    Attributes:
        choice: the row of the table that was advised.
        verdict: of the check.
        nll: by row; of what was not finite, and so is nobody's choice, there is none.
    """

    choice: str
    verdict: str
    nll: Mapping[str, float]

    @property
    def regret(self) -> float:
        """Nats above the best row in hindsight."""
        return self.nll[self.choice] - min(self.nll.values())


def rows_of_table(answers: Mapping[str, Answers], base: str) -> dict[str, Answers]:
    """The rows of the check's table that a cell has answers of: row -> answers, before any temperature."""
    names = {row: f"{base} {system}" for row, system in OF_BASE.items()} | CHEAP
    return {row: answers[name] for row, name in names.items() if name in answers}


def advised(cell: Cell, answers: Mapping[str, Answers], base: str) -> Advised | None:
    """What the check advises in a cell; None without answers of the base model, adapted and as it is."""
    rows = rows_of_table(answers, base)
    if not {RUN, PRETRAINED} <= rows.keys():
        return None
    right, labels = rows[RUN].own_answers, rows[RUN].own.shape[1]
    folds = deal(right.tolist(), range(len(right)), seed=cell.draw)
    finite = {row: said for row, said in rows.items() if said.not_finite is None}
    broken = {row: said.not_finite for row, said in rows.items() if said.not_finite is not None}
    tables = {row: said.own.astype(np.float64) for row, said in finite.items()}
    names = tuple(map(str, range(labels)))
    questions = [Question(str(i), "", names, int(answer)) for i, answer in enumerate(right)]
    tables |= tables_without_adapting(questions, folds, tables.get(PRETRAINED), right, names)
    if RUN in tables:
        tables[RUN_SCALED] = calibrated_by_folds(floored(tables[RUN]), folds, right, rows[RUN].prior)
    seconds = {row: said.seconds[1] for row, said in finite.items()}
    seconds |= {UNIFORM: 0.0, FREQUENCY: 0.0}
    seconds |= {row: seconds[of] for row, of in TEMPERED.items() if of in seconds}
    found = weigh(tables, right, len(folds), broken, None, seconds)
    if found.advice is None:
        return None
    return Advised(found.advice.choice, found.verdict, _nll_of_test(finite, rows[RUN]))


def _nll_of_test(finite: Mapping[str, Answers], any_row: Answers) -> dict[str, float]:
    """The NLL that each row of the table has on the test rows, fitted to all the labelled ones."""
    right, labels = any_row.test_answers, any_row.own.shape[1]
    shares = smoothed_shares(np.bincount(any_row.own_answers, minlength=labels))
    out = {UNIFORM: float(np.log(labels)), FREQUENCY: float(-np.log(shares[right]).mean())}
    out |= {row: negative_log_likelihood(floored(said.test), right) for row, said in finite.items()}
    tempered = {row: finite[of] for row, of in TEMPERED.items() if of in finite}
    return out | {row: negative_log_likelihood(said.calibrated, right) for row, said in tempered.items()}
