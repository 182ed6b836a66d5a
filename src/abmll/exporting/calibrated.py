"""The mean as a LoRA, with what its probabilities need: to be as those of averaged draws, and as a task has them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax, xlogy

from abmll.adapters.facts import StoredAdapter
from abmll.adapters.folder import write_adapter
from abmll.deprecation import warn_renamed
from abmll.errors import AbmllError
from abmll.exporting.mean import source_of
from abmll.exporting.size import REPORT_FILE, check_size
from abmll.files import write_sealed_json
from abmll.methods.noise import POSTERIOR
from abmll.metrics.calibration import TEMPERATURES, check_finite
from abmll.metrics.scores import PROBABILITY_FLOOR, floored_probabilities
from abmll.question import Question, Task
from abmll.runs.card import About, write_card
from abmll.systems.plans import PredictionPlan
from abmll.systems.system import System
from abmll.systems.temperature import TaskTemperature

CALIBRATION_FILE = "calibration.json"
FORMAT = 2  # the first had no `task_temperature`, and always draws
DRAWN = PredictionPlan("weight")
"""As many posterior draws as predictions average by default."""
USE = {
    "letter": (
        "Ask for one token after the prompt and for the log-probabilities of the answer letters (logprobs of "
        "/v1/completions). Probability of a choice: exp(log-probability of its letter / temperature), divided by "
        "the sum of these over the question's letters."
    ),
    "cloze": (
        "Score each choice as the sum of its tokens' log-probabilities after the prompt, divided by its length as "
        "`normalisation` says; servers may be wrong in those of a prompt's own tokens. Probability of a choice: "
        "exp(score / temperature), divided by the sum of these over the question's choices."
    ),
    "channel": (
        "Score each choice as the sum of the log-probabilities of the question's tokens (context, an empty line, "
        "`Question: ` and the stem) after the prompt `Answer: `, the choice and a line break, divided by its length as "
        "`normalisation` says; servers may be wrong in those of a prompt's own tokens. Probability of a choice: "
        "exp(score / temperature), divided by the sum of these over the question's choices."
    ),
}
PREMISE = (
    " Before that, subtract from each score what the choice scores, likewise, after the prompt whose question is "
    "`premise`, without a context."
)
"""More of `USE`, for a likelihood that has one."""
OF_TASK = (
    " Last, with q the probabilities so far, `task_temperature` gives p_k = sum over g of weights_g q_k^(1/T_g) / (sum "
    "over the choices j of q_j^(1/T_g)), T_g = exp(log_temperatures_g)."
)
"""More of `USE`, for a task whose temperature was learned."""


@dataclass(frozen=True)
class Difference:
    """How far choice probabilities are from those of the averaged draws, over the questions.

    Attributes:
        mean_kl: mean KL(averaged draws || these), nats.
        largest: largest difference of one probability.
        same_answer: share of questions with the same most probable choice.
    """

    mean_kl: float
    largest: float
    same_answer: float


@dataclass(frozen=True)
class Calibration:
    """A temperature for the mean, and what it achieves.

    Attributes:
        temperature: what scores are divided by before the softmax over choices; includes the likelihood's own.
        relative_temperature: the same relative to the likelihood's own, 1 if the mean needs no calibration.
        questions: fitted to and measured on.
        draws: posterior draws 0 to draws - 1 that were averaged; 0 where the mean itself is what answers.
        before: the mean as it is, against the averaged draws; None without draws.
        after: the mean at this temperature, against them.
    """

    temperature: float
    relative_temperature: float
    questions: int
    draws: int
    before: Difference | None
    after: Difference | None


def export_calibrated(
    stored: StoredAdapter,
    system: System,
    questions: Sequence[Question],
    out: Path | str,
    *,
    plan: PredictionPlan = DRAWN,
    confirmed: bool = False,
    about: About | None = None,
    **old: int,
) -> Calibration:
    """Write the mean as `export_mean` does, and `calibration.json` with its temperature and what is left to the draws.

    Args:
        stored: what is written; the system's task slot holds it.
        system: predicts.
        questions: to fit the temperature to; their answers are not looked at.
        out: a folder that is new or empty.
        plan: how many posterior draws are averaged, and the most padded tokens of one forward pass.
        confirmed: whether more than a gigabyte is meant.
        about: for its model card; None: the card has the adapter's own facts alone.
        old: `draws` and `batch_tokens`, which `plan` has now.

    Returns:
        The temperature, and how near the mean is to the averaged draws without it and with it.

    Raises:
        AbmllError: there are no stds or no questions, the folder is in use, or what was read is not what was written.
        OSError: the disk is full, ...; nothing is left then.
    """
    out, plan = Path(out), _plan_with(plan, old)
    check_has_draws(stored)
    check_size(stored.bytes, out, confirmed)
    found = calibrate(system, questions, plan)
    write_calibrated(stored, found, out, confirmed=confirmed, about=about)
    return found


def write_calibrated(
    stored: StoredAdapter,
    found: Calibration,
    out: Path | str,
    *,
    temperature: TaskTemperature | None = None,
    confirmed: bool = False,
    about: About | None = None,
) -> None:
    """Write the mean, and how another program gets the library's probabilities from it.

    Args:
        stored: what is written.
        found: of `calibrate` or `of_the_mean`.
        out: a folder that is new or empty.
        temperature: of the task whose weights these are; None: none was learned.
        confirmed: whether more than a gigabyte is meant.
        about: for its model card; None: the card has the adapter's own facts alone.

    Raises:
        AbmllError, OSError: as `export_calibrated`.
    """
    out = Path(out)
    check_size(stored.bytes, out, confirmed)
    likelihood = stored.facts.likelihood
    learned = temperature if temperature is not None and temperature.changes else None
    use = USE[likelihood.kind] + ("" if likelihood.premise is None else PREMISE) + ("" if learned is None else OF_TASK)
    text = {"format": FORMAT, "likelihood": likelihood.model_dump(), **asdict(found), "use": use}
    of_task = {"learned_from", "rows", "log_temperatures", "weights"}
    text["task_temperature"] = None if learned is None else learned.model_dump(mode="json", include=of_task)

    def calibration_too(beside: Path) -> None:
        write_sealed_json(beside / CALIBRATION_FILE, text)
        write_sealed_json(beside / REPORT_FILE, {"kind": "calibrated mean", **source_of(stored)})
        write_card(beside, about or About(out.name, stored.facts))

    write_adapter(stored, out, calibration_too)


def check_has_draws(stored: StoredAdapter) -> None:
    """Refuse weights that have no draws.

    Raises:
        AbmllError: there are no stds.
    """
    if not stored.facts.has_std:
        raise AbmllError("this system holds no stds: its mean is all there is, and needs no calibration to draws")


def of_the_mean(stored: StoredAdapter) -> Calibration:
    """The calibration of weights that answer by their mean: there are no draws to come near to."""
    return Calibration(stored.facts.likelihood.temperature, 1.0, 0, 0, None, None)


def _plan_with(plan: PredictionPlan, old: Mapping[str, int]) -> PredictionPlan:
    """The plan, with values that were given by the names of before."""
    new_names = {"draws": "samples", "batch_tokens": "batch_tokens"}
    if unknown := old.keys() - new_names.keys():
        raise TypeError(f"export_calibrated() got an unexpected keyword argument {min(unknown)!r}")
    for name in old:
        new = f"export_calibrated(plan=PredictionPlan({new_names[name]}=))"
        warn_renamed(f"export_calibrated({name}=)", new, stacklevel=4)
    return PredictionPlan(plan.sampler, old.get("draws", plan.samples), old.get("batch_tokens", plan.batch_tokens))


def calibrate(system: System, questions: Sequence[Question], plan: PredictionPlan = DRAWN) -> Calibration:
    """The temperature of the mean that is nearest to the averaged draws, and how near.

    Raises:
        AbmllError: there are no questions.
    """
    if not questions:
        raise AbmllError("no questions to calibrate with: give a file of them (--questions)")
    plans = PredictionPlan("mean", 1, plan.batch_tokens), plan
    mean, averaged = (floored_probabilities(system.predict(questions, each, POSTERIOR)) for each in plans)
    relative = nearest_temperature(mean, averaged)
    own = float(system.likelihood.log_temperature.detach().exp())
    return Calibration(
        temperature=relative * own,
        relative_temperature=relative,
        questions=len(questions),
        draws=plan.samples,
        before=_difference(mean, averaged),
        after=_difference(_tempered(mean, relative), averaged),
    )


def nearest_temperature(mean: Float[np.ndarray, "N K"], averaged: Float[np.ndarray, "N K"]) -> float:
    """The temperature T in [0.05, 20] at which softmax(log mean / T) has the least mean KL from `averaged`.

    The objective is convex in 1 / T. Choices that a question has not are zero in both.

    Raises:
        NonFiniteError: a probability is NaN or infinite.

    >>> sharp, flat = np.array([[0.8, 0.2]]), np.array([[2 / 3, 1 / 3]])  # 0.8 : 0.2 is (2/3 : 1/3) squared
    >>> round(nearest_temperature(sharp, flat), 4)
    2.0
    """
    for table in (mean, averaged):
        check_finite("probability", table)
    logits = _logits(mean)
    known = np.where(np.isfinite(logits), logits, 0.0)

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        cross = logsumexp(scale * logits, axis=1) - scale * (averaged * known).sum(axis=1)
        return float(cross.mean())

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-7})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def spread_questions(tasks: Sequence[Task], count: int) -> tuple[Question, ...]:
    """Up to `count` train rows, taken from the tasks in turn."""
    turns = itertools.zip_longest(*(task.train for task in tasks))
    rows = (question for turn in turns for question in turn if question is not None)
    return tuple(itertools.islice(rows, count))


def _logits(table: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    with np.errstate(divide="ignore"):
        return np.log(table)


def _tempered(table: Float[np.ndarray, "N K"], temperature: float) -> Float[np.ndarray, "N K"]:
    found: Float[np.ndarray, "N K"] = softmax(_logits(table) / temperature, axis=1)
    return found


def _difference(table: Float[np.ndarray, "N K"], averaged: Float[np.ndarray, "N K"]) -> Difference:
    kl = (xlogy(averaged, averaged) - xlogy(averaged, np.maximum(table, PROBABILITY_FLOOR))).sum(axis=1)
    return Difference(
        mean_kl=max(0.0, float(kl.mean())),
        largest=float(np.abs(table - averaged).max()),
        same_answer=float((table.argmax(axis=1) == averaged.argmax(axis=1)).mean()),
    )
