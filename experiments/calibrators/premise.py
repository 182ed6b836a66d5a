"""What a premise and contextual calibration give: python -m experiments.calibrators.premise --tasks FOLDER --out FOLDER

The base model as it is, not adapted: of each task 20 train rows, which it has not learned, are the held-out rows, and
100 test rows are scored. FOLDER has task files.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abmll.calibrators import ChoiceRows, TaskRows, calibrator
from abmll.files import write_text
from abmll.metrics.predictions import Prediction
from abmll.models import LanguageModel, load_model
from abmll.process.environment import environment
from abmll.question import CONTENT_FREE, Question, Task, without_content
from abmll.systems.build import build_system
from abmll.systems.plans import AdaptationPlan
from abmll.systems.predict import examples_of
from abmll.systems.system import System
from abmll.tasks.sources import load_tasks
from experiments.calibrators.compare import POSTERIOR, Entry, TaskScores, compare, difference
from experiments.calibrators.report import table
from experiments.short_json import short_json

MODEL = "smollm2-135m-instruct"
TASKS = (
    *("bb_navigate", "com2sense", "csqa2", "mc_taco", "strategyqa", "superglue_wsc"),  # fixed labels
    *("commonsense_qa", "copa", "openbookqa", "opentrivia_geography", "qasc", "sciq"),  # choices of each question
)
"""Of training and validation, for their short questions; chosen before any of them was scored."""
TEST = 100
LIKELIHOODS: dict[str, dict[str, Any]] = {
    "per token": {},
    "per token, premise ''": {"premise": ""},
    "per token, premise 'N/A'": {"premise": "N/A"},
    "sum": {"normalisation": "sum"},
    "sum, premise ''": {"normalisation": "sum", "premise": ""},
}
ENTRIES = (
    Entry("none", calibrator("none"), False),
    Entry("posterior temperature", calibrator("posterior_temperature"), False),
    Entry("contextual", calibrator("contextual"), False),
    Entry("contextual, then posterior temperature", calibrator("contextual", POSTERIOR), False),
    Entry("batch, then posterior temperature", calibrator("batch", POSTERIOR), False),
)
COMPARED = ("per token", "posterior temperature")
COSTS = ("likelihood", "accuracy", "passes a question", "padded tokens a question", "ms a question")
Scores = Mapping[str, Mapping[str, TaskScores]]


@dataclass(frozen=True)
class Cost:
    """What answering questions took.

    Attributes:
        questions: how many.
        passes: forward passes.
        tokens: of these, with padding.
        seconds: of processor time.
    """

    questions: int = 0
    passes: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def each(self) -> dict[str, float]:
        """By question."""
        return {
            "passes": self.passes / self.questions,
            "tokens": self.tokens / self.questions,
            "ms": 1000 * self.seconds / self.questions,
        }


def answered(system: System, task: Task) -> tuple[TaskRows, Cost]:
    """A task's questions, 20 of its train rows, and questions without content; and the cost of the first."""
    labels, examples = task.fixed_labels, examples_of(task, AdaptationPlan(), 0)
    free = () if labels is None else tuple(without_content(labels, text) for text in CONTENT_FREE)
    rows, cost = _watched(system, task.test[:TEST])
    parts = system.predict(examples), rows, system.predict(free)
    held_out, test, about = (ChoiceRows.from_predictions(part, fixed_choices=labels is not None) for part in parts)
    return TaskRows(task.name, held_out, test, about if free else None), cost


def _watched(system: System, questions: tuple[Question, ...]) -> tuple[tuple[Prediction, ...], Cost]:
    shapes: list[torch.Size] = []
    hook = system.language_model.model.register_forward_pre_hook(
        lambda module, given, named: shapes.append(named["input_ids"].shape), with_kwargs=True
    )
    began = time.process_time()
    rows = system.predict(questions)
    spent = time.process_time() - began
    hook.remove()
    return rows, Cost(len(questions), len(shapes), sum(shape.numel() for shape in shapes), spent)


def measure(
    base: LanguageModel, likelihood: Mapping[str, Any], tasks: Sequence[Task]
) -> tuple[list[TaskRows], dict[str, Cost]]:
    """Every task's rows, and what the scored questions of each kind of task cost."""
    system = build_system({"method": {"name": "pretrained"}, "likelihood": dict(likelihood)}, base)
    try:
        found = {kind: [answered(system, task) for task in of_kind] for kind, of_kind in by_kind(tasks).items()}
    finally:
        system.close()
    rows = [rows for of_kind in found.values() for rows, _ in of_kind]
    return rows, {kind: sum((cost for _, cost in of_kind), Cost()) for kind, of_kind in found.items() if of_kind}


