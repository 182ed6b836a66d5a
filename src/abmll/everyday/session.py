"""Own-task session: a trained run opened for a user's rows, its shared weights on their base model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from abmll.adapters.facts import StoredAdapter
from abmll.adapters.folder import read_adapter
from abmll.config import RunConfig, check, load_config, merge
from abmll.errors import AbmllError
from abmll.everyday.probe import read_probe, warn_of_other_weights, with_same_tokenizer
from abmll.everyday.saved import SavedPosterior, put_posterior
from abmll.models import LanguageModel
from abmll.runs.overrides import OWN_ROWS, check_trained
from abmll.systems.adapters import use_adapter
from abmll.systems.build import build_system, load_base
from abmll.systems.plans import AdaptationPlan, PredictionPlan, adaptation_plan, plan_for, prediction_plan, resolve
from abmll.systems.system import System

OWN_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"likelihood": {"cut": "middle"}, "adaptation": {"sampler": "mean"}}
)
"""What rows of a user's own are adapted to and answered with where nobody says otherwise, whatever the run was trained
with: the start and the end of a long text say most of it, and draws of weights take their number times as long."""


@dataclass(frozen=True)
class Session:
    """An own-task session: a run that is opened to adapt to a user's rows and to answer them.

    `system` adapts and answers; `plan` and `drawing` say how, by the run's configuration and the user's settings.

    Attributes:
        folder: the run directory.
        config: its configuration, with what the user set.
        system: the run's system; theta is in its shared slot.
        steps: gradient steps of an adaptation if the user set them; None: see `steps_for`.
    """

    folder: Path
    config: RunConfig
    system: System
    steps: int | None = None

    @property
    def base(self) -> LanguageModel:
        """The base model."""
        return self.system.language_model

    def plan(self, rows: int) -> AdaptationPlan:
        """How so many rows are adapted to: all of them are examples."""
        return plan_for(rows, adaptation_plan(self.config), self.steps)

    @property
    def drawing(self) -> PredictionPlan:
        """How answers are drawn."""
        return prediction_plan(self.config)

    def about_long_rows(self, count: int) -> str:
        """That so many rows were too long, and what was left out of them."""
        text, rows = self.config.likelihood, "1 row is" if count == 1 else f"{count:,} rows are"
        return (
            f"{rows} longer than likelihood.max_tokens={text.max_tokens}: the {text.cut} of their text was left out "
            "(likelihood.cut)"
        )

    def tuned(self, overrides: Mapping[str, Any]) -> "Session":
        """The same run on the same model, adapting and drawing in another way (`{"adaptation": {"steps": 3}}`).

        Raises:
            AbmllError: a value is wrong.
        """
        config = _laid(self.config, _drawing_as_asked(overrides), where=self.folder)
        steps = _steps_in(config, overrides)
        return replace(self, config=config, steps=self.steps if steps is None else steps)


def open_run(
    folder: Path,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    saved: SavedPosterior | None = None,
) -> Session:
    """Open a run directory, with a saved task in the task slot if one is given; else phi is theta.

    Args:
        folder: the run directory.
        overrides: values laid on its configuration, section by section.
        saved: a saved task of it, which brings the likelihood and the draws that it was adapted with.

    Raises:
        AbmllError: there is no such run, it was not trained to its end, or the base model cannot be had.
    """
    config = settings_of(folder, overrides, saved)
    system = start(config, folder)
    if saved is not None:
        with closing_on_error(system):
            put_posterior(saved, system)
    return Session(folder, config, system, _steps_in(config, overrides))


def settings_of(
    folder: Path,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    saved: SavedPosterior | None = None,
    fixed: Mapping[str, str] = OWN_ROWS,
) -> RunConfig:
    """The configuration of a run, with what a saved task was adapted with and, on top, what the user sets.

    Args:
        folder: the run directory.
        overrides: values laid on it, section by section.
        saved: a saved task.
        fixed: what cannot be set here, besides what cannot of any trained run, and why.

    Raises:
        AbmllError: there is no such run, a value is wrong, or it cannot be set any more.
    """
    trained = load_config(RunConfig, folder / "config.yaml")
    brought = _brought_by(saved) if saved is not None else OWN_DEFAULTS if fixed is OWN_ROWS else {}
    config = _laid(trained, brought, where=folder)
    found = _laid(config, _drawing_as_asked(overrides, trained.adaptation.sampler), where=folder)
    check_trained(config, found, folder, fixed)
    resolve(found).check_machine()
    return found


def _laid(config: RunConfig, *laid: Mapping[str, Any], where: Path) -> RunConfig:
    values: dict[str, Any] = config.model_dump(mode="json")
    for each in laid:
        values = merge(values, each)
    return check(RunConfig, values, str(where))


def _steps_in(config: RunConfig, overrides: Mapping[str, Any]) -> int | None:
    return config.adaptation.steps if "steps" in overrides.get("adaptation", {}) else None


def _drawing_as_asked(overrides: Mapping[str, Any], sampler: str = "weight") -> Mapping[str, Any]:
    """Who asks for a number of draws asks for draws: by the sampler of the run, where it has one.

    >>> _drawing_as_asked({"adaptation": {"samples": 4}})
    {'adaptation': {'samples': 4, 'sampler': 'weight'}}
    """
    adaptation = overrides.get("adaptation", {})
    if "samples" not in adaptation or "sampler" in adaptation:
        return overrides
    return {**overrides, "adaptation": {**adaptation, "sampler": "weight" if sampler == "mean" else sampler}}


def _brought_by(saved: SavedPosterior) -> dict[str, Any]:
    """The settings that a saved task was adapted with, and that answers must be made with."""
    sections = {"likelihood": saved.details.get("likelihood"), "adaptation": saved.details.get("answering")}
    return {name: values for name, values in sections.items() if isinstance(values, dict)}


def read_shared(folder: Path) -> StoredAdapter:
    """The shared weights that a run was trained to.

    Raises:
        AbmllError: they are not there, as the run was never trained to its end, or they are damaged.
    """
    if not (folder / "adapter").is_dir():
        raise AbmllError(
            f"{folder}: no adapter/ in it, so it was not trained to its end; `abmll train RECIPE -o {folder}` goes on"
        )
    return read_adapter(folder / "adapter")


def start(config: RunConfig, folder: Path) -> System:
    """The system of a run, its shared weights in both slots.

    Raises:
        AbmllError: the adapter is missing or damaged, or belongs to another base model.
    """
    stored, probe = read_shared(folder), read_probe(folder)
    system = build_system(config, load_base(config.model))
    with closing_on_error(system):
        stored = with_same_tokenizer(stored, probe, system.language_model, system.batcher.encoder)
        use_adapter(stored, system, folder)
        warn_of_other_weights(stored, probe, system, folder)
    return system


@contextmanager
def closing_on_error(system: System) -> Iterator[None]:
    """An error inside takes the adapters of a system off its base model."""
    try:
        yield
    except BaseException:
        system.close()
        raise
