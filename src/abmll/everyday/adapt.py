"""Adapt a run to a user's labelled rows and keep the result under a name, with what must be known to trust it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from abmll.errors import AbmllError
from abmll.everyday.labelled import Labelled, hold_back, one_of_each, refuse_used
from abmll.everyday.saved import SavedTask, save_task
from abmll.everyday.session import Session
from abmll.question import Question
from abmll.tables.identity import identities
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
class Adapted:
    """What `adapt_and_save` did.

    Attributes:
        details: as they were saved.
        used: the rows that were adapted to.
        held: those held back.
        step_seconds: measured, of one gradient step.
        answer_seconds: measured, of one row's answer by one draw.
    """

    details: dict[str, Any]
    used: Labelled
    held: tuple[Question, ...]
    step_seconds: float
    answer_seconds: float


def adapt_and_save(
    session: Session, name: str, labelled: Labelled, *, held: int = 0, source: str = "", replace: bool = False
) -> Adapted:
    """Hold rows back, adapt to the others, answer those held back, and save.

    Args:
        session: the run; phi is left adapted.
        name: of the saved task.
        labelled: the user's rows.
        held: how many of them are held back.
        source: where they came from, to be kept (a file's name, without its folder).
        replace: put it in the place of a saved task of the same name.

    Raises:
        AbmllError: too few rows would be left, a row does not fit the model, the name is taken, ...
    """
    used, aside = hold_back(labelled.rows, held, session.config.adaptation.seed)
    plan = session.plan(len(used))
    seconds = session.adapt(name, used)
    began = time.perf_counter()
    session.answer(used[:TIMED])
    answer_seconds = (time.perf_counter() - began) / (len(used[:TIMED]) * session.drawing.samples)
    details = {
        "source": source,
        "layout": labelled.layout.to_dict(),
        "likelihood": session.config.likelihood.model_dump(mode="json"),
        "answering": {"sampler": session.drawing.sampler, "samples": session.drawing.samples},
        "examples": len(used),
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "adapted_to": identities(used),
        "held_back": _held_as_json(session, hold_answers(session, aside)) if aside else None,
    }
    save_task(session.folder, name, session.config, session.system, details, replace=replace)
    return Adapted(details, Labelled(labelled.layout, used), aside, seconds / max(1, plan.steps), answer_seconds)


def layout_of(saved: SavedTask) -> Layout:
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


def hold_answers(session: Session, rows: Sequence[Question]) -> HeldBack:
    """Answer labelled rows by phi as it is now."""
    found = session.answer(rows)
    right = [a.choice == q.answer for a, q in zip(found, rows, strict=True)]
    return HeldBack(np.array([a.confidence for a in found], dtype=np.float64), np.array(right, dtype=bool))


def _settings(session: Session) -> dict[str, Any]:
    """What confidences depend on besides the saved task."""
    plan = session.drawing
    text = session.config.likelihood.model_dump(mode="json")
    return {"sampler": plan.sampler, "samples": plan.samples, "base": session.base.fingerprint, "likelihood": text}


def _held_as_json(session: Session, found: HeldBack) -> dict[str, Any]:
    return {
        "confidence": found.confidence.tolist(),
        "correct": found.correct.tolist(),
        "settings": _settings(session),
    }


def saved_answers(session: Session, saved: SavedTask) -> HeldBack | None:
    """The answers to the rows that `adapt --hold-back` held back; None if there were none.

    Raises:
        AbmllError: they were made in another way than answers are now, are damaged, or are not known to be what was
            saved.
    """
    kept = saved.details.get("held_back")
    if kept is None:
        return None
    _refuse_unsealed(saved)
    try:
        found = HeldBack(np.array(kept["confidence"], dtype=np.float64), np.array(kept["correct"], dtype=bool))
        settings: Mapping[str, Any] = dict(kept["settings"])
    except (TypeError, ValueError, KeyError) as error:
        raise AbmllError(f"{saved.folder}: its held-back answers are damaged ({error}); adapt again") from error
    if len(found.confidence) != len(found.correct):
        raise AbmllError(f"{saved.folder}: its held-back answers are damaged; adapt again")
    now = _settings(session)
    if other := sorted(key for key in now if now[key] != settings.get(key)):
        raise AbmllError(
            f"{saved.folder}: the rows held back were answered with another {' and '.join(other)} than now, so the "
            "promise would not hold. Use the settings of `adapt`, or give the labelled rows again with --held-back FILE"
        )
    return found


def _refuse_unsealed(saved: SavedTask) -> None:
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


def fresh_answers(session: Session, saved: SavedTask, rows: Sequence[Question]) -> HeldBack:
    """Answers to labelled rows that a user gives with --held-back; of a group, or of rows that ask the same, one.

    Raises:
        AbmllError: one of them was adapted to (names file and line), or the saved task does not say what was, or is not
            known to be what was saved.
    """
    _refuse_unsealed(saved)
    used = saved.details.get("adapted_to")
    if not isinstance(used, list):
        raise AbmllError(f"{saved.folder}: does not say what it was adapted to; adapt again with `abmll adapt --save`")
    refuse_used(rows, used)
    return hold_answers(session, one_of_each(rows, np.random.default_rng(session.config.adaptation.seed)))
