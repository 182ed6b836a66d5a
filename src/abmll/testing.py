"""What every method, source and metric must keep, as checks that anybody can run on their own.

The library's tests run them on its own. A check raises `AssertionError`, which says what is broken.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from inspect import isfunction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from abmll.config import RunConfig
from abmll.methods import method_class, resolve_settings
from abmll.methods.base import Method
from abmll.methods.noise import step_key, training_coordinates
from abmll.metrics.predictions import Prediction, Predictions
from abmll.question import Question, Task
from abmll.scoring.registered import definition, score_with
from abmll.systems.build import build_system, load_base
from abmll.systems.plans import resolve
from abmll.systems.system import System
from abmll.tables.identity import same_question
from abmll.tables.normal import same_form
from abmll.tasks.sources import load_tasks
from abmll.training.checkpoints import RunDirectory
from abmll.training.inner import inner_steps
from abmll.training.optimizers import GroupOptimizer
from abmll.training.train import Learner, meta_train

__all__ = ["check_method", "check_metric", "check_source"]

Slot = Literal["shared", "task"]
SLOTS: tuple[Slot, Slot] = ("shared", "task")
TEMPERATURE = "log_temperature"
FIRST_TASK = training_coordinates(0, 0, 0)


def check_method(name: str, preset: str = "default", **settings: Any) -> None:
    """Check a registered method on a tiny model with random weights; takes seconds on a CPU.

    - The class is final, overrides nothing concrete, and its docstring describes every setting.
    - Inner steps move phi and nothing else; the outer gradient moves nothing, and is theta's alone.
    - Training moves exactly what the method's groups hold, and gives finite weights.
    - A run that was stopped goes on as if it had not been: all that is remembered is theta, moments and settings.

    Args:
        name: of the method.
        preset, settings: how it is set.

    Raises:
        AssertionError: what is broken.
        AbmllError: there is no such method, preset or setting.

    >>> check_method("reptile", inner_lr=1e-3)
    """
    check_class(name, preset, settings)
    config = _config(name, preset, settings)

    def build() -> System:
        return build_system(config, load_base(config.model))

    check_inner_steps(build(), _tasks()[0])
    check_outer_gradient(build(), _tasks()[0])
    check_begin_task(build())
    check_training(build, _tasks())


def _config(name: str, preset: str, settings: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"shape": "tiny-llama", "device": "cpu"},
            "adapter": {"rank": 2, "alpha": 4.0},
            "method": {"name": name, "preset": preset, "inner_steps": 2, **settings},
            "training": {"iterations": 3},
        }
    )


def _tasks() -> tuple[Task, ...]:
    """Two tasks whose answers follow a rule."""
    labels = {"even": ("yes", "no"), "odd": ("no", "yes")}
    return tuple(
        Task(name, tuple(Question(f"{name}-{n}", f"Is {n} even?", choices, n % 2) for n in range(16)))
        for name, choices in labels.items()
    )


def check_class(name: str, preset: str, settings: dict[str, Any]) -> None:
    """A method's class: final, nothing concrete overridden, settings that are described and survive being written."""
    cls = method_class(name)
    resolved = resolve_settings(name, preset, settings)
    _require(getattr(cls, "__final__", False), f"{cls.__name__} is not marked @typing.final")
    concrete = {n for n, v in vars(Method).items() if isfunction(v) and not getattr(v, "__isabstractmethod__", False)}
    overridden = concrete & {n for c in cls.__mro__ if c not in Method.__mro__ for n in vars(c)}
    _require(not overridden, f"{cls.__name__} overrides {', '.join(sorted(overridden))} of Method")
    lines = [line.strip() for c in cls.settings_class.__mro__ for line in (c.__doc__ or "").splitlines()]
    missing = [field for field in type(resolved).model_fields if not any(x.startswith(f"{field}: ") for x in lines)]
    _require(not missing, f"the docstring of {cls.settings_class.__name__} does not describe {', '.join(missing)}")
    same = type(resolved).model_validate_json(resolved.model_dump_json()) == resolved
    _require(same, f"the settings of {name} are others after being written and read")


