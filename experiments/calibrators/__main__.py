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
from experiments.calibrators.files import read_systems
from experiments.calibrators.report import markdown, numbers, rounded, weak_numbers
from experiments.calibrators.weak import weak_priors
from experiments.calibrators.worlds import losses
from experiments.short_json import short_json

HERE = Path(__file__).parent
STORED = HERE.parent / "unseen" / "results" / "in_domain" / "packed"


def results(training: list[Path], others: list[Path]) -> dict[str, Any]:
    """Everything that is written."""
    learned_from = read_systems(training)
    out: dict[str, Any] = {"environment": environment(torch.device("cpu"))}
    out["training"] = numbers(compare(learned_from))
    out["weak_prior"] = weak_numbers(weak_priors(learned_from))
    if others:
        out["others"] = numbers(compare(read_systems(others), learned_from))
    out["worlds"] = rounded(losses(), 4)
    out["cost"] = rounded(costs(), 3)
    return out


def main(given: Sequence[str] | None = None) -> None:
    """Compare, and write results.json and tables.md."""
    parser = argparse.ArgumentParser(prog="python -m experiments.calibrators", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[STORED], help="predictions of training tasks")
    parser.add_argument("--others", nargs="+", type=Path, default=[], help="predictions of validation tasks")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args(given)
    try:
        compared = results(arguments.folders, arguments.others)
    except AbmllError as error:
        parser.exit(2, f"{error}\n")
    write_text(arguments.out / "results.json", short_json(compared))
    write_text(arguments.out / "tables.md", markdown(compared))


if __name__ == "__main__":
    main()
