"""How far a thing travels through the code: `python -m tests.contracts.hops` lists five call paths on a tiny model.

The path of an object is followed while a command runs (`sys.setprofile`). A pass is a call from a function in one file
of `src/abmll` to a function in another, where an argument or the result is the object, or a list, tuple or mapping that
has it. `self` is not counted, and a pair of functions only once, at its first pass, so that rows and folds add nothing.
The path goes from the caller's file to that of the called function, to the next caller's, and so on; what follows each
other in one file is one stay, and the number of stays is the length of the path. Calls by way of a library (typer,
pydantic, a decorator) are those of the nearest function of ours.

The definition was chosen by what it gives at commit ad8827e, where stays were counted by hand: there it gives 48 for
compare's configuration (47 by hand) and 44 for own rows to verdict (41). To count at another commit: unpack it, and
call this file by its path with `PYTHONPATH=COMMIT/src:COMMIT`.

    beta                      `task_kl_weight` from the recipe to where it multiplies the KL
    row to probability        a JSONL row that `abmll predict` answers, to the file that is written
    checkpoint                from the loop's state to its folder on disk
    own rows to verdict       `abmll adapt --save my.csv`, to the check's table
    compare's configuration   one system, one seed, up to the first training step

With `--json` it prints path -> stays and what was not met. Annotations must not be enforced
while it counts, as tests do: the wrappers are functions, too.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

from pydantic import BaseModel

import abmll
from abmll import cli
from tests.everyday import asked, place_run, write_asked, write_texts
from tests.tiny import save_tiny, tiny_tasks, write_tasks

SOURCE = Path(abmll.__file__).parent
BETA = 0.456789
RECIPE = """\
name: hops
model: {source: model, device: cpu, dtype: float32}
adapter: {rank: 3, alpha: 6.0}
tasks: {train: {source: train}, unseen: {source: unseen}}
training: {iterations: 1}
adaptation: {samples: 2, steps: 1, examples: 6}
"""

Function = tuple[str, str]
"""File, relative to `src/abmll`, and name."""


class _Arrived(BaseException):
    """The object is where its path ends; no `except Exception` may hear of it."""


@dataclass
class Walk:
    """What was seen of a path.

    Attributes:
        carries: the kind of the object that a value is or has, or None.
        ends: whether the path ends where this function is entered.
        passes: (caller, called), each once, in the order of the first pass.
        kinds: of objects, as they were seen.
    """

    carries: Callable[[Any], str | None]
    ends: Callable[[Function, CodeType], bool] = lambda function, code: False
    passes: dict[tuple[Function, Function], None] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)

    def __call__(self, frame: FrameType, event: str, result: Any) -> None:
        if event not in ("call", "return") or (called := _function(frame.f_code)) is None:
            return
        if event == "call" and self.ends(called, frame.f_code):
            self._enter(frame, called)
            raise _Arrived
        values = [result] if event == "return" else _arguments(frame)
        if kinds := {kind for value in values if (kind := self._kind(value))}:
            self.kinds |= kinds
            self._note(frame, called)

    def _note(self, frame: FrameType, called: Function) -> None:
        caller = _caller(frame)
        if caller is not None and caller[0] != called[0]:
            self.passes.setdefault((caller, called))

    def _enter(self, frame: FrameType, called: Function) -> None:
        """Note the pass by which the file of the last function was entered, whatever it was called with."""
        entered = called
        while (caller := _caller(frame)) is not None and frame.f_back is not None:
            if caller[0] != called[0]:
                self.passes.setdefault((caller, entered))
                return
            entered, frame = caller, frame.f_back

    def _kind(self, value: Any) -> str | None:
        parts = value.values() if isinstance(value, Mapping) else value
        if isinstance(value, list | tuple | Mapping) and self.carries(value) is None:
            return next((kind for part in list(parts)[:50] if (kind := self.carries(part))), None)
        return self.carries(value)

    @property
    def stays(self) -> list[Function]:
        """The files of the path in their order, each with the function by which it was entered."""
        out: list[Function] = []
        for function in (function for one in self.passes for function in one):
            if not out or out[-1][0] != function[0]:
                out.append(function)
        return out


@cache
def _function(code: CodeType) -> Function | None:
    """The function of ours that code is of; lambdas and comprehensions count as the one they stand in."""
    if not code.co_filename.startswith(f"{SOURCE}{os.sep}"):
        return None
    name = code.co_qualname.split(".<locals>.<")[0]
    return Path(code.co_filename).relative_to(SOURCE).as_posix(), name


def _caller(frame: FrameType) -> Function | None:
    outer = frame.f_back
    while outer is not None:
        if (found := _function(outer.f_code)) is not None:
            return found
        outer = outer.f_back
    return None


def _arguments(frame: FrameType) -> list[Any]:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)  # *args, **kwargs
    names = [name for name in code.co_varnames[:count] if name not in ("self", "cls")]
    return [frame.f_locals[name] for name in names if name in frame.f_locals]


def of_types(*names: str) -> Callable[[Any], str | None]:
    """Objects of our classes by these names."""
    return lambda value: name if (name := type(value).__name__) in names and _is_ours(value) else None


def _is_ours(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "abmll"


def configuration(value: Any) -> str | None:
    """A configuration, a section of one, a method's settings, or a plan made from them."""
    name = type(value).__name__
    is_plan = name.endswith("Plan") and _is_ours(value)
    resolved = name == "ResolvedRun" and _is_ours(value)
    return name if is_plan or resolved or (isinstance(value, BaseModel) and _is_ours(value)) else None


