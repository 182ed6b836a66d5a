"""A small made-up comparison folder, as `abmll compare` would leave it, for the tests of the report."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from abmll.files import write_json, write_text
from abmll.metrics.predictions import Prediction, Predictions

SYSTEMS = ("pretrained", "lora", "abmll", "abmll_mean")
TASKS = ("boolean", "passages", "science")
FIXED = {"boolean": 2, "passages": 3}
"""Tasks with fixed labels, and how many."""

PLAIN = ("pretrained", "in_context")
"""Systems that were not meta-trained."""
SKILL = {"pretrained": 0.3, "lora": 0.7, "reptile": 1.0, "fomaml": 0.8, "abmll": 1.1, "abmll_mean": 1.1}
SHARPNESS = {"pretrained": 2.5, "lora": 2.0, "reptile": 1.8, "abmll": 1.1}


def make_folder(
    folder: Path,
    *,
    systems: Sequence[str] = SYSTEMS,
    tasks: Sequence[str] = TASKS,
    seeds: int = 2,
    draws: int = 2,
    questions: int = 40,
    checkpoints: Sequence[int] = (120, 360),
    note: str = "Shows the path, not the method.",
    reference: str = "lora",
    group: int = 0,
    held_out: bool = True,
) -> Path:
    """Write the folder. `abmll_mean` has predictions only, those of `PLAIN` consume no examples.

    So many questions that follow each other are of one `group`, answered alike; 0: each stands alone.
    The examples are predicted `held_out`, too.
    """
    settings = {"name": "toy", "note": note, "systems": list(systems), "seeds": list(range(seeds))}
    write_json(folder / "comparison.json", settings | {"draws": draws, "reference": reference, "tasks": list(tasks)})
    for system in systems:
        for seed in range(seeds):
            run = folder / system / f"seed-{seed}"
            points = (0,) if system in PLAIN else checkpoints
            for examples in points:
                share = examples / max(checkpoints)
                place = f"examples-{examples:08d}"
                _write_cells(run, place, system, seed, draws, tasks, questions, examples, share, group, held_out)
            _write_cells(run, "before-adaptation", system, seed, draws, tasks, questions, points[-1], 0.2, group, False)
            if system != "abmll_mean":
                _write_records(run, seed, points[-1])
    return folder


def _write_cells(
    run: Path,
    checkpoint: str,
    system: str,
    seed: int,
    draws: int,
    tasks: Sequence[str],
    questions: int,
    examples: int,
    share: float,
    group: int,
    held_out: bool,
) -> None:
    for number, task in enumerate(tasks):
        for draw in range(draws):
            words = f"{system}/{task}/{seed}/{draw}/{checkpoint}".encode()
            rng = np.random.default_rng(np.frombuffer(words, dtype=np.uint8))
            skill = SKILL.get(system, 1.0) * (0.5 + 0.5 * share)
            rows = _rows(rng, number, task, questions, skill, SHARPNESS.get(system, 1.3))
            if group:
                alike = [rows[i - i % group] for i in range(questions)]
                rows = tuple(replace(row, id=rows[i].id, group=f"g{i // group}") for i, row in enumerate(alike))
            adaptation = _rows(rng, number + 100, task, 12, skill, SHARPNESS.get(system, 1.3))
            unlearned = _rows(rng, number + 100, task, 12, 0.8 * skill, SHARPNESS.get(system, 1.3))
            counts = np.bincount([row.answer for row in adaptation], minlength=FIXED.get(task, 1))
            predictions = Predictions(
                system=system,
                task=task,
                seed=seed,
                draw=draw,
                examples_consumed=examples,
                rows=rows,
                adaptation_rows=adaptation,
                held_out_rows=unlearned if held_out else (),
                adapted=checkpoint != "before-adaptation",
                label_counts=tuple(counts.tolist()) if task in FIXED else None,
            )
            predictions.write(run / "predictions" / checkpoint / f"draw-{draw}" / f"task{number}.jsonl")


def _rows(
    rng: np.random.Generator, number: int, task: str, questions: int, skill: float, sharpness: float
) -> tuple[Prediction, ...]:
    same = np.random.default_rng(number)  # the questions are those of the task, whoever answers them
    rows = []
    for i in range(questions):
        choices = FIXED.get(task) or int(same.integers(3, 6))
        answer = int(same.integers(choices))
        logits = rng.normal(size=choices) + skill * (np.arange(choices) == answer)
        weights = np.exp(sharpness * logits)
        rows.append(Prediction(f"q{number}-{i}", answer, tuple((weights / weights.sum()).tolist())))
    return tuple(rows)


def _write_records(run: Path, seed: int, examples: int) -> None:
    write_json(
        run / "cost.json",
        {
            "train_seconds": 0.1 * examples + seed,
            "adapt_seconds": 4.0,
            "predict_seconds": 2.5,
            "peak_memory_bytes": 1_500_000_000 + seed,
            "shared_parameters": 460_800,
            "task_parameters": 460_800,
            "examples_consumed": examples,
            "device": "cpu",
        },
    )
    write_json(
        run / "environment.json",
        {"abmll": "0.1.0", "commit": "abc1234", "python": "3.11.9", "torch": "2.10.0", "device": "cpu"},
    )
    events = [{"event": "step", "step": 1, "examples_consumed": 12, "nll": 1.2}, {"event": "end"}]
    write_text(run / "journal.jsonl", "".join(json.dumps(event) + "\n" for event in events))
