"""Task-adapted posteriors by name: `tasks/NAME/` in a run directory, each a stock PEFT LoRA with its stds beside it."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from abmll.adapters.facts import StoredAdapter
from abmll.adapters.folder import EXTRAS_FILE, checksum, read_adapter, read_facts, write_adapter
from abmll.config import RunConfig
from abmll.errors import AbmllError, unknown_name
from abmll.everyday.probe import read_probe, with_same_tokenizer
from abmll.everyday.survey import DETAILS_FILE
from abmll.files import (
    MOST_JSON,
    OLD,
    check_name,
    read_and_tell_seal,
    recover,
    replaced_by,
    write_sealed_json,
)
from abmll.prompts.examples import examples_from_json, examples_to_json
from abmll.question import Question
from abmll.runs.card import about_run, write_card
from abmll.systems.adapters import use_adapter
from abmll.systems.posteriors.stored import read_posterior_into, write_posterior
from abmll.systems.system import System

IN_PROMPT = "examples_in_prompt"
"""Detail of a task whose answers have labelled rows in the prompt: in place of adapting, or by its method."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SavedPosterior:
    """One saved posterior: q(phi | D) of a task.

    Attributes:
        name: by which it is loaded.
        folder: its files.
        details: what was saved with it: how it was adapted, on what, ...
        adapter: means and stds, and the facts about them.
        sealed: whether the details are known to be what was saved with this very adapter; version 0.1.0 did not seal
            them.
    """

    name: str
    folder: Path
    details: dict[str, Any]
    adapter: StoredAdapter
    sealed: bool = True

    @property
    def examples_in_prompt(self) -> tuple[Question, ...]:
        """Labelled rows that stand before every row in its prompt: in place of adapting, or by its method.

        Raises:
            AbmllError: they are damaged.
        """
        if IN_PROMPT not in self.details:
            return ()
        try:
            return examples_from_json(self.details[IN_PROMPT])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise AbmllError(f"{self.folder}: its examples are damaged ({error}); adapt again") from error

    def check_adapted(self, use: str) -> None:
        """Refuse a task whose answers are no adapter's alone.

        Args:
            use: what the adapter is to be used for, for the message.

        Raises:
            AbmllError: it answers with examples in the prompt.
        """
        if IN_PROMPT in self.details:
            raise AbmllError(
                f"{self.folder}: {use} is for weights that answer alone; this task answers by labelled rows in the "
                "prompt (adapt --in-prompt, or a method with demonstrations). Another method, or `abmll adapt` without "
                "--in-prompt, makes some"
            )


def save_posterior(
    run: Path | str,
    name: str,
    config: RunConfig,
    system: System,
    details: Mapping[str, Any] | None = None,
    *,
    replace: bool = False,
) -> Path:
    """Write phi, as it is now, under a name in the run directory; the folder is there whole or not at all.

    What is written is the factorised normal q(phi | D) that the task was adapted to (docs/method.md, section 1): means
    and stds of every factor, in float32, so that `load_posterior` gives the same draws.

    Args:
        run: the run directory.
        name: of the posterior: up to 80 letters, digits, '-', '_' and '.'.
        config: of the run.
        system: its task slot is saved.
        details: JSON values to save with it.
        replace: put it in the place of a saved posterior of the same name.

    Returns:
        The folder, which stock PEFT loads too.

    Raises:
        AbmllError: the name cannot be one, or is taken.
        OSError: the disk is full, ...; an earlier one of that name is then as it was.
    """
    run = Path(run)
    check_free(run, name, replace=replace)
    folder = _folder(run, name)

    stored, details = system.stored("task"), {**(details or {}), **beside_phi(system)}

    def details_too(beside: Path) -> None:
        _write_details(beside, name, details)
        if system.posterior is not None and system.posterior.fitted:
            write_posterior(system.posterior, system.config.posterior.name, beside)
        write_card(beside, about_run(run, stored.facts, details, name))

    write_adapter(stored, folder, details_too)
    return folder


def check_free(run: Path | str, name: str, *, replace: bool = False) -> None:
    """Refuse a name that `save_posterior` would refuse, before the work is done.

    Raises:
        AbmllError: the name cannot be one, or is taken.
    """
    run = Path(run)
    _folder(run, name)
    taken = [other for other in _names(run) if other.lower() == name.lower()]
    if taken and not (replace and taken == [name]):
        raise AbmllError(f"{run} has a saved task {taken[0]!r} already: choose another name, or replace it (--replace)")


