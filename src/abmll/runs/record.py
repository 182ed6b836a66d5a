"""What a run was trained on and how far, written for its model card; and its scores on unseen tasks, with intervals."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError

from abmll.errors import AbmllError
from abmll.files import read_sealed_json, write_sealed_json
from abmll.metrics.calibration import expected_calibration_error
from abmll.metrics.not_finite import END, read_not_finite
from abmll.metrics.predictions import Predictions, read_predictions
from abmll.metrics.resampling import group_numbers
from abmll.metrics.scores import confidence_and_correct, question_nll
from abmll.metrics.statistics import (
    Interval,
    stratified_bootstrap_interval,
    stratified_ece_bootstrap_interval,
)
from abmll.question import Task
from abmll.scoring.posterior import posterior_probabilities
from abmll.scoring.scores import score
from abmll.tasks.catalogue.entries import catalogue_entry, catalogue_names

RECORD, COST, ENVIRONMENT = "trained.json", "cost.json", "environment.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskFacts(_Part):
    """A task that a run learned from: its labelled rows, where they came from, and their licence, as far as known.

    `dataset` is its id on the hub, for a set of the catalogue.
    """

    name: str
    rows: int
    source: str
    licence: str
    dataset: str | None = None


class TrainingRecord(_Part):
    """What the shared weights of a run are.

    Attributes:
        step: meta-iterations that led to them.
        examples: questions that these used.
        train: tasks that were trained on.
        validation: tasks that the step was chosen by.
    """

    step: int
    examples: int
    train: tuple[TaskFacts, ...]
    validation: tuple[TaskFacts, ...] = ()


def task_facts(task: Task) -> TaskFacts:
    """The facts of a task.

    >>> from abmll.tasks.sources import load_tasks
    >>> task_facts(load_tasks("builtin:capitals")[0]).licence
    'Apache-2.0; the facts are of GeoNames, CC BY 4.0'
    """
    hub = task.source.startswith(f"hub:{task.name} ") and task.name in catalogue_names()
    dataset, source = (catalogue_entry(task.name).hub, task.source) if hub else (None, _file_names(task.source))
    return TaskFacts(name=task.name, rows=len(task.train), source=source, licence=task.licence, dataset=dataset)


def _file_names(source: str) -> str:
    """Files without their folders: a card is for sharing, and folders name the user's machine."""
    return ", ".join(Path(part).name for part in source.split(", "))


def write_training_record(run: Path, record: TrainingRecord) -> None:
    """Write the record into a run directory."""
    write_sealed_json(run / RECORD, record.model_dump(mode="json"))


def read_training_record(run: Path) -> TrainingRecord | None:
    """The record of a run; None if an earlier version made it, which wrote none.

    Raises:
        AbmllError: it is damaged.
    """
    if not (run / RECORD).exists():
        return None
    try:
        return TrainingRecord.model_validate(read_sealed_json(run / RECORD))
    except ValidationError as error:
        raise AbmllError(f"{run / RECORD}: not what a run writes ({error.errors()[0]['msg']}); delete it") from error


@dataclass(frozen=True)
class ScoreRow:
    """Scores on one task, or the unweighted mean over several; intervals are of 95 %, over questions or groups.

    Attributes:
        task: its name.
        questions, draws: answered; and how often others were drawn to adapt on.
        accuracy, nll, ece: each with its interval; the ECE of 15 equal-width bins of the choices' probability.
        nll_posterior: the NLL at the posterior temperature, with its interval; both None where a file has none.
    """

    task: str
    questions: int
    draws: int
    accuracy: float
    accuracy_interval: Interval
    nll: float
    nll_interval: Interval
    ece: float
    ece_interval: Interval
    nll_posterior: float | None = None
    nll_posterior_interval: Interval | None = None


def owner(file: str, system: str, seed: int) -> str:
    """What a file of a run in a comparison is sealed for: that of another seed or system in its place is noticed.

    >>> owner(COST, "lora", 3)
    'cost.json of lora seed 3'
    """
    return f"{file} of {system} seed {seed}"


def folder_name(examples: int) -> str:
    """The folder of predictions by the weights after so many questions.

    >>> folder_name(360)
    'examples-00000360'
    """
    return f"examples-{examples:08d}"


