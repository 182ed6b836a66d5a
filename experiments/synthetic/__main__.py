"""python -m experiments.synthetic run [--only TEXT] | report | core"""

import argparse
from pathlib import Path

import torch

from experiments.synthetic import core
from experiments.synthetic.report import report
from experiments.synthetic.run import RESULTS, missing, run
from experiments.synthetic.settings import settings


def main() -> None:
    """Run what is missing, report what is there, or run the method `core`."""
    parser = argparse.ArgumentParser(prog="python -m experiments.synthetic", description=__doc__)
    parser.add_argument("verb", choices=("run", "report", "core"))
    parser.add_argument("--only", default="", help="runs whose name, GROUP/SPREAD.NAME-SEED, holds this text")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # layers are tiny
    if arguments.verb == "core":
        core.run(arguments.results)
        return
    jobs = missing(settings(), arguments.results, arguments.only)
    if arguments.verb == "report":
        if jobs:
            parser.exit(
                2, f"{arguments.results}: {len(jobs)} runs are missing, of which tables are made; `run` makes them\n"
            )
        report(arguments.results)
        return
    for number, (setting, seed) in enumerate(jobs, start=1):
        run(setting, seed, arguments.results)
        print(f"{number} of {len(jobs)}: {setting.path}-{seed}", flush=True)


if __name__ == "__main__":
    main()
