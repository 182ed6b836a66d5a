"""Adapt a run to a user's labelled rows and keep the result under a name, with what must be known to trust it."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from abmll.config import LikelihoodConfig
from abmll.errors import AbmllError
from abmll.everyday.labelled import Labelled
from abmll.everyday.saved import SavedPosterior, beside_phi, save_posterior
from abmll.everyday.session import Session, is_trained
from abmll.metrics.abstention import check_share, choose_threshold, rows_needed
from abmll.process.timer import Pace
from abmll.question import Question, QuestionWithExamples, Task
from abmll.systems.folds import Fold
from abmll.systems.predict import Answer
from abmll.systems.temperature import TaskTemperature, choice_rows
from abmll.tables.identity import context_key, distinct_keys
from abmll.tables.layouts import Layout

TIMED = 4
"""Rows by which the time of an answer is measured."""


@dataclass(frozen=True, eq=False)
class HeldBack:
    """Answers to labelled rows that nothing was fitted to.

    Attributes:
        confidence: of each answer.
        correct: whether it is right.
    """

    confidence: Float[np.ndarray, "N"]
    correct: Bool[np.ndarray, "N"]


@dataclass(frozen=True)
class HeldBackRows:
    """Probabilities of labelled rows that nothing was fitted to, and their right answers.

    What is stored has them as the model states them; no temperature is learned from these rows, or a promise by them
    would stand on what it was chosen by.

    Attributes:
        probabilities: of the choices of each row.
        answers: the right choice of each.
    """

    probabilities: tuple[tuple[float, ...], ...]
    answers: tuple[int, ...]

    @classmethod
    def of(cls, answers: Sequence[Answer], rows: Sequence[Question]) -> "HeldBackRows":
        """What was answered to labelled rows."""
        return cls(tuple(a.probabilities for a in answers), tuple(-1 if r.answer is None else r.answer for r in rows))

    def judged(self, temperature: TaskTemperature | None = None) -> HeldBack:
        """The confidence of each answer at a temperature, and whether it is right; None: as they are."""
        best = np.array([int(np.argmax(p)) for p in self.probabilities], dtype=np.int64)
        confidence = [p[k] for p, k in zip(self._at(temperature), best, strict=True)]
        correct = best == np.array(self.answers, dtype=np.int64)
        return HeldBack(np.array(confidence, dtype=np.float64), correct)

    def of_truth(self, temperature: TaskTemperature | None = None) -> Float[np.ndarray, "N"]:
        """Probability of each right answer at a temperature."""
        return np.array([p[k] for p, k in zip(self._at(temperature), self.answers, strict=True)], dtype=np.float64)

    def _at(self, temperature: TaskTemperature | None) -> tuple[tuple[float, ...], ...]:
        return self.probabilities if temperature is None else temperature.apply(self.probabilities)

    def threshold(
        self, unlabelled: Float[np.ndarray, "M"], risk: float, temperature: TaskTemperature | None = None
    ) -> float:
        """The confidence from which rows are answered, see `choose_threshold`.

        Args:
            unlabelled: confidences of the rows to answer, at the temperature.
            risk: share of the answers that may be wrong.
            temperature: of all of them; None: as the model states them.

        Raises:
            AbmllError: no threshold keeps the promise.
        """
        judged = self.judged(temperature)
        found = choose_threshold((judged.confidence, judged.correct), unlabelled, risk)
        if found is None:
            raise AbmllError(
                f"abstain_below_risk={risk:g}: no threshold keeps the promise: {len(judged.correct)} rows held back do "
                f"not show an error rate of at most {100 * risk:g} % anywhere. Hold more back, accept a higher risk, "
                "or leave it out"
            )
        return found.threshold

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for `from_json`."""
        return {"probabilities": [list(p) for p in self.probabilities], "answers": list(self.answers)}

    @classmethod
    def from_json(cls, values: Any) -> "HeldBackRows":
        """What `to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: it is no such thing.
        """
        rows = tuple(tuple(map(float, p)) for p in values["probabilities"])
        answers = tuple(map(int, values["answers"]))
        fine = len(rows) == len(answers) and all(0 <= k < len(p) for p, k in zip(rows, answers, strict=True))
        if not fine or not np.isfinite([x for p in rows for x in p]).all():
            raise ValueError("its rows held back are damaged")
        return cls(rows, answers)


