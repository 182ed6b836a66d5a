"""Every kind of file that the library writes and reads again: a place with all of them, and how each is read.

`docs/survival.md` has the same list as a table; a test compares the two. A file that no kind here knows fails a test,
so a new one cannot be forgotten.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from abmll.adapters.folder import read_adapter
from abmll.classifier import Classifier
from abmll.classifier.stored import read_stored
from abmll.config import CompareConfig, RunConfig, load_config
from abmll.errors import AbmllError
from abmll.everyday.adapt import adapt_and_save, hold_back
from abmll.everyday.labelled import Labelled
from abmll.everyday.probe import Probe, read_probe, write_probe
from abmll.everyday.saved import read_posterior
from abmll.everyday.session import open_run, read_shared
from abmll.exporting import export_calibrated, export_mean, export_merged
from abmll.files import read_sealed_json, write_sealed_json
from abmll.models import LanguageModel, load_model
from abmll.models.gguf import find_damage, seal_folder
from abmll.report import collect
from abmll.runs.compare import run_comparison
from abmll.runs.provenance import _read_provenance, provenance_of
from abmll.runs.record import read_training_record
from abmll.runs.tracking import TRACKING
from abmll.systems import build
from abmll.systems.adapters import use_adapter
from abmll.systems.plans import PredictionPlan
from abmll.tables.layouts import Layout
from abmll.tasks.catalogue.entries import catalogue_entry
from abmll.tasks.catalogue.pins import Pin, read_pins, write_pin
from abmll.training.checkpoints import RunDirectory
from abmll.training.failed_batch import read_batch
from tests.everyday import texts
from tests.poison import mark, poisoned_load
from tests.tiny import save_tiny, tiny_tasks, write_tasks

RECIPE: dict[str, Any] = {
    "name": "trusted",
    "model": {"source": "model", "device": "cpu", "dtype": "float32"},
    "adapter": {"rank": 3, "alpha": 6.0},
    "tasks": {name: {"source": name} for name in ("train", "unseen")} | {"leak_check": "off"},
    "training": {"iterations": 2, "checkpoint_every": 1},
    "adaptation": {"steps": 1, "examples": 4, "samples": 2, "test_questions": 3, "meta_rows": 3},
    "systems": {name: {"method": {"name": name, "inner_steps": 1}} for name in ("lora", "abmll")},
    "seeds": [0, 1],
    "reference": "lora",
    "curve": 1,
}
TOLD = "told"


class MadeAgain(Exception):
    """The library does not use the file, and sets about making it again."""


def build_place(place: Path) -> Path:
    """All kinds of files: a comparison with saved tasks and cells that are not finite, estimators, exports, caches."""
    save_tiny(place / "model")
    tasks = tiny_tasks(5, n_rows=16, n_test=4)
    write_tasks(place / "train", tasks[:2])
    write_tasks(place / "unseen", (tasks[3], mark(tasks[4], train=tuple(range(16)))))
    (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with inside(place), mock.patch.object(build, "load_model", poisoned_load):
        config = load_config(CompareConfig, Path("recipe.yaml"))
        run_comparison(config, Path("out"), lambda: build.load_base(config.model))
        for name in ("a", "b"):
            _save_task(Path("out/abmll/seed-0"), name)
        _save_estimators(Path("out/abmll/seed-0"))
        _export(Path("out/abmll/seed-0"))
    run = place / "out" / "abmll" / "seed-0"
    for other in (run, place / "out" / "abmll" / "seed-1"):
        write_probe(other, Probe(len(other.name) + 0.5, other.name, 6))
        write_sealed_json(other / TRACKING, {"tensorboard": f"tensorboard-{other.name}"})
    _cache(place)
    return place


@contextmanager
def inside(place: Path) -> Iterator[None]:
    """The place as the working folder, and its pins as those of the user."""
    before = Path.cwd()
    os.chdir(place)
    try:
        with mock.patch.dict(os.environ, {"ABMLL_PINS": str(place / "pins.json")}):
            yield
    finally:
        os.chdir(before)


def _save_task(run: Path, name: str) -> None:
    session = open_run(run, {"adaptation": {"steps": 1, "samples": 2}})
    layout = Layout(("bad", "good") if name == "a" else ("good", "bad"))
    rows = tuple(
        layout.question({"text": text, "label": label}, number, location=f"{name}.csv:{number + 2}")
        for number, (text, label) in enumerate(texts(8, seed=len(name)))
    )
    labelled = Labelled(layout, rows)
    adapt_and_save(session, name, labelled, hold_back(labelled.clusters, 2, 0), source=f"{name}.csv")
    session.system.close()


def _save_estimators(run: Path) -> None:
    for number, labels in enumerate((("bad", "good"), ("no", "yes"))):
        words, truth = zip(*texts(6, seed=number), strict=True)
        names = [labels[label == "good"] for label in truth]
        Classifier(run, steps=1, samples=2).fit(list(words), names).save(f"saved-{number}")


def _export(run: Path) -> None:
    config = load_config(RunConfig, run / "config.yaml")
    stored = read_shared(run)
    export_mean(stored, Path("lora"))
    system = build.build_system(config, build.load_base(config.model))
    use_adapter(stored, system, run)
    questions = tiny_tasks(1)[0].test
    export_calibrated(stored, system, questions, Path("served"), plan=PredictionPlan("weight", 2))
    system.close()
    system = build.build_system(config, load_model("model", device="cpu", dtype="float32"))
    use_adapter(stored, system, run)
    export_merged(system, Path("merged"))


def _cache(place: Path) -> None:
    with inside(place):
        for name in ("copa", "boolq"):
            entry = catalogue_entry(name)
            files = {split: {f"{name}/{split}.parquet": "0" * 64} for split in entry.splits}
            rows = dict.fromkeys(entry.splits, 3)
            found = Pin(
                hub=str(entry.hub),
                configuration=entry.configuration,
                revision="0" * 40,
                files=files,
                rows=rows,
                verified=True,
            )
            write_pin(name, found)
    for seed, name in enumerate(("one-0123", "two-4567")):
        folder = place / "cache" / name
        folder.mkdir(parents=True)
        base = load_model(str(place / "model"), device="cpu", dtype="float32")
        base.model.lm_head.weight[0, 0] += seed
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        seal_folder(folder, f"{name}.gguf", name)


# -------------------- kinds


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        name: as the table of docs/survival.md has it.
        files: patterns below the place.
        read: what the library makes of such a file, given the place and the file; None where it never reads it again.
        lost: what becomes of one that is missing, where that is neither refused nor "made again": `TOLD`, or a reason
            why it is harmless.
        moved: why one in the place of another is harmless, where it is not refused.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[Path, Path], Any] | None = None
    lost: str = ""
    moved: str = ""

    def found(self, place: Path) -> list[Path]:
        """Its files, relative to the place."""
        found = {path.relative_to(place) for pattern in self.files for path in place.glob(pattern) if path.is_file()}
        return sorted(found)


def _never() -> LanguageModel:
    raise MadeAgain


def _compare(place: Path, path: Path) -> Any:
    """What `abmll report` reads, and whether `abmll compare` takes it for done."""
    with inside(place):
        found = collect(Path("out"))
        run_comparison(load_config(CompareConfig, Path("recipe.yaml")), Path("out"), _never)
    return replace(found, runs={}), {
        (system, run.seed): (run.final, run.before, run.cost, run.environment, run.not_finite)
        for system, runs in found.runs.items()
        for run in runs
    }


def _run_of(place: Path, path: Path) -> Path:
    """The run directory of a file."""
    return place / Path(*path.parts[:3])


def _config(place: Path, path: Path) -> Any:
    found = load_config(RunConfig, _run_of(place, path) / "config.yaml")
    return found.to_yaml(), _compare(place, path)


def _origin(place: Path, path: Path) -> Any:
    base = load_model(str(place / "model"), device="cpu", dtype="float32")
    return _read_provenance(_run_of(place, path), provenance_of(base, (), ()))


def _record(place: Path, path: Path) -> Any:
    return read_training_record(_run_of(place, path))


def _probe(place: Path, path: Path) -> Any:
    return read_probe(_run_of(place, path))


def _journal(place: Path, path: Path) -> Any:
    """Cut where the last checkpoint would go on: what that sealed is compared with what is there."""
    directory = RunDirectory(_run_of(place, path))
    latest = directory.latest()
    assert latest is not None
    sealed = json.loads((directory.checkpoint_path(latest.step) / "journal.json").read_bytes())
    directory.cut_journal(latest.step)
    if not directory.journal.exists():
        return False
    return hashlib.sha256(directory.journal.read_bytes()).hexdigest() == sealed["sha256"]


def _checkpoints(place: Path, path: Path) -> Any:
    directory = RunDirectory(_run_of(place, path))
    found = [directory.load(step) for step in directory.steps(incomplete=True)]
    return [(c.step, _numbers(c.shared), _numbers(c.optimizer), c.state) for c in found]


def _numbers(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def _adapter(place: Path, path: Path) -> Any:
    stored = read_adapter((place / path).parent)
    return _numbers(stored.all_tensors()), stored.facts


def _task(place: Path, path: Path) -> Any:
    saved = read_posterior(_run_of(place, path), path.parent.name)
    return saved.details, saved.sealed, _numbers(saved.adapter.all_tensors()), saved.adapter.facts


def _estimator(place: Path, path: Path) -> Any:
    folder = (place / path).parent
    stored = read_stored(folder, Classifier)
    return (
        stored.params,
        stored.layout,
        stored.classes,
        stored.held_back,
        stored.temperature,
        load_config(RunConfig, folder / "config.yaml").to_yaml(),
        _adapter(place, path),
    )


def _batch(place: Path, path: Path) -> Any:
    found = read_batch((place / path).parent)
    return replace(found, state={}), _numbers(found.state)


def _sealed(place: Path, path: Path) -> Any:
    return read_sealed_json(place / path) if (place / path).exists() else None


def _gguf(place: Path, path: Path) -> Any:
    if find_damage((place / path).parent):
        raise MadeAgain
    return None


def _pins(place: Path, path: Path) -> Any:
    with inside(place):
        return read_pins()


RUN = "out/*/seed-*"
KINDS = (
    Kind("`config.yaml`", ("out/config.yaml", f"{RUN}/config.yaml"), _config),
    Kind("`comparison.json`", ("out/comparison.json",), _compare),
    Kind("`origin.json`", (f"{RUN}/origin.json",), _origin, TOLD),
    Kind("`journal.jsonl`", (f"{RUN}/journal.jsonl",), _journal, TOLD),
    Kind("`checkpoints/`", (f"{RUN}/checkpoints/*/*",), _checkpoints),
    Kind("`adapter/`", (f"{RUN}/adapter/*adapter*", f"{RUN}/adapter/abmll*"), _adapter),
    Kind("`trained.json`", (f"{RUN}/trained.json",), _record, "the card says less"),
    Kind("`calibrator.json`", (f"{RUN}/calibrator.json",), _compare),
    Kind("`predictions/`, `*.not-finite.json`", (f"{RUN}/predictions/*/*/*",), _compare),
    Kind("`cost.json`, `environment.json`", (f"{RUN}/cost.json", f"{RUN}/environment.json"), _compare),
    Kind("`tasks/NAME/`", (f"{RUN}/tasks/*/*.json", f"{RUN}/tasks/*/*.safetensors"), _task),
    Kind("`non-finite/`", (f"{RUN}/non-finite/*/*",), _batch),
    Kind("`probe.json`", (f"{RUN}/probe.json",), _probe, "a run without one"),
    Kind("`tracking.json`", (f"{RUN}/{TRACKING}",), _sealed, "a new run for the tracker", "copies go elsewhere"),
    Kind("`Classifier.save`", ("saved-*/*.json", "saved-*/*.safetensors", "saved-*/config.yaml"), _estimator),
    Kind("exports of the mean", ("lora/*adapter*", "served/*adapter*", "lora/abmll*", "served/abmll*"), _adapter),
    Kind(
        "`export.json`, `calibration.json`",
        ("*/export.json", "served/calibration.json"),
        _sealed,
        *["not read again"] * 2,
    ),
    Kind("dequantised GGUF files", ("cache/*/*",), _gguf),
    Kind("pins of hub tasks", ("pins.json",), _pins, "the set is read at today's commit, which is told"),
    Kind("merged models", ("merged/*model*", "merged/*config*", "merged/token*", "merged/chat*")),
    Kind(
        "`README.md`, `results.json`, `table.md`, `report.html`, `figures/`, `.lock`, `.owner.json`",
        ("**/README.md", "out/**/.lock", "out/**/.owner.json", "out/results.json", "out/figures/*"),
    ),
)
INPUTS = ("model", "train", "unseen", "recipe.yaml")
"""What the user brings."""


def unknown(place: Path) -> list[Path]:
    """Files of the place that no kind knows."""
    known = {path for kind in KINDS for path in kind.found(place)}
    every = {path.relative_to(place) for path in place.rglob("*") if path.is_file()}
    return sorted(path for path in every - known if path.parts[0] not in INPUTS)


@dataclass(frozen=True)
class Look:
    """What reading a file gave: its content, or that it was refused; and what was said meanwhile."""

    content: Any
    refused: str
    said: list[str]


def look(kind: Kind, place: Path, path: Path) -> Look:
    """Read a file as the library does."""
    assert kind.read is not None
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("abmll")
    logger.addHandler(handler)
    try:
        return Look(kind.read(place, path), "", said)
    except AbmllError:
        return Look(None, "refused", said)
    except MadeAgain:
        return Look(None, "made again", said)
    finally:
        logger.removeHandler(handler)


def outcome(before: Look, now: Look) -> str:
    """What became of a file that is not as it was written."""
    if now.refused:
        return now.refused
    if now.content == before.content:
        return "the same"
    return TOLD if now.said != before.said else "SILENTLY USED"
