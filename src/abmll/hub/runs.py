"""Runs on the Hugging Face hub: `hf://owner/name@COMMIT`, and the only file that talks to the hub about them.

A repository of a run has `abmll-run.json`, which names each of its files with size and SHA-256. Only those are fetched,
only at a full commit, and only files that a run has: JSON, YAML, Markdown and safetensors, never a pickle and no code.
The token is that of `hf auth login` or HF_TOKEN; it is never read here but to keep it out of messages.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors

from abmll.errors import AbmllError
from abmll.files import (
    check_name,
    folder_beside,
    read_sealed_json,
    strict_json,
    write_bytes,
    write_sealed_json,
)
from abmll.hub import caused_by, first_line, hub_failure

MANIFEST, ORIGIN, FORMAT = "abmll-run.json", "hub.json", 1
SCHEME = "hf://"
SECONDS = 20  # to wait for the hub's list of files
MOST_FILES, MOST_TEXT, MOST_TENSORS = 4000, 8 << 20, 16 << 30
"""Of a repository: files that its manifest may name, bytes of a text, bytes of a file of tensors."""
OF_RUN = ("config.yaml", "calibrator.json", "prior_precision.json", "probe.json", "trained.json", "README.md")
OF_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "abmll.safetensors", "README.md")
OF_TASK = (*OF_ADAPTER, "task.json", "posterior.safetensors")
"""Files of a run that are shared, and of its adapter, and of a saved task."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = re.compile(r"hf_[A-Za-z0-9_]{8,}")


@dataclass(frozen=True)
class RunReference:
    """A run on the hub.

    Attributes:
        repository: its id, owner/name.
        commit: 40 hexadecimal digits.
    """

    repository: str
    commit: str

    @property
    def folder_name(self) -> str:
        """What its run directory is called.

        >>> RunReference("ann/my.run", "0123456789abcdef" + 24 * "0").folder_name
        'my.run-0123456789ab'
        """
        return check_name("run", f"{self.repository.partition('/')[2][:60]}-{self.commit[:12]}")

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}@{self.commit}"


def run_reference(run: Path | str) -> RunReference | None:
    """What a user means by `hf://owner/name@COMMIT`; None if it is no such thing.

    Raises:
        AbmllError: it begins like one, but has no commit, or names no repository.

    >>> run_reference("hf://ann/sentiment@" + 40 * "a").repository, run_reference("runs/mine")
    ('ann/sentiment', None)
    """
    text = str(run)
    if isinstance(run, Path) or not text.startswith(SCHEME):
        return None
    repository, _, commit = text.removeprefix(SCHEME).partition("@")
    check_repository(repository)
    if not _COMMIT.fullmatch(commit):
        raise AbmllError(
            f"{text[:200]}: a run of the hub is given with its full commit, {SCHEME}{repository}@COMMIT, 40 digits and "
            "letters a to f, as `abmll push` prints it and its page of commits shows it: a name alone may mean other "
            "weights tomorrow"
        )
    return RunReference(repository, commit)


def check_repository(repository: str) -> None:
    """Refuse what is no owner/name of the hub.

    Raises:
        AbmllError: with the name.
    """
    if not _ID.fullmatch(repository) or any(part in repository for part in ("--", "..")) or repository.endswith(".git"):
        raise AbmllError(
            f"{repository[:200]!r}: no name of a repository on the hub: expected owner/name, of letters, digits, '-', "
            "'_' and '.'"
        )


def check_shared(name: str) -> None:
    """Refuse a file's name that no shared run has.

    Raises:
        AbmllError: it leaves its folder, or is none of the files that are shared.

    >>> check_shared("tasks/reviews/task.json")
    >>> check_shared("adapter/pytorch_model.bin")
    Traceback (most recent call last):
    ...
    abmll.errors.AbmllError: 'adapter/pytorch_model.bin': no file of a run that is shared
    """
    parts = name.split("/")
    known = {1: OF_RUN, 2: OF_ADAPTER, 3: OF_TASK}.get(len(parts), ())
    folders = {1: (), 2: ("adapter",), 3: ("tasks",)}.get(len(parts), ())
    if parts[-1] not in known or tuple(parts[:1] if len(parts) > 1 else ()) != folders:
        raise AbmllError(f"{name[:200]!r}: no file of a run that is shared")
    if len(parts) == 3:
        check_name("task", parts[1])


def fetch_run(reference: RunReference, folder: Path, check: Callable[[Path], None]) -> None:
    """Make the run directory of a reference, whole or not at all; nothing is fetched where it is there already.

    Args:
        reference: the run.
        folder: where it goes.
        check: looks at the files before the folder gets its name.

    Raises:
        AbmllError: the hub cannot be reached or does not have it, what it gives is not what its manifest says or no
            run, or another folder is there.
    """
    if folder.exists():
        _check_origin(reference, folder)
        return
    sizes = _sizes(reference)
    files = _read_manifest(reference, _fetched(reference, MANIFEST, sizes, MOST_TEXT))
    with folder_beside(folder) as beside:
        for name, (size, digest) in files.items():
            most = MOST_TENSORS if name.endswith(".safetensors") else MOST_TEXT
            data = _fetched(reference, name, sizes, most).read_bytes()
            if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
                raise AbmllError(f"{reference}: {name} is not what {MANIFEST} says (its SHA-256 differs); try again")
            write_bytes(beside / name, data)
        check(beside)
        write_sealed_json(beside / ORIGIN, {"repository": reference.repository, "commit": reference.commit})


