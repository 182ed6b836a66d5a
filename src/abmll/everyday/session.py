"""Own-task session: a trained run opened for a user's rows, its shared weights on their base model."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from abmll.adapters.facts import StoredAdapter
from abmll.adapters.folder import read_adapter
from abmll.calibrators import ChoiceRows
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.config import MethodConfig, PosteriorConfig, RunConfig, check, load_config, merge
from abmll.errors import AbmllError
from abmll.everyday.bases import is_untouched
from abmll.everyday.probe import read_probe, warn_of_other_weights, with_same_tokenizer
from abmll.everyday.saved import SavedPosterior, put_posterior
from abmll.everyday.survey import DETAILS_FILE
from abmll.files import remove_folder
from abmll.models import LanguageModel
from abmll.prompts.encode import LikelihoodKind
from abmll.question import Question
from abmll.runs.overrides import OWN_ROWS, check_fixed, check_trained
from abmll.systems.adapters import use_adapter
from abmll.systems.build import build_system, load_base
from abmll.systems.likelihood_choice import LikelihoodChoice, choose_likelihood
from abmll.systems.plans import AdaptationPlan, PredictionPlan, adaptation_plan, plan_for, prediction_plan, resolve
from abmll.systems.posteriors.laplace.pooled import use_precision
from abmll.systems.predict import Answer
from abmll.systems.scale import calibrator_of
from abmll.systems.system import System
from abmll.systems.temperature import TaskTemperature, learn_temperature, read_temperature

logger = logging.getLogger(__name__)

OWN_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"likelihood": {"cut": "middle"}, "adaptation": {"sampler": "mean"}}
)
"""What rows of a user's own are adapted to and answered with where nobody says otherwise, whatever the run was trained
with: the start and the end of a long text say most of it, and draws of weights take their number times as long."""


PROMPT_TOKENS = 2048
"""Most tokens of a prompt with examples on a GPU; elsewhere as many as any prompt has, `likelihood.max_tokens`."""


@dataclass(frozen=True)
class Session:
    """An own-task session: a run that is opened to adapt to a user's rows and to answer them.

    `system` adapts and answers; `plan` and `drawing` say how, by the run's configuration and the user's settings.

    Attributes:
        folder: the run directory.
        config: its configuration, with what the user set.
        system: the run's system; theta is in its shared slot.
        steps: gradient steps of an adaptation if the user set them; None: see `steps_for`.
        choice: what decided the likelihood, where the run had left it to the rows.
        temperature: of the saved task that was opened; None: answers are as the model states them.
    """

    folder: Path
    config: RunConfig
    system: System
    steps: int | None = None
    choice: LikelihoodChoice | None = None
    temperature: TaskTemperature | None = None

    @property
    def undecided(self) -> bool:
        """Whether the likelihood waits for labelled rows; until then answers are read by `cloze`."""
        return self.config.likelihood.kind == "auto"

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

    @property
    def calibrator(self) -> PosteriorTemperature:
        """The calibrator of its answers, with the prior of the temperature that the run carries, or the weak one.

        Raises:
            AbmllError: the prior is damaged, or was learned with other weights.
        """
        return calibrator_of(self.folder, self.config)

    @property
    def prompt_tokens(self) -> int:
        """Most tokens of a prompt with examples."""
        usual = self.config.likelihood.max_tokens
        return max(usual, PROMPT_TOKENS) if self.base.device.type == "cuda" else usual

    def answer(self, rows: Sequence[Question]) -> tuple[Answer, ...]:
        """Answers by phi as it is now, at the temperature of its task.

        Raises:
            AbmllError, NonFiniteError: as `System.answer`.
        """
        stated = self.system.answer(rows, self.drawing)
        return stated if self.temperature is None else self.temperature.answers(stated)

    def learn_temperature(self, out_of_folds: ChoiceRows | None = None) -> TaskTemperature:
        """The temperature of answers after adapting, see `abmll.systems.temperature.learn_temperature`."""
        return learn_temperature(self.folder, self.config, out_of_folds)

    def about_long_rows(self, count: int) -> str:
        """That so many rows were too long, and what was left out of them."""
        text, rows = self.config.likelihood, "1 row is" if count == 1 else f"{count:,} rows are"
        if text.pieces > 1:
            return (
                f"{rows} longer than {text.pieces} pieces of likelihood.max_tokens={text.max_tokens}: pieces between "
                "them, evenly spread, were left out (likelihood.pieces); what is adapted to is cut in any case"
            )
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

    def decided(self, rows: Sequence[Question]) -> "Session":
        """The same with the likelihood that the base model reads labelled rows best by; this one's system is closed.

        Raises:
            AbmllError: see `choose_likelihood`.
        """
        self.system.close()
        choice = choose_likelihood(self.config, self.base, rows)
        return replace(self.read_by(choice.kind), choice=choice)

    def prompting(self, rows: Sequence[Question]) -> "Session":
        """The same with labelled rows before each row in its prompt, and no step of adapting; this system is closed.

        Args:
            rows: as many of them as fit into `prompt_tokens` are shown, in a random order: a file may be sorted.

        Raises:
            AbmllError: see `choose_likelihood`; or `likelihood.template=chat`, which has no place for examples.
        """
        tuned = self.tuned(self.for_examples())
        session = tuned.decided(rows) if tuned.undecided else tuned.read_by(tuned.config.likelihood.decided)
        examples = in_random_order(rows, self.config.adaptation.seed)
        session.system.batcher = replace(session.system.batcher, examples=examples)
        return session

    def for_examples(self) -> dict[str, Any]:
        """Settings for prompts with labelled rows in them: no step of adapting, and as many tokens as they may have.

        Raises:
            AbmllError: `likelihood.template=chat`, which has no place for examples.
        """
        if self.config.likelihood.template == "chat":
            raise AbmllError("likelihood.template=chat has no place for examples; use plain, or a template of your own")
        return {"adaptation": {"steps": 0}, "likelihood": {"max_tokens": self.prompt_tokens}}

    def read_by(self, kind: LikelihoodKind) -> "Session":
        """The same with another likelihood; its system takes the place of this one's, which is closed."""
        self.system.close()
        config = _read_by(self.config, kind)
        return replace(self, config=config, system=build_system(config, self.base))


