"""`python -m benchmarks.own models | cheap | rates | results`; each says by --help what it does."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch

from abmll.config import ModelConfig
from abmll.files import write_json
from abmll.systems.build import load_base, renew
from abmll.systems.plans import PredictionPlan
from abmll.tasks.sources import load_tasks
from abmll.text_classifiers import load_encoder
from benchmarks.common import describe
from benchmarks.own.cells import Arrays, ask, claimed, write_cell
from benchmarks.own.cheap import RememberedVectors, cheap_answers
from benchmarks.own.draws import ASK, DRAWS, MOST_TEST, Cell, cells_of, read_set
from benchmarks.own.models import SYSTEMS, Bench, answers_of, own_config, run_config
from benchmarks.own.rates import SETTINGS, letters_on, tell, trials, try_setting, with_rate
from benchmarks.own.results import write_results

Item = TypeVar("Item")


class Late(Exception):
    """The time is up; what is written stays."""


def main() -> None:
    args = parser().parse_args()
    if args.verb == "results":
        write_results(args.answers, args.base, args.out)
    elif args.verb == "rates" and args.choose:
        tell(args.out)
    else:
        signal.signal(signal.SIGALRM, _late)
        signal.setitimer(signal.ITIMER_REAL, args.until)
        try:
            {"models": answer_cells, "cheap": answer_cheaply, "rates": try_settings}[args.verb](args)
        except Late:
            print(f"stopped after {args.until:.0f} s", flush=True)


def _late(number: int, frame: FrameType | None) -> None:
    raise Late


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="python -m benchmarks.own", description=__doc__)
    verbs = out.add_subparsers(dest="verb", required=True)
    models = verbs.add_parser("models", help="answers of a base model")
    models.add_argument("--run", type=Path, help="a run whose adapter is adapted; left out: a LoRA that begins at zero")
    models.add_argument("--rate", type=float, help="left out: that of `abmll adapt BASE`")
    models.add_argument("--steps", type=int, help="at least; as many as one pass takes if that is more")
    models.add_argument("--prompt-tokens", type=int, default=2048, help="of the longest prompt with examples")
    models.add_argument("--pieces", type=int, help="of a long text whose answers are averaged; left out: it is cut")
    models.add_argument("--systems", default=",".join(SYSTEMS), help="which of them answer")
    cheap = verbs.add_parser("cheap", help="answers of TF-IDF and of sentence vectors, with logistic regression")
    cheap.add_argument("--vectors", help="folder or hub id of a sentence encoder; left out: without")
    rates = verbs.add_parser("rates", help="rate and steps of a fresh LoRA, by validation tasks")
    rates.add_argument("--choose", action="store_true", help="read what is there, and print the settings in order")
    rates.add_argument("--settings", type=int, nargs="*", default=range(len(SETTINGS)), help="their numbers")
    for verb in (models, cheap):
        verb.add_argument("--sets", default=",".join(ASK))
        verb.add_argument("--size", type=int, choices=(0, 1), help="the smaller or the larger alone; left out: both")
        verb.add_argument("--test-rows", type=int, default=MOST_TEST, help="of each set")
    for verb, draws in ((models, DRAWS), (cheap, DRAWS), (rates, 2)):
        verb.add_argument("--draws", type=int, default=draws)
        verb.add_argument("--data", type=Path, help="the folder of the sets")
        verb.add_argument("--out", type=Path, required=True, help="where the files of the cells go")
        verb.add_argument("--part", default="0/1", help="i/n: every n-th cell from the i-th on")
        verb.add_argument("--until", type=float, default=0.0, help="seconds after which it stops itself; 0: never")
    for verb in (models, rates):
        verb.add_argument("--model", help="a folder, a file or a hub id; left out: a tiny random one")
        verb.add_argument("--device", default="auto")
    results = verbs.add_parser("results", help="results.json, the figure and the table from all answers")
    results.add_argument("answers", type=Path, help="a folder of folders of cells")
    results.add_argument("--base", default="q15", help="the folder of the base model that `summary` is about")
    results.add_argument("-o", "--out", type=Path, default=Path(__file__).parent)
    return out


def model_of(args: argparse.Namespace) -> ModelConfig:
    """The section of the base model: bfloat16 on a GPU; a tiny random one where none was named."""
    if not args.model:
        return ModelConfig(shape="tiny-llama", device="cpu")
    dtype = "auto" if args.device == "cpu" or not torch.cuda.is_available() else "bfloat16"
    return ModelConfig(source=args.model, device=args.device, dtype=dtype)


def answer_all(args: argparse.Namespace, items: Iterable[Item], cell: Callable[[Item], Cell], fill: Any) -> None:
    """Answer those cells of this part that no other process answers; each one's seconds are printed.

    One that does not fit on the card is left for a later call, and the exit status says that there was one.
    """
    left = []
    part, parts = map(int, args.part.split("/"))
    for item in list(items)[part::parts]:
        began = time.monotonic()
        with claimed(args.out, cell(item)) as mine:
            if not mine:
                continue
            try:
                write_cell(args.out, cell(item), fill(item))
                print(f"{cell(item).file} {time.monotonic() - began:.1f} s", flush=True)
            except torch.OutOfMemoryError as error:
                left.append(cell(item).file)
                print(f"{cell(item).file}: {error}", flush=True)
        if left and torch.cuda.is_available():
            torch.cuda.empty_cache()
    if left:
        sys.exit(f"out of memory, and so not written: {', '.join(left)}")


def try_settings(args: argparse.Namespace) -> None:
    tasks = {task.name: task for task in load_tasks(str(args.data))}
    model = model_of(args)
    base = load_base(model)
    system, rates = letters_on(base, model), list[float]()
    plan = PredictionPlan("mean", 1, 32768 if base.device.type == "cuda" else 4096)

    def fill(trial: Any) -> Arrays:
        cell, setting = trial
        if rates[-1:] != [setting.rate]:
            renew(system, with_rate(system.config, setting.rate))
            rates.append(setting.rate)
        return try_setting(system, tasks[cell.name], cell, setting, plan)

    answer_all(args, trials(list(tasks), args.settings, args.draws), lambda trial: trial[0], fill)


def _cells(args: argparse.Namespace) -> tuple[list[Cell], dict[str, Any]]:
    sets = {name: read_set(args.data, name, args.test_rows) for name in args.sets.split(",")}
    cells = cells_of(list(sets.values()), args.draws)
    return [c for c in cells if args.size is None or c.size == sets[c.name].sizes[args.size]], sets


def answer_cells(args: argparse.Namespace) -> None:
    cells, sets = _cells(args)
    model = model_of(args)
    adaptation = {} if args.steps is None else {"steps": args.steps}
    method = {} if args.rate is None else {"inner_lr": args.rate}
    likelihood = {} if args.pieces is None else {"pieces": args.pieces}
    settings: dict[str, object] = {"adaptation": adaptation, "method": method, "likelihood": likelihood}
    config = run_config(args.run, model, settings) if args.run else own_config(model, settings)
    bench = Bench(load_base(model), config, args.prompt_tokens, args.run)
    told = config.model_dump(mode="json", include={"likelihood", "method", "adaptation", "adapter"})
    about = {**describe(), "base": bench.base.name.rpartition("/")[2], "prompt_tokens": args.prompt_tokens, **told}
    write_json(args.out / "about.json", about)
    systems = args.systems.split(",")
    answer_all(args, cells, lambda cell: cell, lambda cell: answers_of(bench, ask(sets[cell.name], cell), systems))


def answer_cheaply(args: argparse.Namespace) -> None:
    cells, sets = _cells(args)
    encode = load_encoder(args.vectors, "cpu") if args.vectors else None
    vectors = {name: RememberedVectors(encode) for name in sets} if encode else {}
    write_json(args.out / "about.json", {**describe(), "vectors": args.vectors and Path(args.vectors).name})
    answer_all(
        args, cells, lambda cell: cell, lambda cell: cheap_answers(ask(sets[cell.name], cell), vectors.get(cell.name))
    )


if __name__ == "__main__":
    main()
