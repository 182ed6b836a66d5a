"""What reads files from elsewhere: a good folder of each kind, how to spoil it, and how it is read."""

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import openpyxl
import pyarrow
import pyarrow.parquet
import torch
import yaml
from rich.console import Console

from abmll.adapters.attach import attach
from abmll.adapters.facts import BaseFacts, digest
from abmll.adapters.folder import EXTRAS_FILE, read_adapter, write_adapter
from abmll.adapters.peft import CONFIG_FILE, MODEL_FILE, read_peft
from abmll.adapters.stored import Maker, take_adapter
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.config import CompareConfig, RunConfig, load_config
from abmll.errors import AbmllError
from abmll.everyday.labelled import read_labelled
from abmll.everyday.saved import DETAILS_FILE, read_posterior
from abmll.files import SEAL, write_json, write_text
from abmll.metrics.not_finite import END, NotFinite
from abmll.metrics.predictions import read_predictions
from abmll.models.gguf_header import read_header as read_gguf_header
from abmll.models.gguf_header import write_keys
from abmll.models.gguf_parts import find_parts
from abmll.models.load import load_model
from abmll.report import collect, render_terminal, summarise, write_report
from abmll.report.page import page
from abmll.report.tables import markdown_report
from abmll.runs.prepare import tasks_of
from abmll.runs.record import RECORD, TrainingRecord, read_training_record, task_facts, write_training_record
from abmll.scoring.scores import score
from abmll.systems.plans import resolve
from abmll.systems.scale import SCALE_FILE, Scale, TaskScale, read_scale, write_scale
from abmll.tables.layouts import Layout
from abmll.tasks.catalogue.entries import catalogue_entry
from abmll.tasks.catalogue.pins import Pin, read_pins
from abmll.tasks.sources import load_tasks
from abmll.tensors import read_header
from abmll.training.checkpoints import MARKER, Checkpoint, RunDirectory
from tests.adapters import move
from tests.gguf_files import write_gguf
from tests.hostile.mutations import Mutation, json_file, json_line, safetensors_header, yaml_file
from tests.report_folder import make_folder
from tests.tables import read_questions
from tests.tiny import save_tiny, tiny_model, tiny_tasks, write_tasks

Reader = Callable[[Path], Any]
FORMS: Mapping[str, Mutation] = {
    ".jsonl": json_line,
    ".json": json_file,
    ".yaml": yaml_file,
    ".safetensors": safetensors_header,
}
"""How values of a file are spoilt, by its extension; others are spoilt as bytes alone."""


@dataclass(frozen=True)
class Target:
    """One kind of file or folder from elsewhere.

    Attributes:
        build: writes a good one into an empty folder.
        read: reads it, as the library does.
        files: those that are spoilt, as patterns below the folder.
        reseal: mends checksums after a file was spoilt, as somebody would who means harm.
    """

    build: Callable[[Path], None]
    read: Reader
    files: tuple[str, ...]
    reseal: Callable[[Path], None] | None = None


# Rows


def _build_rows(folder: Path) -> None:
    write_tasks(folder, tiny_tasks(3, n_rows=6, n_test=3))
    rows = [
        {"question": q.question, "context": q.context, "choices": list(q.choices), "answer": q.answer}
        for q in tiny_tasks(1)[0].train
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "table.train.parquet")
    lines = ["id,question,context,choice_0,choice_1,answer", *(f'{n},"Is it, {n}?",,yes,no,{n % 2}' for n in range(6))]
    (folder / "text.train.csv").write_text("\n".join(lines) + "\n")
    (folder / "tabs.train.tsv").write_text("\n".join(lines).replace(",", "\t") + "\n", encoding="utf-16")
    book = openpyxl.Workbook()
    for line in lines:
        book.worksheets[0].append(line.split(","))
    book.save(folder / "book.train.xlsx")


def _read_rows(folder: Path) -> None:
    """Refused as a whole, and then with bad rows skipped and counted; and as labelled rows of a user's own."""
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(AbmllError):
            read_labelled(path, Layout()).remarks()
        with contextlib.suppress(AbmllError):
            read_labelled(path, Layout(text="question", label="answer"), fixed=True)
    try:
        load_tasks(folder)
    except AbmllError as error:
        whole = error
    else:
        whole = None
    for path in sorted(folder.iterdir()):
        if whole is None or str(path) in str(whole):
            read_questions(path, on_bad_row="skip", merge_choices=True)
    for task in load_tasks(folder, on_bad_row="skip"):
        if whole is not None and not task.skipped:
            continue
    if whole is not None:
        raise whole


# Configurations