def open_run(
    folder: Path,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    saved: SavedPosterior | None = None,
) -> Session:
    """Open a run directory, with a saved task in the task slot if one is given; else phi is theta.

    Args:
        folder: the run directory.
        overrides: values laid on its configuration, section by section.
        saved: a saved task of it, which brings the likelihood and the draws that it was adapted with, and its
            temperature.

    Raises:
        AbmllError: there is no such run, it was not trained to its end, or the base model cannot be had.
    """
    config = settings_of(folder, overrides, saved)
    temperature = None if saved is None else temperature_of(saved, config)
    with _leaving_no_trace(folder):
        system = start(config, folder)
    if saved is not None:
        with closing_on_error(system):
            put_posterior(saved, system)
    return Session(folder, config, system, _steps_in(config, overrides), temperature=temperature)


def with_task(session: Session, saved: SavedPosterior, config: RunConfig) -> Session:
    """The same run on the model that is loaded, with another saved task in the task slot.

    Where the settings are those of now, phi alone is put in; else this session's system is closed and another one takes
    its place, whose theta plays no part in answers and is not read.

    Args:
        session: of `open_run`, or of this function.
        saved: a saved task of the same run.
        config: its settings, of `settings_of`.

    Raises:
        AbmllError: it belongs to another base model, or is damaged; no system is left on the base then.
    """
    system = session.system
    if config != session.config:
        system.close()
        system = build_system(config, session.base)
    with closing_on_error(system):
        use_precision(system, session.folder)
        put_posterior(saved, system)
    return Session(session.folder, config, system, session.steps, temperature=temperature_of(saved, config))


def with_base(session: Session, config: RunConfig, examples: Sequence[Question] = ()) -> Session:
    """The base model of a session as it is, or with labelled rows before each question in its prompt.

    Args:
        session: whose system is closed.
        config: settings that stay, but for the method and the posterior.
        examples: as many of them as fit into `prompt_tokens` are shown, in a random order.

    Raises:
        AbmllError: `likelihood.template=chat`, which has no place for examples.
    """
    plain = {"method": MethodConfig(name="pretrained"), "posterior": PosteriorConfig()}
    config = config.model_copy(update=plain)
    if examples and config.likelihood.template == "chat":
        raise AbmllError("likelihood.template=chat has no place for examples; use plain, or a template of your own")
    if examples:
        most = replace(session, config=config).prompt_tokens
        text = config.likelihood.model_copy(update={"max_tokens": most})
        config = config.model_copy(update={"likelihood": text})
    session.system.close()
    system = build_system(config, session.base)
    order = np.random.default_rng(config.adaptation.seed).permutation(len(examples))
    system.batcher = replace(system.batcher, examples=tuple(examples[i] for i in order))
    return Session(session.folder, config, system, session.steps)


def temperature_of(saved: SavedPosterior, config: RunConfig) -> TaskTemperature | None:
    """The temperature of a saved task, for answers by these settings; None if it has none, or is of other answers.

    Raises:
        AbmllError: it is damaged.
    """
    found = read_temperature(saved.details.get("temperature"), saved.folder / DETAILS_FILE)
    if found is None or not (others := found.differs_from(config)):
        return found
    if found.changes:
        logger.warning(
            "%s: its temperature is that of answers with another %s, so probabilities are as the model states them",
            saved.folder,
            " and ".join(others),
        )
    return None


