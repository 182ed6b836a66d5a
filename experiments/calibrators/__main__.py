"""python -m experiments.calibrators [FOLDER ...] [--others FOLDER ...] [--out FOLDER]"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from abmll.errors import AbmllError
from abmll.files import write_text
from abmll.process.environment import environment
from experiments.calibrators.compare import compare
from experiments.calibrators.cost import costs
from experiments.calibrators.files import Systems, read_systems
from experiments.calibrators.report import markdown, numbers, rounded, weak_numbers
from experiments.calibrators.weak import weak_priors
from experiments.calibrators.worlds import losses
from experiments.short_json import write_gzipped

HERE = Path(__file__).parent
STORED = HERE.parent / "unseen" / "results" / "smollm2" / "in_domain" / "packed"


def of_training_tasks(learned_from: Systems) -> dict[str, Any]:
    """What is learned of calibrators from training tasks, one of them left out at a time, and from simulated ones."""
    return {
        "environment": environment(torch.device("cpu")),
        "training": numbers(compare(learned_from)),
        "weak_prior": weak_numbers(weak_priors(learned_from)),
        "worlds": rounded(losses(), 4),
        "cost": rounded(costs(), 3),
    }


def of_others(systems: Systems, learned_from: Systems) -> dict[str, Any]:
    """The same of other tasks, with hyper-parameters from the training tasks of the same system."""
    unlearned = sorted(systems.keys() - learned_from.keys())
    scores = compare(systems, learned_from)
    if not scores:
        raise AbmllError(f"no system of the training tasks among the others ({', '.join(unlearned)})")
    return {"environment": environment(torch.device("cpu")), "others": numbers(scores), "left_out": unlearned}


def main(given: Sequence[str] | None = None) -> None:
    """Compare, and write results.json.gz and tables.md; of `--others` others.json.gz and others.md instead."""
    parser = argparse.ArgumentParser(prog="python -m experiments.calibrators", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[STORED], help="predictions of training tasks")
    parser.add_argument("--others", nargs="+", type=Path, default=[], help="predictions of validation tasks")
    parser.add_argument("--out", type=Path, required=True, help="where the files go")
    arguments = parser.parse_args(given)
    try:
        learned_from = read_systems(arguments.folders)
        name, tables = ("others", "others") if arguments.others else ("results", "tables")
        compared = (
            of_others(read_systems(arguments.others), learned_from)
            if name == "others"
            else of_training_tasks(learned_from)
        )
    except AbmllError as error:
        parser.exit(2, f"{error}\n")
    write_gzipped(arguments.out / f"{name}.json.gz", compared)
    write_text(arguments.out / f"{tables}.md", markdown(compared))


if __name__ == "__main__":
    main()
