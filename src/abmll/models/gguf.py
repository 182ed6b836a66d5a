"""GGUF files, dequantised once and kept as safetensors in the dtype that is used.

A cached folder is complete when it has COMPLETE.json, which is written last and lists the SHA-256 of every other file.
In bfloat16 it takes half the room of float32; of SmolLM2's weights (Q4_1: a 16-bit scale times an integer plus a 16-bit
minimum) four fifths are no bfloat16 numbers and half are no float16 numbers, so each dtype has a folder of its own.
"""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from abmll.errors import AbmllError
from abmll.files import explain_failure, folder_beside, read_sealed_json, write_sealed_json
from abmll.hub import first_line
from abmll.models.gguf_header import GGUFHeader, read_header
from abmll.models.gguf_parts import GGUFParts, JoinedBytes
from abmll.models.gguf_weights import GGUFModel, Tell, is_direct, plan_weights, read_tokenizer, write_weights
from abmll.models.pretrained import read_gguf, read_pretrained
from abmll.process.lock import locked_folder

FORMAT = 2
MARKER = "COMPLETE.json"
WEIGHTS = "model.safetensors"
RESERVE = 64 << 20
"""Bytes beside the weights: the tokenizer, and some air."""

logger = logging.getLogger(__name__)


def load_gguf(
    parts: GGUFParts, *, dtype: torch.dtype, device: torch.device, attention: str = "sdpa"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of GGUF files, from the cache if they are in it.

    A cache that cannot be written costs time only: the files are then dequantised at each load, into a temporary
    folder, with a warning.

    Raises:
        AbmllError: a file is missing, is no GGUF file, is damaged or cut off, or its architecture is not supported; or
            neither the cache nor the temporary folder has room.
    """
    header = read_header(parts)
    with contextlib.ExitStack() as stack:
        folder = _cached(parts, header, dtype) or stack.enter_context(_temporary(parts, header, dtype))
        return read_pretrained(str(folder), dtype=dtype, device=device, attention=attention)


def cache_root() -> Path:
    """ABMLL_CACHE, else XDG_CACHE_HOME/abmll, else ~/.cache/abmll."""
    if own := os.environ.get("ABMLL_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path(os.path.expanduser("~")) / ".cache") / "abmll"  # noqa: PTH111


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


def seal_folder(folder: Path, source: str, name: str) -> None:
    """Write the marker of a folder that has everything else, for the name that it will have: of one file and dtype."""
    sums = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    write_sealed_json(folder / MARKER, {"format": FORMAT, "source": source, "files": sums}, name)


def _cached(parts: GGUFParts, header: GGUFHeader, dtype: torch.dtype) -> Path | None:
    """The folder with the dequantised weights, made if need be; None if it cannot be written.

    The key is the SHA-256 of the files, the dtype, and the version of transformers, whose reader decides names and
    configuration. One process makes it, others wait for that.
    """
    folder = cache_root() / "gguf" / f"{parts.name}-{_key(parts, dtype)}"
    if _is_whole(folder):
        return folder
    try:
        with locked_folder(cache_root() / "locks" / folder.name, wait=True):
            if not _is_whole(folder):
                folder.parent.mkdir(parents=True, exist_ok=True)
                _make(parts, header, dtype, folder)
        return folder
    except OSError as error:
        reason = explain_failure(error) or str(error)
        logger.warning("no cache in %s (%s): each load of %s will be slow", folder.parent, reason, parts.name)
        return None


def _is_whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    if damage := find_damage(folder):
        logger.warning("the cached model in %s is damaged (%s); building it again", folder, damage)
    return not damage


@contextlib.contextmanager
def _temporary(parts: GGUFParts, header: GGUFHeader, dtype: torch.dtype) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="abmll-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / parts.name
        try:
            _make(parts, header, dtype, folder)
        except OSError as error:
            raise AbmllError(
                f"{parts.paths[0]}: its weights have no place: neither in {cache_root()} nor in {place} "
                f"({explain_failure(error) or error}). Set ABMLL_CACHE to a folder with room"
            ) from error
        yield folder


def _make(parts: GGUFParts, header: GGUFHeader, dtype: torch.dtype, folder: Path) -> None:
    """Make the folder, whole or not at all.

    Raises:
        AbmllError: the model cannot be read.
        OSError: there is no room, ...
    """
    started = time.perf_counter()
    with _said_of(parts):
        model = plan_weights(header) if is_direct(header) else None
    weights = sum(tensor.elements for tensor in header.tensors) if model is None else model.weights
    _check_room(folder.parent, weights * dtype.itemsize)
    name = str(dtype).removeprefix("torch.")
    logger.info(
        "dequantising %s, once: %.1f GB of %s, kept in %s", parts.name, weights * dtype.itemsize / 1e9, name, folder
    )
    with folder_beside(folder) as beside:
        with _said_of(parts):
            _fill(parts, header, model, dtype, beside)
        seal_folder(beside, parts.paths[0].name, folder.name)
    logger.info("dequantised in %.0f s", time.perf_counter() - started)


def _fill(parts: GGUFParts, header: GGUFHeader, model: GGUFModel | None, dtype: torch.dtype, folder: Path) -> None:
    """Configuration, tokenizer and weights; by transformers' reader where an architecture needs it."""
    if model is None:
        if len(parts.paths) > 1:
            raise AbmllError(
                f"{parts.paths[0]}: parts of the architecture {header.architecture!r} cannot be read; join them "
                "(`llama-gguf-split --merge`, or `cat` where they are plain pieces), and give that file"
            )
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting of transformers turns off
            whole, tokenizer = read_gguf(parts.paths[0], dtype=dtype, device=torch.device("cpu"))
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    read_tokenizer(header).save_pretrained(folder)
    config = model.skeleton.config
    config.architectures, config.dtype = [type(model.skeleton).__name__], dtype
    config.save_pretrained(folder)
    with _progress(parts.name) as tell:
        write_weights(model, folder / WEIGHTS, dtype, tell)


@contextlib.contextmanager
def _said_of(parts: GGUFParts) -> Iterator[None]:
    """Whatever a damaged file makes a reader raise becomes a message; the disk's own errors go on."""
    try:
        yield
    except (AbmllError, OSError):
        raise
    except Exception as error:  # a damaged file fails anywhere in the readers, with any error
        raise AbmllError(f"{parts.paths[0]}: cannot be read as a GGUF model ({first_line(error)})") from error


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Tell]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"dequantising {name}", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _check_room(place: Path, size: int) -> None:
    """Refuse a disk without room for the weights.

    Raises:
        OSError: says how much is needed and how much is free.
    """
    free = shutil.disk_usage(place).free
    if free < size + RESERVE:
        raise OSError(f"{place}: {size / 1e9:.1f} GB are needed, and {free / 1e9:.1f} GB are free")


def _key(parts: GGUFParts, dtype: torch.dtype) -> str:
    text = f"{_sha256_of(JoinedBytes(parts.paths))} {dtype} {transformers.__version__} {FORMAT}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sha256_of(joined: JoinedBytes) -> str:
    digest = hashlib.sha256()
    with joined.stream() as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
