"""One loaded run for many estimators: the model stays; an estimator's posterior is put in when it is used."""

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from abmll.adapters.facts import AdapterFacts
from abmll.adapters.folder import checksum, read_adapter, write_adapter
from abmll.calibrators import ChoiceRows
from abmll.config import RunConfig, load_config, merge
from abmll.errors import AbmllError, NonFiniteError
from abmll.everyday.adapt import temperature_in_prompt
from abmll.everyday.bases import base_config, base_name, find_base
from abmll.everyday.labelled import FEWEST, Labelled
from abmll.everyday.session import Session, in_random_order, is_trained, open_base, open_run
from abmll.everyday.shipped import find_run
from abmll.files import write_text
from abmll.question import Question, Task
from abmll.runs.card import About, about_run, write_card
from abmll.systems.adapters import use_adapter
from abmll.systems.build import build_system, load_base
from abmll.systems.folds import deal
from abmll.systems.predict import Answer
from abmll.systems.temperature import TaskTemperature, choice_rows

CONFIG_FILE = "config.yaml"
logger = logging.getLogger(__name__)
Overrides = Mapping[str, Any]
TEMPERATURES = ("folds", "prior", "none")
"""What an estimator's temperature is learned by."""
TOO_FEW = "fewer than %d different rows, so no temperature is learned from them"
NOT_FINITE = "no temperature is learned from the rows, as an answer to one is not finite: %s"
NOTHING: Overrides = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Posterior:
    """What an estimator's answers go by, apart from any model.

    Attributes:
        tensors: phi, by name.
        examples: labelled rows that stand before every row in its prompt, in place of adapting.
    """

    tensors: dict[str, Tensor]
    examples: tuple[Question, ...] = ()


