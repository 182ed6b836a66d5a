"""The work of `abmll predict`: rows answered and written, and the threshold below which nothing is predicted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table as RichTable

from abmll.cli.console import err_console, note, say
from abmll.cli.progress import ProgressDisplay
from abmll.errors import AbmllError
from abmll.everyday.adapt import HeldBack, fresh_answers, layout_of, saved_answers
from abmll.everyday.labelled import read_labelled
from abmll.everyday.predict import Written, predict_table
from abmll.everyday.saved import SavedPosterior, read_posterior
from abmll.everyday.session import Session, open_run
from abmll.everyday.shipped import find_run
from abmll.everyday.survey import Survey
from abmll.metrics.abstention import LEVEL, Covered, certify, choose_threshold, rows_needed
from abmll.tables.layouts import Layout

SHARES = (0.25, 0.5, 0.75, 1.0)
ChooseThreshold = Callable[[np.ndarray], Covered]
"""Confidences of rows without labels -> the threshold to answer by."""


@dataclass(frozen=True)
class PredictRequest:
    """What is predicted, and where it goes.

    Attributes:
        surveyed: the rows, and where their answers go.
        task: a saved task; None: the shared weights as they were trained.
        risk: share of answers that may be wrong; None: every row is answered.
        held_back: labelled rows that nothing was fitted to, for the threshold; None: those saved with the task.
        raw: probabilities as the model states them, without the temperature of the task.
    """

    surveyed: Survey
    task: str | None
    risk: float | None
    held_back: Path | None
    raw: bool = False


def predict_rows(run: str, overrides: Mapping[str, Any], request: PredictRequest) -> None:
    """Open the run, answer every row, and write."""
    folder, surveyed = find_run(run), request.surveyed
    saved = None if request.task is None else read_posterior(folder, request.task)
    layout = surveyed.layout if saved is None else layout_of(saved)
    if layout != surveyed.layout:
        raise AbmllError(f"{folder}: another process has replaced its task {request.task!r} meanwhile; predict again")
    err_console.print(f"{surveyed.rows:,} rows; loading the model of {folder}", highlight=False)
    session = open_run(folder, overrides, saved)
    if request.raw:
        session = replace(session, temperature=None)
    if session.temperature is not None:
        note(f"temperature: {session.temperature.describe()}")
    if session.undecided:
        note("likelihood: `cloze`, as no labelled rows decide; likelihood.kind=letter asks for letters")
    choose = None
    if request.risk is not None and saved is not None:
        choose = _chooser(_held_back(session, saved, layout, request.held_back), request.risk)
    _summarise(_predict(session, surveyed, choose), surveyed.out, session)


def saved_columns(run: str, task: str) -> Layout:
    """The columns that a saved task was adapted with.

    Raises:
        AbmllError: there is no such task, or it is damaged.
    """
    return layout_of(read_posterior(find_run(run), task))


def _predict(session: Session, surveyed: Survey, choose: ChooseThreshold | None) -> Written:
    with ProgressDisplay(err_console) as display:
        display({"event": "plan", "units": surveyed.rows, "done": 0})

        def show_progress(count: int) -> None:
            display({"event": "counted", "what": "rows answered", "units": count})

        return predict_table(session, surveyed, choose=choose, tell=show_progress)


def _held_back(session: Session, saved: SavedPosterior, layout: Layout, file: Path | None) -> HeldBack:
    if file is not None:
        return fresh_answers(session, saved, read_labelled(file, layout, fixed=layout.labels is not None))
    return saved_answers(session, saved) or HeldBack(np.zeros(0), np.zeros(0, dtype=bool))


def _chooser(held_back: HeldBack, risk: float) -> ChooseThreshold:
    """What chooses the threshold, once confidences of rows without labels are there.

    Raises:
        AbmllError: too few rows are held back, whatever they say.
    """
    need, have = rows_needed(risk), len(held_back.confidence)
    if have < need:
        _show_risk(held_back, risk)
        raise AbmllError(
            f"--abstain-below-risk {risk:g}: at {100 * LEVEL:.0f} % confidence it needs {need} labelled rows or more "
            f"(so many without an error) that were held back from adapting; here are {have}. "
            f"`abmll adapt --hold-back {need}` holds them back, --held-back FILE gives others. Nothing was written"
        )

    def choose(unlabelled: np.ndarray) -> Covered:
        threshold = choose_threshold((held_back.confidence, held_back.correct), unlabelled, risk)
        if threshold is None:
            _show_risk(held_back, risk)
            raise AbmllError(
                f"--abstain-below-risk {risk:g}: no threshold keeps the promise: {have} rows held back do not show an "
                f"error rate of at most {100 * risk:g} % anywhere. Hold more back, accept a higher risk, or predict "
                "without abstaining. Nothing was written"
            )
        return threshold

    return choose


def _show_risk(held_back: HeldBack, risk: float) -> None:
    """The risk-coverage estimate: how often the most confident answers are wrong. No promise is in it."""
    if not len(held_back.confidence):
        return
    table = RichTable(
        "answered %",
        "confidence from",
        "rows",
        "errors",
        "error %",
        "90 %",
        title="Risk and coverage on the rows held back (an estimate, not a promise)",
        title_justify="left",
    )
    order = np.sort(held_back.confidence)[::-1]
    cuts = sorted({float(order[max(1, round(share * len(order))) - 1]) for share in SHARES}, reverse=True)
    for test in certify(held_back.confidence, held_back.correct, cuts, risk):
        rate = "" if test.error_rate is None else f"{100 * test.error_rate:.1f}"
        ends = f"{100 * test.low:.0f} to {100 * test.high:.0f}"
        cells = (f"{100 * test.coverage:.0f}", f"{test.threshold:.3f}", str(test.answered), str(test.errors))
        table.add_row(*cells, rate, ends)
    err_console.print(table)


def _summarise(written: Written, out: Path, session: Session) -> None:
    if written.cut:
        note(f"note: {session.about_long_rows(written.cut)}")
    if (threshold := written.threshold) is not None:
        share = 100 * written.answered / written.rows
        note(
            f"Answered: {written.answered:,} of {written.rows:,} rows ({share:.0f} %), those of confidence "
            f"{max(0.0, threshold.threshold):.3f} or more. Of the rows held back {threshold.answered} were, "
            f"{threshold.errors} of them wrong"
        )
    say(f"Written: {out}, {written.rows:,} rows")
