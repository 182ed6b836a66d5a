"""`python -m experiments.user_tasks.second prepare | work | report`; ../README.md says what each is for."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from abmll.errors import AbmllError
from abmll.files import write_text
from benchmarks.own.draws import DRAWS, MOST_TEST
from experiments.short_json import short_json
from experiments.user_tasks.second.protocol import PROTOCOL, prepare, read_second
from experiments.user_tasks.second.report import report, with_tables
from experiments.user_tasks.second.work import Turns
from experiments.user_tasks.work import Worker


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns 0, or 1 for a mistake."""
    args = _parser().parse_args(arguments)
    try:
        {"prepare": _prepare, "work": _work, "report": _report}[args.verb](args)
    except AbmllError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.user_tasks.second")
    parser.add_argument("--protocol", type=Path, default=PROTOCOL)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("prepare", help="the training tasks of every form and fold")
    one.add_argument("--own", type=Path, required=True, help="folder of the labelled sets")
    one.add_argument("--questions", type=Path, required=True, help="folder of the question sets to train on")
    one.add_argument("--out", type=Path, required=True)
    one = verbs.add_parser("work", help="train runs and answer cells until all is done; start as many as fit")
    one.add_argument("--prepared", type=Path, required=True, help="what `prepare` wrote; runs are trained in it")
    one.add_argument("--own", type=Path, required=True)
    one.add_argument("--model", help="a folder or file; left out: a tiny random one, on the CPU")
    one.add_argument("--out", type=Path, required=True, help="where cells and the runs to be shipped go")
    one.add_argument("--draws", type=int, default=DRAWS)
    one.add_argument("--test-rows", type=int, default=MOST_TEST)
    one.add_argument("--until", type=float, default=float("inf"), help="seconds after which nothing new is begun")
    one = verbs.add_parser("report", help="results.json and README's table from all answers")
    one.add_argument("answers", type=Path, help="the folder, with the cells of the first section's `new` in it")
    one.add_argument("--out", type=Path, default=Path(__file__).parent, help="of results.json; README.md is above it")
    return parser


def _prepare(args: argparse.Namespace) -> None:
    print(short_json(prepare(read_second(args.protocol), args.own, args.questions, args.out)))


def _work(args: argparse.Namespace) -> None:
    worker = Worker(args.model, args.own, args.out, args.draws, args.test_rows, time.monotonic() + args.until)
    Turns(read_second(args.protocol), args.prepared, worker).work()


def _report(args: argparse.Namespace) -> None:
    results, readme = report(read_second(args.protocol), args.answers), args.out.parent / "README.md"
    write_text(args.out / "results.json", short_json(results))
    if readme.exists():
        write_text(readme, with_tables(readme.read_text(encoding="utf-8"), results))


if __name__ == "__main__":
    sys.exit(main())