@dataclass(frozen=True)
class Adapted:
    """What `adapt_and_save` did.

    Attributes:
        details: as they were saved.
        used: the rows that were adapted to.
        held_back: those that were not.
        step_seconds: measured, of one gradient step: the median, as the first one is slow.
        answer_seconds: measured, of one row's answer by one draw.
        temperature: that was saved: by what the run knows of it before any row is answered out of folds.
    """

    details: dict[str, Any]
    used: Labelled
    held_back: tuple[Question, ...]
    step_seconds: float
    answer_seconds: float
    temperature: TaskTemperature


def adapt_and_save(
    session: Session,
    name: str,
    labelled: Labelled,
    dealt: Fold,
    *,
    source: str = "",
    replace: bool = False,
    tell: Callable[[int], None] = lambda done: None,
) -> Adapted:
    """Adapt to a user's rows, answer those held back, and save.

    Args:
        session: the run; phi is left adapted.
        name: of the saved posterior.
        labelled: the user's rows.
        dealt: which of them are adapted to, and which are held back, see `hold_back`.
        source: where they came from, to be saved with it (a file's name, without its folder).
        replace: put it in the place of a saved posterior of the same name.
        tell: hears of the number of steps done.

    Raises:
        AbmllError: a row does not fit the model, the name is taken, ...
    """
    used, aside = parted(labelled, dealt)
    plan, temperature = session.plan(len(used.rows)), session.learn_temperature()
    began, pace = time.perf_counter(), Pace()

    def step_done(done: int) -> None:
        pace.add()
        tell(done)

    session.system.adapt(Task(name, used.rows), plan, 0, step_done)
    step_seconds = pace.unit_seconds or (time.perf_counter() - began) / max(1, plan.steps)
    details = {
        "source": source,
        "layout": labelled.layout.to_dict(),
        "likelihood": session.config.likelihood.model_dump(mode="json"),
        "answering": session.config.adaptation.model_dump(include={"sampler", "samples"}),
        "examples": len(used.rows),
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "adapted_to": distinct_keys(used.keys),
        **_of_base(session),
        "held_back": _held_back_as_json(session, aside) if aside else None,
        "temperature": temperature.model_dump(mode="json"),
        **beside_phi(session.system),
    }
    if session.system.batcher.examples and not session.system.method.demonstrations:
        details["temperature"] = None  # a prior that the run carries is of answers without them
    save_posterior(session.folder, name, session.config, session.system, details, replace=replace)
    return Adapted(details, used, aside, step_seconds, _answer_seconds(session, used.rows[:TIMED]), temperature)


def temperature_in_prompt(session: Session, used: Labelled) -> TaskTemperature:
    """The temperature of answers with labelled rows in the prompt: each of them is answered with the others before it.

    One at a time is left out, with all rows of its cluster, so a prompt is that of a new row but for these.

    Args:
        session: whose prompts have the rows, see `Session.prompting`.
        used: these rows, of two clusters or more.

    Raises:
        NonFiniteError: an answer is NaN or infinite.
    """
    clusters = dict(zip(used.rows, used.clusters, strict=True))
    examples = session.system.batcher.examples
    asked = [
        QuestionWithExamples.of(row, [other for other in examples if clusters[other] != clusters[row]])
        for row in used.rows
    ]
    stated = [answer.probabilities for answer in session.system.answer(asked, session.drawing)]
    return session.learn_temperature(choice_rows(stated, np.array([row.answer for row in used.rows])))


def _answer_seconds(session: Session, rows: Sequence[Question]) -> float:
    """Seconds of one row's answer by one draw: the second time, as the first one is slow."""
    for _ in range(2):
        began = time.perf_counter()
        session.system.answer(rows, session.drawing)
    return (time.perf_counter() - began) / (len(rows) * session.drawing.samples)


