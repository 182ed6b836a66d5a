"""Put what a run learned into the package: `python -m abmll.everyday.ship RUN NAME`, see `make shipped`."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from abmll.adapters.folder import EXTRAS_FILE, read_facts
from abmll.everyday.probe import ADAPTER, PROBE_FILE, measure_probe, write_probe
from abmll.everyday.session import open_run
from abmll.everyday.shipped import CONFIG_FILE, HERE
from abmll.files import folder_beside
from abmll.runs.card import about_run, write_card
from abmll.runs.record import RECORD
from abmll.systems.scale import SCALE_FILE


def ship(run: Path, name: str, shipped: Path = HERE) -> Path:
    """Copy a run's configuration and adapter, with the probe that another copy of its base model is measured by.

    Returns:
        The folder, `shipped / name`.

    Raises:
        AbmllError: it is no run that was trained to its end.
    """
    session = open_run(run)
    write_probe(run, measure_probe(session.system))
    _copy_run(run, shipped / name)
    write_shipped_card(shipped / name)
    return shipped / name


def _copy_run(source: Path, folder: Path) -> None:
    """Copy what a run needs: configuration, adapter, probe, the temperature's prior; and what it was trained on."""
    with folder_beside(folder) as beside:
        shutil.copyfile(source / CONFIG_FILE, beside / CONFIG_FILE)
        shutil.copytree(source / ADAPTER, beside / ADAPTER)
        for name in (PROBE_FILE, RECORD, SCALE_FILE):
            if (source / name).is_file():
                shutil.copyfile(source / name, beside / name)


def write_shipped_card(folder: Path) -> None:
    """The model card of an adapter that comes along, which has this library's licence."""
    facts = read_facts(folder / ADAPTER / EXTRAS_FILE)
    write_card(folder / ADAPTER, replace(about_run(folder, facts), licence="apache-2.0"))


if __name__ == "__main__":
    print(ship(Path(sys.argv[1]), sys.argv[2]))