class SharedSession:
    """One loaded model that several estimators use, one at a time: a call puts the caller's posterior into phi first.

    Args:
        session: a run. Its phi is that of the estimator that called last.
    """

    def __init__(self, session: Session) -> None:
        self.session, self._turn = session, threading.Lock()

    def decided(self, rows: Sequence[Question], tuning: Overrides = NOTHING) -> Overrides:
        """`tuning`, with the likelihood that labelled rows decide on where the run leaves that to them."""
        session = self.session.tuned(tuning)
        if not session.undecided:
            return tuning
        with self._turn:
            try:
                found = session.decided(rows)
            except BaseException:
                self.session = replace(self.session, system=session.read_by("cloze").system)
                raise
            self.session = replace(self.session, system=found.system)
        return {**tuning, "likelihood": {**tuning.get("likelihood", {}), "kind": found.config.likelihood.decided}}

    def in_prompt(self, tuning: Overrides = NOTHING) -> Overrides:
        """`tuning`, for labelled rows in the prompt: no step, and prompts as long as they may be.

        Raises:
            AbmllError: the run was trained, or its template has no place for examples.
        """
        session = self.session
        if is_trained(session.config, session.folder):
            base = base_name(session.config.model.source or "BASE")
            raise AbmllError(
                f"in_prompt=True is for a base model, and {session.folder} was trained: Classifier({base!r}, "
                "in_prompt=True)"
            )
        return merge(dict(tuning), session.for_examples())

    def fit(self, name: str, rows: Sequence[Question], tuning: Overrides = NOTHING) -> Posterior:
        """The posterior of a task, from labelled rows; `tuning` is laid on the run's configuration."""
        with self._turn:
            session = self._tuned(tuning)
            session.system.check_phi_is_all("Classifier", "use `abmll adapt --save`, or System.adapt and System.answer")
            session.system.adapt(Task(name, tuple(rows)), session.plan(len(rows)))
            self._tell_of_long_rows(session)
            return self._taken()

    def put_in_prompt(self, name: str, rows: Sequence[Question], tuning: Overrides = NOTHING) -> Posterior:
        """The base model as it is, with labelled rows in every prompt; `tuning` is that of `in_prompt`."""
        adapted = self.fit(name, rows, tuning)
        return replace(adapted, examples=in_random_order(rows, self.session.tuned(tuning).config.adaptation.seed))

    def answer(self, posterior: Posterior, rows: Sequence[Question], tuning: Overrides = NOTHING) -> tuple[Answer, ...]:
        """Answers under a posterior."""
        with self._turn:
            session = self._tuned(tuning)
            self._put(posterior)
            try:
                return session.system.answer(rows, session.drawing)
            finally:
                self._tell_of_long_rows(session)

    def learn_temperature(
        self, labelled: Labelled, tuning: Overrides = NOTHING, by: str = "folds"
    ) -> TaskTemperature | None:
        """The temperature of a task's answers.

        Args:
            labelled: the rows that were fitted to.
            tuning: as they were fitted with.
            by: one of `TEMPERATURES`: answers to each fifth of them, after adapting to the others; what the run knows
                of it by itself, as where rows are too few or an answer is not finite; or none at all.
        """
        if by == "none":
            return None
        with self._turn:
            session = self._tuned(tuning)
            stated = out_of_folds(session, labelled) if by == "folds" else None
            session.system.batcher.encoder.forget()  # of long rows `fit` has told
            return session.learn_temperature(stated)

    def learn_temperature_in_prompt(
        self, posterior: Posterior, labelled: Labelled, tuning: Overrides = NOTHING, by: str = "folds"
    ) -> TaskTemperature | None:
        """The temperature of answers by rows in the prompt: each of these rows is answered with the others before it.

        Args:
            posterior: of `put_in_prompt`.
            labelled: the rows that are in the prompt.
            tuning: as `put_in_prompt` had it.
            by: one of `TEMPERATURES`; none that a run knows by itself is of such answers, so all but "folds" are none.
        """
        if by != "folds":
            return None
        if len(set(labelled.clusters)) < FEWEST:
            logger.warning(TOO_FEW, FEWEST)
            return None
        with self._turn:
            session = self._tuned(tuning)
            self._put(posterior)
            try:
                return temperature_in_prompt(session, labelled)
            except NonFiniteError as error:
                logger.warning(NOT_FINITE, error)
                return None
            finally:
                session.system.batcher.encoder.forget()

    def write(
        self, posterior: Posterior, folder: Path, also: Callable[[Path], None], tuning: Overrides = NOTHING
    ) -> None:
        """Write a posterior and the configuration as a folder that `read` takes, whole or not at all.

        Args:
            posterior: of `fit`.
            folder: replaced if it is there.
            also: writes more files into it.
            tuning: as it was fitted with; of it the likelihood is written.
        """
        decided = {name: values for name, values in tuning.items() if name == "likelihood"}

        def all_files(beside: Path) -> None:
            write_text(beside / CONFIG_FILE, session.config.to_sealed_yaml())
            write_card(beside, self._about(stored.facts, folder.name))
            also(beside)

        with self._turn:
            session = self._tuned(decided)
            self._put(posterior)
            stored = session.system.stored("task")
        write_adapter(stored, folder, all_files)

    def _about(self, facts: AdapterFacts, name: str) -> About:
        """What the card says; a base model that was opened by itself has no run directory to tell more."""
        folder = self.session.folder
        return (
            about_run(folder, facts, {}, name) if (folder / CONFIG_FILE).is_file() else About(name, facts, details={})
        )

    def _tuned(self, tuning: Overrides) -> Session:
        """The session as an estimator set it; the system reads by the likelihood that it was fitted with."""
        session = self.session.tuned(tuning)
        asked, built = session.config.likelihood, session.system.config.likelihood
        if not session.undecided and (asked.kind, asked.max_tokens) != (built.kind, built.max_tokens):
            session = session.read_by(session.config.likelihood.decided)
            self.session = replace(self.session, system=session.system)
        system = session.system
        system.batcher = replace(system.batcher, examples=())  # those of the estimator before
        return session

    def _tell_of_long_rows(self, session: Session) -> None:
        encoder = session.system.batcher.encoder
        if encoder.truncated:
            logger.warning("%s", session.about_long_rows(len(encoder.truncated)))
        encoder.forget()

    def _taken(self) -> Posterior:
        phi = self.session.system.method.adapters.state_dict("task")
        return Posterior({name: tensor.detach().clone() for name, tensor in phi.items()})

    def _put(self, posterior: Posterior) -> None:
        system = self.session.system
        system.method.adapters.load_state_dict("task", posterior.tensors)
        system.batcher = replace(system.batcher, examples=posterior.examples)