def check_inner_steps(system: System, task: Task) -> None:
    """Inner steps move phi and leave theta, and theta's gradients, alone."""
    method = system.method
    _scramble(system, 1e-3)
    theta = _values(system, "shared")
    _take_inner_steps(system, task)
    _require(_same(_values(system, "shared"), theta), "inner steps move theta")
    owed = [p for p in method.adapters.parameters("shared") if p.grad is not None]
    _require(not owed, "inner steps leave gradients on theta: detach it in inner_loss")
    _require(not _same(_values(system, "task"), theta), "inner steps do not move phi")


def check_outer_gradient(system: System, task: Task) -> None:
    """The outer gradient moves nothing, and lands on the parameters of `shared()`, all of them and no others."""
    method = system.method
    _take_inner_steps(system, task)
    before = {slot: _values(system, slot) for slot in SLOTS}
    query = system.batcher(task.train[4:6]) if method.uses_query else []
    method.outer_gradient(query, step_key((*FIRST_TASK, 2))[0])
    for slot, values in before.items():
        _require(_same(_values(system, slot), values), f"outer_gradient moves the {slot} slot: it should step nothing")
    left = [p for p in method.adapters.parameters("task") if p.grad is not None]
    _require(not left, "outer_gradient leaves gradients on phi: what takes no part in it needs requires_grad_(False)")
    groups = {id(p) for group in method.shared() for p in group.parameters}
    theta = (*method.adapters.parameters("shared"), *method.learned.values(), *method.temperature)
    graded = [p for p in theta if p.grad is not None]
    _require({id(p) for p in graded} == groups, "outer_gradient leaves .grad on others than the parameters of shared()")
    _require(
        all(bool(p.grad.isfinite().all()) for p in graded if p.grad is not None), "an outer gradient is not finite"
    )


def check_begin_task(system: System) -> None:
    """What phi is at the start of a task depends on theta alone, and making it leaves theta as it was."""
    starts = []
    for size in (1e-1, 1e-2):
        _scramble(system, size, slots=("task",))
        theta = _values(system, "shared")
        system.method.begin_task(first=True)
        _require(_same(_values(system, "shared"), theta), "begin_task moves theta")
        starts.append(_values(system, "task"))
    _require(_same(*starts), "begin_task(first=True) makes another phi, depending on the phi before")


def check_training(build: Callable[[], System], tasks: tuple[Task, ...]) -> None:
    """Training moves exactly what is trained; from a checkpoint it goes on as if it had not been stopped."""
    system = build()
    before = _theta(system)
    with tempfile.TemporaryDirectory() as folder:
        _train(system, tasks, Path(folder))
        after = _theta(system)
        for last in sorted(Path(folder).glob("checkpoints/step-*"))[-1:]:
            shutil.rmtree(last)
        resumed = build()
        _train(resumed, tasks, Path(folder))
    groups = {id(p) for group in system.method.shared() for p in group.parameters}
    learned = system.method.learned.values()
    everything = (*system.method.adapters.parameters("shared"), *learned, system.likelihood.log_temperature)
    trained = {name for name, parameter in zip(before, everything, strict=True) if id(parameter) in groups}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    _require(
        moved == trained, f"training moves {len(moved)} tensors of theta, the groups of shared() hold {len(trained)}"
    )
    said = system.method.moves_weights
    _require(bool(trained - {TEMPERATURE}) == said, f"moves_weights is {said}, the groups of shared() say otherwise")
    _require(all(bool(tensor.isfinite().all()) for tensor in after.values()), "theta is not finite after training")
    _require(_same(_theta(resumed), after), "a run that goes on from a checkpoint becomes another run")


def check_source(spec: str) -> None:
    """Check a source of tasks by loading from it, twice.

    - It gives tasks, each with rows to learn from, and the same ones again.
    - Ids are unique in a split, and no question is both learned from and scored.

    (That every row is a question is checked whenever tasks are loaded.)

    Args:
        spec: as in a recipe, `NAME:REST`.

    Raises:
        AssertionError: what is broken.
        AbmllError: nothing can be loaded.

    >>> check_source("builtin:capitals")
    """
    tasks, again = load_tasks(spec), load_tasks(spec)
    _require(bool(tasks), f"{spec} gives no task")
    _require(tasks == again, f"{spec} gives other tasks when it is read again")
    for task in tasks:
        _require(bool(task.train), f"task {task.name} has no train rows")
        for rows in (task.train, task.test):
            _require(len({row.id for row in rows}) == len(rows), f"task {task.name}: two rows of one id")
        train, test = ({same_question(row, same_form) for row in rows} for rows in (task.train, task.test))
        _require(not train & test, f"task {task.name}: {len(train & test)} questions are in train and in test")