def open_base(config: RunConfig, overrides: Mapping[str, Any] = MappingProxyType({})) -> Session:
    """Open a base model without a run directory: theta is a LoRA from zero.

    Args:
        config: of `base_config`.
        overrides: values laid on it, section by section.

    Raises:
        AbmllError: a value is wrong, or the base model cannot be had.
    """
    laid = _laid(config, overrides, where=Path(config.name))
    resolve(laid).check_machine()
    return Session(Path(config.name), laid, _started(laid), _steps_in(laid, overrides))


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
    own = _own_defaults(trained, overrides) if fixed is OWN_ROWS else {}
    brought = _brought_by(saved) if saved is not None else own
    config = _laid(trained, brought, where=folder)
    found = _laid(config, _drawing_as_asked(overrides, trained.adaptation.sampler), where=folder)
    if not is_trained(config, folder):
        check_fixed(config, found, folder, fixed)
    else:
        check_trained(config, found, folder, fixed)
        if found.likelihood.kind == "auto":
            raise AbmllError(
                f"{folder}: likelihood.kind=auto cannot be set (it is {config.likelihood.kind}): its adapter was "
                "trained with that, so nothing is left to decide"
            )
    resolve(found).check_machine()
    return found


def _laid(config: RunConfig, *laid: Mapping[str, Any], where: Path) -> RunConfig:
    values: dict[str, Any] = config.model_dump(mode="json")
    for each in laid:
        values = merge(values, each)
    return check(RunConfig, values, str(where))


def _steps_in(config: RunConfig, overrides: Mapping[str, Any]) -> int | None:
    return config.adaptation.steps if "steps" in overrides.get("adaptation", {}) else None


def _own_defaults(trained: RunConfig, overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """`OWN_DEFAULTS`, but for the sampler where there is a posterior: that was asked for to be drawn from."""
    posterior = overrides.get("posterior", {}).get("name", trained.posterior.name)
    return OWN_DEFAULTS if posterior == "none" else {**OWN_DEFAULTS, "adaptation": {}}


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
    details = saved.details
    sections = {
        "likelihood": details.get("likelihood"),
        "adaptation": details.get("answering"),
        "adapter": details.get("adapter"),  # of a base model, whose LoRA may have any rank
        "posterior": details.get("posterior"),
    }
    return {name: values for name, values in sections.items() if isinstance(values, dict)}


def in_random_order(rows: Sequence[Question], seed: int) -> tuple[Question, ...]:
    """Rows as examples of a prompt, in an order that a sorted file does not give."""
    return tuple(rows[i] for i in np.random.default_rng(seed).permutation(len(rows)))


def is_trained(config: RunConfig, folder: Path) -> bool:
    """Whether a run directory has, or is to have, more than its base model: anything that was meta-trained."""
    return config.method.name != "pretrained" or (folder / "adapter").is_dir()


def _started(config: RunConfig) -> System:
    """The system of a base model: a LoRA from zero in both slots."""
    kind = "cloze" if config.likelihood.kind == "auto" else config.likelihood.decided
    return build_system(_read_by(config, kind), load_base(config.model))


def _read_by(config: RunConfig, kind: LikelihoodKind) -> RunConfig:
    return config.model_copy(update={"likelihood": config.likelihood.model_copy(update={"kind": kind})})


@contextmanager
def _leaving_no_trace(folder: Path) -> Iterator[None]:
    """A base model that cannot be had leaves no run directory: one that `find_run` has just made goes again."""
    try:
        yield
    except AbmllError:
        if is_untouched(folder):
            remove_folder(folder)
        raise


def read_shared(folder: Path) -> StoredAdapter:
    """The shared weights that a run was trained to.

    Raises:
        AbmllError: they are not there, as the run was never trained to its end, or they are damaged.
    """
    if not (folder / "adapter").is_dir():
        raise AbmllError(
            f"{folder}: no adapter/ in it, so it was not trained to its end; `abmll train RECIPE -o {folder}` goes on. "
            "The run of a base model has its saved tasks alone (--task NAME)"
        )
    return read_adapter(folder / "adapter")


def start(config: RunConfig, folder: Path) -> System:
    """The system of a run, its shared weights in both slots; they are zero where nothing was trained.

    Raises:
        AbmllError: the adapter is missing or damaged, or belongs to another base model.
    """
    if not is_trained(config, folder):
        return _started(config)
    stored, probe = read_shared(folder), read_probe(folder)
    system = build_system(config, load_base(config.model))
    with closing_on_error(system):
        stored = with_same_tokenizer(stored, probe, system.language_model, system.batcher.encoder)
        use_adapter(stored, system, folder)
        use_precision(system, folder)
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
