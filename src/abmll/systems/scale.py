"""The prior of a system's temperature, learned from its answers to rows of its training tasks, and its file.

The mathematics is that of `abmll.calibrators.temperature.PosteriorTemperature`: log T_i ~ N(mu, sd^2) for task i, with
(mu, sd) by empirical Bayes. Each training task gives one episode as at test time (`abmll.systems.meta_rows`): it is
adapted to, and rows that were not adapted to are answered. Folds of the examples would give as many answers by as many
adaptations as there are folds; here one gives them all.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from abmll.adapters.folder import checksum
from abmll.calibrators import ChoiceRows, TaskRows, calibrator_from_dict
from abmll.calibrators.quadrature import posterior
from abmll.calibrators.temperature import PosteriorTemperature, log_likelihood_of
from abmll.config import PosteriorConfig, RunConfig
from abmll.errors import AbmllError, NonFiniteError
from abmll.files import MOST_JSON, read_sealed_json, write_sealed_json
from abmll.question import Task
from abmll.systems.folds import Answered
from abmll.systems.plans import ResolvedRun
from abmll.systems.posteriors.settings import PosteriorSettings, resolve_posterior
from abmll.training.finite import without_folders

SCALE_FILE, ADAPTER = "calibrator.json", "adapter"
OWN, MEAN = "own", "mean"
"""The rows of a system: its answers as they are drawn, and those by its mean weights."""
FEWEST_TASKS = 2
"""Of fewer tasks a spread over tasks says nothing: the prior stays near the weak one it begins at."""
NEW_LORA = {"method": {"name": "pretrained", "inner_lr": 3e-4}, "adaptation": {"steps": 20, "batch_size": 2}}
"""How `abmll adapt BASE` fits a new LoRA to own rows, which nothing was meta-trained for."""
NEW_LORA_PRIOR = (PosteriorTemperature(mu=0.23, sd=0.32), 12)
"""The prior of log T of such a LoRA, and the data sets that it was learned from: by empirical Bayes on answers out of
folds to 20 and 60 rows of each, from base models of 0.5 and 1.5 billion weights. benchmarks/own has it and what it is
worth on sets that it was not learned from."""
NO_OTHER_SCALE = ("cut", "max_tokens", "share_prefix", "share_labels")
"""Settings of a likelihood that say how long texts are cut, and how scores are computed, not what a score is."""
TOO_SMALL = "too few rows to adapt to some and answer others"
log = logging.getLogger(__name__)

_ADVICE = "delete it: `abmll train` and `abmll compare` learn it again (adaptation.meta_rows)"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskScale(_Part):
    """What one training task says.

    Attributes:
        rows: that were answered.
        temperatures: the most probable T of each row of the system, given these answers and the prior.
    """

    rows: int
    temperatures: dict[str, float]


class Scale(_Part):
    """The prior of log T for each row of a system, and what it was learned from.

    Attributes:
        fitted_tasks: M, the tasks whose answers it was learned from; with 0 it is the weak prior.
        calibrators: by `OWN` and, for a system that draws weights, `MEAN`, as `Calibrator.to_dict` has them.
        tasks: those M.
        left_out: others that should have been answered, and why they were not.
    """

    fitted_tasks: int
    calibrators: dict[str, dict[str, Any]]
    tasks: dict[str, TaskScale]
    left_out: dict[str, str]

    def calibrator(self, row: str = OWN) -> PosteriorTemperature:
        """The calibrator of a row of the system.

        Raises:
            AbmllError: there is none, or it is none of this kind.
        """
        if row not in self.calibrators:
            raise AbmllError(f"no prior of the temperature for {row!r}; there are {', '.join(self.calibrators)}")
        found = calibrator_from_dict(self.calibrators[row])
        if not isinstance(found, PosteriorTemperature):
            raise AbmllError(f"calibrator {found.name!r} has no prior of the temperature")
        return found


Section = Literal["method", "likelihood", "adaptation", "posterior"]


class StoredScale(_Part):
    """The file: a scale, and whose it is.

    Attributes:
        weights: SHA-256 of the adapter (`abmll.adapters.folder.checksum`).
        step: the meta-iteration that its weights are of.
        answering: the settings that answers depend on besides, see `answering_settings`.
        meta_rows: `adaptation.meta_rows`.
        seed: `adaptation.seed`, by which rows were drawn.
        scale: the prior.
    """

    weights: str
    step: int
    answering: dict[Section, dict[str, Any]]
    meta_rows: int
    seed: int
    scale: Scale

    def is_of(self, run: ResolvedRun) -> bool:
        """Whether the run answers as these answers were made; a setting that a later version added is no difference."""
        now = answering_settings(run)
        return all({**now[name], **then} == now[name] for name, then in self.answering.items())

    def is_what(self, run: ResolvedRun) -> bool:
        """Whether learning it again, as the run asks for, would give the same."""
        a = run.config.adaptation
        return self.is_of(run) and (self.meta_rows, self.seed) == (a.meta_rows, a.seed)


def has_scale(run: ResolvedRun, folder: Path) -> bool:
    """Whether what `adaptation.meta_rows` asks for is there.

    A file that is of other weights, or damaged, counts as none: it is learned again. Of the second the user is told.
    """
    try:
        stored = _read(folder / SCALE_FILE)
    except AbmllError as error:
        log.warning("%s", error)
        return False
    return stored is not None and stored.weights == checksum(folder / ADAPTER) and stored.is_what(run)


def learn_scale(
    episodes: Mapping[str, Task | None], answer: Callable[[Task], Sequence[Answered]], rows: Sequence[str] = (OWN,)
) -> Scale:
    """Answer the test rows of every episode, and learn the prior of log T from the answers.

    A task whose answers are not finite, in any row of the system, is left out and named.

    Args:
        episodes: by task; None for a task that is too small for one.
        answer: adapts to an episode's train rows and answers its test rows, by each row of the system.
        rows: of the system, in the order of `answer`.

    Raises:
        Stopped: the process was asked to stop.
    """
    answers: dict[str, list[ChoiceRows]] = {}
    left_out = {name: TOO_SMALL for name, episode in episodes.items() if episode is None}
    for name, episode in episodes.items():
        if episode is None:
            continue
        try:
            answers[name] = [_choice_rows(answered) for answered in answer(episode)]
        except NonFiniteError as error:
            left_out[name] = without_folders(str(error), (*episode.train, *episode.test))
    nothing = ChoiceRows.from_scores(np.zeros((0, 1)))
    by_row = {row: {name: of_task[i] for name, of_task in answers.items()} for i, row in enumerate(rows)}
    priors = {
        row: PosteriorTemperature().meta_fit([TaskRows(name, held, nothing) for name, held in of_row.items()])
        for row, of_row in by_row.items()
    }
    tasks = {
        name: TaskScale(
            rows=len(held[0]),
            temperatures={row: _mode(of_row, priors[row]) for row, of_row in zip(rows, held, strict=True)},
        )
        for name, held in answers.items()
    }
    calibrators = {row: prior.to_dict() for row, prior in priors.items()}
    return Scale(fitted_tasks=len(tasks), calibrators=calibrators, tasks=tasks, left_out=left_out)


def _mode(rows: ChoiceRows, prior: PosteriorTemperature) -> float:
    """The most probable temperature."""
    return float(np.exp(posterior(log_likelihood_of(rows), prior.mu, prior.sd).mode))


def _choice_rows(answered: Answered) -> ChoiceRows:
    if isinstance(answered, NonFiniteError):
        raise answered
    return ChoiceRows.from_predictions(answered).labelled()


def answering_settings(run: ResolvedRun) -> dict[Section, dict[str, Any]]:
    """The settings that a system's answers to a task depend on, besides its weights; as JSON has them."""
    values = run.pinned.model_dump(mode="json")
    names = ("examples", "steps", "batch_size", "schedule", "sampler", "samples", "in_context")
    adaptation = {name: values["adaptation"][name] for name in names}
    sections: dict[Section, dict[str, Any]] = {"adaptation": adaptation}
    return sections | {name: values[name] for name in ("method", "likelihood", "posterior")}


