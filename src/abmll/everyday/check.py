"""The usefulness check that `adapt` ends with: every labelled row is answered by systems that were not fitted to it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from abmll.calibrators import Calibrator, ChoiceRows
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.config import MethodConfig, PosteriorConfig, RunConfig
from abmll.errors import NonFiniteError
from abmll.everyday.labelled import Labelled
from abmll.everyday.session import Session
from abmll.metrics.baselines import smoothed_shares
from abmll.metrics.predictions import pad_probabilities
from abmll.metrics.scores import floor_probabilities
from abmll.metrics.usefulness import (
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
    Usefulness,
    weigh,
)
from abmll.process.timer import Timer
from abmll.question import Question, QuestionWithExamples
from abmll.systems.build import build_batcher, build_system
from abmll.systems.folds import FOLDS, Fold, deal
from abmll.systems.plans import PredictionPlan
from abmll.systems.system import System
from abmll.systems.temperature import TaskTemperature, choice_rows
from abmll.text_classifiers import Encode, TfidfClassifier, VectorClassifier
from abmll.training.finite import without_folders

_CHARACTERS = 4
"""Of a token, about."""

Probabilities = Float[np.ndarray, "N K"]


def estimate_seconds(session: Session, lengths: Sequence[int], step: float, row: float) -> float:
    """Seconds that the check will take, from those of one gradient step and one answer by one draw.

    Args:
        session: the run.
        lengths: characters of each row.
        step, row: seconds, measured.
    """
    rows = len(lengths)
    steps = len(_adapted(session.config)) * FOLDS * session.plan(rows * (FOLDS - 1) // FOLDS).steps
    usual = sum(lengths) / rows
    shown = min(_CHARACTERS * session.prompt_tokens, sum(lengths)) / max(1.0, usual)
    return steps * step + rows * row * (session.drawing.samples + 2 + shown)


@dataclass
class _Check:
    """The systems that are asked, and what they say.

    Attributes:
        session: the run.
        labelled: the rows, whose right choices are `answers`.
        folds: into which they are dealt.
        tell: hears how many folds are done; a step of adapting is a part of one.
        tables: probabilities out of folds, by system.
        broken: systems that are not finite, and why.
        left_out: systems that cannot be asked, and why.
        seconds: that a system took for 1,000 rows.
    """

    session: Session
    labelled: Labelled
    folds: Sequence[Fold]
    tell: Callable[[float], None]
    done: float = 0.0
    tables: dict[str, Probabilities] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[Question, ...]:
        return self.labelled.rows

    @property
    def answers(self) -> np.ndarray:
        return np.array([row.answer for row in self.rows], dtype=np.int64)

    @property
    def choices(self) -> np.ndarray:
        return np.array([len(row.choices) for row in self.rows])

    @property
    def whole(self) -> tuple[Fold, ...]:
        """All rows, and nothing is fitted."""
        return (Fold((), tuple(range(len(self.rows)))),)

    def ask(self, name: str, system: System, rows: Sequence[Question], folds: Sequence[Fold], samples: int = 0) -> None:
        """Ask a system that is adapted to the other folds; that it is not finite is what the check finds, no end."""
        mean = PredictionPlan("mean", 1, self.session.drawing.batch_tokens)
        plan, timer, before = self.session.drawing if samples else mean, Timer(), self.done
        self.done += len(folds)
        try:
            answered = system.answer_by_folds(
                rows, folds, plan, self.session.plan, lambda n: self.tell(before + n), timer
            )
        except NonFiniteError as error:
            self.broken[name] = str(error)
            return
        self.tables[name] = pad_probabilities([answer.probabilities for answer in answered])
        self.seconds[name] = 1000 * timer.seconds["predict_seconds"] / len(rows)

    def _tell(self, before: float, done: float) -> None:
        self.tell(before + done)

    def ask_base(self) -> None:
        """The pretrained model: as it is, adapted from zero, and with the other folds' rows in its prompt."""
        config = _plain(self.session.config)
        fresh = build_system(config, self.session.base)
        try:
            self.ask(PRETRAINED, fresh, self.rows, self.whole)
            if FRESH in _adapted(self.session.config):
                self.ask(FRESH, fresh, self.rows, self.folds)
            if config.likelihood.template == "chat":
                self.left_out[PROMPT] = "likelihood.template=chat has no place for examples"
                return
            text = config.likelihood.model_copy(update={"max_tokens": self.session.prompt_tokens})
            fresh.batcher = build_batcher(config.model_copy(update={"likelihood": text}), self.session.base)
            self.ask(PROMPT, fresh, _with_examples(self.rows, self.folds, config.adaptation.seed), self.whole)
        finally:
            fresh.close()

    def ask_classifiers(self, encode: Encode | None) -> None:
        """Text classifiers that need no language model, where rows are texts with labels that they share."""
        labels = self.labelled.layout.labels
        if labels is None:
            self.left_out |= dict.fromkeys((TFIDF, VECTORS), "each row has choices of its own")
            return
        self.classify(TFIDF, TfidfClassifier(), len(labels))
        if encode is None:
            self.left_out[VECTORS] = "no encoder was named (--vectors)"
            return
        texts, began = [row.context for row in self.rows], time.perf_counter()
        vectors = dict(zip(texts, encode(texts), strict=True))  # each text once, not once a fold
        spent = time.perf_counter() - began
        remembered = VectorClassifier(lambda some: np.stack([vectors[text] for text in some]))
        self.classify(VECTORS, remembered, len(labels), spent)

    def classify(
        self, name: str, classifier: TfidfClassifier | VectorClassifier, labels: int, spent: float = 0.0
    ) -> None:
        """Ask a text classifier that is fitted to the other folds; `spent` are seconds of answering before."""
        texts, answers = np.array([row.context for row in self.rows], dtype=object), self.answers
        clusters, table = np.array(self.labelled.clusters), np.zeros((len(texts), labels))
        for fold in self.folds:
            fitted, asked = list(fold.fitted), list(fold.answered)
            model = classifier.fit(texts[fitted].tolist(), answers[fitted], labels, clusters[fitted].tolist())
            began = time.perf_counter()
            table[asked] = model.probabilities(texts[asked].tolist())
            spent += time.perf_counter() - began
        self.tables[name], self.seconds[name] = table, 1000 * spent / len(texts)

    def calibrate(self, calibrator: Calibrator) -> None:
        """The run's answers by a calibrator that was fitted to its answers in the other folds."""
        if RUN in self.tables:
            stated = floor_probabilities(self.tables[RUN], self.choices)
            self.tables[RUN_SCALED] = calibrated_by_folds(stated, self.folds, self.answers, calibrator)
        for name, scaled in ((RUN, RUN_SCALED), (PRETRAINED, SCALED)):  # it costs nothing, and mends nothing
            self.broken |= {scaled: self.broken[name]} if name in self.broken else {}
            self.seconds |= {scaled: self.seconds[name]} if name in self.seconds else {}

    def learn_temperature(self) -> TaskTemperature | None:
        """The temperature of the run, given its answers to every row."""
        if RUN not in self.tables:
            return None
        stated = [p[:count].tolist() for p, count in zip(self.tables[RUN], self.choices, strict=True)]
        return self.session.learn_temperature(choice_rows(stated, self.answers))


