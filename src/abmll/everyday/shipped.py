"""Meta-trained adapters that come with the package, so that adapting needs no training. `ship` makes them."""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from abmll.adapters.facts import StoredAdapter
from abmll.adapters.folder import checksum
from abmll.errors import AbmllError
from abmll.files import folder_beside, read_sealed_json, write_sealed_json
from abmll.models import LanguageModel
from abmll.prompts.encode import Encoder
from abmll.question import Question
from abmll.runs.record import RECORD
from abmll.systems.build import System
from abmll.systems.noise import POSTERIOR
from abmll.systems.predict import PredictionPlan, mean_nll
from abmll.tasks.sources import load_tasks

HERE = Path(__file__).parent.parent / "shipped"
PROBE_FILE, CONFIG_FILE, ADAPTER = "probe.json", "config.yaml", "adapter"
PROBED = 20
"""Questions of each held-out built-in task by which two copies of a base model are compared."""

log = logging.getLogger(__name__)


def shipped_names() -> tuple[str, ...]:
    """Names of the adapters that come with the package."""
    return tuple(sorted(path.parent.name for path in HERE.glob(f"*/{CONFIG_FILE}")))


def find_run(run: Path | str, *, copy: bool = True) -> Path:
    """The run directory that a user means: a folder, or the name of an adapter that comes with the package.

    Args:
        run: a folder, or a name.
        copy: for a name make `runs/NAME` here, where posteriors can be saved, unless it is there; else give the
            package's own folder, which is for reading only.

    Raises:
        AbmllError: there is neither; says which names there are.
    """
    folder = Path(run)
    if (folder / CONFIG_FILE).is_file():
        return folder
    name = str(run)
    if name not in shipped_names():
        known = ", ".join(shipped_names())
        raise AbmllError(
            f"{run}: no run directory (it has no {CONFIG_FILE}), and none of the names that come with "
            f"abmll: {known or 'none'}"
        )
    if not copy:
        return HERE / name
    folder = Path("runs") / name
    if not (folder / CONFIG_FILE).is_file():
        copy_run(HERE / name, folder)
        log.info("%s, which comes with abmll, is now in %s", name, folder)
    return folder


def copy_run(source: Path, folder: Path) -> None:
    """Copy what a run needs to be adapted: configuration, adapter, probe; and what it was trained on."""
    with folder_beside(folder) as beside:
        shutil.copyfile(source / CONFIG_FILE, beside / CONFIG_FILE)
        shutil.copytree(source / ADAPTER, beside / ADAPTER)
        for name in (PROBE_FILE, RECORD):
            if (source / name).is_file():
                shutil.copyfile(source / name, beside / name)


@dataclass(frozen=True)
class Probe:
    """How a run did on questions that every copy of its base model can be asked.

    Attributes:
        nll: mean NLL of the shared mean weights on the held-out built-in questions, nats.
        tokens: SHA-256 of these questions as token ids.
        questions: their number.
    """

    nll: float
    tokens: str
    questions: int


def probe_questions() -> tuple[Question, ...]:
    """The first test questions of each held-out built-in task."""
    return tuple(question for task in load_tasks("builtin:held-out") for question in task.test[:PROBED])


def token_hash(encoder: Encoder, questions: Sequence[Question]) -> str:
    """SHA-256 over the token ids of questions: two tokenizers that agree here are taken for the same."""
    found = hashlib.sha256()
    for question in questions:
        encoded = encoder(question)
        found.update(repr((encoded.prefix, encoded.continuations)).encode())
    return found.hexdigest()


def measure_probe(system: System) -> Probe:
    """Ask the questions, by the mean weights in the task slot."""
    questions = probe_questions()
    found = system.predict(questions, PredictionPlan("mean", 1), POSTERIOR)
    return Probe(mean_nll(found), token_hash(system.batcher.encoder, questions), len(questions))


def read_probe(folder: Path) -> Probe | None:
    """The probe of a run; None if it has none, or none that this version knows.

    Raises:
        AbmllError: it is damaged.
    """
    if not (folder / PROBE_FILE).exists():
        return None
    advice = "delete it: it only tells copies of a base model apart"
    values = read_sealed_json(folder / PROBE_FILE, _of(folder), advice)
    try:
        return Probe(float(values["nll"]), str(values["tokens"]), int(values["questions"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def write_probe(folder: Path, probe: Probe) -> None:
    """Keep a probe beside the adapter that it was measured with."""
    write_sealed_json(folder / PROBE_FILE, vars(probe), _of(folder))


def _of(folder: Path) -> str:
    return f"{PROBE_FILE} of the adapter {checksum(folder / ADAPTER)}"


def with_same_tokenizer(
    stored: StoredAdapter, probe: Probe | None, base: LanguageModel, encoder: Encoder
) -> StoredAdapter:
    """The adapter, as made with the present tokenizer if that gives the very tokens of the probe.

    A tokenizer's files differ between a GGUF file and the hub's folder of one model, in templates and names that no
    question ever meets.
    """
    facts = stored.facts
    if probe is None or facts.base.tokenizer_hash == base.tokenizer_hash:
        return stored
    if token_hash(encoder, probe_questions()) != probe.tokens:
        return stored
    mine = facts.base.model_copy(update={"tokenizer_hash": base.tokenizer_hash})
    return replace(stored, facts=facts.model_copy(update={"base": mine}))


def warn_of_other_weights(stored: StoredAdapter, probe: Probe | None, system: System, where: object) -> None:
    """On another quantisation of the base, say how much worse or better the adapter does there, measured now."""
    if probe is None or stored.facts.base.fingerprint == system.language_model.fingerprint:
        return
    here = measure_probe(system)
    log.warning(
        "%s: on this copy of the base model its NLL is %.3f nats over %d built-in questions, %.3f on the one that it "
        "was made on (%+.3f)",
        where,
        here.nll,
        here.questions,
        probe.nll,
        here.nll - probe.nll,
    )
