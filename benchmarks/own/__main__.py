"""`python -m benchmarks.own models | cheap | summary`; each says by --help what it does."""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from abmll.config import ModelConfig
from abmll.models import LanguageModel
from abmll.systems.build import load_base, renew
from abmll.systems.plans import PredictionPlan
from abmll.tasks.sources import load_tasks
from benchmarks.own.draws import ASK, DRAWS, LETTERS, Cell, LabelledSet, cells_of, read_set
from benchmarks.own.models import answers_of, ask, system_on, with_rate, write_cell
from benchmarks.own.rates import SETTINGS, tell, trials, try_setting

Kind = TypeVar("Kind")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    models = verbs.add_parser("models", help="answers of a base model")
    models.add_argument("--rate", type=float, default=3e-4)
    models.add_argument("--steps", type=int, default=20, help="at least; as many as one pass takes if that is more")
    models.add_argument("--schedule", default="linear", choices=("constant", "linear", "cosine"))
    models.add_argument("--systems", default="as it is,prompt,adapted", help="which of them answer")
    models.add_argument("--sets", default=",".join(ASK))
    models.add_argument("--draws", type=int, default=DRAWS)
    rates = verbs.add_parser("rates", help="rate and steps of a fresh LoRA, by validation tasks")
    rates.add_argument("--choose", action="store_true", help="read what is there, and print the settings in order")
    rates.add_argument("--settings", type=int, nargs="*", default=range(len(SETTINGS)), help="their numbers")
    rates.add_argument("--draws", type=int, default=2)
    for verb in (models, rates):
        verb.add_argument("--model", help="a folder, a file or a hub id; left out: a tiny random one")
        verb.add_argument("--device", default="auto")
        verb.add_argument("--data", type=Path, help="the folder of the sets")
        verb.add_argument("--out", type=Path, required=True, help="where the files of the cells go")
        verb.add_argument("--part", default="0/1", help="i/n: every n-th cell from the i-th on")
        verb.add_argument("--seconds", type=float, default=float("inf"), help="after which no cell is begun")
    args = parser.parse_args()
    if args.verb == "rates" and args.choose:
        tell(args.out)
    elif args.verb == "rates":
        try_settings(args)
    else:
        answer_cells(args)


def loaded(args: argparse.Namespace) -> tuple[LanguageModel, dict[str, Any], PredictionPlan]:
    """The base model, its section of a configuration, and how answers are made: by mean weights."""
    model = {"source": args.model, "device": args.device} if args.model else {"shape": "tiny-llama", "device": "cpu"}
    if args.device != "cpu" and args.model:
        model["dtype"] = "bfloat16"
    base = load_base(ModelConfig.model_validate(model))
    return base, model, PredictionPlan("mean", 1, 32768 if base.device.type == "cuda" else 4096)


def mine(args: argparse.Namespace, cells: Iterable[Kind], cell_of: Callable[[Kind], Cell]) -> Iterator[Kind]:
    """Those of this part whose files are not there, until the time is up; each one's seconds are printed."""
    began = time.monotonic()
    part, parts = map(int, args.part.split("/"))
    for item in list(cells)[part::parts]:
        start = time.monotonic()
        if start - began > args.seconds:
            break
        if not (args.out / cell_of(item).file).exists():
            yield item
            print(f"{cell_of(item).file} {time.monotonic() - start:.1f} s", flush=True)


def try_settings(args: argparse.Namespace) -> None:
    tasks = {task.name: task for task in load_tasks(str(args.data))}
    base, model, plan = loaded(args)
    system = system_on(base, model, "letter", {})
    rate = None
    for cell, setting in mine(args, trials(list(tasks), args.settings, args.draws), lambda trial: trial[0]):
        if setting.rate != rate:
            renew(system, with_rate(system.config, setting.rate))
            rate = setting.rate
        write_cell(args.out, cell, try_setting(system, tasks[cell.name], cell, setting, plan))


def answer_cells(args: argparse.Namespace) -> None:
    sets = {name: read_set(args.data, name) for name in args.sets.split(",")}
    adaptation = {"steps": args.steps, "schedule": args.schedule}
    settings = {"method": {"name": "pretrained", "inner_lr": args.rate}, "adaptation": adaptation}
    base, model, plan = loaded(args)
    system, kind = None, ""
    for cell in mine(args, sorted(cells_of(list(sets.values()), args.draws), key=many(sets)), lambda cell: cell):
        wanted = "letter" if len(sets[cell.name].labels) <= LETTERS else "cloze"
        if system is None or kind != wanted:
            if system is not None:
                system.close()
            system, kind = system_on(base, model, wanted, settings), wanted
        write_cell(args.out, cell, answers_of(system, ask(sets[cell.name], cell), plan, args.systems.split(",")))


def many(sets: Mapping[str, LabelledSet]) -> Callable[[Cell], bool]:
    """Sets with more labels than letters come last: each of their cells takes long."""
    return lambda cell: len(sets[cell.name].labels) > LETTERS


if __name__ == "__main__":
    main()
