"""python -m experiments.size components PACKED | run [--worlds N] | report"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from abmll.files import write_json, write_text
from experiments.size.components import measure
from experiments.size.everyday import everyday_rows
from experiments.size.promise import promise_rows
from experiments.size.report import readme
from experiments.size.run import comparison_rows

HERE = Path(__file__).parent
COMPONENTS, RESULTS, README = HERE / "components.json", HERE / "results.json", HERE / "README.md"


def printed(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each printed as it comes."""
    out = []
    for row in rows:
        print(row, flush=True)
        out.append(row)
    return out


def main() -> None:
    """Measure the components, simulate, or write the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.size", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("components").add_argument("packed", type=Path, help="a folder of packed predictions")
    verbs.add_parser("run").add_argument("--worlds", type=int, default=2000)
    verbs.add_parser("report")
    given = parser.parse_args()
    if given.verb == "components":
        write_json(COMPONENTS, measure(given.packed))
        return
    if given.verb == "run":
        components = json.loads(COMPONENTS.read_text(encoding="utf-8"))["components"]
        results = {
            "worlds": given.worlds,
            "comparisons": printed(comparison_rows(components, given.worlds)),
            "everyday": printed(everyday_rows(given.worlds)),
            "promises": printed(promise_rows()),
        }
        write_json(RESULTS, results)
    write_text(README, readme(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