def check_metric(name: str) -> None:
    """Check a registered metric on made-up predictions, among them extreme ones.

    - It gives a finite number or None: for one question, if all answers are right, wrong, certain or undecided, and
      where questions have different numbers of choices.
    - It gives the same again, and the same, up to rounding, if the rows come in another order.

    Args:
        name: of the metric.

    Raises:
        AssertionError: what is broken.
        AbmllError: there is no such metric, or it fails.
    """
    _require(bool(definition(name)), f"metric {name} has no definition")
    rng = np.random.default_rng(0)
    for what, rows in _kinds_of_rows(rng).items():
        first = _value(name, rows)
        _require(_value(name, rows) == first, f"metric {name} gives another value for the same rows ({what})")
        other = _value(name, tuple(rows[i] for i in rng.permutation(len(rows))))
        order = f"metric {name} depends on the order of the rows ({what}): {first} and {other}"
        _require(_close(first, other), order)


def _close(one: float | None, other: float | None) -> bool:
    """Equal up to rounding, or both without a value."""
    return one is other if one is None or other is None else math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


def _value(name: str, rows: tuple[Prediction, ...]) -> float | None:
    predictions = Predictions("system", "task", seed=0, draw=0, examples_consumed=0, rows=rows)
    return score_with(predictions, [name]).more[name]


def _kinds_of_rows(rng: np.random.Generator) -> dict[str, tuple[Prediction, ...]]:
    drawn = [tuple(rng.dirichlet(np.ones(k)).tolist()) for k in rng.integers(2, 6, size=40)]
    best = [max(range(len(p)), key=p.__getitem__) for p in drawn]
    kinds = {
        "any answers": [int(rng.integers(len(p))) for p in drawn],
        "right answers": best,
        "wrong answers": [(b + 1) % len(p) for b, p in zip(best, drawn, strict=True)],
    }
    made = {what: _rows(zip(drawn, answers, strict=True)) for what, answers in kinds.items()}
    certain, undecided = ((1.0, 0.0), (0.0, 1.0)), ((0.5, 0.5), (0.25,) * 4)
    return made | {
        "one question": made["any answers"][:1],
        "certain answers": _rows((p, a) for p in certain for a in (0, 1)),
        "undecided answers": _rows((p, a) for p in undecided for a in (0, 1)),
    }


def _rows(pairs: Iterable[tuple[tuple[float, ...], int]]) -> tuple[Prediction, ...]:
    return tuple(Prediction(str(i), answer, probabilities) for i, (probabilities, answer) in enumerate(pairs))


def _train(system: System, tasks: tuple[Task, ...], folder: Path) -> None:
    run, learner = resolve(system.config), Learner.of(system.method, system.batcher)
    meta_train(learner, run.episodes_of(tasks), replace(run.training, checkpoint_every=1), RunDirectory(folder))


def _take_inner_steps(system: System, task: Task) -> None:
    system.method.begin_task(first=True)
    optimizer = GroupOptimizer(system.method.task())
    inner_steps(system.method, optimizer, system.batcher, [task.train[:2], task.train[2:4]], FIRST_TASK)


def _theta(system: System) -> dict[str, Tensor]:
    learned = {f"method.{name}": p.detach().clone() for name, p in system.method.learned.items()}
    return {**_values(system, "shared"), **learned, TEMPERATURE: system.likelihood.log_temperature.detach().clone()}


def _values(system: System, slot: Slot) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in system.method.adapters.state_dict(slot).items()}


@torch.no_grad()
def _scramble(system: System, size: float, slots: Sequence[Slot] = SLOTS) -> None:
    """Random factors, so that nothing is zero or equal by chance."""
    generator = torch.Generator().manual_seed(round(1 / size))
    for slot in slots:
        for parameter in system.method.adapters.parameters(slot):
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise AssertionError(broken)
