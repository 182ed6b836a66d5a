"""Watch a saved task: tell when new labelled answers say that its promise fails.

The promise is that of `abmll predict --abstain-below-risk` (docs/everyday.md): a share of wrong answers. Whether new
labels contradict it is tested by bets, `abmll.metrics.betting`, so one may look after every label.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from abmll.adapters.folder import checksum
from abmll.errors import AbmllError
from abmll.everyday.adapt import check_enough_held_back, layout_of, one_of_each, refuse_used, saved_answers
from abmll.everyday.labelled import Labelled
from abmll.everyday.predict import PILOT
from abmll.everyday.saved import SavedPosterior, read_posterior
from abmll.everyday.session import open_run
from abmll.everyday.shipped import find_run
from abmll.metrics.abstention import check_share, choose_threshold
from abmll.metrics.betting import LEVEL
from abmll.process.lock import locked_folder
from abmll.tables.identity import clusters, row_keys
from abmll.tables.layouts import Layout
from abmll.watching.answers import LabelledAnswers, read_answers
from abmll.watching.state import FOLDER, Counted, read_counted, write_counted

__all__ = ["Counted", "WatchOptions", "Watched", "watch_task"]


@dataclass(frozen=True)
class Watched:
    """What new labelled answers say of a promise.

    Attributes:
        counted: all answers that count, with those of earlier calls.
        new: how many of them are of this call.
        again: answers left out, as their row or another one of their group was counted before.
        silent: labelled rows that were not answered, about which nothing is promised.
        unlabelled: rows without a label.
        began_anew: the task was adapted again since, so that earlier answers do not count.
    """

    counted: Counted
    new: int
    again: int
    silent: int
    unlabelled: int
    began_anew: bool = False

    @property
    def fails(self) -> bool:
        """Whether the promise was found to fail: wrong in a share `LEVEL` of the tasks that keep theirs, at most."""
        return self.counted.alarm is not None

    def remarks(self) -> list[str]:
        """What was left out of this call's rows, and why."""
        left_out = {
            "without a label": self.unlabelled,
            "not answered, about which nothing is promised": self.silent,
            "counted before, or of a row or group that is": self.again,
        }
        remarks = [f"left out: {count:,} rows {why}" for why, count in left_out.items() if count]
        if self.began_anew:
            remarks.append("the task was adapted again since, so that counting began anew")
        return remarks

    def describe(self) -> str:
        """The result in a line, with what to do on an alarm."""
        counted = self.counted
        total, risk = len(counted.wrong), counted.risk
        share = f" ({100 * counted.errors / total:.1f} %)" if total else ""
        what = f"{counted.errors} of {total:,} labelled answers are wrong{share}, {self.new:,} of the {total:,} are new"
        if counted.alarm is None:
            evidence = f"evidence {counted.evidence:.2g} of {1 / LEVEL:g}"
            return f"No alarm: {what}; promised is {100 * risk:g} % at most, {evidence}"
        return (
            f"ALARM at label {counted.alarm:,}: the promise of {100 * risk:g} % at most fails: {what}. At most "
            f"{100 * LEVEL:g} % of the tasks that keep their promise have an alarm. Rows may have changed since the "
            "task was adapted: adapt again with new rows among the labelled ones, and hold new rows back; or accept a "
            "higher risk (--restart --abstain-below-risk R)"
        )


@dataclass(frozen=True)
class WatchOptions:
    """How rows are read and counted.

    Attributes:
        risk: share of wrong answers that was promised; None: that of the first call.
        label: column of the labels, if it is not that of the task.
        prefix: what stands before the names of the columns that `abmll predict` added.
        restart: forget what was counted.
        overrides: settings for answering, where rows have no predictions.
    """

    risk: float | None = None
    label: str | None = None
    prefix: str = ""
    restart: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)


def watch_task(run: Path | str, task: str, rows: Path | str, options: WatchOptions = WatchOptions()) -> Watched:
    """Count new labelled answers against the promise of a saved task, and say whether it fails.

    With errors E among n answers, whoever bet against the promise has W(E, n); at W = 1 / .05 the promise fails.

    Args:
        run: its run directory.
        task: its name.
        rows: a table of labelled rows, with the columns of `abmll predict --abstain-below-risk` (rows without a label
            are left out), or without predictions: then they are answered here. Rows that were counted before count
            once, so that a growing table can be given again.
        options: the promised risk, needed the first time, and how rows are read.

    Returns:
        What was counted, also written to `watch/TASK/counted.json` of the run, and whether the promise fails.

    Raises:
        AbmllError: there is no such task, a row is bad or was adapted to, the risk is another than before, ...
        OSError: the disk is full, ...; what was counted before is then as it was.
    """
    folder = find_run(run)
    saved = read_posterior(folder, task)
    layout = layout_of(saved)
    found = read_answers(Path(rows), layout if options.label is None else _named(layout, options.label), options.prefix)
    refuse_used(Labelled(layout, found.rows), _adapted_to(saved))
    place = folder / FOLDER / saved.name
    if not place.resolve().is_relative_to(folder.resolve()):
        raise AbmllError(f"{place}: a link that leaves the run directory; remove it")
    with locked_folder(place, wait=True):
        before, anew = _before(place, saved, options)
        if found.predictions is None:
            found, before = _answered_here(saved, folder, found, before, options.overrides)
        watched = replace(_count(found, before), began_anew=anew)
        write_counted(place, saved.name, watched.counted)
    return watched