def _of_base(session: Session) -> dict[str, Any]:
    """What is saved of a base model that nothing was trained on: its LoRA's settings, and what the likelihood is by."""
    if is_trained(session.config, session.folder):
        return {}
    measured = None if session.choice is None else dict(session.choice.nll)
    return {"adapter": session.config.adapter.model_dump(mode="json"), "likelihood_choice": measured}


def hold_back(clusters: Sequence[int], count: int, seed: int, option: str = "--hold-back ") -> Fold:
    """Which rows are adapted to, and which `count` others, drawn at random, nothing will be fitted to and are answered.

    Rows of a cluster stay on one side. Of one that is held back a row is drawn, and the others are left out: the test
    of a promise counts rows that go right and wrong independently.

    Args:
        clusters: number of each row's cluster.
        count: clusters to hold back.
        seed: of the draws.
        option: which gave the count, for a message.

    Raises:
        AbmllError: fewer than two clusters would be left.

    >>> hold_back([0, 1, 1, 2, 3], 1, seed=0)
    Fold(fitted=(0, 1, 2, 4), answered=(3,))
    """
    names = list(dict.fromkeys(clusters))
    if count and len(names) - count < 2:
        raise AbmllError(
            f"{option}{count} of {len(names)} different rows or groups of rows leaves fewer than two to adapt to"
        )
    rng = np.random.default_rng(seed)
    aside = {names[i] for i in rng.permutation(len(names))[:count]}
    used = tuple(row for row, cluster in enumerate(clusters) if cluster not in aside)
    return Fold(used, one_of_each(clusters, rng, aside))


def check_enough_held_back(risk: float, count: int) -> None:
    """Refuse a promise that so many rows held back cannot make, whatever they say.

    Raises:
        AbmllError: says how many it takes.
    """
    check_share("abstain_below_risk", risk)
    if count < (need := rows_needed(risk)):
        raise AbmllError(
            f"abstain_below_risk={risk:g} needs hold_back={need} or more, so many without an error: examples that "
            f"are not adapted to; here it is {count}"
        )


