"""Adapters that come with the package, so that adapting needs no training: their names, and a run directory of each.

`abmll.everyday.ship` makes them. Importing this module loads no model library: the command line looks names up with it.
"""

import logging
import shutil
from pathlib import Path

from abmll.errors import AbmllError
from abmll.everyday.bases import base_run, find_base
from abmll.files import folder_beside

HERE = Path(__file__).parent.parent / "shipped"
CONFIG_FILE = "config.yaml"

log = logging.getLogger(__name__)


def shipped_names() -> tuple[str, ...]:
    """Names of the adapters that come with the package."""
    return tuple(sorted(path.parent.name for path in HERE.glob(f"*/{CONFIG_FILE}")))


def find_run(run: Path | str, *, copy: bool = True) -> Path:
    """The run directory that a user means: a folder, an adapter that comes with the package, or a base model's.

    Args:
        run: a folder, the name of an adapter, or what `find_base` takes.
        copy: for a name or a base model make `runs/NAME` here, where posteriors can be saved, unless it is there; else
            give the package's own folder, which is for reading only, and for a base model what was given.

    Raises:
        AbmllError: there is neither; says which names there are.
    """
    folder = Path(run)
    if (folder / CONFIG_FILE).is_file():
        return folder
    name = str(run)
    if name not in shipped_names() and (source := find_base(run)) is not None:
        return base_run(source) if copy else folder
    if name not in shipped_names():
        known = ", ".join(shipped_names())
        raise AbmllError(
            f"{run}: no run directory (it has no {CONFIG_FILE}), no base model, and none of the names that come with "
            f"abmll: {known or 'none'}; `abmll bases` lists base models that work well"
        )
    if not copy:
        return HERE / name
    folder = Path("runs") / name
    if not (folder / CONFIG_FILE).is_file():
        _copy(HERE / name, folder)
        log.info("%s, which comes with abmll, is now in %s", name, folder)
    return folder


def _copy(source: Path, folder: Path) -> None:
    """Contents alone: a package may be installed read-only, and tasks are saved in the copy."""
    with folder_beside(folder) as beside:
        for path in source.iterdir():
            if path.is_dir():
                shutil.copytree(path, beside / path.name)
            else:
                shutil.copyfile(path, beside / path.name)
