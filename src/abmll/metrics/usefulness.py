"""The usefulness check: whether adapting to a task is worth it, by answers to rows that were left out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from abmll.errors import AbmllError
from abmll.metrics.abstention import error_interval
from abmll.metrics.calibration import check_finite
from abmll.metrics.scores import question_nll, right_share
from abmll.metrics.statistics import Interval, bootstrap_interval

UNIFORM, FREQUENCY, PRETRAINED, SCALED = "uniform", "label frequency", "pretrained", "pretrained + temperature"
TFIDF, VECTORS = "TF-IDF + regression", "sentence vectors + regression"
PROMPT, FRESH, RUN, RUN_SCALED = "examples in the prompt", "a fresh LoRA", "this run", "this run + temperature"
ORDER = (UNIFORM, FREQUENCY, TFIDF, VECTORS, PRETRAINED, SCALED, PROMPT, FRESH, RUN, RUN_SCALED)
WITHOUT = (UNIFORM, FREQUENCY, TFIDF, VECTORS, PRETRAINED, SCALED, PROMPT)
"""What a user has without adapting."""
CHANCE = 0.05
"""Probability, at most, of calling adapting worth it by accident, where it is not."""
HELPS = {"NLL": 0.9 * CHANCE, "accuracy": 0.1 * CHANCE}
"""How much of it each measure has: what is advised goes by the NLL, so most."""
HURTS = CHANCE / 4
"""What each measure has against the run, and for and against a fresh LoRA."""
VERSION = 2
"""Of `Usefulness.to_dict`; the first had no version, seconds, advice nor systems left out."""
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
        seconds: that it took for 1,000 rows, measured while these rows were answered; None where it was not.
    """

    name: str
    accuracy: float | None
    accuracy_interval: Interval | None
    nll: float | None
    nll_interval: Interval | None
    not_finite: str | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the name."""
        intervals = {"accuracy_interval": self.accuracy_interval, "nll_interval": self.nll_interval}
        ends = {name: None if ends is None else list(ends) for name, ends in intervals.items()}
        numbers = {"accuracy": self.accuracy, "nll": self.nll, **ends}
        return {**numbers, "not_finite": self.not_finite, "seconds_per_1000_rows": self.seconds}


@dataclass(frozen=True)
class Advice:
    """What to use on rows like these: the row of the table with the lowest expected NLL.

    Attributes:
        choice: its name.
        expected: NLL that is expected of each row of the table on new rows, see `expected_nll`; nats.
        alike: rows of the table that these labelled rows cannot tell from the choice, the cheapest first.
        text: the advice in words.
    """

    choice: str
    expected: Mapping[str, float]
    alike: tuple[str, ...]
    text: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        lists = {"alike": list(self.alike), "text": list(self.text)}
        return {"choice": self.choice, "expected_nll": dict(self.expected), **lists}


@dataclass(frozen=True)
class Usefulness:
    """The table, and what it says.

    Attributes:
        n, folds: labelled rows, and parts they were dealt to.
        rows: the table, in the order of `ORDER`.
        verdict: one of "helps", "hurts", "no evidence", "not finite".
        text: the verdict in words.
        clusters: of rows that belong together; n if each stands alone.
        advice: what to use; None where there is nothing to choose from.
        left_out: rows that the table could have had, and why it has not.
    """

    n: int
    folds: int
    rows: tuple[UsefulnessRow, ...]
    verdict: str
    text: tuple[str, ...]
    clusters: int
    advice: Advice | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        table = {row.name: row.to_dict() for row in self.rows}
        counts = {"version": VERSION, "n": self.n, "clusters": self.clusters, "folds": self.folds}
        said = {"verdict": self.verdict, "text": list(self.text)}
        advice = None if self.advice is None else self.advice.to_dict()
        return {**counts, "table": table, **said, "advice": advice, "left_out": dict(self.left_out)}


def weigh(
    probabilities: Mapping[str, Float[np.ndarray, "N K"]],
    answers: Int[np.ndarray, "N"],
    folds: int,
    not_finite: Mapping[str, str] | None = None,
    groups: Int[np.ndarray, "N"] | None = None,
    seconds: Mapping[str, float] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Usefulness:
    """The table, the verdict and the advice, from what each system said of rows that it was not fitted to.

    The verdict is a test of what is adapted, `RUN_SCALED` or else `RUN`. It helps if it is better than *every* row of
    `WITHOUT`, in the mean NLL or in accuracy, by one-sided sign-flip tests of the paired differences at the levels
    `HELPS`, which add up to `CHANCE` (beating all of several needs no other correction). It hurts if it is worse than
    `pretrained`, at `HURTS` each. Anything else is no evidence. The verdict is about this adapter on rows like
    these; how often it is wrong by chance: `experiments/size`. The advice is a choice, and no test: see
    `advise`; where the run hurts it is none.

    A system that is not finite has a row that says so. Nothing is compared with it: if it is one of `WITHOUT` there is
    no evidence either way, if it is the run, there is no answer.

    Args:
        probabilities: by the names of `ORDER`; zero where a row has fewer choices. `RUN` and `PRETRAINED` are needed.
        answers: right choices.
        folds: into which the rows were dealt.
        not_finite: systems whose answers are not finite, and why.
        groups: number of the cluster that each row is of; the rows of one are flipped and resampled together.
        seconds: that a system took for 1,000 rows.
        left_out: systems that were not asked, and why.

    Raises:
        AbmllError: `RUN` or `PRETRAINED` is missing, or there are no rows.
        NonFiniteError: a probability is NaN or infinite.
    """
    broken, seconds = dict(not_finite or {}), dict(seconds or {})
    if not {RUN, PRETRAINED} <= {*probabilities, *broken} or not len(answers):
        raise AbmllError(f"nothing to weigh: {len(answers)} rows of {', '.join(probabilities) or 'no system'}")
    for table in probabilities.values():
        check_finite("probability", table)
    groups = np.arange(len(answers)) if groups is None else np.unique(groups, return_inverse=True)[1]
    named = {name: probabilities[name] for name in ORDER if name in probabilities}
    measures = losses_of(named, answers)
    rows = [_row(name, measures["accuracy"][name], measures["NLL"][name], groups) for name in named]
    rows += [UsefulnessRow(name, None, None, None, None, why) for name, why in broken.items()]
    rows = [replace(row, seconds=seconds.get(row.name)) for row in rows]
    verdict, text = _not_finite(broken) if broken.keys() & {RUN, *WITHOUT} else verdict_of(measures, groups)
    if FRESH in broken and RUN in named:
        text = (*text, "A fresh LoRA fitted to the same rows is not finite, so nothing is said against it.")
    ordered = tuple(sorted(rows, key=lambda row: ORDER.index(row.name)))
    hurting = {RUN, RUN_SCALED} if verdict == "hurts" else set()
    advice = advise({n: nll for n, nll in measures["NLL"].items() if n not in hurting}, groups, seconds)
    clusters = int(groups.max()) + 1
    return Usefulness(len(answers), folds, ordered, verdict, text, clusters, advice, dict(left_out or {}))


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


def sign_flip_p(differences: Float[np.ndarray, "N"], alternative: Literal["two-sided", "less"] = "two-sided") -> float:
    """p-value of a mean difference of 0: every sign is as likely as its opposite (Fisher 1935).

    Exact up to 13 differences other than 0, from 9,999 random flips beyond.

    Args:
        differences: paired ones.
        alternative: that the mean is another one, or that it is less.

    >>> sign_flip_p(np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]))  # 2 of 2^5
    0.0625
    """
    moved = differences[np.abs(differences) > 1e-12]
    if len(moved) < 2:
        return 1.0
    flipped = _signs(len(moved)) @ moved
    as_far = 1e-10 * np.abs(moved).sum()  # sums of the same numbers in another order
    drawn = 2 ** len(moved) > _FLIPS  # then what was seen counts as one of the draws
    tails = [(np.count_nonzero(sign * flipped <= sign * moved.sum() + as_far) + drawn) for sign in (1, -1)]
    p = tails[0] if alternative == "less" else min(2 * min(tails), len(flipped) + drawn)
    return float(p / (len(flipped) + drawn))


@lru_cache(maxsize=2)
def _signs(count: int) -> Float[np.ndarray, "F N"]:
    """Signs of so many differences: all that there are, or `_FLIPS` drawn ones."""
    if 2**count > _FLIPS:
        return 2.0 * np.random.default_rng(0).integers(0, 2, size=(_FLIPS, count), dtype=np.int8) - 1.0
    return np.array(list(product((-1.0, 1.0), repeat=count)))


def verdict_of(measures: Measures, groups: Int[np.ndarray, "N"]) -> tuple[str, tuple[str, ...]]:
    """The verdict, "helps", "hurts" or "no evidence", and in words; see `weigh`."""
    better, worse = [], []
    for measure, losses in measures.items():
        ours = losses[_adapted(losses)]
        rivals = sorted(
            (n for n in WITHOUT if n in losses), key=lambda n: float(losses[n].mean())
        )  # the best one first
        if all(_beats(ours, losses[name], groups, HELPS[measure]) for name in rivals):
            better.append(measure)
        if _beats(losses[PRETRAINED], ours, groups, HURTS):
            worse.append(measure)
    if better and not worse:
        word, text = "helps", f"Adapting helps: better {_in(better)} than everything there is without adapting."
    elif worse and not better:
        word, text = "hurts", f"Adapting hurts: worse {_in(worse)} than the pretrained model as it is. Do not use it."
    else:
        word, text = "no evidence", _none(measures)
    return word, (text, *_against_fresh(measures, groups))


def _adapted(losses: Mapping[str, Any]) -> str:
    """What the verdict is about: the run as its answers are used."""
    return RUN_SCALED if RUN_SCALED in losses else RUN


def _beats(
    ours: Float[np.ndarray, "N"], theirs: Float[np.ndarray, "N"], groups: Int[np.ndarray, "N"], level: float
) -> bool:
    """Whether the loss is lower, by a one-sided test whose signs are flipped cluster by cluster."""
    by_cluster = np.bincount(groups, ours - theirs)
    return float(by_cluster.sum()) < 0 and sign_flip_p(by_cluster, "less") <= level


def _none(measures: Measures) -> str:
    nll = {name: float(loss.mean()) for name, loss in measures["NLL"].items()}
    best = min((name for name in WITHOUT if name in nll), key=lambda name: nll[name])
    ours = nll[_adapted(nll)]
    gap = nll[best] - ours
    if gap > 0:
        why = f"{gap:.3f} nats below {best}, the best without it, is too little to tell from chance by"
        return f"No evidence that adapting helps: its NLL, {why} {len(measures['NLL'][RUN])} rows. More rows may tell."
    return f"No evidence that adapting helps: {best} has the lower NLL ({nll[best]:.3f} against {ours:.3f} nats)."


def _against_fresh(measures: Measures, groups: Int[np.ndarray, "N"]) -> tuple[str, ...]:
    """Whether the meta-trained start is better than an ordinary LoRA on the same rows; both without a temperature."""
    if FRESH not in measures["NLL"]:
        return ()
    ours = [m for m, losses in measures.items() if _beats(losses[RUN], losses[FRESH], groups, HURTS)]
    theirs = [m for m, losses in measures.items() if _beats(losses[FRESH], losses[RUN], groups, HURTS)]
    if ours and not theirs:
        return (f"It is better {_in(ours)} than a fresh LoRA fitted to the same rows.",)
    if theirs and not ours:
        return (f"A fresh LoRA fitted to the same rows is better {_in(theirs)}.",)
    return ("Against a fresh LoRA fitted to the same rows there is no difference that these rows can tell.",)


def _in(measures: Sequence[str]) -> str:
    return "in " + " and in ".join(measures)


FAVOURITES = (RUN_SCALED, VECTORS, TFIDF, SCALED)
"""The first that is there is what is advised where the rows say nothing. All others state their answers too surely."""
HANDICAP = dict.fromkeys(FAVOURITES, 0.1) | dict.fromkeys(set(ORDER) - set(FAVOURITES), 0.3)
"""NLL above the favourite's that is expected of each before any row is seen; nats."""
SPREAD = 0.15
"""How far that is off on one task: a standard deviation, nats."""
AS_IT_IS = {RUN: RUN_SCALED, PRETRAINED: SCALED}
"""What is not advised where the same with a temperature is there: it could only win by chance."""


