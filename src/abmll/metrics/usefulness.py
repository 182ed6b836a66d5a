"""The usefulness check: whether adapting to a task is worth it, by answers to rows that were left out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import permutation_test

from abmll.errors import AbmllError
from abmll.metrics.abstention import error_interval
from abmll.metrics.calibration import check_finite
from abmll.metrics.scores import question_nll, right_share
from abmll.metrics.statistics import Interval, bootstrap_interval

UNIFORM, FREQUENCY, PRETRAINED, SCALED = "uniform", "label frequency", "pretrained", "pretrained + temperature"
FRESH, RUN = "a fresh LoRA", "this run"
ORDER = (UNIFORM, FREQUENCY, PRETRAINED, SCALED, FRESH, RUN)
WITHOUT = (UNIFORM, FREQUENCY, PRETRAINED, SCALED)
"""What a user has without adapting."""
CHANCE = 0.05
"""Probability, at most, of calling adapting worth it by accident, where it is not."""
_FLIPS = 9999

Measures = Mapping[str, Mapping[str, Float[np.ndarray, "N"]]]
"""Measure -> name of a row of the table -> its loss on each row of the user's; lower is better."""


@dataclass(frozen=True)
class UsefulnessRow:
    """One line of the table.

    Attributes:
        name: what answered.
        accuracy: share of right answers, where equally probable choices share the answer, with its exact 95 % interval
            (Clopper and Pearson 1934), or a bootstrap one where rows come in clusters.
        nll: mean negative log-likelihood, nats, with a 95 % bootstrap interval over rows or clusters of them.
        not_finite: why there are no numbers; None where there are.
    """

    name: str
    accuracy: float | None
    accuracy_interval: Interval | None
    nll: float | None
    nll_interval: Interval | None
    not_finite: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the name."""
        intervals = {"accuracy_interval": self.accuracy_interval, "nll_interval": self.nll_interval}
        ends = {name: None if ends is None else list(ends) for name, ends in intervals.items()}
        return {"accuracy": self.accuracy, "nll": self.nll, **ends, "not_finite": self.not_finite}


@dataclass(frozen=True)
class Usefulness:
    """The table, and what it says.

    Attributes:
        n, folds: labelled rows, and parts they were dealt to.
        clusters: of rows that belong together; n if each stands alone.
        rows: the table, in the order of `ORDER`.
        verdict: one of "helps", "hurts", "no evidence", "not finite".
        text: the verdict in words.
    """

    n: int
    folds: int
    rows: tuple[UsefulnessRow, ...]
    verdict: str
    text: tuple[str, ...]
    clusters: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        table = {row.name: row.to_dict() for row in self.rows}
        counts = {"n": self.n, "clusters": self.clusters, "folds": self.folds}
        return {**counts, "table": table, "verdict": self.verdict, "text": list(self.text)}


def weigh(
    probabilities: Mapping[str, Float[np.ndarray, "N K"]],
    answers: Int[np.ndarray, "N"],
    folds: int,
    not_finite: Mapping[str, str] | None = None,
    groups: Int[np.ndarray, "N"] | None = None,
) -> Usefulness:
    """The table and the verdict, from what each system said of rows that it was not fitted to.

    Adapting helps if it is better than *every* row of `WITHOUT`, in the mean NLL or in accuracy, each by a two-sided
    sign-flip test of the paired differences at half of `CHANCE` (two measures are looked at; beating all of several
    needs no other correction). It hurts if it is worse than `pretrained` likewise. Anything else is no evidence. The
    verdict is about this adapter on rows like these; how often it is wrong by chance: `experiments/size`.

    A system that is not finite has a row that says so. Nothing is compared with it: if it is one of `WITHOUT` there is
    no evidence either way, if it is the run, there is no answer.

    Args:
        probabilities: by the names of `ORDER`; zero where a row has fewer choices. `FREQUENCY` may be missing.
        answers: right choices.
        folds: into which the rows were dealt.
        not_finite: systems whose answers are not finite, and why.
        groups: number of the cluster that each row is of; the rows of one are flipped and resampled together.

    Raises:
        AbmllError: `RUN` or `PRETRAINED` is missing, or there are no rows.
        NonFiniteError: a probability is NaN or infinite.
    """
    broken = dict(not_finite or {})
    if not {RUN, PRETRAINED} <= {*probabilities, *broken} or not len(answers):
        raise AbmllError(f"nothing to weigh: {len(answers)} rows of {', '.join(probabilities) or 'no system'}")
    for table in probabilities.values():
        check_finite("probability", table)
    groups = np.arange(len(answers)) if groups is None else np.unique(groups, return_inverse=True)[1]
    named = {name: probabilities[name] for name in ORDER if name in probabilities}
    measures = losses_of(named, answers)
    rows = [_row(name, measures["accuracy"][name], measures["NLL"][name], groups) for name in named]
    rows += [UsefulnessRow(name, None, None, None, None, why) for name, why in broken.items()]
    verdict, text = _not_finite(broken) if broken.keys() & {RUN, *WITHOUT} else verdict_of(measures, groups)
    if FRESH in broken and RUN in named:
        text = (*text, "A fresh LoRA fitted to the same rows is not finite, so nothing is said against it.")
    ordered = tuple(sorted(rows, key=lambda row: ORDER.index(row.name)))
    return Usefulness(len(answers), folds, ordered, verdict, text, int(groups.max()) + 1)


def losses_of(probabilities: Mapping[str, Float[np.ndarray, "N K"]], answers: Int[np.ndarray, "N"]) -> Measures:
    """The two losses that a verdict goes by, of each system on each row."""
    return {
        "NLL": {name: question_nll(p, answers) for name, p in probabilities.items()},
        "accuracy": {name: 1 - right_share(p, answers) for name, p in probabilities.items()},
    }


def _not_finite(broken: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    if RUN in broken:
        return "not finite", (f"Adapting gives numbers that are not finite. Do not use it: {broken[RUN]}",)
    name = next(name for name in WITHOUT if name in broken)
    return "no evidence", (f"No evidence that adapting helps: {name} is not finite ({broken[name]}).",)


def _row(
    name: str, wrong: Float[np.ndarray, "N"], nll: Float[np.ndarray, "N"], groups: Int[np.ndarray, "N"]
) -> UsefulnessRow:
    alone = int(groups.max()) + 1 == len(wrong)
    exact = error_interval(round(wrong.sum()), len(wrong), 0.95)
    low, high = exact if alone else bootstrap_interval(wrong, groups=groups)
    by_nll = bootstrap_interval(nll, groups=groups)
    return UsefulnessRow(name, 1 - float(wrong.mean()), Interval(1 - high, 1 - low), float(nll.mean()), by_nll)


def sign_flip_p(differences: Float[np.ndarray, "N"]) -> float:
    """Two-sided p-value of a mean difference of 0: every sign is as likely as its opposite (Fisher 1935).

    Exact up to 13 differences other than 0, from 9,999 random flips beyond.

    >>> sign_flip_p(np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]))  # 2 of 2^5
    0.0625
    """
    moved = differences[np.abs(differences) > 1e-12]
    if len(moved) < 2:
        return 1.0
    found = permutation_test(
        (moved,), np.mean, permutation_type="samples", n_resamples=_FLIPS, rng=np.random.default_rng(0), vectorized=True
    )
    return float(found.pvalue)


def verdict_of(measures: Measures, groups: Int[np.ndarray, "N"]) -> tuple[str, tuple[str, ...]]:
    """The verdict, "helps", "hurts" or "no evidence", and in words; see `weigh`."""
    better, worse = [], []
    for measure, losses in measures.items():
        rivals = sorted(
            (n for n in WITHOUT if n in losses), key=lambda n: float(losses[n].mean())
        )  # the best one first
        if all(_beats(losses[RUN], losses[name], groups) for name in rivals):
            better.append(measure)
        if _beats(losses[PRETRAINED], losses[RUN], groups):
            worse.append(measure)
    if better and not worse:
        word, text = "helps", f"Adapting helps: better {_in(better)} than everything there is without adapting."
    elif worse and not better:
        word, text = "hurts", f"Adapting hurts: worse {_in(worse)} than the pretrained model as it is. Do not use it."
    else:
        word, text = "no evidence", _none(measures)
    return word, (text, *_against_fresh(measures, groups))


def _beats(ours: Float[np.ndarray, "N"], theirs: Float[np.ndarray, "N"], groups: Int[np.ndarray, "N"]) -> bool:
    """Whether the loss is lower, by a test whose signs are flipped cluster by cluster."""
    by_cluster = np.bincount(groups, ours - theirs)
    return float(by_cluster.sum()) < 0 and sign_flip_p(by_cluster) <= CHANCE / 2


def _none(measures: Measures) -> str:
    nll = {name: float(loss.mean()) for name, loss in measures["NLL"].items()}
    best = min((name for name in WITHOUT if name in nll), key=lambda name: nll[name])
    gap = nll[best] - nll[RUN]
    if gap > 0:
        why = f"{gap:.3f} nats below {best}, the best without it, is too little to tell from chance by"
        return f"No evidence that adapting helps: its NLL, {why} {len(measures['NLL'][RUN])} rows. More rows may tell."
    return f"No evidence that adapting helps: {best} has the lower NLL ({nll[best]:.3f} against {nll[RUN]:.3f} nats)."


def _against_fresh(measures: Measures, groups: Int[np.ndarray, "N"]) -> tuple[str, ...]:
    """Whether the meta-trained start is better than an ordinary LoRA on the same rows."""
    if FRESH not in measures["NLL"]:
        return ()
    ours = [m for m, losses in measures.items() if _beats(losses[RUN], losses[FRESH], groups)]
    theirs = [m for m, losses in measures.items() if _beats(losses[FRESH], losses[RUN], groups)]
    if ours and not theirs:
        return (f"It is better {_in(ours)} than a fresh LoRA fitted to the same rows.",)
    if theirs and not ours:
        return (f"A fresh LoRA fitted to the same rows is better {_in(theirs)}.",)
    return ("Against a fresh LoRA fitted to the same rows there is no difference that these rows can tell.",)


def _in(measures: Sequence[str]) -> str:
    return "in " + " and in ".join(measures)
