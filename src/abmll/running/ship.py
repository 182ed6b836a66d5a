"""Put what a run learned into the package: `python -m abmll.running.ship RUN NAME`, of which `make shipped` is made."""

import sys
from pathlib import Path

from abmll.files import write_json
from abmll.running.everyday import open_run
from abmll.running.shipped import HERE, PROBE_FILE, copy_run, measure_probe


def ship(run: Path, name: str, place: Path = HERE) -> Path:
    """Copy a run's configuration and adapter, with the probe that another copy of its base model is measured by.

    Returns:
        The folder, `place / name`.

    Raises:
        AbmllError: it is no run that was trained to its end.
    """
    session, _ = open_run(run)
    write_json(run / PROBE_FILE, vars(measure_probe(session.system)))
    copy_run(run, place / name)
    return place / name


if __name__ == "__main__":
    print(ship(Path(sys.argv[1]), sys.argv[2]))
