"""The only file that talks to the Hugging Face hub about data sets: which files there are, and one of them.

Data sets are read in the hub's Parquet form alone, which it keeps for each of them in the branch `refs/convert/parquet`
as CONFIGURATION/SPLIT/0000.parquet. No loading script is ever run. `huggingface_hub`, which transformers brings along,
and pyarrow are enough for that; `datasets` would add much and give no more.
"""

import re
from pathlib import Path

from huggingface_hub import HfApi, errors, hf_hub_download

from abmll.errors import AbmllError
from abmll.hub import caused_by, first_line, hub_failure
from abmll.tables.rows import shown

PARQUET = "refs/convert/parquet"
SECONDS = 20  # to wait for the hub's list of files
_PART = re.compile(r"[^\\/:*?\"<>|\x00-\x1f]{1,255}")


def list_files(repository: str, revision: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The commit of a data set's Parquet form, and the files in it.

    Args:
        repository: the hub's id, owner/name.
        revision: a commit; None: the newest.

    Raises:
        AbmllError: the hub cannot be reached or does not have it, or a file's name leaves its folder.
    """
    try:
        info = HfApi().dataset_info(repository, revision=revision or PARQUET, timeout=SECONDS)
    except Exception as error:  # whatever its HTTP client raises: it has changed that library before
        raise explain(repository, error) from error
    names = tuple(sibling.rfilename for sibling in info.siblings or ())
    for name in names:
        check_name(repository, name)
    return str(info.sha), names


def fetch_file(repository: str, commit: str, name: str) -> Path:
    """One file of a commit, from the local cache or else from the hub.

    Raises:
        AbmllError: it is in neither.
    """
    check_name(repository, name)
    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset", revision=commit))
    except Exception as error:  # as above
        raise explain(repository, error) from error


def check_name(repository: str, name: str) -> None:
    """Refuse a file's name that is no plain path below its folder, before it is used for anything.

    Raises:
        AbmllError: it is absolute, climbs, or holds a NUL or what some system would read as more than a name.
    """
    parts = name.split("/")
    if not all(_PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise AbmllError(
            f"data set {repository} on the hub: a file is named {shown(name)}, which could leave its folder. Nothing "
            "of it is read; tell its owner"
        )


def explain(repository: str, error: Exception) -> AbmllError:
    """What a failure means for the user, without the advice that only the caller can give."""
    if caused_by(error, errors.RevisionNotFoundError):
        reason = "the hub has no Parquet form of it (refs/convert/parquet), or the pinned commit is gone"
    elif refused := hub_failure(error, "data set"):
        reason = refused
    elif caused_by(error, errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set, and it is not in the local cache"
    elif caused_by(error, errors.HfHubHTTPError):
        reason = f"the hub answered: {first_line(error)}"
    else:
        reason = f"the hub cannot be reached ({first_line(error)})"
    return AbmllError(f"data set {repository} cannot be had: {reason}")
