"""Calibrators: transforms of predictions that make stated probabilities come true; one name, one class.

They read arrays of answers and write arrays of answers. No model is needed, and none of the library but `metrics`.

>>> import numpy as np
>>> held_out = ChoiceRows.from_scores(np.log([[0.9, 0.1]] * 4), np.array([0, 0, 0, 1]))
>>> calibrator("temperature").fit(held_out).apply(held_out)[0].round(3).tolist()
[0.75, 0.25]
"""

from typing import Any

from abmll.calibrators.base import Calibrator, FittedCalibrator
from abmll.calibrators.rows import ChoiceRows, TaskRows
from abmll.calibrators.shifts import Batch, Contextual
from abmll.calibrators.temperature import NoCalibration, PosteriorTemperature, Temperature
from abmll.calibrators.thermometer import InductiveThermometer, PosteriorThermometer, Thermometer
from abmll.calibrators.transform import calibrated
from abmll.calibrators.vector import VectorScaling
from abmll.errors import AbmllError, unknown_name

__all__ = [
    "CALIBRATORS",
    "Calibrator",
    "ChoiceRows",
    "FittedCalibrator",
    "TaskRows",
    "calibrated",
    "calibrator",
    "calibrator_from_dict",
]

CALIBRATORS: dict[str, type[Calibrator]] = {
    cls.name: cls
    for cls in (
        NoCalibration,
        Temperature,
        PosteriorTemperature,
        VectorScaling,
        Contextual,
        Batch,
        Thermometer,
        InductiveThermometer,
        PosteriorThermometer,
    )
}


def calibrator(name: str, settings: dict[str, Any] | None = None) -> Calibrator:
    """A calibrator by its name, with its documented prior where no settings are given.

    Raises:
        AbmllError: no such calibrator (names the nearest), or a setting is unknown or out of range.

    >>> calibrator("posterior_temperature", {"sd": 1.0}).sd
    1.0
    """
    return _class(name).from_settings({} if settings is None else settings)


def calibrator_from_dict(value: Any) -> Calibrator:
    """The inverse of `Calibrator.to_dict`.

    Raises:
        AbmllError: it is none, of another version, or holds a setting that is unknown, out of range or not finite.

    >>> calibrator_from_dict(calibrator("none").to_dict()).name
    'none'
    """
    if not isinstance(value, dict) or set(value) != {"calibrator", "version", "settings"}:
        raise AbmllError(f"not a calibrator: expected calibrator, version and settings, found {value!r}")
    cls = _class(str(value["calibrator"]))
    if value["version"] != cls.version:
        raise AbmllError(
            f"calibrator {cls.name!r}: version {value['version']!r} is not {cls.version}; learn it again from "
            "the training tasks' predictions"
        )
    return cls.from_settings(value["settings"])


def _class(name: str) -> type[Calibrator]:
    if name not in CALIBRATORS:
        raise unknown_name("calibrator", name, CALIBRATORS)
    return CALIBRATORS[name]