def write_details(
    run: Path | str, name: str, details: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> None:
    """Put other details in the place of a saved task's, and on its model card; its adapter stays as it is.

    Args:
        run: its run directory.
        name: of the saved task.
        details: the new ones.
        before: those that must be there now; None: any.

    Raises:
        AbmllError: there is none of that name, it is damaged, or it is not the one with `before` any more.
    """
    run = Path(run)
    folder = _folder(run, name)
    if name not in _names(run):
        raise unknown_name(f"saved task of {run}", name, _names(run))
    if before is not None and _read_details(folder, name)[0] != json.loads(json.dumps(dict(before))):
        raise AbmllError(f"{folder}: another process has replaced it meanwhile; what was found is not kept with it")
    _write_details(folder, name, details)
    write_card(folder, about_run(run, read_facts(folder / EXTRAS_FILE), details, name))


def list_posteriors(run: Path | str) -> tuple[SavedPosterior, ...]:
    """The saved posteriors of a run, by name.

    Args:
        run: the run directory.

    Returns:
        All of them that can be read; a damaged one is left out with a warning.
    """
    found = []
    for name in _names(Path(run)):
        try:
            found.append(read_posterior(run, name))
        except AbmllError as error:
            logger.warning("%s; passed over", error)
    return tuple(found)


def read_posterior(run: Path | str, name: str) -> SavedPosterior:
    """A saved posterior, apart from any model.

    Args:
        run: the run directory.
        name: by which it was saved.

    Raises:
        AbmllError: there is none of that name (says which there are), or it is damaged.
    """
    run = Path(run)
    folder = _folder(run, name)
    if name not in _names(run):
        raise unknown_name(f"saved task of {run}", name, _names(run))
    adapter = read_adapter(folder)
    if adapter.facts.slot != "task":
        raise AbmllError(f"{folder}: holds the shared weights of a run, not a task's")
    details, sealed = _read_details(folder, name)
    if not sealed:
        logger.warning(
            "%s has no SHA-256, as version 0.1.0 wrote none (or it was edited): it is taken as it is, but promises "
            "nothing (--abstain-below-risk)",
            folder / DETAILS_FILE,
        )
    return SavedPosterior(name, folder, details, adapter, sealed)


def load_posterior(run: Path | str, name: str, system: System) -> SavedPosterior:
    """Put a saved posterior into phi of a system, ready to predict; theta stays as it is.

    Args:
        run: the run directory.
        name: by which it was saved.
        system: built from that run's configuration.

    Returns:
        What was saved, with the details of how it was adapted.

    Raises:
        AbmllError: there is none of that name, it is damaged, or it belongs to another base model.
    """
    saved = read_posterior(run, name)
    put_posterior(saved, system)
    return saved


def put_posterior(saved: SavedPosterior, system: System) -> None:
    """Put a saved posterior into phi of a system, which may be on another copy of the run's base model.

    Where the task has examples in the prompt, the system's prompts have them from now on; else they have none.

    Raises:
        AbmllError: it belongs to another base model, or its examples are damaged.
    """
    examples = saved.examples_in_prompt
    if system.method.demonstrations and not examples:
        raise AbmllError(
            f"{saved.folder}: was saved without the labelled rows that its method shows; adapt again with "
            f"`abmll adapt ... --save {saved.name} --replace`"
        )
    probe = read_probe(saved.folder.parent.parent)  # of the run
    stored = with_same_tokenizer(saved.adapter, probe, system.language_model, system.batcher.encoder)
    use_adapter(stored, system, saved.folder, ("task",))
    system.batcher = replace(system.batcher, examples=examples)
    if system.posterior is not None:
        read_posterior_into(system.posterior, system.config.posterior.name, saved.folder)
        system.posterior.fitted = True


def beside_phi(system: System) -> dict[str, Any]:
    """Details of what answers go by besides phi: labelled rows in the prompt, and which posterior there is."""
    rows = system.batcher.examples
    details: dict[str, Any] = {IN_PROMPT: examples_to_json(rows)} if rows else {}
    if system.posterior is not None and system.posterior.fitted:
        details["posterior"] = system.config.posterior.model_dump(mode="json")
    return details


def _names(run: Path) -> list[str]:
    """Names of the folders that can be saved tasks."""
    tasks = run / "tasks"
    if not tasks.is_dir():
        return []
    for old in tasks.glob(f".*{OLD}"):
        recover(replaced_by(old))
    return sorted(folder.name for folder in tasks.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _folder(run: Path, name: str) -> Path:
    """Where a saved task is, which no name and no link can move out of the run directory.

    Raises:
        AbmllError: the name cannot be one, or the folder is a link that leaves the run directory.
    """
    folder = run / "tasks" / check_name("task", name)
    if not folder.resolve().is_relative_to(run.resolve()):
        raise AbmllError(f"{folder}: a link that leaves the run directory; remove it")
    return folder


def _write_details(folder: Path, name: str, details: Mapping[str, Any]) -> None:
    write_sealed_json(folder / DETAILS_FILE, {"name": name, "details": dict(details)}, _of(folder, name))


def _of(folder: Path, name: str) -> str:
    """What the details are sealed for: this name and this adapter, so that no other task's are taken for them."""
    return f"{DETAILS_FILE} of {name}, adapter {checksum(folder)}"


def _read_details(folder: Path, name: str) -> tuple[dict[str, Any], bool]:
    """The details, and whether they are sealed."""
    file, advice = folder / DETAILS_FILE, f"adapt again with `abmll adapt ... --save {name} --replace`"
    value, sealed = read_and_tell_seal(file, _of(folder, name), advice, MOST_JSON)
    if not isinstance(value.get("details"), dict):
        raise AbmllError(f"{file}: not what was saved; {advice}")
    return value["details"], sealed