def expected_nll(losses: Mapping[str, Float[np.ndarray, "N"]], groups: Int[np.ndarray, "N"]) -> dict[str, float]:
    """The NLL that is expected of each system on new rows, in which few rows weigh little.

    For system c, with r the first of `FAVOURITES` that is there, and delta_c = theta_c - theta_r on new rows:

    delta_c ~ N(HANDICAP_c, SPREAD^2),   mean(L_c - L_r) | delta_c ~ N(delta_c, se_c^2)
    theta_c = mean(L_r) + E[delta_c | rows],   E[delta_c | rows] = w mean(L_c - L_r) + (1 - w) HANDICAP_c,
    w = SPREAD^2 / (SPREAD^2 + se_c^2)

    The differences are paired, and se_c counts clusters: a difference that all rows agree on stays, one that a single
    row makes is drawn towards the handicap.

    >>> losses = {RUN_SCALED: np.array([0.5, 0.6, 0.5, 0.6]), TFIDF: np.array([0.1, 0.2, 0.1, 1.2])}
    >>> found = expected_nll(losses, np.arange(4))  # the lower mean, .4, by rows that disagree
    >>> found[RUN_SCALED] < found[TFIDF]
    True
    """
    favourite = next((name for name in FAVOURITES if name in losses), min(losses, key=lambda n: losses[n].mean()))
    out = {}
    for name, values in losses.items():
        difference = values - losses[favourite]
        weight = SPREAD**2 / (SPREAD**2 + _variance_of_mean(difference, groups))
        drawn = weight * difference.mean() + (1 - weight) * HANDICAP[name]
        out[name] = float(losses[favourite].mean() + (0.0 if name == favourite else drawn))
    return out


