"""Where an export goes, and whether it is meant to be that large."""

import shutil
from pathlib import Path

from abmll.errors import AbmllError
from abmll.models import count_parameters, load_skeleton
from abmll.models.load import choose_device, choose_dtype

LARGE = 10**9
"""Bytes above which an export wants to be confirmed."""
REPORT_FILE = "export.json"


def check_size(size: int, out: Path, confirmed: bool) -> None:
    """Refuse an export that nobody confirmed, that does not fit on the disk, or whose folder is in use.

    Args:
        size: bytes that will be written.
        out: the folder, which must be new or empty.
        confirmed: whether more than a gigabyte is meant.

    Raises:
        AbmllError: any of these; says what to do.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AbmllError(f"{out}: is there already; choose another folder, or remove it")
    if size > LARGE and not confirmed:
        raise AbmllError(f"{out}: {describe_bytes(size)} are more than 1 GB; add --yes if that is meant")
    place = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < 1.01 * size:
        raise AbmllError(f"{out}: {describe_bytes(size)} do not fit, {describe_bytes(free)} are free there")


def merged_bytes(source: str | None, shape: str | None, revision: str | None, dtype: str, device: str) -> int:
    """Bytes of a whole model's weights, before any of them is loaded.

    Raises:
        AbmllError: the model's configuration cannot be had.
    """
    kind = choose_dtype(dtype, choose_device(device))
    return count_parameters(load_skeleton(source, shape=shape, revision=revision)) * kind.itemsize


def describe_bytes(size: int) -> str:
    """Bytes for people.

    >>> describe_bytes(1_250_000), describe_bytes(16_060_522_496)
    ('1.2 MB', '16.1 GB')
    """
    unit, scale = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if size >= pair[1]), ("kB", 1e3))
    return f"{size / scale:.1f} {unit}"