def by_kind(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    """Tasks with fixed labels, and others."""
    fixed = [task for task in tasks if task.fixed_labels is not None]
    return {"fixed labels": fixed, "choices of each question": [task for task in tasks if task not in fixed]}


def numbers(scores: Scores, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`likelihood | calibrator` -> NLL, and its difference from the plain likelihood at the posterior temperature."""
    against = _only(scores[COMPARED[0]][COMPARED[1]], names)
    found = {}
    for likelihood, entries in scores.items():
        for entry in (*(each.name for each in ENTRIES), "uniform"):
            own = _only(entries[entry], names)
            if own.nll and (entry != "uniform" or likelihood == COMPARED[0]):
                values = {"nll": float(np.mean(list(own.nll.values()))), "minus": difference(own, against)}
                found[f"{likelihood} | {entry}"] = {**values, "by_task": own.nll}
    return found


def _only(scores: TaskScores, names: Sequence[str]) -> TaskScores:
    return TaskScores(*({n: v for n, v in kind.items() if n in names} for kind in (scores.nll, scores.ece)))


def accuracies(rows: Mapping[str, Sequence[TaskRows]], names: Sequence[str]) -> dict[str, float]:
    """Likelihood -> share of right answers, mean over tasks."""
    found = {}
    for likelihood, tasks in rows.items():
        right = [
            float((task.test.log_probabilities.argmax(axis=1) == task.test.answers).mean())
            for task in tasks
            if task.name in names
        ]
        found[likelihood] = float(np.mean(right))
    return found


def _cost_line(likelihood: str, accuracy: float, cost: Mapping[str, float]) -> list[str]:
    return [likelihood, f"{accuracy:.3f}", f"{cost['passes']:.3f}", f"{cost['tokens']:.1f}", f"{cost['ms']:.1f}"]


def markdown(results: Mapping[str, Any]) -> str:
    """The tables."""
    parts = ["# A premise, and contextual calibration", "Written by `python -m experiments.calibrators.premise`."]
    for kind, of_kind in results["scores"].items():
        head = ("likelihood", "calibrator", "NLL", "minus per token at the posterior temperature")
        lines = [
            [*name.split(" | "), f"{own['nll']:.4f}", "{:+.4f} ({:+.4f} to {:+.4f})".format(*own["minus"])]
            for name, own in of_kind.items()
        ]
        parts += [f"## Tasks with {kind}: {', '.join(results['tasks'][kind])}", table(head, lines)]
        costs = {name: cost[kind] for name, cost in results["cost"].items()}
        parts.append(table(COSTS, [_cost_line(name, results["accuracy"][kind][name], c) for name, c in costs.items()]))
    return "\n\n".join(parts) + "\n"


def _named(folder: Path, names: Sequence[str]) -> tuple[Task, ...]:
    here = [name for name in names if (folder / f"{name}.train.jsonl").exists()]
    return load_tasks(folder, here, merge_choices=True) if here else ()


def main(given: Sequence[str] | None = None) -> None:
    """Measure, and write premise.json and premise.md."""
    parser = argparse.ArgumentParser(prog="python -m experiments.calibrators.premise", description=__doc__)
    parser.add_argument(
        "--tasks", nargs="+", type=Path, required=True, help="folders of the training and validation tasks"
    )
    parser.add_argument("--model", default=MODEL, help="a base model, as in a recipe")
    parser.add_argument("--names", nargs="+", default=TASKS, help="tasks")
    parser.add_argument("--out", type=Path, required=True, help="where the files go")
    arguments = parser.parse_args(given)
    every = [task for folder in arguments.tasks for task in _named(folder, arguments.names)]
    base = load_model(arguments.model, device="cpu", dtype="float32")
    measured = {name: measure(base, likelihood, every) for name, likelihood in LIKELIHOODS.items()}
    rows = {name: of_tasks for name, (of_tasks, _) in measured.items()}
    scores = compare(rows, entries=ENTRIES)
    names = {kind: [task.name for task in tasks] for kind, tasks in by_kind(every).items() if tasks}
    results = {
        "environment": environment(torch.device("cpu")),
        "tasks": names,
        "scores": {kind: numbers(scores, of_kind) for kind, of_kind in names.items()},
        "accuracy": {kind: accuracies(rows, of_kind) for kind, of_kind in names.items()},
        "cost": {name: {kind: c.each() for kind, c in cost.items()} for name, (_, cost) in measured.items()},
    }
    text = short_json(results)
    write_text(arguments.out / "premise.json", text)
    write_text(arguments.out / "premise.md", markdown(json.loads(text)))


if __name__ == "__main__":
    main()
