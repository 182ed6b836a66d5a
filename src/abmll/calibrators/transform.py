"""A calibrator as a transform of a predictions file."""

from dataclasses import replace

from abmll.calibrators.base import Calibrator
from abmll.calibrators.rows import ChoiceRows, TaskRows
from abmll.metrics.predictions import SPLITS, Predictions


def calibrated(
    predictions: Predictions,
    calibrator: Calibrator,
    *,
    fixed_choices: bool | None = None,
    content_free: ChoiceRows | None = None,
    lengths: bool = False,
) -> Predictions:
    """The test questions at calibrated probabilities, fitted to the file's held-out rows.

    The other rows are left out, as they were fitted to, and so is the spread over draws, which was of the stated
    probabilities. The raw `vocabulary_confidence` stays.

    Args:
        predictions: of one task.
        calibrator: with its hyper-parameters.
        fixed_choices: as `TaskRows.from_predictions`.
        content_free: as `Calibrator.fit`; None: those of the file, if it has any.
        lengths: as `TaskRows.from_predictions`: whether the calibrator was learned with them.

    Raises:
        AbmllError: a need of the calibrator is not met, or a row cannot be calibrated.

    >>> from abmll.calibrators.temperature import Temperature
    >>> from abmll.metrics.predictions import Prediction
    >>> held_out = tuple(Prediction(str(i), int(i == 3), (0.9, 0.1)) for i in range(4))
    >>> stated = Predictions("lora", "toy", 0, 0, 0, (Prediction("a", 0, (0.9, 0.1)),), held_out_rows=held_out)
    >>> [round(p, 3) for p in calibrated(stated, Temperature()).rows[0].probabilities]
    [0.75, 0.25]
    """
    task = TaskRows.from_predictions(predictions, fixed_choices, lengths=lengths)
    content_free = task.content_free if content_free is None else content_free
    answers = calibrator.fit(task.held_out, content_free).apply(task.test)
    rows = tuple(
        replace(row, probabilities=tuple(p[: len(row.probabilities)].tolist()), spread=None)
        for row, p in zip(predictions.rows, answers, strict=True)
    )
    return predictions.with_splits({**dict.fromkeys(SPLITS, ()), "test": rows}, scale_prior=None)