@dataclass(frozen=True)
class Checked:
    """What the check is worth.

    Attributes:
        worth: the table, the verdict and the advice.
        temperature: of the run's answers, learned from all rows, each of which was answered out of its fold; None where
            an answer is not finite.
    """

    worth: Usefulness
    temperature: TaskTemperature | None


def check_usefulness(
    session: Session,
    labelled: Labelled,
    tell: Callable[[float, int], None] = lambda done, of: None,
    encode: Encode | None = None,
    calibrator: Calibrator | None = None,
) -> Usefulness:
    """The table, the verdict and the advice of `check_and_learn`, whose arguments these are."""
    return check_and_learn(session, labelled, tell, encode, calibrator).worth


def check_and_learn(
    session: Session,
    labelled: Labelled,
    tell: Callable[[float, int], None] = lambda done, of: None,
    encode: Encode | None = None,
    calibrator: Calibrator | None = None,
) -> Checked:
    """Answer every labelled row out of its fold, by this run and by its rivals, weigh them, and learn the temperature.

    phi is used up by it. Rivals: `uniform`; `label frequency`, TF-IDF and sentence vectors with logistic regression
    (plain classification; fitted to the fold's other rows); the pretrained model; the same with a temperature fitted
    to the fold's other rows; the same with these rows as examples in the prompt; and a LoRA of the run's rank and
    layers that starts at zero and takes as many steps on the same rows, at the rate of `pretrained` (not where the run
    is such a LoRA itself, on a base model). The run is there twice: as it is, and with a temperature that was learned
    from its answers in the other folds. One of them that is not finite in some fold has a row that says so, and the
    others go on.

    Args:
        session: a run.
        labelled: rows that nothing else was done with, of four clusters or more (`FEWEST`).
        tell: hears how many folds are done, out of how many; a step of adapting is a part of one.
        encode: sentence vectors, see `abmll.text_classifiers.load_encoder`; None: without that row.
        calibrator: of the run's answers; None: a posterior temperature, by the run's prior or the weak one.
    """
    rows, answers = labelled.rows, [row.answer for row in labelled.rows]
    folds = deal(answers, labelled.clusters, seed=session.config.adaptation.seed)
    total = len(_adapted(session.config)) * len(folds) + 2
    check = _Check(session, labelled, folds, lambda done: tell(done, total))
    check.ask(RUN, session.system, rows, folds, session.drawing.samples)
    session.system.close()
    check.ask_base()
    tell(float(total), total)
    check.ask_classifiers(encode)
    tables = tables_without_adapting(rows, folds, check.tables.get(PRETRAINED), check.answers, labelled.layout.labels)
    check.tables |= tables
    check.seconds |= {name: 0.0 for name in (UNIFORM, FREQUENCY) if name in tables}
    check.calibrate(session.calibrator if calibrator is None else calibrator)
    reasons = {name: without_folders(why, rows) for name, why in check.broken.items()}
    groups = np.array(labelled.clusters)
    worth = weigh(check.tables, check.answers, len(folds), reasons, groups, check.seconds, check.left_out)
    return Checked(worth, check.learn_temperature())