def _variance_of_mean(values: Float[np.ndarray, "N"], groups: Int[np.ndarray, "N"]) -> float:
    """Of the mean of rows that come in clusters; infinite by one cluster alone.

    >>> _variance_of_mean(np.array([1.0, 3.0]), np.arange(2))  # variance 2, of a mean of two
    1.0
    """
    count = int(groups.max()) + 1
    sums = np.bincount(groups, values - values.mean())
    return float("inf") if count < 2 else float((sums**2).sum() / len(values) ** 2 * count / (count - 1))


def advise(
    losses: Mapping[str, Float[np.ndarray, "N"]], groups: Int[np.ndarray, "N"], seconds: Mapping[str, float]
) -> Advice | None:
    """What to use: the system of the lowest expected NLL, see `expected_nll`; and which these rows cannot tell from it.

    Args:
        losses: NLL of each system on each row.
        groups: number of each row's cluster.
        seconds: that a system takes for 1,000 rows.
    """
    losses = {name: values for name, values in losses.items() if AS_IT_IS.get(name) not in losses}
    if not losses:
        return None
    expected = expected_nll(losses, groups)
    choice = min(expected, key=lambda name: expected[name])
    alike = [n for n in losses if n != choice and not _beats(losses[choice], losses[n], groups, CHANCE / 2)]
    alike.sort(key=lambda name: seconds.get(name, np.inf))
    text = [
        f"Advice: {USE[choice]}: the lowest NLL to be expected ({expected[choice]:.3f} nats){_cost(choice, seconds)}."
    ]
    cheaper = [name for name in alike if seconds.get(name, np.inf) < seconds.get(choice, np.inf)]
    if cheaper:
        text.append(
            f"The cheapest that these rows cannot tell from it: {cheaper[0]} ({expected[cheaper[0]]:.3f} nats expected"
            f"{_cost(cheaper[0], seconds)})."
        )
    return Advice(choice, expected, tuple(alike), tuple(text))


USE = {
    UNIFORM: "use none of these, they are no better than a guess",
    FREQUENCY: "use none of these, the share of each label says as much",
    TFIDF: "use TF-IDF + logistic regression, without a language model",
    VECTORS: "use sentence vectors + logistic regression, without adapting",
    PRETRAINED: "use the pretrained model as it is",
    SCALED: "use the pretrained model + temperature, without adapting",
    PROMPT: "use the labelled rows as examples in the prompt, without adapting (adapt BASE ROWS --in-prompt)",
    FRESH: "use a fresh LoRA",
    RUN: "use this run",
    RUN_SCALED: "use this run + temperature",
}


def _cost(name: str, seconds: Mapping[str, float]) -> str:
    return f", {seconds[name]:.2g} s per 1,000 rows" if name in seconds else ""
