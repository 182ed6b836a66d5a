"""The adapter of a run as a stored one, and stored ones back on a base model, checked to be the right model."""

import logging
from pathlib import Path

import torch

from abmll.adapters.attach import detach
from abmll.adapters.base_weights import base_distance
from abmll.adapters.facts import Slot, StoredAdapter
from abmll.adapters.folder import read_adapter
from abmll.adapters.layer import AdapterSet
from abmll.adapters.stored import attach_stored, install
from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.models import LanguageModel
from abmll.systems.build import build_system, load_base
from abmll.systems.system import CONFIG_FILE, System, base_facts

MOST_DISTANCE = 0.5
"""Relative distance of base weights from which on they are another model's: 2 bits leave about 0.4, chance 1.4."""

logger = logging.getLogger(__name__)


def use_adapter(
    stored: StoredAdapter, system: System, where: object, slots: tuple[Slot, ...] = ("shared", "task")
) -> None:
    """Put a stored adapter, and the temperature that belongs to it, into a system.

    Args:
        stored: from `read_adapter`.
        system: built on the base model, with adapters of the same layers and rank.
        where: what messages call the adapter, usually its folder.
        slots: those that take it.

    Raises:
        AbmllError: it belongs to another base model, or to other layers; says what differs.
    """
    check_identity(stored, system.language_model, where)
    try:
        install(stored, system.method.adapters, slots)
    except AbmllError as error:
        raise AbmllError(f"{where}: {error}") from error
    check_weights(stored, system.language_model, system.method.adapters, where)
    _take_learned(stored, system, where)
    theirs, mine = stored.facts.likelihood, system.config.likelihood
    for name in ("kind", "normalisation", "template", "premise"):
        if getattr(theirs, name) != getattr(mine, name):
            pair = (str(getattr(theirs, name))[:60], str(getattr(mine, name))[:60])
            logger.warning("%s was made with likelihood.%s=%s, here it is %s: it may answer worse", where, name, *pair)
    if theirs.kind != mine.kind:
        return  # a temperature of other scores
    with torch.no_grad():
        system.likelihood.log_temperature.fill_(stored.facts.likelihood.temperature).log_()


@torch.no_grad()
def _take_learned(stored: StoredAdapter, system: System, where: object) -> None:
    """Put what the adapter's method learned besides factors into the system's method.

    Raises:
        AbmllError: the system's method learns something else.
    """
    theirs, mine = stored.facts.learned, system.method.learned
    sizes = [{name: len(numbers) for name, numbers in learned.items()} for learned in (theirs, mine)]
    if sizes[0] != sizes[1]:
        raise AbmllError(
            f"{where}: its method {stored.facts.method[:60]!r} learned {_named(sizes[0])} besides factors, "
            f"{system.config.method.name!r} learns {_named(sizes[1])}; use the method that it was made with"
        )
    for name, numbers in theirs.items():
        mine[name].copy_(torch.tensor(numbers))


def _named(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name[:60]} ({size} numbers)" for name, size in sizes.items()) or "nothing"


def load_adapter(folder: Path | str, base: LanguageModel) -> AdapterSet:
    """Put a stored adapter on a base model: both slots, theta and phi, hold it.

    `detach(base.model, adapters)` takes it off again.

    Raises:
        AbmllError: a file is damaged, or the adapter belongs to another base model; says what differs. Another
            quantisation or dtype of the same model is taken with a warning that says how far the weights are apart.
    """
    stored = read_adapter(folder)
    check_identity(stored, base, folder)
    try:
        adapters = attach_stored(base.model, stored)
    except AbmllError as error:
        raise AbmllError(f"{folder}: {error}") from error
    try:
        check_weights(stored, base, adapters, folder)
    except AbmllError:
        detach(base.model, adapters)
        raise
    return adapters


def load_system(folder: Path | str, base: LanguageModel | None = None) -> System:
    """What `System.save` wrote, ready to answer: both slots, theta and phi, hold it.

    Args:
        folder: of `System.save`, or of `Classifier.save`.
        base: the base model, if it is loaded already, without adapters on it; None: loaded as the configuration says.

    Raises:
        AbmllError: a file is missing or damaged, or the adapter belongs to another base model; says what differs.
    """
    folder = Path(folder)
    stored = read_adapter(folder)
    file = folder / CONFIG_FILE
    if not file.exists():
        raise AbmllError(f"{file}: missing, so this is an adapter alone; `load_adapter` puts it on a base model")
    config = load_config(RunConfig, file)
    system = build_system(config, load_base(config.model) if base is None else base)
    try:
        use_adapter(stored, system, folder)
    except BaseException:
        system.close()
        raise
    return system


def check_identity(stored: StoredAdapter, base: LanguageModel, where: object) -> None:
    """Refuse a base model with another tokenizer or other layers than the adapter's.

    Raises:
        AbmllError: says which of them differ.
    """
    theirs, mine = stored.facts.base, base_facts(base)
    pairs = {
        "tokenizer": (theirs.tokenizer_hash, mine.tokenizer_hash),
        "architecture (layers and their sizes)": (theirs.architecture, mine.architecture),
    }
    differ = [name for name, (one, other) in pairs.items() if one and other and one != other]
    if differ:
        raise AbmllError(
            f"{where}: made for the base model {theirs.name!r}, this is {base.name!r}, and {' and '.join(differ)} "
            f"{'differ' if len(differ) > 1 else 'differs'}; load the base model that it was made for"
        )


def check_weights(stored: StoredAdapter, base: LanguageModel, adapters: AdapterSet, where: object) -> None:
    """Compare the base weights with those the adapter was made on, unless the fingerprints agree.

    Raises:
        AbmllError: they are another model's.
    """
    theirs = stored.facts.base
    if theirs.fingerprint == base.fingerprint:
        return
    distance = base_distance(stored, adapters)
    difference = "cannot be compared" if distance is None else f"differ by {100 * distance:.2g} % of their size"
    difference = "agree where the adapter is, not elsewhere" if distance == 0 else difference
    if distance is not None and distance > MOST_DISTANCE:
        raise AbmllError(
            f"{where}: made for the base model {theirs.name!r}, this is {base.name!r}: layers and tokenizer agree, but "
            f"its weights {difference}; load the base model that it was made for"
        )
    logger.warning(
        "%s was made on %r in %s; this is %r in %s, another quantisation or dtype of it (or a close relative): its "
        "weights %s, so probabilities will differ",
        where,
        theirs.name,
        theirs.dtype,
        base.name,
        str(base.dtype).removeprefix("torch."),
        difference,
    )
