"""Every number that a predictions file gives, computed without the model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from abmll.calibrators.rows import ChoiceRows
from abmll.metrics.calibration import apply_temperature
from abmll.metrics.predictions import Prediction, Predictions
from abmll.metrics.scores import (
    adaptive_calibration_error,
    auroc_of_confidence,
    brier,
    calibration_noise_floor,
    confidence_and_correct,
    expected_calibration_error,
    floored_probabilities,
    negative_log_likelihood,
    risk_coverage,
    temperature_of,
)
from abmll.scoring.posterior import temperature_posterior


@dataclass(frozen=True)
class Scores:
    """Every number of one predictions file. Confidence is of kind `choices` unless the name says otherwise.

    The primary score is `nll_posterior`. It, and the other three that end so, are of the answers averaged over the
    posterior of the task's temperature: given the examples that were answered without being learned
    (`adaptation.folds`; before adapting all of them), with the prior that was learned on the system's training tasks,
    or else the weak one. Without such examples they are averaged over the learned prior. They are None where there is
    neither.

    Attributes:
        n: test questions.
        accuracy: share of right answers, where equally probable choices share the answer.
        nll_posterior: mean negative log-likelihood of the right choice at the posterior temperature, nats.
        nll: the same of the probabilities as they are stated.
        brier: mean squared distance to the right answer, summed over choices, 0 to 2.
        ece: expected calibration error, 15 equal-width bins.
        ece_adaptive: the same over 15 bins of equal mass.
        ece_vocabulary: `ece` of the raw probability of a predicted letter; None if a row lacks it (`cloze`).
        ece_noise_floor: mean `ece` that a perfectly calibrated system of the same confidences would show.
        auroc: of confidence for correctness; None if all answers, or none, are right.
        aurc: area under the risk-coverage curve.
        nll_over_uniform: gain over guessing: mean log(number of choices) - nll, nats; negative is worse.
        nll_posterior_over_uniform: the same gain of `nll_posterior`.
        ece_posterior: `ece` at the posterior temperature.
        brier_posterior: `brier` at the posterior temperature.
        temperature_posterior: geometric mean of the posterior, exp E log T.
        temperature: fitted to the adaptation rows, learned as they are; None, as the next three, without such rows.
        nll_scaled: `nll` of the test questions at that temperature.
        ece_scaled: `ece` at that temperature.
        brier_scaled: `brier` at that temperature.
        temperature_cv: fitted to the held-out rows alone; None, as the next three, without such rows.
        nll_scaled_cv: `nll` of the test questions at that temperature.
        ece_scaled_cv: `ece` at that temperature.
        brier_scaled_cv: `brier` at that temperature.
        more: the values of registered metrics, by name (`abmll.scoring.registered`).
    """

    n: int
    accuracy: float
    nll_posterior: float | None
    nll: float
    brier: float
    ece: float
    ece_adaptive: float
    ece_vocabulary: float | None
    ece_noise_floor: float
    auroc: float | None
    aurc: float
    nll_over_uniform: float
    nll_posterior_over_uniform: float | None = None
    ece_posterior: float | None = None
    brier_posterior: float | None = None
    temperature_posterior: float | None = None
    temperature: float | None = None
    nll_scaled: float | None = None
    ece_scaled: float | None = None
    brier_scaled: float | None = None
    temperature_cv: float | None = None
    nll_scaled_cv: float | None = None
    ece_scaled_cv: float | None = None
    brier_scaled_cv: float | None = None
    more: Mapping[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, int | float | None]:
        """Names and values, those of registered metrics last; ready for JSON."""
        values = asdict(self)
        more = values.pop("more")
        return {**values, **more}


def score(predictions: Predictions) -> Scores:
    """Compute every score of one file; deterministic.

    Raises:
        AbmllError: there are no test rows, an answer is not one of the choices, or a probability or
            confidence is not in [0, 1].

    >>> from abmll.metrics.predictions import Prediction
    >>> rows = (Prediction("a", 0, (0.75, 0.25)), Prediction("b", 1, (0.75, 0.25)))
    >>> found = score(Predictions("lora", "toy", seed=0, draw=0, examples_consumed=0, rows=rows))
    >>> found.accuracy, found.brier, round(found.ece, 3), found.nll_posterior
    (0.5, 0.625, 0.25, None)
    """
    probabilities, answers = predictions.probabilities(), predictions.answers()
    confidence, correct = confidence_and_correct(probabilities, answers)
    nll = negative_log_likelihood(probabilities, answers)
    return Scores(
        n=len(answers),
        accuracy=float(correct.mean()),
        nll=nll,
        brier=brier(probabilities, answers),
        ece=expected_calibration_error(confidence, correct),
        ece_adaptive=adaptive_calibration_error(confidence, correct),
        ece_vocabulary=_vocabulary_ece(predictions.rows, correct),
        ece_noise_floor=calibration_noise_floor(confidence),
        auroc=auroc_of_confidence(confidence, correct),
        aurc=risk_coverage(confidence, correct).area,
        nll_over_uniform=nll_of_guessing(predictions) - nll,
        **posterior_scores(predictions),
        **_scaled(predictions, predictions.adaptation_rows, correct, ""),
        **_scaled(predictions, predictions.held_out_rows, correct, "_cv"),
    )


def nll_of_guessing(predictions: Predictions) -> float:
    """Mean NLL of a uniform guess: mean log(number of choices).

    >>> from abmll.metrics.predictions import Prediction
    >>> round(nll_of_guessing(Predictions("lora", "toy", 0, 0, 0, (Prediction("a", 0, (0.75, 0.25)),))), 4)
    0.6931
    """
    return float(np.mean([np.log(len(row.probabilities)) for row in predictions.rows]))


def posterior_scores(predictions: Predictions) -> dict[str, Any]:
    """The scores at the posterior temperature, by their names in `Scores`: None where there is no posterior.

    Raises:
        AbmllError: as `score`.

    >>> from abmll.metrics.predictions import Prediction
    >>> rows = (Prediction("a", 0, (0.75, 0.25)), Prediction("b", 1, (0.75, 0.25)))
    >>> posterior_scores(Predictions("lora", "toy", 0, 0, 0, rows))["nll_posterior"]
    """
    fitted = temperature_posterior(predictions)
    if fitted is None:
        return {"nll_posterior": None}
    correct = confidence_and_correct(predictions.probabilities(), predictions.answers())[1]
    told = _of_other(fitted.apply(ChoiceRows.from_predictions(predictions.rows)), predictions, correct, "posterior")
    gain = {"nll_posterior_over_uniform": nll_of_guessing(predictions) - told["nll_posterior"]}
    return {**told, **gain, "temperature_posterior": fitted.temperature}


def _vocabulary_ece(rows: tuple[Prediction, ...], correct: Float[np.ndarray, "N"]) -> float | None:
    stated = [row.vocabulary_confidence for row in rows]
    known = [value for value in stated if value is not None]
    return expected_calibration_error(np.array(known), correct) if len(known) == len(stated) else None


def _scaled(
    predictions: Predictions, fitted: tuple[Prediction, ...], correct: Float[np.ndarray, "N"], end: str
) -> dict[str, Any]:
    if not fitted:
        return {}
    temperature = temperature_of(fitted)
    scaled = apply_temperature(floored_probabilities(predictions.rows), temperature)
    return {f"temperature{end}": temperature, **_of_other(scaled, predictions, correct, f"scaled{end}")}


def _of_other(
    probabilities: Float[np.ndarray, "N K"], predictions: Predictions, correct: Float[np.ndarray, "N"], name: str
) -> dict[str, float]:
    """Scores of the test questions at other probabilities, in which the order of the choices is what it was."""
    answers = predictions.answers()
    return {
        f"nll_{name}": negative_log_likelihood(probabilities, answers),
        # who is right was settled before scaling: rounding may make two choices equal, never swap them
        f"ece_{name}": expected_calibration_error(probabilities.max(axis=1), correct),
        f"brier_{name}": brier(probabilities, answers),
    }