def score_run(run: Path, examples: int) -> tuple[ScoreRow, ...]:
    """A row for each unseen task that was predicted by the weights after so many questions, and one for their mean.

    A task with a draw that is not finite has no row, and then there is no mean either.

    Raises:
        AbmllError: a predictions file is damaged.
    """
    broken = broken_tasks(run, examples)
    by_task: dict[str, list[Predictions]] = defaultdict(list)
    for file in sorted((run / "predictions" / folder_name(examples)).glob("draw-*/*.jsonl")):
        predictions = read_predictions(file)
        if predictions.task not in broken and _asks_the_same(predictions, by_task[predictions.task]):
            by_task[predictions.task].append(predictions)
    rows = [_row(task, {task: draws}) for task, draws in by_task.items()]
    return (*rows, _row("mean", by_task)) if len(rows) > 1 and not broken else tuple(rows)


def broken_tasks(run: Path, examples: int) -> tuple[str, ...]:
    """Unseen tasks that were not finite by the weights after so many questions, in some draw.

    Raises:
        AbmllError: a file is damaged.
    """
    files = sorted((run / "predictions" / folder_name(examples)).glob(f"draw-*/*{END}"))
    return tuple(dict.fromkeys(read_not_finite(file).asked.task for file in files))


def mean_scores(files: Sequence[Path]) -> dict[str, float]:
    """Mean over predictions files of every score that all of them have.

    Raises:
        AbmllError: a file is missing or damaged.
    """
    by_file = [score(read_predictions(file)).to_dict() for file in files]
    values = {n: [v for scores in by_file if (v := scores[n]) is not None] for n in (by_file[0] if by_file else ())}
    return {name: float(np.mean(each)) for name, each in values.items() if len(each) == len(by_file)}


def _asks_the_same(one: Predictions, others: Sequence[Predictions]) -> bool:
    """Draws that were answered on another number of questions (`adaptation.test_questions`) cannot be averaged."""
    return all([row.id for row in one.rows] == [row.id for row in other.rows] for other in others)


def _row(name: str, tasks: Mapping[str, Sequence[Predictions]]) -> ScoreRow:
    said = {t: [confidence_and_correct(p.probabilities(), p.answers()) for p in draws] for t, draws in tasks.items()}
    sure = {t: (np.stack([c for c, _ in runs]), np.stack([right for _, right in runs])) for t, runs in said.items()}
    right = {t: correct.astype(np.float64) for t, (_, correct) in sure.items()}
    nll = {t: np.stack([question_nll(p.probabilities(), p.answers()) for p in draws]) for t, draws in tasks.items()}
    groups = {t: group_numbers([row.group for row in draws[0].rows]) for t, draws in tasks.items()}
    ece = [np.mean([expected_calibration_error(c, r) for c, r in runs]) for runs in said.values()]
    posterior = _nll_posterior(tasks)
    return ScoreRow(
        task=name,
        questions=sum(values.shape[-1] for values in nll.values()),
        draws=min(len(draws) for draws in tasks.values()),
        accuracy=float(np.mean([values.mean() for values in right.values()])),
        accuracy_interval=stratified_bootstrap_interval(right, groups=groups),
        nll=float(np.mean([values.mean() for values in nll.values()])),
        nll_interval=stratified_bootstrap_interval(nll, groups=groups),
        ece=float(np.mean(ece)),
        ece_interval=stratified_ece_bootstrap_interval(sure, groups=groups),
        nll_posterior=None if posterior is None else float(np.mean([values.mean() for values in posterior.values()])),
        nll_posterior_interval=None if posterior is None else stratified_bootstrap_interval(posterior, groups=groups),
    )


def _nll_posterior(tasks: Mapping[str, Sequence[Predictions]]) -> dict[str, Float[np.ndarray, "D N"]] | None:
    """The NLL of each draw's questions at the posterior temperature; None if a file has no posterior."""
    out = {}
    for task, draws in tasks.items():
        answered = [posterior_probabilities(found) for found in draws]
        known = [question_nll(p, found.answers()) for p, found in zip(answered, draws, strict=True) if p is not None]
        if len(known) < len(draws):
            return None
        out[task] = np.stack(known)
    return out
