"""An adapter as files: a stock PEFT LoRA of the means, and everything else in `abmll.safetensors`.

The second file holds the std factors, a few weights of the base model (to know it again by), and as metadata all that
the numbers mean nothing without: constants, method, likelihood, base model. A SHA-256 over both files' tensors and the
metadata is in it too: safetensors notices no flipped bit, and no file of another adapter.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from abmll.adapters.base_weights import SAMPLED_LAYERS, SAMPLED_WEIGHTS
from abmll.adapters.facts import FORMAT, SAMPLE, AdapterFacts, StoredAdapter, digest
from abmll.adapters.peft import (
    CONFIG_FILE,
    MODEL_FILE,
    PLAIN,
    find_pickles,
    peft_config,
    peft_name,
    read_config,
    write_peft_files,
)
from abmll.errors import AbmllError, NonFiniteError
from abmll.files import folder_beside, strict_json, write_bytes
from abmll.tensors import check_names, read_header, read_tensors, to_bytes

EXTRAS_FILE = "abmll.safetensors"


def write_adapter(stored: StoredAdapter, folder: Path | str, also: Callable[[Path], None] | None = None) -> None:
    """Write the three files, whole or not at all, read them again, and only then give the folder its name.

    Args:
        stored: what to write.
        folder: replaced if it is there.
        also: writes more files into the folder before it gets its name.

    Raises:
        NonFiniteError: a weight is NaN or infinite; nothing is written then.
        AbmllError: what was read is not what was written.
        OSError: the disk is full, or the place cannot be written; `folder` is then as it was.
    """
    bad = next((name for name, tensor in stored.tensors.items() if not bool(tensor.isfinite().all())), None)
    if bad is not None:
        raise NonFiniteError(f"{folder}: {bad} holds NaN or infinity, so there is no adapter to write")
    with folder_beside(Path(folder)) as beside:
        _write_files(stored, beside)
        if not read_adapter(beside).equals(stored):
            raise AbmllError(f"{folder}: what was read again is not what was written; is the disk damaged?")
        if also is not None:
            also(beside)


def _write_files(stored: StoredAdapter, folder: Path) -> None:
    facts = stored.facts
    write_peft_files(folder, _peft_config(facts), stored.tensors)
    extras = {name: tensor for name, tensor in stored.tensors.items() if name.rpartition(".")[2].startswith("std")}
    text = facts.model_dump_json()
    metadata = {"abmll": text, "sha256": digest(text, stored.all_tensors())}
    write_bytes(folder / EXTRAS_FILE, to_bytes({**extras, SAMPLE: stored.base_sample.contiguous()}, metadata))


def _peft_config(facts: AdapterFacts) -> dict[str, Any]:
    revision = facts.base.revision if _is_commit(facts.base.revision) else None  # PEFT takes it for one of the hub
    return peft_config(
        facts.layers,
        facts.rank,
        facts.alpha,
        transposed=facts.transposed,
        base_model=facts.base.name,
        revision=revision,
    )


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)


def read_adapter(folder: Path | str) -> StoredAdapter:
    """Read an adapter that this library wrote: `adapter/` of a run, `tasks/NAME/`, or an export of the mean.

    Only the three files are opened. Everything is checked: names, shapes, dtypes and finite numbers, that the two
    tensor files belong together, and that PEFT's configuration says the same as ours.

    Raises:
        AbmllError: whatever is wrong; names the file.
    """
    folder = Path(folder)
    config = read_config(folder)
    if pickles := find_pickles(folder):
        raise AbmllError(
            f"{folder / pickles[0]}: a pickle, which can run code, has no place beside an adapter; remove it"
        )
    facts, text, checksum = _read_facts(folder / EXTRAS_FILE)
    _check_config(folder / CONFIG_FILE, config, facts)
    shapes = facts.shapes()
    means = {name: shape for name, shape in shapes.items() if name.rpartition(".")[2].startswith("mean")}
    stored_means = read_tensors(folder / MODEL_FILE, {peft_name(name): shape for name, shape in means.items()})
    tensors = {name: stored_means[peft_name(name)] for name in means}
    extras = {name: shape for name, shape in shapes.items() if name not in means}
    extras[SAMPLE] = (SAMPLED_LAYERS, SAMPLED_WEIGHTS)
    tensors |= read_tensors(folder / EXTRAS_FILE, extras)
    stored = StoredAdapter(facts, {name: tensors[name] for name in shapes}, tensors[SAMPLE])
    if digest(text, stored.all_tensors()) != checksum:
        raise AbmllError(
            f"{folder / EXTRAS_FILE}: damaged, or not of the same adapter as {MODEL_FILE} (the SHA-256 differs); copy "
            "the whole folder again, or let the run write it again"
        )
    return stored


def read_facts(file: Path) -> AdapterFacts:
    """The facts in the metadata of an `abmll.safetensors`; no tensor is read.

    Raises:
        AbmllError: the file is no such file, or of a format that this version does not know.
    """
    return _read_facts(file)[0]


def checksum(folder: Path) -> str:
    """The SHA-256 over all of an adapter, as its files hold it: a file that is sealed with it belongs to this adapter.

    Raises:
        AbmllError: the adapter's second file is missing, or is no such file.
    """
    return _read_facts(folder / EXTRAS_FILE)[2]


def _read_facts(file: Path) -> tuple[AdapterFacts, str, str]:
    """The facts, their text, and the SHA-256 that text and tensors should have."""
    if not file.is_file():
        raise AbmllError(
            f"{file}: missing, so this is no adapter of abmll; an ordinary PEFT LoRA can be the start of a run "
            "(adapter.start)"
        )
    metadata = read_header(file).metadata
    if "abmll" not in metadata:
        raise AbmllError(f"{file}: has no facts of the adapter; a version before 0.1 wrote it: make the adapter again")
    try:
        raw = strict_json(metadata["abmll"])
        _check_format(file, raw)
        return AdapterFacts.model_validate(raw), metadata["abmll"], metadata.get("sha256", "")
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise AbmllError(f"{file}: {field[:200]}: {first['msg']}") from error
    except AbmllError:
        raise
    except ValueError as error:
        raise AbmllError(f"{file}: its facts are not JSON ({' '.join(str(error).split())[:200]})") from error


def _check_format(file: Path, raw: Any) -> None:
    number = raw.get("format") if isinstance(raw, dict) else None
    if type(number) is not int or number < 1:
        raise AbmllError(f"{file}: its facts name no format")
    if number > FORMAT:
        raise AbmllError(
            f"{file}: format {number} is of a newer version ({str(raw.get('written_by'))[:60]}); this one reads up to "
            f"format {FORMAT}: upgrade abmll"
        )


def _check_config(file: Path, config: dict[str, Any], facts: AdapterFacts) -> None:
    """PEFT's configuration must describe the LoRA that our facts do: other loaders go by it."""
    targets = config.get("target_modules")
    said = {
        "peft_type": config.get("peft_type"),
        "r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"),
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "use_rslora": bool(config.get("use_rslora")),
        **{name: config.get(name) or plain for name, plain in PLAIN.items()},
    }
    meant = {
        "peft_type": "LORA",
        "r": facts.rank,
        "lora_alpha": facts.alpha,
        "fan_in_fan_out": facts.transposed,
        "use_rslora": False,
        **PLAIN,
    }
    for name, value in meant.items():
        if said[name] != value:
            raise AbmllError(f"{file}: {name} is {str(said[name])[:80]!r}, but {EXTRAS_FILE} says {value!r}")
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        raise AbmllError(f"{file}: target_modules is no list of layers")
    check_names(file, targets, facts.layers)