RECIPE = {
    "name": "mine",
    "note": "A note.",
    "model": {"shape": "tiny-llama", "dtype": "float32", "device": "cpu"},
    "adapter": {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"]},
    "likelihood": {"kind": "cloze", "template": "plain", "max_tokens": 64, "temperature": 1.0},
    "method": {"name": "abmll", "inner_steps": 2, "std_init": 0.05, "batch_size": 2},
    "tasks": {
        "train": {"source": "builtin", "names": ["capitals", "plurals"]},
        "unseen": {"source": "builtin:held-out", "on_bad_row": "skip"},
        "leak_check": "warn",
    },
    "training": {"iterations": 3, "seed": 1, "checkpoint_every": 2},
    "adaptation": {"examples": 4, "steps": 2, "samples": 2, "test_questions": 2},
    "engine": {"kernels": "eager", "capture": False},
    "systems": {"abmll": {}, "lora": {"method": {"name": "lora"}, "adapter": {"rank": 2}}},
    "reference": "lora",
    "seeds": [0, 1],
}


def _build_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))


def _read_recipe(folder: Path) -> None:
    """All that happens before a model is loaded: each system's configuration, its method's settings, the tasks."""
    config = load_config(CompareConfig, folder / "recipe.yaml", ["note=x"])
    if len(config.systems) * len(config.seeds) > 100:
        return
    for name in config.systems:
        for seed in config.seeds:
            run = config.run(name, seed)
            resolve(run)
            run.to_yaml().encode()
    for source in (config.tasks.train, config.tasks.validation, config.tasks.unseen):
        tasks_of(source)


# Adapters


def _stored(folder: Path) -> None:
    model = tiny_model()
    adapters = attach(model, ("q_proj", "v_proj"), rank=2, alpha=4.0)
    for slot in ("shared", "task"):
        move(adapters, slot)
    base = BaseFacts(name="tiny", fingerprint="f", architecture="a", tokenizer_hash="t")
    write_adapter(take_adapter(adapters, "task", alpha=4.0, base=base, maker=Maker("abmll")), folder)


def _build_task(folder: Path) -> None:
    place = folder / "tasks" / "mine"
    _stored(place)
    write_json(place / DETAILS_FILE, {"name": "mine", "details": {"examples": 3}})


def _read_saved(folder: Path) -> None:
    adapter = read_posterior(folder, "mine").adapter
    assert all(bool(tensor.isfinite().all()) for tensor in adapter.all_tensors().values())


def _reseal_adapter(folder: Path) -> None:
    """The SHA-256 that the spoilt tensors and facts should have, where reading gets so far as to compute it."""
    file = folder / "tasks" / "mine" / EXTRAS_FILE
    found: list[str] = []

    def noted(*args: Any) -> str:
        found.append(digest(*args))
        return found[0]

    with contextlib.suppress(AbmllError), mock.patch("abmll.adapters.folder.digest", noted):
        read_adapter(file.parent)
    if found:
        old = read_header(file).metadata.get("sha256", "")
        if len(old) == len(found[0]):
            file.write_bytes(file.read_bytes().replace(old.encode(), found[0].encode()))


def _build_lora(folder: Path) -> None:
    _stored(folder)
    (folder / EXTRAS_FILE).unlink()


# Runs


def _build_checkpoint(folder: Path) -> None:
    directory = RunDirectory(folder / "run")
    directory.log({"event": "step", "step": 1})
    shared = {"layer.mean_a": torch.ones(2, 3), "layer.mean_b": torch.zeros(4, 2)}
    directory.save(Checkpoint(1, shared, {"outer.0.m": torch.ones(2, 3)}, {"best_step": 0, "bad": 0, "distance": 0.5}))


def _read_checkpoint(folder: Path) -> None:
    directory = RunDirectory(folder / "run")
    directory.load(1)
    directory.latest()


def _reseal_checkpoint(folder: Path) -> None:
    """Every SHA-256 in the marker as it should be now."""
    place = RunDirectory(folder / "run").checkpoint_path(1)
    try:
        sums = json.loads((place / MARKER).read_bytes())
        fresh = {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in sums}
    except (OSError, ValueError, TypeError, RecursionError):
        return
    (place / MARKER).write_text(json.dumps(fresh))


def _build_record(folder: Path) -> None:
    tasks = tuple(task_facts(task) for task in tiny_tasks(2))
    write_training_record(folder, TrainingRecord(step=3, examples=18, train=tasks, validation=tasks[:1]))
    _stored(folder / "adapter")
    calibrators = {row: PosteriorTemperature(mu=0.5, sd=0.25).to_dict() for row in ("own", "mean")}
    told = {"tiny0": TaskScale(rows=5, temperatures={"own": 1.5, "mean": 2.0})}
    scale = Scale(fitted_tasks=1, calibrators=calibrators, tasks=told, left_out={"tiny1": "why"})
    write_scale(folder, resolve(RunConfig.model_validate({"model": {"shape": "tiny-llama"}})), 3, scale)


