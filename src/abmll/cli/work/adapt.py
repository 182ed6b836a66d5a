"""The work of `abmll adapt --save`: labelled rows to a saved task, and a check whether that was worth it."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from abmll.cli.console import err_console, note, out_console, say
from abmll.cli.progress import ProgressDisplay, duration
from abmll.config import RunConfig
from abmll.errors import AbmllError
from abmll.everyday.adapt import Adapted, adapt_and_save, hold_back, temperature_in_prompt
from abmll.everyday.bases import base_name
from abmll.everyday.check import Checked, check_and_learn, estimate_seconds
from abmll.everyday.labelled import FEWEST, MOST_SHOWN, Labelled
from abmll.everyday.saved import check_free, write_details
from abmll.everyday.session import Session, is_trained, open_run, settings_of
from abmll.everyday.shipped import find_run
from abmll.metrics.usefulness import Usefulness, UsefulnessRow
from abmll.process.stopping import Stopped
from abmll.systems.folds import Fold
from abmll.systems.temperature import TaskTemperature
from abmll.text_classifiers import Encode, load_encoder

TRIED = 20
"""Rows by which it is told how many examples fit before one."""


@dataclass(frozen=True)
class SaveRequest:
    """What is saved, and how.

    Attributes:
        name: of the saved task.
        source: name of the file or tasks that the rows are from.
        hold_back: number of rows that are not adapted to.
        check: whether adapting was worth it is checked at the end.
        replace: a saved task of this name is replaced.
        vectors: the sentence encoder that the check compares with; None: it does not.
        in_prompt: nothing is adapted: the rows stand before every row in its prompt.
    """

    name: str
    source: str
    hold_back: int
    check: bool
    replace: bool
    vectors: str | None = None
    in_prompt: bool = False


def adapt_to_rows(run: str, labelled: Labelled, overrides: Mapping[str, Any], request: SaveRequest) -> None:
    """Adapt to labelled rows, save the posterior, and check it."""
    folder = find_run(run)
    check_free(folder, request.name, replace=request.replace)
    for remark in labelled.remarks():
        note(f"note: {remark}")
    config = settings_of(folder, overrides)
    if request.in_prompt:
        _check_base(config, folder)
    dealt = hold_back(labelled.clusters, request.hold_back, config.adaptation.seed)
    encode = None if request.vectors is None or not request.check else load_encoder(request.vectors)
    err_console.print(f"loading the model of {folder}", highlight=False)
    session = open_run(folder, overrides)
    fitted, count = [labelled.rows[i] for i in dealt.fitted], len(dealt.fitted)
    if request.in_prompt:
        session = session.prompting(fitted)
    elif session.undecided:
        session = session.decided(fitted)
    if session.choice:
        note(f"likelihood: {session.choice.why}")
    adapting = f"adapting to {count} rows: {session.plan(count).steps} steps"
    note(_about_prompt(session) if request.in_prompt else adapting)
    adapted = _adapt_with_progress(session, labelled, dealt, request)
    cut = len(session.system.batcher.encoder.truncated)
    if cut:
        note(f"note: {session.about_long_rows(cut)}. Set likelihood.max_tokens higher to keep more")
    aside = f", {len(dealt.answered)} held back" if dealt.answered else ""
    labels = labelled.layout.labels or ()
    names = f"; labels: {', '.join(labels)}" if len(labels) <= MOST_SHOWN else f"; {len(labels)} labels"
    kinds = names if labels else ""
    used = "as examples in the prompt" if request.in_prompt else "adapted to"
    say(f"Saved: {folder / 'tasks' / request.name} ({count} rows {used}{aside}{kinds})")
    learn = _learn_in_prompt if request.in_prompt else _check
    temperature = learn(session, request.name, adapted, encode) if request.check else None
    _tell_of(temperature or adapted.temperature)
    say(f"\nNext: abmll predict {folder} --task {request.name} ROWS.csv -o OUT.csv")


def _check_base(config: RunConfig, folder: Path) -> None:
    """Refuse a trained run: the check, which advises the prompt, asks the base model alone."""
    if is_trained(config, folder):
        base = base_name(config.model.source or "BASE")
        raise AbmllError(
            f"--in-prompt is for a base model, and {folder} was trained: "
            f"abmll adapt {base} ROWS --in-prompt --save NAME"
        )


def _about_prompt(session: Session) -> str:
    """That nothing is adapted, and how many of the rows fit into a prompt."""
    batcher, most = session.system.batcher, session.config.likelihood.max_tokens
    rows = batcher.examples
    fitting = [len(batcher.encoder.fitting(row, [r for r in rows if r is not row])) for row in rows[:TRIED]]
    least, top = min(fitting), max(fitting)
    count = f"{top}" if least == top else f"{least} to {top}"
    return (
        f"no adapting: {count} of {len(rows)} labelled rows fit before a row in {most:,} tokens "
        "(likelihood.max_tokens), and are saved with the task"
    )


def _adapt_with_progress(session: Session, labelled: Labelled, dealt: Fold, request: SaveRequest) -> Adapted:
    keep: dict[str, Any] = {"source": request.source, "replace": request.replace}
    with ProgressDisplay(err_console) as display:
        display({"event": "plan", "units": session.plan(len(dealt.fitted)).steps, "done": 0})

        def show_progress(done: int) -> None:
            display({"event": "counted", "what": "steps of adapting", "units": 1})

        return adapt_and_save(session, request.name, labelled, dealt, **keep, tell=show_progress)


def _tell_of(temperature: TaskTemperature) -> None:
    """What `abmll predict` will do to the probabilities."""
    say(f"\nTemperature of the answers: {temperature.describe()}.")
    if not temperature.changes:
        say("The check learns one, from the rows that it answers out of their parts.")


def _learn_in_prompt(session: Session, name: str, adapted: Adapted, encode: Encode | None) -> TaskTemperature | None:
    """Learn the temperature from every labelled row with the others in its prompt, and keep it with the task."""
    used = adapted.used
    if len(set(used.clusters)) < FEWEST:
        return None
    seconds = adapted.answer_seconds * len(used.rows) * session.drawing.samples
    note(f"its temperature: each labelled row is answered with the others in its prompt, in about {duration(seconds)}")
    temperature = temperature_in_prompt(session, used)
    found = {"temperature": temperature.model_dump(mode="json")}
    write_details(session.folder, name, {**adapted.details, **found}, before=adapted.details)
    return temperature


def _check(session: Session, name: str, adapted: Adapted, encode: Encode | None) -> TaskTemperature | None:
    """Check, show and keep what was found; the temperature that was learned, None where there was no such check."""
    count = len(set(adapted.used.clusters))
    if count < FEWEST:
        say(
            f"\nIs it worth it on this task? {count} different rows or groups cannot tell: {FEWEST} is the fewest, 20 "
            "or more are better."
        )
        return None
    lengths = [len(q.context) + len(q.question) + sum(map(len, q.choices)) for q in adapted.used.rows]
    seconds = estimate_seconds(session, lengths, adapted.step_seconds, adapted.answer_seconds)
    note(
        f"Is it worth it on this task? A check will take about {duration(seconds)}. The task is saved already: Ctrl-C "
        "stops the check alone, and --no-check leaves it out"
    )
    try:
        checked = _check_with_progress(session, adapted, encode)
    except Stopped as stopped:
        note("the check was stopped; the task is saved")
        if stopped.signal != signal.SIGINT:
            raise
        return None
    _show(checked.worth)
    found: dict[str, Any] = {"check": checked.worth.to_dict()}
    if checked.temperature is not None:
        found["temperature"] = checked.temperature.model_dump(mode="json")
    write_details(session.folder, name, {**adapted.details, **found}, before=adapted.details)
    return checked.temperature


def _check_with_progress(session: Session, adapted: Adapted, encode: Encode | None) -> Checked:
    with ProgressDisplay(err_console) as display:
        reported = 0.0

        def show_progress(folds: float, total: int) -> None:
            nonlocal reported
            if not reported:
                display({"event": "plan", "units": total, "done": 0})
            display({"event": "counted", "what": "parts of the check", "units": folds - reported})
            reported = folds

        return check_and_learn(session, adapted.used, show_progress, encode)


def _show(worth: Usefulness) -> None:
    groups = f" in {worth.clusters} groups" if worth.clusters < worth.n else ""
    title = (
        f"Is it worth it on this task? {worth.n} labelled rows{groups}, {worth.folds} parts, each answered by what was "
        "fitted to the others"
    )
    table = Table("", "Accuracy %", "95 %", "NLL", "95 % ", "s / 1,000", title=title, title_justify="left")
    for row in worth.rows:
        table.add_row(*_cells(row))
    out_console.print()
    out_console.print(table)
    for line in (*worth.text, *(worth.advice.text if worth.advice else ())):
        say(line)
    say("s / 1,000: seconds for 1,000 rows, measured on this machine while these rows were answered, a few at a time.")
    if worth.left_out:
        say("Left out: " + "; ".join(f"{name} ({why})" for name, why in worth.left_out.items()) + ".")


def _cells(row: UsefulnessRow) -> tuple[str, ...]:
    if row.accuracy is None or row.accuracy_interval is None or row.nll is None or row.nll_interval is None:
        return row.name, "not finite", "", "not finite", "", ""
    (low, high), (least, most) = row.accuracy_interval, row.nll_interval
    shares = f"{100 * row.accuracy:.1f}", f"{100 * low:.0f} to {100 * high:.0f}"
    cost = "" if row.seconds is None else f"{row.seconds:.2g}"
    return row.name, *shares, f"{row.nll:.3f}", f"{least:.3f} to {most:.3f}", cost