def checkpoint(value: Any) -> str | None:
    """A checkpoint, or a path in its folder."""
    if isinstance(value, Path):
        return "Path" if any(part.lstrip(".").startswith("step-") for part in value.parts) else None
    return "Checkpoint" if type(value).__name__ == "Checkpoint" else None


def beta(value: Any) -> str | None:
    """The number itself, text or settings that have it, a configuration, or a method."""
    if isinstance(value, float):
        return "number" if value == BETA else None
    if isinstance(value, str):
        return "text" if str(BETA) in value else None
    if isinstance(value, Mapping) and any(beta(v) for v in value.values() if isinstance(v, float | Mapping)):
        return "mapping"
    if isinstance(value, BaseModel) and _is_ours(value):
        return type(value).__name__ if str(BETA) in repr(value) else None
    return "Method" if _is_ours(value) and hasattr(value, "inner_loss") else None


def multiplies_beta(function: Function, code: CodeType) -> bool:
    """Whether a function reads the weight of the KL from its settings."""
    return function[0].startswith("methods/") and "task_kl_weight" in code.co_names and code.co_name != "<module>"


def first_training_step(function: Function, code: CodeType) -> bool:
    """Whether a function is the loss that the first gradient step descends."""
    return function[0].startswith("methods/") and code.co_name == "inner_loss"


@dataclass(frozen=True)
class CallPath:
    """A path to be walked.

    Attributes:
        command: after `abmll`.
        walk: makes what follows it.
        kinds: objects that must be seen, or the path is not this one; of alternatives between bars, one.
        limit: the most stays, if there is a limit.
        run: whether the command needs a run that is trained.
    """

    command: str
    walk: Callable[[], Walk]
    kinds: tuple[str, ...]
    limit: int | None = None
    run: bool = False


ROW = ("Table|RowFile|TextTable", "Question", "EncodedQuestion", "ChoiceBatch", "ChoiceScores", "Answer")
VERDICT = ("Table|RowFile|TextTable", "Question", "Labelled", "Task", "Answer", "Worth|Usefulness")


def _types(kinds: tuple[str, ...]) -> Callable[[Any], str | None]:
    return of_types(*(name for kind in kinds for name in kind.split("|")), "BadRow", "Adapted")


PATHS = {
    "beta": CallPath(
        f"train train.yaml method.task_kl_weight={BETA} -o out",
        lambda: Walk(beta, multiplies_beta),
        ("RunConfig", "Method"),
    ),
    "row to probability": CallPath(
        "predict runs/mine rows.jsonl -o out.jsonl", lambda: Walk(_types(ROW)), ROW, run=True
    ),
    "checkpoint": CallPath("train train.yaml -o out", lambda: Walk(checkpoint), ("Checkpoint", "Path")),
    "own rows to verdict": CallPath(
        "adapt runs/mine my.csv --save t", lambda: Walk(_types(VERDICT)), VERDICT, limit=25, run=True
    ),
    "compare's configuration": CallPath(
        "compare compare.yaml -o out",
        lambda: Walk(configuration, first_training_step),
        ("CompareConfig", "RunConfig", "TrainingPlan"),
        limit=20,
    ),
}


def place_files(folder: Path, *, run: bool) -> None:
    """Whatever the commands of `PATHS` read: a trained run and tables of rows, or a model, tasks and two recipes."""
    if run:
        place_run(folder)
        write_texts(folder / "my.csv", 12)
        write_asked(folder / "rows.jsonl", [{k: v for k, v in row.items() if k != "answer"} for row in asked(4)])
        return
    save_tiny(folder / "model")
    tasks = tiny_tasks(6, n_rows=24, n_test=8)
    write_tasks(folder / "train", tasks[:3])
    write_tasks(folder / "unseen", tasks[3:])
    (folder / "train.yaml").write_text(RECIPE + "method: {name: abmll}\n", encoding="utf-8")
    systems = "systems: {abmll: {method: {name: abmll}}}\nreference: abmll\nseeds: [0]\n"
    (folder / "compare.yaml").write_text(RECIPE + systems, encoding="utf-8")


def walked(path: CallPath, folder: Path) -> Walk:
    """Run the command of a path in a folder, and follow the object."""
    place_files(folder, run=path.run)
    walk = path.walk()
    with contextlib.chdir(folder), patch.object(sys, "argv", ["abmll", *path.command.split()]), _profiled(walk):
        cli.main()
    return walk


@contextlib.contextmanager
def _profiled(walk: Walk) -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(walk)
    try:
        yield
    except _Arrived:
        pass
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        sys.setprofile(before)


def unseen_kinds(path: CallPath, walk: Walk) -> list[str]:
    """Objects that the path should have met: a class that was renamed would shorten it without a change."""
    return [kind for kind in path.kinds if not walk.kinds & set(kind.split("|"))]


def main() -> None:
    walks = {}
    for name, path in PATHS.items():
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with tempfile.TemporaryDirectory() as folder, quiet[0], quiet[1]:
            walks[name] = walked(path, Path(folder))
    if "--json" in sys.argv:
        print(
            json.dumps({name: {"stays": w.stays, "unseen": unseen_kinds(PATHS[name], w)} for name, w in walks.items()})
        )
        return
    for name, walk in walks.items():
        limit = "" if PATHS[name].limit is None else f" (at most {PATHS[name].limit})"
        print(f"{name}: {len(walk.stays)} stays{limit}")
        print("".join(f"    {file}:{function}\n" for file, function in walk.stays), end="")
        if unseen := unseen_kinds(PATHS[name], walk):
            print(f"    never met: {', '.join(unseen)}")


if __name__ == "__main__":
    main()