def _adapted(config: RunConfig) -> tuple[str, ...]:
    """The rows of the table that are adapted to each fold."""
    return (RUN,) if config.method.name == "pretrained" else (RUN, FRESH)


def _plain(config: RunConfig) -> RunConfig:
    """The configuration of an ordinary LoRA, and of the pretrained model, on the same layers."""
    return config.model_copy(update={"method": MethodConfig(name="pretrained"), "posterior": PosteriorConfig()})


def _with_examples(rows: Sequence[Question], folds: Sequence[Fold], seed: int) -> tuple[Question, ...]:
    """Each row with the other folds' rows before it, in a random order: a file may be sorted by label."""
    rng, out = np.random.default_rng(seed), dict[int, Question]()
    for fold in folds:
        examples = tuple(rows[fold.fitted[i]] for i in rng.permutation(len(fold.fitted)))
        for i in fold.answered:
            q = rows[i]
            of_row = (q.id, q.question, q.choices, q.answer, q.context, q.location, q.group)
            out[i] = QuestionWithExamples(*of_row, examples)
    return tuple(out[i] for i in range(len(rows)))


def tables_without_adapting(
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
    if pretrained is not None:  # by the weak prior: one that a run learned is of its own answers, not of these
        floored = floor_probabilities(pretrained, counts)
        tables[SCALED] = calibrated_by_folds(floored, folds, answers, PosteriorTemperature())
    return tables


def calibrated_by_folds(
    stated: Probabilities, folds: Sequence[Fold], answers: np.ndarray, calibrator: Calibrator
) -> Probabilities:
    """Each fold by what was learned from the answers in the others, which no right choice of the fold is part of."""
    with np.errstate(divide="ignore"):
        rows = ChoiceRows.from_scores(np.log(stated), answers)
    out = np.zeros_like(stated)
    for fold in folds:
        fitted, asked = (
            ChoiceRows(rows.log_probabilities[list(part)], answers[list(part)]) for part in (fold.fitted, fold.answered)
        )
        out[list(fold.answered)] = calibrator.fit(fitted).apply(asked)
    return out