def _named(layout: Layout, label: str) -> Layout:
    if layout.labels is None:
        raise AbmllError(f"--label {label}: is for texts and labels; the answers of questions are in the column answer")
    return replace(layout, label=label)


def _adapted_to(saved: SavedPosterior) -> list[str]:
    used = saved.details.get("adapted_to")
    if not saved.sealed or not isinstance(used, list):
        raise AbmllError(
            f"{saved.folder}: its task.json has no SHA-256, or does not say what was adapted to, so nothing is "
            "promised by it; adapt again with `abmll adapt --save --replace`"
        )
    return used


def _before(place: Path, saved: SavedPosterior, options: WatchOptions) -> tuple[Counted, bool]:
    """What was counted before, and whether a new adaptation makes that void."""
    if options.risk is not None:
        check_share("--abstain-below-risk", options.risk)
    adapter = checksum(saved.folder)
    counted = None if options.restart else read_counted(place, saved.name)
    anew = counted is not None and counted.adapter != adapter
    if counted is None or anew:
        risk = counted.risk if options.risk is None and counted is not None else options.risk
        if risk is None:
            raise AbmllError(
                f"{saved.folder}: is not watched yet: --abstain-below-risk R says what was promised, as in "
                "`abmll predict`"
            )
        return Counted(risk, adapter), anew
    if options.risk not in (None, counted.risk):
        raise AbmllError(
            f"{place}: watches for a share of {counted.risk:g}, not {options.risk:g}; leave --abstain-below-risk out, "
            "or forget what was counted with --restart"
        )
    return counted, False


def _answered_here(
    saved: SavedPosterior, folder: Path, found: LabelledAnswers, counted: Counted, overrides: Mapping[str, Any]
) -> tuple[LabelledAnswers, Counted]:
    """The rows answered by the task, above a threshold that is fixed by the rows held back the first time."""
    session = open_run(folder, overrides, saved)
    try:
        held_back = saved_answers(session, saved)
        check_enough_held_back(counted.risk, 0 if held_back is None else len(held_back.confidence))
        answers = session.answer(found.rows)
    finally:
        session.system.close()
    if counted.threshold is None and held_back is not None:
        unlabelled = np.array([answer.confidence for answer in answers[:PILOT]])
        chosen = choose_threshold((held_back.confidence, held_back.correct), unlabelled, counted.risk)
        if chosen is None:
            raise AbmllError(
                f"{saved.folder}: no threshold keeps the promise of at most {100 * counted.risk:g} % wrong answers: "
                "there is nothing to watch"
            )
        counted = replace(counted, threshold=max(chosen.threshold, 0.0))
    limit = counted.threshold or 0.0
    predictions = tuple(answer.choice if answer.confidence >= limit else None for answer in answers)
    return replace(found, predictions=predictions), counted


def _count(found: LabelledAnswers, counted: Counted) -> Watched:
    """Of the answers those that count: one of each row and group, drawn at random, none that was counted before."""
    said = [
        (row, choice) for row, choice in zip(found.rows, found.predictions or (), strict=True) if choice is not None
    ]
    keys = row_keys([row for row, _ in said], by_context=True)
    of_row = [frozenset(key for key in each if key is not None) for each in keys]
    numbers = clusters(keys)
    known = {number for number, each in zip(numbers, of_row, strict=True) if each & counted.seen}
    rng = np.random.default_rng(len(counted.wrong))
    chosen = sorted(one_of_each(numbers, rng, set(numbers) - known))
    wrong = [said[i][1] != said[i][0].answer for i in chosen]
    fresh = frozenset(key for number, each in zip(numbers, of_row, strict=True) if number not in known for key in each)
    silent = len(found.rows) - len(said)
    return Watched(counted.with_more(wrong, fresh), len(chosen), len(said) - len(chosen), silent, found.unlabelled)
