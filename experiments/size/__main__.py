"""python -m experiments.size components PACKED | run [--worlds N] [--parts PART ...] | report"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from abmll.files import write_json, write_text
from experiments.short_json import read_gzipped, write_gzipped
from experiments.size.check_worlds import check_rows
from experiments.size.components import measure
from experiments.size.everyday import everyday_rows
from experiments.size.promise import promise_rows
from experiments.size.report import readme
from experiments.size.run import comparison_rows
from experiments.size.watching import watch_rows

HERE = Path(__file__).parent
COMPONENTS, RESULTS, README = HERE / "components.json", HERE / "results.json.gz", HERE / "README.md"


PARTS = ("comparisons", "everyday", "checks", "promises", "watches")


def printed(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each printed as it comes."""
    out = []
    for row in rows:
        print(row, flush=True)
        out.append(row)
    return out


def rows_of(part: str, worlds: int) -> Iterator[dict[str, Any]]:
    """The simulated rows of one part of the page."""
    if part == "comparisons":
        return comparison_rows(json.loads(COMPONENTS.read_text(encoding="utf-8"))["components"], worlds)
    if part == "everyday":
        return everyday_rows(worlds)
    return {"checks": check_rows, "promises": promise_rows, "watches": watch_rows}[part]()


def main() -> None:
    """Measure the components, simulate, or write the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.size", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("components").add_argument("packed", type=Path, help="a folder of packed predictions")
    run = verbs.add_parser("run")
    run.add_argument("--worlds", type=int, default=2000)
    run.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="the others stay as they were")
    verbs.add_parser("report")
    given = parser.parse_args()
    if given.verb == "components":
        write_json(COMPONENTS, measure(given.packed))
        return
    if given.verb == "run":
        before = read_gzipped(RESULTS) if set(given.parts) != set(PARTS) else {}
        if before and before["worlds"] != given.worlds:
            parser.error(f"--worlds {given.worlds}: the other parts are of {before['worlds']}")
        rows = {part: printed(rows_of(part, given.worlds)) for part in given.parts}
        write_gzipped(RESULTS, {"worlds": given.worlds} | {part: rows.get(part) or before[part] for part in PARTS})
    write_text(README, readme(read_gzipped(RESULTS)))


if __name__ == "__main__":
    main()