def write_scale(folder: Path, run: ResolvedRun, step: int, scale: Scale) -> None:
    """Write the file into a run directory, beside the adapter that it belongs to."""
    a = run.config.adaptation
    stored = StoredScale(
        weights=checksum(folder / ADAPTER),
        step=step,
        answering=answering_settings(run),
        meta_rows=a.meta_rows,
        seed=a.seed,
        scale=scale,
    )
    write_sealed_json(folder / SCALE_FILE, stored.model_dump(mode="json"))


def read_scale(folder: Path) -> StoredScale | None:
    """The prior that is stored in a run directory; None if none was learned: then the weak one stands.

    Raises:
        AbmllError: the file is damaged, or belongs to other weights than those of the adapter beside it.
    """
    stored = _read(folder / SCALE_FILE)
    if stored is not None and stored.weights != checksum(folder / ADAPTER):
        file = folder / SCALE_FILE
        raise AbmllError(f"{file}: was learned with other weights than those in {folder / ADAPTER}; {_ADVICE}")
    return stored


def calibrator_of(folder: Path, config: RunConfig) -> PosteriorTemperature:
    """The calibrator of a run's answers to a user's rows: with the prior that was learned, or with the weak one.

    A run that carries none has that of a new LoRA (`NEW_LORA_PRIOR`) if it is one, and adapts as that was.

    How many rows are adapted to, in how many steps, and what a long text loses is up to the user; another likelihood is
    another scale, so is another posterior, and answers by the mean weights have a prior of their own.

    Args:
        folder: the run directory.
        config: of the run, with what the user set.

    Raises:
        AbmllError: as `read_scale`.
    """
    return prior_of(folder, config)[0]