def _read_record(folder: Path) -> None:
    read_training_record(folder)
    stored = read_scale(folder)
    if stored is not None:
        prior = stored.scale.calibrator()
        assert prior.sd > 0


def _reseal_record(folder: Path) -> None:
    """Without its SHA-256, which is no fault: earlier versions had none."""
    for name in (RECORD, SCALE_FILE):
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            values = json.loads((folder / name).read_bytes())
            values.pop(SEAL, None)
            (folder / name).write_text(json.dumps(values))


def _build_comparison(folder: Path) -> None:
    make_folder(folder / "out", systems=("pretrained", "lora"), tasks=("boolean",), seeds=1, draws=1, questions=6)
    _break_a_cell(folder)


def _break_a_cell(folder: Path) -> None:
    """One cell that is not finite, in the place of its predictions."""
    file = next(folder.glob("out/lora/seed-0/predictions/before-adaptation/draw-0/*.jsonl"))
    NotFinite(read_predictions(file), "adapting", "why").write(file.with_name(f"{file.stem}{END}"))
    file.unlink()


def _read_comparison(folder: Path) -> None:
    """All but the drawing."""
    for path in sorted(folder.rglob("predictions/*/*/*.jsonl")):
        score(read_predictions(path))
    summary = summarise(collect(folder / "out"))
    write_json(folder / "out" / "results.json", summary)
    write_text(folder / "out" / "table.md", markdown_report(summary))
    write_text(folder / "out" / "report.html", page(summary, ()))
    Console(file=io.StringIO(), width=80).print(render_terminal(summary))


def _read_and_draw(folder: Path) -> None:
    write_report(folder / "out")


# What the hub's client and the user keep


def _build_pins(folder: Path) -> None:
    entry = catalogue_entry("copa")
    pin = Pin(
        hub=str(entry.hub),
        configuration=entry.configuration,
        revision="0" * 40,
        files={"train": {"copa/train/0000.parquet": "0" * 64}},
        rows={"train": 3},
        verified=True,
    )
    write_json(folder / "pins.json", {"copa": pin.model_dump(mode="json")})


def _read_pins(folder: Path) -> None:
    before = os.environ.get("ABMLL_PINS")
    os.environ["ABMLL_PINS"] = str(folder / "pins.json")
    try:
        read_pins()
        load_tasks("hub:copa")
    finally:
        os.environ.pop("ABMLL_PINS")
        if before is not None:
            os.environ["ABMLL_PINS"] = before


def _build_model(folder: Path) -> None:
    save_tiny(folder / "model")


def _read_model(folder: Path) -> None:
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    load_model(str(folder / "model"), device="cpu", dtype="float32")


def _build_gguf(folder: Path) -> None:
    """A header and hardly more, as what stands in the tensors is read as numbers, whatever it is."""
    parts = find_parts(str(write_gguf(folder / "tiny.gguf")))
    assert parts is not None
    (folder / "tiny.gguf").write_bytes(write_keys(read_gguf_header(parts), arrays=False, tensors=True))


def _read_gguf(folder: Path) -> None:
    parts = find_parts(str(folder / "tiny.gguf"))
    assert parts is not None
    read_gguf_header(parts)


TARGETS: Mapping[str, Target] = {
    "rows": Target(_build_rows, _read_rows, ("*.jsonl", "*.csv", "*.tsv", "*.parquet", "*.xlsx")),
    "configurations": Target(_build_recipe, _read_recipe, ("recipe.yaml",)),
    "saved tasks": Target(_build_task, _read_saved, ("tasks/mine/*",), _reseal_adapter),
    "PEFT adapters": Target(_build_lora, read_peft, (CONFIG_FILE, MODEL_FILE)),
    "checkpoints": Target(_build_checkpoint, _read_checkpoint, ("run/checkpoints/*/*",), _reseal_checkpoint),
    "records": Target(_build_record, _read_record, (RECORD, SCALE_FILE), _reseal_record),
    "comparisons": Target(_build_comparison, _read_comparison, ("out/*.json", "out/**/*.json", "out/**/*.jsonl")),
    "reports": Target(_build_comparison, _read_and_draw, ("out/*.json", "out/**/*.json", "out/**/*.jsonl")),
    "pins": Target(_build_pins, _read_pins, ("pins.json",)),
    "GGUF headers": Target(_build_gguf, _read_gguf, ("*.gguf",)),
    "models": Target(_build_model, _read_model, ("model/*.json", "model/*.safetensors")),
}
