"""A run's numbers for a tracker (TensorBoard, W&B, MLflow, trackio), through accelerate's classes.

A tracker gets what the journal gets, after the journal. Nothing depends on it: a package that is missing is named
before the model is loaded, and a tracker that fails later is left out with one warning, while the run goes on.
"""

import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from abmll.errors import AbmllError
from abmll.files import read_sealed_json, write_sealed_json
from abmll.tables.rows import printable

TRACKING = "tracking.json"
"""In a run directory: under which name each tracker has the run, so that a run that goes on is the same one there."""

log = logging.getLogger(__name__)


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        AbmllError: says what to install.
    """
    known = {str(kind) for kind in get_available_trackers()}
    missing = [name for name in names if name not in known]
    if missing:
        raise AbmllError(
            f"tracking.tracker: {', '.join(missing)} cannot be used, its package is not installed: "
            f"pip install {' '.join(missing)}; or leave it out"
        )


class Tracking:
    """The trackers of a run, as a context manager that ends them.

    They begin with the first numbers. No method raises an `Exception`.

    Args:
        trackers: their names, as in `tracking.tracker`.
        folder: the run directory; TensorBoard's files come to lie in it.
        project: by which they group runs.
        title: what they call this run.
        configuration: of the run, as nested values, which they show beside its numbers.

    >>> with Tracking((), Path("run"), "abmll", "lora-seed-0", {"name": "lora"}) as tracking:
    ...     tracking.step({"event": "step", "step": 1, "nll": 0.5})  # no tracker is configured
    """

    def __init__(
        self, trackers: Sequence[str], folder: Path, project: str, title: str, configuration: Mapping[str, Any]
    ) -> None:
        self.names, self.folder, self.project, self.title = tuple(trackers), folder, project, title
        self.configuration = configuration
        self._trackers: dict[str, GeneralTracker] = {}
        self._begun, self._last = False, 0

    @property
    def is_on(self) -> bool:
        """Whether any tracker is configured."""
        return bool(self.names)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, tracker in tuple(self._trackers.items()):
            with self._left_out_if_it_fails(name):
                tracker.finish()
        self._trackers, self._begun = {}, False

    def step(self, event: Mapping[str, Any], rates: Mapping[str, float] | None = None) -> None:
        """Pass on one event of the journal: all its numbers, and learning rates.

        What an earlier process passed on of this step and later ones (a stopped run does some again) is hidden by
        TensorBoard; W&B keeps the first of two, MLflow and trackio keep both, which are equal.
        """
        step = int(event["step"])
        skipped = {"skipped": 1.0} if event["event"] == "skipped" else {}
        self._log({**_numbers(event), **skipped, **_numbers({"rates": rates or {}})}, step, first=step)

    def summary(self, scores: Mapping[str, Any], step: int) -> None:
        """Pass on numbers of the whole run, beside those of its last step or of `step`, whichever is later."""
        self._log(_numbers(scores), max(step, self._last), first=None)

    def _log(self, numbers: dict[str, float], step: int, first: int | None) -> None:
        if not self._begun:
            self._begun = True
            for kind in self.names:
                with self._left_out_if_it_fails(kind):
                    self._trackers[kind] = self._started(kind, first)
        self._last = step
        for name, tracker in tuple(self._trackers.items()):
            with self._left_out_if_it_fails(name):
                tracker.log(numbers, step=step)

    def _started(self, name: str, first: int | None) -> GeneralTracker:
        """A tracker that goes on with this run, or has a new one, with the configuration."""
        _prepare_accelerate()
        runs = read_sealed_json(self.folder / TRACKING) if (self.folder / TRACKING).exists() else {}
        known = str(runs[name]) if name in runs else None
        tracker = LOGGER_TYPE_TO_CLASS[name](**self._options(name, known, first))
        tracker.main_process_only = False  # none but the main rank comes here, and accelerate knows no ranks
        tracker.start()
        if known is None:
            tracker.store_init_configuration(_flat(self.configuration))
            write_sealed_json(self.folder / TRACKING, {**runs, name: _name_of(name, tracker)})
        return tracker

    def _options(self, name: str, known: str | None, first: int | None) -> dict[str, Any]:
        """What accelerate's class takes."""
        project, title, new = self.project, self.title, uuid.uuid4().hex[:12]
        if name == "tensorboard":
            return {"run_name": name, "logging_dir": self.folder, "purge_step": first}
        if name == "wandb":  # nothing of the machine and its folders
            quiet = {"console": "off", "disable_git": True, "disable_code": True, "x_disable_meta": True}
            return {"run_name": project, "name": title, "id": known or new, "resume": "allow", "settings": quiet}
        if name == "mlflow":
            return {"experiment_name": project, "run_name": title, "run_id": known}
        return {"run_name": project, "name": known or f"{title}-{new}", "resume": "allow", "embed": False}

    @contextmanager
    def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a tracker's client fails with any
            self._trackers.pop(name, None)
            said = printable(" ".join(str(error).split()))[:400] or type(error).__name__
            log.warning("tracking by %s failed and is left out from here on (%s); the run goes on", name, said)


def _prepare_accelerate() -> None:
    """Accelerate's logger wants its state, which asks the environment of torchrun: it would join process groups of its
    own, and set numbers of threads. So it sees one process.
    """
    ranks = {name: os.environ.pop(name) for name in ("LOCAL_RANK", "WORLD_SIZE") if name in os.environ}
    try:
        PartialState(cpu=True)
    finally:
        os.environ.update(ranks)


def _name_of(name: str, tracker: GeneralTracker) -> str:
    """By what a tracker knows its run."""
    run = tracker.tracker
    return {
        "tensorboard": lambda: name,
        "wandb": lambda: run.id,
        "mlflow": lambda: run.info.run_id,
        "trackio": lambda: run.name,
    }[name]()


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """All numbers but `step`, nested ones by their path.

    >>> _numbers({"step": 3, "task": "capitals", "nll": 0.5, "stds": {"shared": {"median": 0.01}}})
    {'nll': 0.5, 'stds/shared/median': 0.01}
    """
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and (prefix or name != "step"):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as one level of plain values.

    >>> _flat({"model": {"source": None}, "adapter": {"rank": 8, "targets": ["q_proj", "v_proj"]}})
    {'adapter.rank': 8, 'adapter.targets': "['q_proj', 'v_proj']"}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