def upload_run(repository: str, files: Mapping[str, bytes], message: str, *, private: bool) -> str:
    """Put the files of a run, and the manifest of them, into a repository, in one commit.

    Args:
        repository: owner/name; made if it is not there.
        files: name -> content.
        message: of the commit.
        private: whether a repository that is made is; one that is there stays as it is.

    Returns:
        The commit.

    Raises:
        AbmllError: the hub cannot be reached, or refuses.
    """
    check_repository(repository)
    for name in files:
        check_shared(name)
    said = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    content = {**files, MANIFEST: _manifest_text(said).encode()}
    add = [huggingface_hub.CommitOperationAdd(name, data) for name, data in sorted(content.items())]
    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        return str(hub.create_commit(repository, add, commit_message=message).oid)
    except Exception as error:  # whatever its HTTP client raises: it has changed that library before
        raise AbmllError(f"{repository}: cannot be written on the hub: {_reason(error, writes=True)}") from None


def _manifest_text(said: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, "files": dict(sorted(said.items()))}, indent=1) + "\n"


def _check_origin(reference: RunReference, folder: Path) -> None:
    there = {"repository": reference.repository, "commit": reference.commit}
    if not (folder / ORIGIN).is_file() or read_sealed_json(folder / ORIGIN, advice="remove the folder") != there:
        raise AbmllError(f"{folder}: is not what was fetched of {reference}; rename or remove it")


def _sizes(reference: RunReference) -> dict[str, int | None]:
    """Names of the repository's files at the commit, and their sizes."""
    try:
        info = huggingface_hub.HfApi().model_info(
            reference.repository, revision=reference.commit, timeout=SECONDS, files_metadata=True
        )
    except Exception as error:  # as above
        raise AbmllError(f"{reference}: cannot be had: {_reason(error)}") from None
    if info.sha != reference.commit:
        raise AbmllError(f"{reference}: the hub answered with another commit, {str(info.sha)[:60]}")
    return {sibling.rfilename: sibling.size for sibling in info.siblings or ()}


def _fetched(reference: RunReference, name: str, sizes: Mapping[str, int | None], most: int) -> Path:
    """A file of the commit, which has no more bytes than that."""
    if name not in sizes:
        what = "it is no run that `abmll push` wrote" if name == MANIFEST else "the repository is damaged"
        raise AbmllError(f"{reference}: has no {name}: {what}")
    if (size := sizes[name]) is None or size > most:
        many = "an unknown number of" if size is None else f"{size:,}"
        raise AbmllError(f"{reference}: {name} has {many} bytes, at most {most:,} are fetched")
    try:
        path = Path(huggingface_hub.hf_hub_download(reference.repository, name, revision=reference.commit))
    except Exception as error:  # as above
        raise AbmllError(f"{reference}: {name} cannot be had: {_reason(error)}") from None
    if path.stat().st_size > most:
        raise AbmllError(f"{reference}: {name} has more bytes than the hub says; nothing of it is kept")
    return path


def _read_manifest(reference: RunReference, path: Path) -> dict[str, tuple[int, str]]:
    try:
        values = strict_json(path.read_bytes(), MOST_TEXT)
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}")
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in values["files"].items()}
        if len(files) > MOST_FILES or "config.yaml" not in files:
            raise ValueError(f"{len(files):,} files, or no config.yaml")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AbmllError(f"{reference}: its {MANIFEST} is no list of a run's files ({first_line(error)})") from None
    for name in files:
        try:
            check_shared(name)
        except AbmllError as error:
            raise AbmllError(f"{reference}: its {MANIFEST} names {error}. Nothing of it is fetched") from None
    return files


def _reason(error: BaseException, *, writes: bool = False) -> str:
    """Why, in words, without a token."""
    if writes and (caused_by(error, errors.LocalTokenNotFoundError) or _status(error) in (401, 403)):
        return "it does not let you write there; log in with `hf auth login`, by a token that may write"
    if (refused := hub_failure(error, "model")) is not None:
        return refused
    if caused_by(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if caused_by(error, errors.HfHubHTTPError):
        return f"the hub answered: {without_token(first_line(error))}"
    return f"the hub cannot be reached ({without_token(first_line(error))})"


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def without_token(text: str) -> str:
    """A message without what may be a token of the hub.

    >>> without_token("refused: Bearer hf_abcdefghijk")
    'refused: Bearer [token]'
    """
    own = huggingface_hub.get_token()
    return _TOKEN.sub("[token]", text.replace(own, "[token]") if own else text)
