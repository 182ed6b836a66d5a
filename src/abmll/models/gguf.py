"""GGUF files, dequantised once and kept as safetensors: SmolLM2 takes 19 seconds the first time, then 1.

The cache holds float32, twice the size of bfloat16, to lose nothing: of SmolLM2's dequantised weights (Q4_1: a 16-bit
scale times an integer plus a 16-bit minimum) four fifths are no bfloat16 numbers and half are no float16 numbers. A
cached folder is complete when it has COMPLETE.json, which is written last and lists the SHA-256 of every other file.
"""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from abmll.errors import AbmllError
from abmll.files import check_regular, read_sealed_json, write_sealed_json
from abmll.models.pretrained import read_gguf, read_pretrained, without_bars

FORMAT = 1
MARKER = "COMPLETE.json"
ABANDONED = 24 * 3600.0  # seconds after which a half-written folder is no longer somebody's work

logger = logging.getLogger(__name__)


def load_gguf(
    path: Path, *, dtype: torch.dtype, device: torch.device, attention: str = "sdpa"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a GGUF file, from the cache if they are in it.

    A cache that cannot be written costs time only: the file is then dequantised at each load, with a warning.

    Raises:
        AbmllError: the file is missing, is no GGUF file, is damaged, or its architecture is not supported.
    """
    _check_magic(path)
    folder = cached_folder(path)
    if folder is not None:
        try:
            return read_pretrained(str(folder), dtype=dtype, device=device, attention=attention)
        except AbmllError as error:
            logger.warning("the cached copy of %s cannot be used (%s); reading the file itself", path, error)
    return read_gguf(path, dtype=dtype, device=device, attention=attention)


def cache_root() -> Path:
    """ABMLL_CACHE, else XDG_CACHE_HOME/abmll, else ~/.cache/abmll."""
    if own := os.environ.get("ABMLL_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path(os.path.expanduser("~")) / ".cache") / "abmll"  # noqa: PTH111


def cached_folder(path: Path) -> Path | None:
    """The folder with the dequantised weights of a GGUF file, made if need be; None if it cannot be written.

    The key is the file's SHA-256 and transformers' version, whose reader decides names and configuration.
    """
    folder = cache_root() / "gguf" / f"{path.stem}-{_key(path)}"
    if folder.exists():
        damage = find_damage(folder)
        if not damage:
            return folder
        logger.warning("the cached model in %s is damaged (%s); building it again", folder, damage)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        workplace = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    except OSError as error:
        logger.warning("no cache in %s (%s): each load of %s will be slow", folder.parent, error, path.name)
        return None
    try:
        return _build(path, workplace, folder)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def find_damage(folder: Path) -> str:
    """What is wrong with a cached folder, in words; empty if it holds exactly the files that were written."""
    try:
        expected = read_sealed_json(folder / MARKER, folder.name)["files"]
        present = {file.name for file in folder.iterdir()} - {MARKER}
        if present != set(expected):
            return f"its files are {sorted(present)}, not {sorted(expected)}"
        changed = [name for name in sorted(expected) if _sha256(folder / name) != expected[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:  # AbmllError is a ValueError
        return f"{MARKER}: {error!r}"
    return f"{changed[0]} is not what was written" if changed else ""


def _build(path: Path, workplace: Path, folder: Path) -> Path | None:
    logger.info("dequantising %s: takes about 15 seconds per 100 MB, once; then cached in %s", path.name, folder)
    started = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting of transformers turns off
        model, tokenizer = read_gguf(path, dtype=torch.float32, device=torch.device("cpu"))
    try:
        _write(workplace, model, tokenizer, path.name, folder.name)
        _move(workplace, folder)
    except (OSError, SafetensorError) as error:
        logger.warning("the cache %s cannot be written (%s): each load of %s will be slow", folder, error, path.name)
        return None
    logger.info("dequantised in %.0f s", time.perf_counter() - started)
    return folder


def _write(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, name: str) -> None:
    """Everything, and last the marker, sealed for the name that the folder will have: of one file and version."""
    with without_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    files = sorted(folder.iterdir())
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sums = {file.name: _sha256(file) for file in files}
    write_sealed_json(folder / MARKER, {"format": FORMAT, "source": source, "files": sums}, name)


def _move(workplace: Path, folder: Path) -> None:
    workplace.chmod(0o755)  # mkdtemp makes it private
    if folder.exists() and find_damage(folder):
        shutil.rmtree(folder)
    try:
        workplace.rename(folder)
    except OSError:
        if find_damage(folder):  # else another process was as good, and faster
            raise


def _remove_abandoned(folder: Path) -> None:
    for part in folder.parent.glob(".*.part"):
        if time.time() - part.stat().st_mtime > ABANDONED:
            shutil.rmtree(part, ignore_errors=True)


def _check_magic(path: Path) -> None:
    try:
        check_regular(path)
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise AbmllError(f"{path}: cannot be read ({error.strerror})") from error
    if magic != b"GGUF":
        raise AbmllError(f"{path}: not a GGUF file (it starts with {magic!r}); download it again")


def _key(path: Path) -> str:
    parts = f"{_sha256(path)} {transformers.__version__} {FORMAT}"
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