def prior_of(folder: Path, config: RunConfig) -> tuple[PosteriorTemperature, int]:
    """`calibrator_of`, and the number of tasks that its prior was learned from: 0 for the weak one."""
    stored = read_scale(folder)
    if stored is None:
        return NEW_LORA_PRIOR if _is_new_lora(config) else (PosteriorTemperature(), 0)
    now = config.likelihood.model_dump(mode="json")
    if any(now[name] != value for name, value in stored.answering["likelihood"].items() if name not in NO_OTHER_SCALE):
        return PosteriorTemperature(), 0
    by_mean = config.adaptation.sampler == "mean" and MEAN in stored.scale.calibrators
    then = PosteriorConfig.model_validate(stored.answering.get("posterior", {}))  # of before there were any: none
    if not by_mean and _drawn_from(then) != _drawn_from(config.posterior):
        return PosteriorTemperature(), 0
    return stored.scale.calibrator(MEAN if by_mean else OWN), stored.scale.fitted_tasks


def _drawn_from(posterior: PosteriorConfig) -> tuple[str, PosteriorSettings | None]:
    return posterior.name, resolve_posterior(posterior.name, posterior.settings(), posterior.preset)


def _is_new_lora(config: RunConfig) -> bool:
    values = config.model_dump(mode="json")
    alike = all(values[section] | settings == values[section] for section, settings in NEW_LORA.items())
    same_scale = config.likelihood.kind != "channel"  # of which no answers were among those that the prior is of
    return alike and same_scale and config.adapter.start is None and config.posterior.name == "none"


def drop_stale_scale(folder: Path) -> None:
    """Remove the file of a run whose weights are no longer those that it was learned with."""
    stored = _read(folder / SCALE_FILE)
    if stored is not None and stored.weights != checksum(folder / ADAPTER):
        log.warning("%s: removed, as the weights that it was learned with were trained on", folder / SCALE_FILE)
        (folder / SCALE_FILE).unlink()


def _read(file: Path) -> StoredScale | None:
    if not file.exists():
        return None
    try:
        stored = StoredScale.model_validate(read_sealed_json(file, advice=_ADVICE, most=MOST_JSON))
        for row in stored.scale.calibrators:
            stored.scale.calibrator(row)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise AbmllError(f"{file}: {where}: {error.errors()[0]['msg']}; {_ADVICE}") from error
    except AbmllError as error:
        raise error if str(file) in str(error) else AbmllError(f"{file}: {error}; {_ADVICE}") from error
    return stored