def out_of_folds(session: Session, labelled: Labelled) -> ChoiceRows | None:
    """Answers to labelled rows, each by phi as it is after adapting to the other parts; it is used up by that.

    Returns:
        None where rows are too few for parts, or an answer is not finite.
    """
    if len(set(labelled.clusters)) < FEWEST:
        logger.warning(TOO_FEW, FEWEST)
        return None
    answers = [row.answer for row in labelled.rows]
    folds = deal(answers, labelled.clusters, seed=session.config.adaptation.seed)
    try:
        found = session.system.answer_by_folds(labelled.rows, folds, session.drawing, session.plan)
    except NonFiniteError as error:
        logger.warning(NOT_FINITE, error)
        return None
    return choice_rows([answer.probabilities for answer in found], np.array(answers, dtype=np.int64))


def shared_session_of(run: Path | str, overrides: Overrides = NOTHING) -> SharedSession:
    """The shared session of a run: the one that is loaded already, if it is the same run with the same settings.

    Raises:
        AbmllError: there is no such run, or its base model cannot be had.
    """
    found = find_run(run, copy=False)
    source = None if (found / CONFIG_FILE).is_file() else find_base(run)
    folder = found.resolve()
    return _shared(_Opened(folder, _written(folder / "adapter"), overrides, source))


def read_shared_session(folder: Path, examples: tuple[Question, ...] = ()) -> tuple[SharedSession, Posterior]:
    """What `SharedSession.write` wrote, loaded; `examples` are those of the posterior.

    Raises:
        AbmllError: the folder is not one, is damaged, or belongs to another base model.
    """
    stored = read_adapter(folder)
    config = load_config(RunConfig, folder / CONFIG_FILE)
    system = build_system(config, load_base(config.model))
    try:
        use_adapter(stored, system, folder)
    except BaseException:
        system.close()
        raise
    return SharedSession(Session(folder, config, system)), Posterior(dict(stored.tensors), examples)


def check_free_folder(folder: Path, file: str, replace: bool) -> None:
    """Refuse a folder that an estimator cannot be saved in.

    Args:
        folder: where.
        file: that every estimator's folder has.
        replace: whether it may take the place of another estimator.

    Raises:
        AbmllError: something is there already.
    """
    if not folder.exists():
        return
    if not (folder / file).is_file():
        raise AbmllError(f"{folder}: is there already, and no folder of Classifier.save; choose another name")
    if not replace:
        raise AbmllError(f"{folder}: is there already; choose another name, or replace it (replace=True)")


def saved_in(folder: Path) -> tuple[str, str]:
    """Where an estimator is, and which one it is."""
    return str(folder.resolve()), checksum(folder)


def _written(folder: Path) -> int:
    """When an adapter was written: one that was trained again is another."""
    file = folder / "abmll.safetensors"
    return file.stat().st_mtime_ns if file.is_file() else 0


@dataclass(frozen=True)
class _Opened:
    """What makes one shared session another. A mapping has no hash, but is compared."""

    folder: Path
    written: int
    overrides: Overrides = field(hash=False)
    source: str | None = None


@functools.lru_cache(maxsize=1)
def _shared(opened: _Opened) -> SharedSession:
    if opened.source is not None:
        return SharedSession(open_base(base_config(opened.source), opened.overrides))
    return SharedSession(open_run(opened.folder, opened.overrides))