def one_of_each(
    clusters: Sequence[int], rng: np.random.Generator, among: Collection[int] | None = None
) -> tuple[int, ...]:
    """A row of each cluster (or of those clusters alone), drawn at random."""
    members: dict[int, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    chosen = members if among is None else [cluster for cluster in members if cluster in among]
    return tuple(members[cluster][rng.integers(len(members[cluster]))] for cluster in chosen)


def parted(labelled: Labelled, dealt: Fold) -> tuple[Labelled, tuple[Question, ...]]:
    """The rows that are adapted to, with their keys as among all rows; and those that are answered."""
    rows, keys = labelled.rows, labelled.keys
    used = Labelled(labelled.layout, tuple(rows[i] for i in dealt.fitted), tuple(keys[i] for i in dealt.fitted))
    return used, tuple(rows[i] for i in dealt.answered)


def refuse_used(labelled: Labelled, used: Collection[str]) -> None:
    """Refuse held-back rows that a task was adapted to, or that share a group or a context with such rows.

    The context of a row counts by itself: that no other of these rows has it does not make it another one.

    Args:
        labelled: the held-back rows.
        used: `distinct_keys` of the rows adapted to.

    Raises:
        AbmllError: names them as file:line.
    """
    known = set(used)
    pairs = zip(labelled.rows, labelled.keys, strict=True)
    bad = [row.location or row.id for row, key in pairs if known & {key.question, key.group, context_key(row)}]
    if bad:
        raise AbmllError(
            f"{len(bad)} of the rows held back were adapted to (or another row of their group or context was), so they "
            f"promise nothing: {', '.join(bad[:10])}" + (", ..." if len(bad) > 10 else "")
        )


def layout_of(saved: SavedPosterior) -> Layout:
    """The columns that a saved task was adapted with.

    Raises:
        AbmllError: it was saved without them.
    """
    if "layout" not in saved.details:
        raise AbmllError(
            f"{saved.folder}: saved without its columns, not by `abmll adapt --save`; adapt again with that"
        )
    try:
        return Layout.from_dict(saved.details["layout"])
    except AbmllError as error:
        raise AbmllError(f"{saved.folder}: {error}") from error


def _settings(session: Session) -> dict[str, Any]:
    """What confidences depend on besides the saved task."""
    plan = session.drawing
    text = session.config.likelihood.model_dump(mode="json")
    values = {"sampler": plan.sampler, "samples": plan.samples, "base": session.base.fingerprint, "likelihood": text}
    posterior = session.config.posterior
    return values if posterior.name == "none" else {**values, "posterior": posterior.model_dump(mode="json")}


def _held_back_as_json(session: Session, rows: Sequence[Question]) -> dict[str, Any]:
    stated = session.system.answer(rows, session.drawing)
    return {**HeldBackRows.of(stated, rows).to_json(), "settings": _settings(session)}


def saved_answers(session: Session, saved: SavedPosterior) -> HeldBack | None:
    """The answers to the rows that `adapt --hold-back` held back, at the session's temperature; None without any.

    Raises:
        AbmllError: they were made in another way than answers are now, are damaged, or are not known to be what was
            saved.
    """
    stored = saved.details.get("held_back")
    if stored is None:
        return None
    _refuse_unsealed(saved)
    try:
        found = _held_back_from_json(stored, session.temperature)
        settings: Mapping[str, Any] = dict(stored["settings"])
    except (TypeError, ValueError, KeyError) as error:
        raise AbmllError(f"{saved.folder}: its held-back answers are damaged ({error}); adapt again") from error
    now, then = _settings(session), {**settings, "likelihood": _with_new_fields(settings.get("likelihood"))}
    if other := sorted(key for key in now if now[key] != then.get(key)):
        raise AbmllError(
            f"{saved.folder}: the rows held back were answered with another {' and '.join(other)} than now, so the "
            "promise would not hold. Use the settings of `adapt`, or give the labelled rows again with --held-back FILE"
        )
    return found


def _held_back_from_json(stored: Any, temperature: TaskTemperature | None) -> HeldBack:
    """Stored answers at a temperature; before there was one, confidences were stored, of probabilities as stated.

    Raises:
        ValueError, KeyError, TypeError: they are damaged.
    """
    if "probabilities" in stored:
        return HeldBackRows.from_json(stored).judged(temperature)
    found = HeldBack(np.array(stored["confidence"], dtype=np.float64), np.array(stored["correct"], dtype=bool))
    if len(found.confidence) != len(found.correct) or temperature is not None:
        raise ValueError("confidences that do not belong to what is beside them")
    return found


def _with_new_fields(likelihood: Any) -> Any:
    """Settings of a likelihood, with those that a later version added at what they were before; none as it is."""
    return {**LikelihoodConfig().model_dump(mode="json"), **likelihood} if isinstance(likelihood, dict) else likelihood


def _refuse_unsealed(saved: SavedPosterior) -> None:
    """No promise stands on what anybody may have edited.

    What it stands on (the answers to the rows held back, and which rows were adapted to) is in this file alone, so
    there is nothing to derive it from again.

    Raises:
        AbmllError: the details have no seal.
    """
    if not saved.sealed:
        raise AbmllError(
            f"{saved.folder}: its task.json has no SHA-256 (version 0.1.0 wrote none, or it was edited), so nothing "
            "can be promised by it; adapt again with `abmll adapt --save --replace`, or predict without "
            "--abstain-below-risk"
        )


def fresh_answers(session: Session, saved: SavedPosterior, labelled: Labelled) -> HeldBack:
    """Answers to labelled rows that a user gives with --held-back; of a group, or of rows that ask the same, one.

    Raises:
        AbmllError: one of them was adapted to (names file and line), or the saved task does not say what was, or is not
            known to be what was saved.
    """
    _refuse_unsealed(saved)
    used = saved.details.get("adapted_to")
    if not isinstance(used, list):
        raise AbmllError(f"{saved.folder}: does not say what it was adapted to; adapt again with `abmll adapt --save`")
    refuse_used(labelled, used)
    chosen = one_of_each(labelled.clusters, np.random.default_rng(session.config.adaptation.seed))
    rows = [labelled.rows[i] for i in chosen]
    return HeldBackRows.of(session.system.answer(rows, session.drawing), rows).judged(session.temperature)
