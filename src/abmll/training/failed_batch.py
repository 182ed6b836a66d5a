"""A batch that gave a loss or gradient that is not finite, kept with the weights it met, to be looked at later.

`RUN/non-finite/NAME/` holds `batch.json` (questions, tokens, coordinates of the noise, configuration) and
`state.safetensors` (theta and phi as they were: nothing was updated by the batch). Nothing else of the run is needed to
replay it.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from torch import Tensor

from abmll.errors import AbmllError, NonFiniteError
from abmll.files import folder_beside, read_sealed_json, write_bytes, write_sealed_json
from abmll.methods.base import Method
from abmll.methods.noise import ADAPTATION, StepCoordinates
from abmll.question import Question
from abmll.tensors import portable, read_header, to_bytes
from abmll.training.batcher import Batcher

FORMAT = 1
BATCH_FILE, STATE_FILE = "batch.json", "state.safetensors"
TEMPERATURE = "likelihood.log_temperature"


@dataclass(frozen=True)
class FailedBatch:
    """A batch on which a loss or gradient was not finite; the weights are as they were before it.

    Attributes:
        questions: of the batch; empty where an outer step has no query batch.
        coordinates: of its noise: (seed, meta-iteration, position, step).
        outer: whether it was the batch of an outer step.
    """

    questions: tuple[Question, ...]
    coordinates: StepCoordinates
    outer: bool = False


@dataclass(frozen=True)
class StoredBatch:
    """What `save_batch` kept.

    Attributes:
        task: its name.
        batch: the questions, and where in the run they came.
        tokens: prompt and choices of each question as token ids.
        config: the run's configuration as YAML; empty where the run had none.
        state: `shared.NAME`, `task.NAME` and the log-temperature; not all need be finite.
    """

    task: str
    batch: FailedBatch
    tokens: tuple[dict[str, Any], ...]
    config: str
    state: dict[str, Tensor]


def save_batch(
    error: NonFiniteError, run: Path, method: Method, batcher: Batcher, task: str, config: str | None = None
) -> NonFiniteError:
    """Keep the batch of an error; returns the error to raise instead, which says where the batch is and what to do.

    Args:
        error: from a step that was not taken, right after it.
        run: the run directory.
        method: holds theta and phi.
        batcher: encodes the questions.
        task: its name.
        config: the configuration as YAML; None: the run's own.
    """
    if error.batch is None or not error.batch.coordinates:
        return error
    _, iteration, position, _ = error.batch.coordinates
    adapting = iteration == ADAPTATION
    name = f"adapting-draw-{position}" if adapting else f"step-{iteration:06d}-position-{position}"
    where = f"adapting to task {task}" if adapting else f"meta-iteration {iteration + 1}, task {task}"
    folder = run / "non-finite" / name
    try:
        file = run / "config.yaml"
        text = file.read_text(encoding="utf-8") if config is None and file.exists() else config or ""
        _write(folder, error, method, batcher, task, text)
    except OSError as failure:
        return NonFiniteError(f"{where}: {error}. The batch could not be kept ({failure})", error.batch)
    message = f"{where}: {error}. `abmll doctor --batch {folder / BATCH_FILE}` says where it begins"
    return NonFiniteError(message, error.batch)


def _write(folder: Path, error: NonFiniteError, method: Method, batcher: Batcher, task: str, config: str) -> None:
    batch = error.batch
    assert batch is not None
    adapters = method.adapters
    state = {f"{slot}.{n}": t for slot in ("shared", "task") for n, t in adapters.state_dict(slot).items()}
    for temperature in method.temperature:
        state[TEMPERATURE] = temperature.detach().reshape(1)
    data = to_bytes({name: portable(tensor) for name, tensor in state.items()}, {"abmll_batch": str(FORMAT)})
    encoded = batcher.encode(batch.questions)
    value = {
        "abmll_batch": FORMAT,
        "task": task,
        "step": "outer" if batch.outer else "inner",
        "place": list(batch.coordinates),
        "what": str(error),
        "questions": [_question_as_json(question) for question in batch.questions],
        "tokens": [{"prefix": e.prefix, "continuations": e.continuations} for e in encoded],
        "config": config,
        "state_sha256": hashlib.sha256(data).hexdigest(),
    }
    with folder_beside(folder) as beside:
        write_bytes(beside / STATE_FILE, data)
        write_sealed_json(beside / BATCH_FILE, value)


def read_batch(file: Path) -> StoredBatch:
    """The inverse of `save_batch`.

    Args:
        file: `batch.json`, or its folder.

    Raises:
        AbmllError: a file is missing or damaged, or is no such batch.
    """
    file = file / BATCH_FILE if file.is_dir() else file
    value = read_sealed_json(file)
    if value.get("abmll_batch") != FORMAT:
        raise AbmllError(f"{file}: no batch that training saved (its format is {value.get('abmll_batch')!r})")
    state = file.with_name(STATE_FILE)
    read_header(state)
    data = state.read_bytes()
    try:
        if hashlib.sha256(data).hexdigest() != value["state_sha256"]:
            raise AbmllError(f"{state}: damaged, or not of {file.name} (its SHA-256 differs)")
        questions = tuple(map(_question_of_json, value["questions"]))
        batch = FailedBatch(questions, tuple(value["place"]), value["step"] == "outer")
        return StoredBatch(value["task"], batch, tuple(value["tokens"]), value["config"], load_tensors(data))
    except (KeyError, TypeError) as error:
        raise AbmllError(f"{file}: not what was saved ({error})") from error


def _question_as_json(question: Question) -> dict[str, Any]:
    """A question without its location: a folder's name may say who somebody is. The field is still called `place`."""
    values = asdict(question)
    del values["location"]
    return {**values, "place": ""}


def _question_of_json(values: dict[str, Any]) -> Question:
    text = {key: value for key, value in values.items() if key != "place"}
    return Question(**{**text, "choices": tuple(values["choices"])})
