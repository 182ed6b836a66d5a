"""Adapters that come with the package, so that adapting needs no training: their names, and a run directory of each.

`abmll.everyday.ship` makes them. Importing this module loads no model library: the command line looks names up with it.
"""

import logging
import shutil
from pathlib import Path

from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.everyday.bases import base_run, find_base
from abmll.files import folder_beside
from abmll.hub.runs import RunReference, fetch_run, run_reference

HERE = Path(__file__).parent.parent / "shipped"
CONFIG_FILE = "config.yaml"

log = logging.getLogger(__name__)


def shipped_names() -> tuple[str, ...]:
    """Names of the adapters that come with the package."""
    return tuple(sorted(path.parent.name for path in HERE.glob(f"*/{CONFIG_FILE}")))


def find_run(run: Path | str, *, copy: bool = True) -> Path:
    """The run directory that a user means: a folder, an adapter that comes with the package, a base model's, the hub's.

    Args:
        run: a folder, the name of an adapter, what `find_base` takes, or `hf://owner/name@COMMIT`, which is fetched.
        copy: for a name or a base model make `runs/NAME` here, where posteriors can be saved, unless it is there; else
            give the package's own folder, which is for reading only, and for a base model what was given.

    Raises:
        AbmllError: there is neither; says which names there are.
    """
    if (reference := run_reference(run)) is not None:
        return _fetched(reference)
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


def _fetched(reference: RunReference) -> Path:
    """`runs/NAME-COMMIT` of a run on the hub."""
    folder = Path("runs") / reference.folder_name
    if not folder.exists():
        log.info("%s is fetched into %s", reference, folder)
    fetch_run(reference, folder, lambda files: _check_fetched(reference, files))
    return folder


def _check_fetched(reference: RunReference, folder: Path) -> None:
    """`check_shareable` of what was fetched.

    Raises:
        AbmllError: it is refused, or damaged.
    """
    check_shareable(str(reference), load_config(RunConfig, folder / CONFIG_FILE))


def check_shareable(run: str, config: RunConfig) -> None:
    """Refuse a configuration that would run code, or read its maker's files, where others use it.

    Raises:
        AbmllError: it does.
    """
    if config.model.trust_remote_code:
        raise AbmllError(f"{run}: its configuration sets model.trust_remote_code, which runs code: not shared")
    if config.adapter.start is not None:
        raise AbmllError(f"{run}: its configuration names a file of its maker's (adapter.start): not shared")


def _copy(source: Path, folder: Path) -> None:
    """Contents alone: a package may be installed read-only, and tasks are saved in the copy."""
    with folder_beside(folder) as beside:
        for path in source.iterdir():
            if path.is_dir():
                shutil.copytree(path, beside / path.name)
            else:
                shutil.copyfile(path, beside / path.name)
