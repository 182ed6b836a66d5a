"""The usefulness check that `adapt` ends with: every labelled row is answered by systems that were not fitted to it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float

from abmll.calibrators import ChoiceRows
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.config import MethodConfig, RunConfig
from abmll.errors import NonFiniteError
from abmll.everyday.labelled import Labelled
from abmll.everyday.session import Session
from abmll.metrics.baselines import smoothed_shares
from abmll.metrics.predictions import pad_probabilities
from abmll.metrics.scores import floor_probabilities
from abmll.metrics.usefulness import FREQUENCY, FRESH, PRETRAINED, RUN, SCALED, UNIFORM, Usefulness, weigh
from abmll.question import Question
from abmll.systems.build import build_system
from abmll.systems.folds import FOLDS, Fold, deal
from abmll.systems.plans import PredictionPlan
from abmll.systems.system import System
from abmll.training.finite import without_folders

FEWEST = 4
"""Different labelled rows, or groups of them, without which there is no check."""

Probabilities = Float[np.ndarray, "N K"]


def estimate_seconds(session: Session, rows: int, step: float, row: float) -> float:
    """Seconds that the check of so many rows will take, from those of one gradient step and one answer by one draw."""
    fitted = rows * (FOLDS - 1) // FOLDS
    steps = len(_adapted(session.config)) * FOLDS * session.plan(fitted).steps
    return steps * step + rows * row * (session.drawing.samples + 2)


def check_usefulness(
    session: Session, labelled: Labelled, tell: Callable[[float, int], None] = lambda done, of: None
) -> Usefulness:
    """Answer every labelled row out of its fold, by this run and by its rivals, and weigh them.

    phi is used up by it. Rivals: `uniform`; `label frequency` (plain classification; add-one shares of the fold's other
    rows); the pretrained model; the same with a temperature fitted to the fold's other rows; and a LoRA of the run's
    rank and layers that starts at zero and takes as many steps on the same rows, at the rate of `pretrained` (not
    where the run is such a LoRA itself, on a base model). One of them that is not finite in some fold has a row that
    says so, and the others go on.

    Args:
        session: a run.
        labelled: rows that nothing else was done with, of `FEWEST` clusters or more.
        tell: hears how many folds are done, out of how many; a step of adapting is a part of one.
    """
    rows = labelled.rows
    answers = np.array([row.answer for row in rows], dtype=np.int64)
    folds = deal(answers.tolist(), labelled.clusters, seed=session.config.adaptation.seed)
    whole = (Fold((), tuple(range(len(rows)))),)  # fitted to nothing
    compared = _adapted(session.config)
    total = len(compared) * len(folds)
    tables, broken = dict[str, Probabilities](), dict[str, str]()
    with _noting(RUN, broken):
        tables[RUN] = _by_folds(session, session.system, rows, folds, session.drawing, lambda n: tell(n, total))
    session.system.close()
    fresh = build_system(_plain(session.config), session.base)
    try:
        mean = PredictionPlan("mean", 1, session.drawing.batch_tokens)
        with _noting(PRETRAINED, broken):
            tables[PRETRAINED] = _by_folds(session, fresh, rows, whole, mean, lambda n: None)
        if FRESH in compared:
            with _noting(FRESH, broken):
                tables[FRESH] = _by_folds(session, fresh, rows, folds, mean, lambda n: tell(len(folds) + n, total))
    finally:
        fresh.close()
    tables |= _without_model(rows, folds, tables.get(PRETRAINED), answers, labelled.layout.labels)
    broken |= {SCALED: broken[PRETRAINED]} if PRETRAINED in broken else {}
    reasons = {name: without_folders(why, rows) for name, why in broken.items()}
    return weigh(tables, answers, len(folds), reasons, groups=np.array(labelled.clusters))


@contextmanager
def _noting(name: str, broken: dict[str, str]) -> Iterator[None]:
    """That a system is not finite in some fold is what the check finds, and not its end."""
    try:
        yield
    except NonFiniteError as error:
        broken[name] = str(error)


def _adapted(config: RunConfig) -> tuple[str, ...]:
    """The rows of the table that are adapted to each fold."""
    return (RUN,) if config.method.name == "pretrained" else (RUN, FRESH)


def _plain(config: RunConfig) -> RunConfig:
    """The configuration of an ordinary LoRA, and of the pretrained model, on the same layers."""
    return config.model_copy(update={"method": MethodConfig(name="pretrained")})


def _by_folds(
    session: Session,
    system: System,
    rows: Sequence[Question],
    folds: Sequence[Fold],
    plan: PredictionPlan,
    tell: Callable[[float], None],
) -> Probabilities:
    """The probabilities of every row by a system adapted to the other folds; zero beyond the choices of a row."""
    answered = system.answer_by_folds(rows, folds, plan, session.plan, tell)
    return pad_probabilities([answer.probabilities for answer in answered])


def _without_model(
    rows: Sequence[Question],
    folds: Sequence[Fold],
    pretrained: Probabilities | None,
    answers: np.ndarray,
    labels: tuple[str, ...] | None,
) -> dict[str, Probabilities]:
    """Guesses and, where the pretrained model is finite, its probabilities at the temperature of the other folds."""
    counts = np.array([len(row.choices) for row in rows])
    real = np.arange(counts.max()) < counts[:, None]
    tables = {UNIFORM: real / counts[:, None]}
    if labels is not None:
        tables[FREQUENCY] = np.zeros(real.shape)
        for fold in folds:
            shares = smoothed_shares(np.bincount(answers[list(fold.fitted)], minlength=len(labels)))
            tables[FREQUENCY][list(fold.answered)] = shares
    if pretrained is not None:
        tables[SCALED] = _scaled(floor_probabilities(pretrained, counts), folds, answers)
    return tables


def _scaled(floored: Probabilities, folds: Sequence[Fold], answers: np.ndarray) -> Probabilities:
    """Each row at the posterior temperature given the rows of the other folds.

    The prior is the weak one: one that a run learned is of its own answers, and not of the pretrained model's.
    """
    with np.errstate(divide="ignore"):
        logs = np.log(floored)
    out = np.zeros_like(floored)
    for fold in folds:
        fitted, asked = (
            ChoiceRows.from_scores(logs[rows], answers[rows]) for rows in (list(fold.fitted), list(fold.answered))
        )
        out[list(fold.answered)] = PosteriorTemperature().fit(fitted).apply(asked)
    return out
