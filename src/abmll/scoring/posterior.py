"""Answers at the posterior temperature of their task (docs/method.md, section 8), from a predictions file alone."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from abmll.calibrators.rows import ChoiceRows
from abmll.calibrators.temperature import FittedTemperature, PosteriorTemperature
from abmll.errors import AbmllError
from abmll.metrics.predictions import Prediction, Predictions
from abmll.metrics.resampling import group_numbers
from abmll.metrics.scores import question_nll


def unlearned_rows(predictions: Predictions) -> tuple[Prediction, ...]:
    """The labelled examples that were answered without being learned: what a temperature may be learned from.

    These are the held-out rows; where a file says that the task was not adapted to, the examples as they were answered.

    >>> asked = (Prediction("a", 0, (0.9, 0.1)),)
    >>> examples = (Prediction("b", 0, (0.8, 0.2)),)
    >>> [len(unlearned_rows(Predictions("lora", "toy", 0, 0, 0, asked, examples, adapted=a))) for a in (True, False)]
    [0, 1]
    """
    if predictions.held_out_rows or predictions.adapted is not False:
        return predictions.held_out_rows
    return predictions.adaptation_rows


def temperature_prior(scale_prior: tuple[float, float] | None) -> PosteriorTemperature:
    """The prior of log T: (mu, sd) where they were learned on the system's training tasks, else the weak one.

    >>> temperature_prior(None).mu, temperature_prior((0.5, 0.2)).sd
    (1.0, 0.2)
    """
    if scale_prior is None:
        return PosteriorTemperature()
    settings = dict(zip(("mu", "sd"), scale_prior, strict=True))
    fitted = PosteriorTemperature.from_settings(settings)
    assert isinstance(fitted, PosteriorTemperature)
    return fitted


def temperature_posterior(predictions: Predictions) -> FittedTemperature | None:
    """The posterior of log T, given what was answered without being learned.

    p(log T | rows) proportional to N(log T; mu, sd^2) product over rows of softmax(log p / T)_answer

    Without such rows, the prior alone if it was learned on the system's training tasks.

    Returns:
        None where nothing is known of T: neither such rows nor a learned prior. The weak prior alone would flatten the
        answers of every system alike, and say nothing of any.

    Raises:
        AbmllError: a row cannot be scored, or the prior is out of range.
    """
    rows = unlearned_rows(predictions)
    if not rows and predictions.scale_prior is None:
        return None
    return _fit(temperature_prior(predictions.scale_prior), rows)


def posterior_probabilities(predictions: Predictions) -> Float[np.ndarray, "N K"] | None:
    """Probabilities of the test questions averaged over `temperature_posterior`; None where there is none.

    >>> held_out = tuple(Prediction(str(i), int(i == 3), (0.99, 0.01)) for i in range(4))  # too sure
    >>> stated = Predictions("lora", "toy", 0, 0, 0, (Prediction("t", 0, (0.99, 0.01)),), held_out_rows=held_out)
    >>> posterior_probabilities(stated).round(2).tolist()
    [[0.72, 0.28]]
    """
    fitted = temperature_posterior(predictions)
    return None if fitted is None else fitted.apply(ChoiceRows.from_predictions(predictions.rows))


def mean_nll_posterior(rows: Sequence[Prediction]) -> float:
    """Mean NLL of answers none of which was learned, each at the posterior temperature given the other half of them.

    For validation tasks, whose labels are all known: no row has a part in its own temperature, and nothing has to be
    adapted or answered again. Rows of one group are in one half; which groups are is drawn, always alike, since rows
    may come in an order that repeats, as labels that alternate do. The prior is the weak one.

    Raises:
        AbmllError: there are none, an answer is not one of the choices, or a probability is not in [0, 1].

    >>> sure = [Prediction(str(i), int(i % 4 == 0), (0.999, 0.001)) for i in range(40)]  # right three times in four
    >>> round(mean_nll_posterior(sure), 2)  # 1.73 as stated, log 2 = 0.69 is a guess, 0.56 the best there is
    0.58
    """
    if not rows:
        raise AbmllError("no questions to score: the predictions hold no test rows")
    numbers = group_numbers([row.group for row in rows])
    half = (np.random.default_rng(0).permutation(numbers.max() + 1) % 2)[numbers]
    parts = [[row for row, of in zip(rows, half, strict=True) if of == side] for side in (0, 1)]
    total = 0.0
    for asked, others in (parts, parts[::-1]):
        if asked:
            answered = _fit(PosteriorTemperature(), others).apply(ChoiceRows.from_predictions(asked))
            total += float(question_nll(answered, np.array([row.answer for row in asked], dtype=np.int64)).sum())
    return total / len(rows)


def _fit(prior: PosteriorTemperature, rows: Sequence[Prediction]) -> FittedTemperature:
    fitted = prior.fit(ChoiceRows.from_predictions(rows))
    assert isinstance(fitted, FittedTemperature)
    return fitted
