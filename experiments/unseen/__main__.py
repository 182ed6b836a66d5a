"""The verbs of `python -m experiments.unseen`; README.md says what each is for."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from abmll.config import ModelConfig
from abmll.errors import AbmllError
from abmll.files import write_bytes, write_json, write_text
from abmll.models import LanguageModel
from abmll.runs.prepare import load_run_tasks
from abmll.runs.roles import RunTasks
from abmll.systems.build import load_base
from abmll.tasks.sources import load_tasks
from experiments.short_json import short_json
from experiments.unseen.bundles import unpack
from experiments.unseen.cells import read_targets, write_cells
from experiments.unseen.clock import since_start
from experiments.unseen.first_draw import first_draw
from experiments.unseen.forgetting import chunks_of, forgetting, general_text
from experiments.unseen.groups import GROUPS, groups_in
from experiments.unseen.pool import DONE, OVER, TASKS, exit_code, is_made, jobs, run_jobs, starter, told
from experiments.unseen.prepare import TRAIN_ROWS, prepare
from experiments.unseen.protocol import CHOSEN, PROTOCOL, RESULTS, SMOLLM2, Protocol, load_protocol
from experiments.unseen.questions import QUESTIONS, ask, read_points, write_answers
from experiments.unseen.rank import rank, without_test
from experiments.unseen.report import report
from experiments.unseen.rescore import rescore
from experiments.unseen.run import run
from experiments.unseen.search import Part, join, search
from experiments.unseen.stds import stds_by_layer, stds_of

Add = Callable[[str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns 0, 1 for a mistake, or 75 if time was over and something is left to do."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.verb(given))
    except AbmllError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.unseen")
    verbs = parser.add_subparsers(required=True)

    def add(name: str, verb: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = verbs.add_parser(name)
        one.set_defaults(verb=verb)
        return one

    _add_verbs_of_the_protocol(add)
    _add_verbs_of_files(add)
    return parser


def _add_verbs_of_the_protocol(add: Add) -> None:
    given = {"prepare": _prepare, "rank": _rank, "search": _search, "run": _run, "questions": _questions, "all": _all}
    made = {name: add(name, verb) for name, verb in given.items()}
    for name, one in made.items():
        one.add_argument("--protocol", type=Path, default=PROTOCOL)
        one.add_argument("--tasks", type=Path, help="folder with train/, validation/ and unseen/")
        one.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="laid on the base")
        one.add_argument("--out", type=Path, required=name != "rank")
        one.add_argument("--minutes", type=float, help="stop by itself when the process is so old")
        without = "no search is made then" if name == "all" else "need not exist"
        default = None if name == "all" else CHOSEN
        one.add_argument("--chosen", type=Path, default=default, help=f"what a search chose; {without}")
        if name != "all":
            one.add_argument("--work", type=Path, help="run directories; default OUT/work")
        if name in ("search", "all"):
            one.add_argument(
                "--logs", type=Path, nargs="*", default=(), help="trials that are known: search.json files"
            )
        if name in ("run", "all"):
            one.add_argument("--packed", type=Path, default=RESULTS / "packed", help="results: never run again")
            one.add_argument("--keep", action="store_true", help="leave run directories, adapters included, in WORK")
        if name in ("run", "questions", "all"):
            one.add_argument("--commit", default="", help="named in results where there is no git")
        if name in ("questions", "all"):
            one.add_argument("--questions", type=Path, default=QUESTIONS)
    made["prepare"].add_argument("--train-rows", type=int, default=TRAIN_ROWS)
    made["rank"].add_argument("--ranking", type=Path, default=SMOLLM2 / "ranking.json")
    made["search"].add_argument("--only", help="systems, separated by commas")
    made["search"].add_argument(
        "--part", type=_part, metavar="RUNG:I/N", help="only share I of N of a rung (0 is the first)"
    )
    made["run"].add_argument("--only", default="*", help="patterns of system.seed-N, separated by commas")
    made["questions"].add_argument("--only", default="*", help="patterns of question-value.system, with commas")
    made["all"].add_argument("--only", default="*", help="patterns of system.seed-N, separated by commas: what is run")
    made["all"].add_argument("--gpus", default="", help="their numbers, separated by commas; default: as CUDA has it")
    made["all"].add_argument("--processes", type=int, default=1, help="at a time on each GPU")


def _add_verbs_of_files(add: Add) -> None:
    one = add("forgetting", _forgetting)
    one.add_argument("adapters", nargs="+", metavar="NAME=FOLDER", help="adapter folders of runs that were kept")
    one.add_argument("--source", default="smollm2-135m-instruct", help="the base model")
    one.add_argument("--out", type=Path, default=SMOLLM2 / "forgetting.json")
    one = add("stds", _stds)
    one.add_argument("adapters", nargs="+", metavar="NAME=FOLDER", help="adapter folders of runs that were kept")
    one.add_argument("--place", type=Path, default=SMOLLM2)
    one = add("join", _join)
    one.add_argument("folders", type=Path, nargs="+", help="those with a search.json each")
    one.add_argument("--protocol", type=Path, default=PROTOCOL)
    one.add_argument("--out", type=Path, required=True)
    one = add("unpack", _unpack)
    one.add_argument("bundles", type=Path, nargs="+")
    one.add_argument("--packed", type=Path, required=True, help="a folder that need not exist; never the committed one")
    one = add("answers", _answers)
    one.add_argument("--questions", type=Path, default=QUESTIONS)
    one.add_argument("--out", type=Path, required=True, help="where the bundles of `questions` are")
    one.add_argument("--place", type=Path, default=SMOLLM2)
    one.add_argument("--packed", type=Path, help="files at the chosen settings, to compare with; default: PLACE/packed")
    one = add("groups", _groups)
    one.add_argument("tasks", type=Path, nargs="+", help="folders of the tasks whose test questions were answered")
    one.add_argument("--packed", type=Path, nargs="+", required=True, help="folders of packed files")
    one.add_argument("--out", type=Path, default=GROUPS)
    one = add("cells", _cells)
    one.add_argument("packed", type=Path, help="a folder of packed files")
    one.add_argument("--out", type=Path, required=True, help="where the tables go")
    one.add_argument("--means", default="abmll", help="systems whose mean weights are kept, separated by commas")
    one = add("rescore", _rescore)
    one.add_argument("place", type=Path, help="a folder with summary.json.gz and the answers that are kept")
    one.add_argument("--training", type=Path, help="answers to training tasks, for the prior of the temperature")
    one = add("first", _first)
    one.add_argument("--packed", type=Path, required=True)
    one.add_argument("--kind", default="letter", choices=("cloze", "letter"))
    one.add_argument("--validation", required=True, help="names of the validation tasks, separated by commas")
    one.add_argument("--out", type=Path, default=RESULTS / "first_draw.json")
    one = add("report", _report)
    one.add_argument("--packed", type=Path, required=True, help="whole files: the committed cells lack what it tells")
    one.add_argument("--ranking", type=Path, default=SMOLLM2 / "ranking.json")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--kind", default="cloze", choices=("cloze", "letter"))
    one.add_argument("--only", help="tasks, separated by commas: the files may have those of several roles")


def _part(text: str) -> Part:
    """`0:1/3` -> the first third of the first rung."""
    rung, share, shares = (int(part) for part in text.replace("/", ":").split(":"))
    if rung < 0 or not 1 <= share <= shares:
        raise ValueError(text)
    return Part(rung, share, shares)


def _protocol(given: argparse.Namespace, overrides: tuple[str, ...] = ()) -> Protocol:
    folders = (
        []
        if given.tasks is None
        else [f"tasks.{r}.source={given.tasks / r}" for r in ("train", "validation", "unseen")]
    )
    return load_protocol(given.protocol, given.chosen or CHOSEN, [*folders, *given.set, *overrides])


def _prepare(given: argparse.Namespace) -> int:
    told = prepare(_protocol(given).config, given.out, given.train_rows)
    print(f"{len(told['leaks'])} rows that leak are left out; {given.out}/prepared.json names them")
    return 0


def _loaded(given: argparse.Namespace) -> tuple[Protocol, RunTasks]:
    protocol = _protocol(given)
    return protocol, load_run_tasks(protocol.config)


def _base(protocol: Protocol) -> LanguageModel:
    return load_base(protocol.config.model)


def _rank(given: argparse.Namespace) -> int:
    protocol, tasks = _loaded(given)
    found = rank(protocol.run("pretrained", 0), _base(protocol), without_test(tasks.unseen))
    write_json(given.ranking, {"rows": "train", "tasks": found})
    for entry in found:
        print(f"{entry['task']}: {entry['gain']:+.4f} nats, signal: {entry['signal']}")
    return 0


def _search(given: argparse.Namespace) -> int:
    protocol, tasks = _loaded(given)
    done = search(
        protocol,
        tasks,
        lambda: _base(protocol),
        given.out / "search.json",
        given.out / "chosen.yaml",
        work=given.work or given.out / "work",
        systems=given.only.split(",") if given.only else None,
        part=given.part,
        others=given.logs,
        minutes=given.minutes,
    )
    return 0 if done else OVER


def _run(given: argparse.Namespace) -> int:
    protocol, tasks = _loaded(given)
    done = run(
        protocol,
        tasks,
        lambda: _base(protocol),
        given.out,
        packed=given.packed,
        work=given.work or given.out / "work",
        minutes=given.minutes,
        only=given.only,
        commit=given.commit,
        keep=given.keep,
    )
    return 0 if done else OVER


def _questions(given: argparse.Namespace) -> int:
    done = ask(
        read_points(given.questions),
        partial(_protocol, given),
        _base,
        given.out,
        work=given.work or given.out / "work",
        only=given.only,
        minutes=given.minutes,
        commit=given.commit,
    )
    return 0 if done else OVER


def _all(given: argparse.Namespace) -> int:
    common = ["--protocol", str(given.protocol), *(part for text in given.set for part in ("--set", text))]
    common += [] if given.tasks is None else ["--tasks", str(given.tasks)]
    commit = ["--commit", given.commit] if given.commit else []
    gpus = given.gpus.split(",")
    asked = list(
        jobs(
            _protocol(given),
            read_points(given.questions),
            given.out,
            common,
            given.logs,
            shares=min(4, max(1, len(gpus) * given.processes // 3)),
            packed=given.packed,
            tasks=given.tasks or TASKS,
            chosen=given.chosen,
            run=[*(["--keep"] if given.keep else []), *commit],
            ask=["--questions", str(given.questions), *commit],
            only=given.only,
        )
    )
    todo = [job for job in asked if not is_made(job, given.out)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    state = run_jobs(
        todo,
        starter(given.out / "logs", since_start, given.minutes, len(gpus) * given.processes),
        gpus,
        given.processes,
        tell=told(given.out / "state.json", since_start),
        over=lambda: given.minutes is not None and since_start() > 60 * given.minutes,
    )
    left = {name: value for name, value in state.items() if value != DONE}
    before = f", {len(asked) - len(todo)} before" if len(asked) > len(todo) else ""
    print(f"{len(state) - len(left)} of {len(state)} jobs done{before}; {left or 'nothing left'}")
    return exit_code(state)


def _forgetting(given: argparse.Namespace) -> int:
    base = load_base(ModelConfig(source=given.source, dtype="float32"))
    told = forgetting(base, _named(given.adapters), chunks_of(base, general_text()))
    write_json(given.out, told)
    for name, one in told["adapters"].items():
        print(f"{name}: {one['more']:+.4f} nats a token")
    return 0


def _stds(given: argparse.Namespace) -> int:
    told = stds_of(_named(given.adapters))
    write_json(given.place / "stds.json", told)
    write_bytes(given.place / "figures" / "stds.png", stds_by_layer(told))
    print(f"rank correlation of stds with the size of means: {told['with_mean']}; between adapters: {told['between']}")
    return 0


def _named(texts: Sequence[str]) -> dict[str, Path]:
    return {name: Path(folder) for name, folder in (text.split("=", 1) for text in texts)}


def _join(given: argparse.Namespace) -> int:
    join(load_protocol(given.protocol, given.out / "chosen.yaml"), given.folders, given.out)
    return 0


def _answers(given: argparse.Namespace) -> int:
    found = write_answers(read_points(given.questions), given.out, given.place, given.packed)
    print(f"{len(found)} questions answered in {given.place}/questions.json.gz")
    return 0


def _unpack(given: argparse.Namespace) -> int:
    names = unpack(given.bundles, given.packed)
    print(f"{len(names)} files in {given.packed}")
    return 0


def _groups(given: argparse.Namespace) -> int:
    tasks = [task for folder in given.tasks for task in load_tasks(folder, merge_choices=True)]
    found = groups_in(tasks, (one for folder in given.packed for one in read_targets(folder)))
    write_json(given.out, found)
    for task, rows in found.items():
        print(f"{task}: {len(rows)} questions in {len(set(rows.values()))} groups")
    return 0


def _cells(given: argparse.Namespace) -> int:
    size = write_cells(read_targets(given.packed), given.out, given.means.split(","))
    print(f"{size} bytes in {given.out}")
    return 0


def _rescore(given: argparse.Namespace) -> int:
    systems = rescore(given.place, given.training)["systems"]
    print(f"{sum('nll_posterior' in told for told in systems.values())} of {len(systems)} systems scored again")
    return 0


def _first(given: argparse.Namespace) -> int:
    targets, validation = read_targets(given.packed, given.kind), given.validation.split(",")
    answered = dict.fromkeys(task for one in targets for files in one.found.values() for _, _, task in files)
    parts = {"validation": validation, "unseen": [task for task in answered if task not in validation]}
    found = first_draw(targets, parts)
    write_text(given.out, short_json({"seed": 0, "draw": 0, "tasks": parts, "systems": found}))
    print(f"{len(found)} systems in {given.out}")
    return 0


def _report(given: argparse.Namespace) -> int:
    tasks = given.only.split(",") if given.only else None
    summary = report(given.packed, given.out, ranking=given.ranking, kind=given.kind, tasks=tasks)
    primary = summary["primary"]
    print(f"best other system: {primary['best_other']}; {primary['tests']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
