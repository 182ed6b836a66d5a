"""The work of `abmll export`: an adapter written for other programs, read again and compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abmll.adapters.facts import StoredAdapter
from abmll.cli.console import err_console, say
from abmll.config import RunConfig
from abmll.errors import AbmllError
from abmll.everyday.adapt import layout_of
from abmll.everyday.labelled import read_unlabelled
from abmll.everyday.probe import read_probe, with_same_tokenizer
from abmll.everyday.saved import SavedPosterior, read_posterior
from abmll.everyday.session import closing_on_error, read_shared, settings_of, temperature_of
from abmll.everyday.shipped import find_run
from abmll.exporting import check_size, export_mean, export_merged, merged_bytes
from abmll.exporting.calibrated import (
    Calibration,
    calibrate,
    check_has_draws,
    of_the_mean,
    spread_questions,
    write_calibrated,
)
from abmll.exporting.size import describe_bytes
from abmll.question import Question
from abmll.runs.card import About, about_run
from abmll.runs.overrides import OWN_ROWS
from abmll.runs.prepare import tasks_of
from abmll.systems.adapters import use_adapter
from abmll.systems.build import build_system, load_base
from abmll.systems.plans import PredictionPlan
from abmll.systems.system import System
from abmll.systems.temperature import TaskTemperature
from abmll.tables.layouts import Layout


@dataclass(frozen=True)
class ExportOptions:
    """How `abmll export` writes.

    Attributes:
        merge: a whole model with the adapter merged into it.
        draw: with `merge`, number of the posterior draw; None: the mean.
        calibrated: the mean, and the temperature it needs.
        questions: with `calibrated`, a file of questions; None: those of the run's training tasks.
        count: with `calibrated`, most training questions to use.
        force: merge even if the dtype swallows the update.
        confirmed: more than 1 GB is meant.
    """

    merge: bool
    draw: int | None
    calibrated: bool
    questions: Path | None
    count: int
    force: bool
    confirmed: bool


@dataclass(frozen=True)
class _Export:
    """What is exported, where to, and how."""

    run: Path
    out: Path
    task: SavedPosterior | None
    config: RunConfig
    stored: StoredAdapter
    about: About
    options: ExportOptions


def export_adapter(run: str, out: Path, task: str | None, overrides: Mapping[str, Any], options: ExportOptions) -> None:
    """Export the shared weights of a run, or those of a saved task."""
    folder = find_run(run, copy=task is not None)
    saved = None if task is None else read_posterior(folder, task)
    if saved is not None:
        saved.check_adapted("export")
    fixed = {name: why for name, why in OWN_ROWS.items() if name != "tasks"}  # --calibrated asks the training tasks
    config = settings_of(folder, overrides, saved, fixed)
    stored = read_shared(folder) if saved is None else saved.adapter
    about = about_run(folder, stored.facts, None if saved is None else saved.details, task or "")
    export = _Export(folder, out, saved, config, stored, about, options)
    try:
        if options.merge:
            _merge(export)
        elif options.calibrated:
            _calibrate(export)
        else:
            _announce(export, "the mean as a PEFT LoRA", stored.bytes)
            export_mean(stored, out, confirmed=options.confirmed, about=about)
    except OSError as error:
        raise AbmllError(f"{out}: cannot be written ({error.strerror or error}); nothing was kept") from error
    say(f"Written, read again and compared: {out}")


def _merge(export: _Export) -> None:
    m, draw = export.config.model, export.options.draw
    if m.quantisation is None:  # else `export_merged` says what to do
        size = merged_bytes(m.source, m.shape, m.revision, m.dtype, m.device)
        what = "a whole model with the mean merged in" if draw is None else f"a whole model of posterior draw {draw}"
        _announce(export, what, size)
    report = export_merged(
        _system(export),
        export.out,
        draw=draw,
        force=export.options.force,
        confirmed=export.options.confirmed,
        about=export.about,
    )
    change = f"{report.largest_logit_change:.2g} of {report.logit_scale:.3g}"
    say(f"Rounding: {report.rounding.describe()}")
    say(
        f"Logits against the adapter on its base: largest change {change}, same top token for "
        f"{100 * report.top_token_agreement:.4g} % of {report.probes} random tokens"
    )


def _calibrate(export: _Export) -> None:
    _announce(export, "the mean as a PEFT LoRA, and its temperature", export.stored.bytes)
    temperature = None if export.task is None else temperature_of(export.task, export.config)
    calibration = _calibration(export, temperature)
    options: dict[str, Any] = {"confirmed": export.options.confirmed, "about": export.about}
    write_calibrated(export.stored, calibration, export.out, temperature=temperature, **options)
    if temperature is not None:
        say(f"Temperature of the task: {temperature.describe()}")
    if calibration.before is None or calibration.after is None:
        return
    say(
        f"Temperature {calibration.temperature:.4g}, from {calibration.questions} questions and {calibration.draws} "
        "posterior draws"
    )
    for name, distance in (("as it is", calibration.before), ("calibrated", calibration.after)):
        say(
            f"The mean {name}, against the averaged draws: KL {distance.mean_kl:.2g} nats, largest difference "
            f"{distance.largest:.2g}, same answer {100 * distance.same_answer:.4g} %"
        )


def _calibration(export: _Export, temperature: TaskTemperature | None) -> Calibration:
    """What brings the mean near to the answers of `abmll predict`: nothing where the task is answered by the mean.

    A task without a temperature is compared with its draws, whatever it is answered by.

    Raises:
        AbmllError: there are no draws to come near to, or no questions.
    """
    a, questions = export.config.adaptation, export.options.questions
    by_mean = a.sampler == "mean" or not export.stored.facts.has_std
    if temperature is not None and temperature.changes and by_mean:
        if questions is not None:
            say(f"{questions}: not asked, as this task is answered by its mean weights and there are no draws")
        return of_the_mean(export.stored)
    if export.task is not None and questions is None:
        raise AbmllError("--calibrated with --task needs --questions: rows like those that the task will be asked")
    check_has_draws(export.stored)
    return calibrate(_system(export), _questions(export), PredictionPlan("weight", a.samples, a.batch_tokens))


def _questions(export: _Export) -> tuple[Question, ...]:
    file, task = export.options.questions, export.task
    if file is not None:
        return read_unlabelled(file, layout_of(task) if task and "layout" in task.details else Layout())
    return spread_questions(tasks_of(export.config.tasks.train), export.options.count)


def _system(export: _Export) -> System:
    """The run's system with the stored adapter in both slots."""
    m = export.config.model
    err_console.print(f"loading {m.source or m.shape}", highlight=False)
    system = build_system(export.config, load_base(m))
    with closing_on_error(system):
        encoder = system.batcher.encoder
        stored = with_same_tokenizer(export.stored, read_probe(export.run), system.language_model, encoder)
        use_adapter(stored, system, export.run if export.task is None else export.task.folder)
    return system


def _announce(export: _Export, what: str, size: int) -> None:
    say(f"Exporting {what}: {describe_bytes(size)} to {export.out}")
    check_size(size, export.out, export.options.confirmed)
