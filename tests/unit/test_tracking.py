"""Trackers: what TensorBoard's own reader finds in its files, and that no tracker can hurt a run."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from typer.testing import CliRunner

from abmll.cli import app
from abmll.config import CompareConfig, RunConfig, load_config
from abmll.errors import AbmllError
from abmll.files import read_sealed_json, write_sealed_json
from abmll.metrics.predictions import read_predictions
from abmll.runs import train_run as training
from abmll.runs.compare import run_comparison
from abmll.runs.tracking import TRACKING, Tracking, check_trackers
from abmll.scoring.scores import score
from abmll.training.optimizers import GroupOptimizer, rates_at, schedule_factor
from tests.runs import config_in, never, place_tiny, run_in, silent, system_in, train_run
from tests.systems import system_of, tiny_base
from tests.tiny import tiny_tasks, write_tasks

NUMBERS = ("nll_first", "nll", "task_kl", "seconds", "examples_consumed")
ON = {"tracker": "tensorboard"}


def tracked(config: RunConfig, folder: Path) -> Tracking:
    return run_in(folder, config, tiny_tasks(1)).tracking()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_tiny(tmp_path_factory.mktemp("place"))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate keeps one state per process; TensorBoard counts its files, and takes file 10 of a second before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    PartialState._reset_state()
    yield
    PartialState._reset_state()


def curves(run: Path) -> dict[str, dict[int, list[float]]]:
    """Every scalar that TensorBoard shows of a run: tag -> step -> values."""
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    out: dict[str, dict[int, list[float]]] = {}
    for tag in found.Tags()["scalars"]:
        for event in found.Scalars(tag):
            out.setdefault(tag, {}).setdefault(event.step, []).append(event.value)
    return out


def journal(run: Path) -> list[dict[str, Any]]:
    return [row for line in (run / "journal.jsonl").read_text().splitlines() if (row := json.loads(line))["step"]]


def steps(run: Path) -> list[dict[str, Any]]:
    return [row for row in journal(run) if row["event"] == "step"]


def train(config: RunConfig, run: Path, listener: Callable[[dict[str, Any]], None] = silent) -> None:
    training.train_run(run_in(run, config), lambda: system_in(config), listener)


# What is told


def test_tensorboard_shows_the_journal(place: Path, tmp_path: Path) -> None:
    config = config_in(place, tracking=ON, training={"iterations": 4, "log_stds_every": 2})
    train_run(config, tmp_path)
    found, rows = curves(tmp_path), steps(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for name in NUMBERS:
        wanted = {row["step"]: [pytest.approx(row[name], rel=1e-6)] for row in rows}
        assert found[name] == wanted, name
    for slot in ("shared", "task"):
        wanted = {r["step"]: [pytest.approx(r["stds"][slot]["median"], rel=1e-6)] for r in rows if "stds" in r}
        assert found[f"stds/{slot}/median"] == wanted
        assert sorted(wanted) == [1, 2, 4]
    assert not {"step", "task", "event"} & found.keys()


def test_it_is_told_the_rates_that_the_optimizers_step_at(place: Path, tmp_path: Path) -> None:
    method = {"name": "abmll", "inner_steps": 1, "outer_schedule": "linear", "warmup": 2, "outer_lr": 1e-3}
    config = config_in(place, tracking=ON, training={"iterations": 5}, method=method)
    system = train_run(config, tmp_path)
    outer, s = GroupOptimizer(system.method.shared()), system.method.settings
    found = curves(tmp_path)
    for iteration in range(5):
        outer.set_rates(schedule_factor(s.outer_schedule, iteration, 5, s.warmup))
        for group, optimizer in zip(outer.groups, outer._optimizers, strict=True):
            (told,) = found[f"rates/outer/{group.name}"][iteration + 1]
            assert told == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
    assert rates_at(system_of("pretrained").method, 0, 5).keys() == {"inner/mean"}


def test_validation_and_a_skipped_iteration_are_told(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"model": {"shape": "tiny"}, "tracking": ON})
    with tracked(config, tmp_path) as tracking:
        tracking.step({"event": "step", "step": 1, "validation_nll": 0.25, "nll": float("1e39")})
        tracking.step({"event": "skipped", "step": 2, "why": "not finite"})
    found = curves(tmp_path)
    assert found["validation_nll"] == {1: [0.25]}
    assert found["skipped"] == {2: [1.0]}


def test_the_configuration_goes_along_once_and_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = RunConfig.model_validate({"model": {"source": str(tmp_path / "secret" / "model")}, "tracking": ON})
    for step in (1, 2):
        with tracked(config, tmp_path / "run") as tracking:
            tracking.step({"event": "step", "step": step, "nll": 1.0})
    (told,) = (tmp_path / "run").rglob("hparams.yml")
    text = told.read_text()
    assert "model.source: ~/secret/model" in text
    assert "method.name: abmll" in text
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]


# Going on


class Crash(Exception):
    pass


def crash_at(step: int) -> Callable[[dict[str, Any]], None]:
    def listener(event: dict[str, Any]) -> None:
        if event["step"] == step:
            raise Crash

    return listener


def test_a_run_that_goes_on_is_one_curve_with_each_step_once(place: Path, tmp_path: Path) -> None:
    config = config_in(place, tracking=ON, training={"iterations": 6, "checkpoint_every": 2})
    with pytest.raises(Crash):
        train(config, tmp_path, crash_at(4))  # 1, 2, 3 were told; the last checkpoint is that of 2
    assert sorted(curves(tmp_path)["nll"]) == [1, 2, 3]
    train(config, tmp_path)
    found, rows = curves(tmp_path)["nll"], steps(tmp_path)
    assert found == {row["step"]: [pytest.approx(row["nll"], rel=1e-6)] for row in rows}
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 2
    assert len(list((tmp_path / "tensorboard").rglob("hparams.yml"))) == 1
    before = sorted(p.name for p in (tmp_path / "tensorboard").rglob("*"))
    train(config, tmp_path)  # nothing is left to do
    assert sorted(p.name for p in (tmp_path / "tensorboard").rglob("*")) == before


def test_a_tracker_is_no_change_of_a_run(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short, long = {"iterations": 2}, {"iterations": 3}
    train(config_in(place, training=short), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*tensorboard*"))
    with caplog.at_level(logging.WARNING):
        train(config_in(place, training=long, tracking=ON), tmp_path / "run")
    assert "tracking" not in caplog.text
    assert sorted(curves(tmp_path / "run")["nll"]) == [3]
    train(config_in(place, training=long), tmp_path / "plain")
    mine, theirs = ([{**r, "seconds": 0} for r in steps(tmp_path / name)] for name in ("run", "plain"))
    assert mine == theirs
    kept = load_config(RunConfig, tmp_path / "run" / "config.yaml")
    assert kept.tracking.tracker == ("tensorboard",)
    plain = load_config(RunConfig, tmp_path / "plain" / "config.yaml")
    assert kept.model_copy(update={"tracking": plain.tracking}) == plain


def test_configurations_from_before_there_was_tracking_load(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("model: {shape: tiny}\n")
    assert load_config(RunConfig, tmp_path / "old.yaml").tracking.tracker == ()
    for text, wanted in (("off", ()), ("mlflow", ("mlflow",)), ("[wandb, tensorboard]", ("wandb", "tensorboard"))):
        assert load_config(RunConfig, tmp_path / "old.yaml", [f"tracking.tracker={text}"]).tracking.tracker == wanted
    with pytest.raises(AbmllError, match=r"tracking\.tracker\.0: Input should be 'tensorboard', 'wandb'"):
        load_config(RunConfig, tmp_path / "old.yaml", ["tracking.tracker=tensorbord"])


# What can go wrong


MISSING = sorted({"wandb", "mlflow", "trackio"} - {str(kind) for kind in get_available_trackers()})


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_package_is_told_before_the_model_is_loaded(name: str, place: Path, tmp_path: Path) -> None:
    config = config_in(place, tracking={"tracker": name}, model={"source": str(tmp_path / "there is no model")})
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    found = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "run")])
    assert isinstance(found.exception, AbmllError)
    assert f"pip install {name}" in str(found.exception)
    assert not (tmp_path / "run").exists()
    with pytest.raises(AbmllError, match=f"pip install {name}"):
        run_comparison(compared(place, tmp_path, tracking={"tracker": name}), tmp_path / "out", never)
    assert not (tmp_path / "out").exists()


def test_what_is_installed_is_no_error(place: Path) -> None:
    check_trackers(config_in(place, tracking=ON).tracking.tracker)
    check_trackers(())


class Failing(GeneralTracker):
    """A client whose network goes down: `fails` says where."""

    name = "failing"
    requires_logging_directory = False
    fails = "log"
    calls: list[str] = []  # noqa: RUF012 - of the class, to be read by the tests

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._call("__init__")

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self._call("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._call("store_init_configuration")

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self._call("log")

    def finish(self) -> None:
        self._call("finish")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails:
            raise ConnectionError("no route\nto host \udce4")


@pytest.mark.parametrize("where", ["__init__", "start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    where: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = {} if where in ("__init__", "start", "store_init_configuration") else {"mlflow": "known"}
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", Failing)
    monkeypatch.setattr(Failing, "fails", where)
    monkeypatch.setattr(Failing, "calls", [])
    config = config_in(place, tracking={"tracker": ["mlflow", "tensorboard"]})
    if kept:
        with tracked(config_in(place, tracking=ON), tmp_path) as tracking:
            tracking.step({"event": "step", "step": 0})
        write_sealed_json(tmp_path / TRACKING, {**read_sealed_json(tmp_path / TRACKING), **kept})
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path)
    assert Failing.calls.count(where) == 1
    assert Failing.calls[-1] == where
    assert [row["step"] for row in steps(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "adapter" / "abmll.safetensors").exists()
    assert sorted(curves(tmp_path)["nll"]) == [1, 2, 3]
    told = [record.getMessage() for record in caplog.records if "tracking by" in record.getMessage()]
    assert len(told) == 1
    assert r"mlflow failed and is left out from here on (no route to host \udce4); the run goes on" in told[0]


def test_a_place_that_tensorboard_cannot_write_to_is_no_failure_of_the_run(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("a file is in its place")
    train(config_in(place, tracking=ON), tmp_path)
    assert len(steps(tmp_path)) == 3
    assert caplog.text.count("tracking by tensorboard failed") == 1


def test_a_damaged_file_of_names_leaves_trackers_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = RunConfig.model_validate({"model": {"shape": "tiny"}, "tracking": ON})
    for text in ("{", "[" * 100_000, '{"tensorboard": "x", "sha256": "0"}'):
        caplog.clear()
        (tmp_path / TRACKING).write_text(text)
        with tracked(config, tmp_path) as tracking:
            tracking.step({"event": "step", "step": 1, "nll": 1.0})
        assert f"{TRACKING}: " in caplog.text
        assert "delete it" in caplog.text
    assert not (tmp_path / "tensorboard").exists()


# Processes and threads


def test_under_torchrun_accelerate_starts_no_group_and_sets_no_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, running = torch.get_num_threads(), threading.active_count()
    config = RunConfig.model_validate({"model": {"shape": "tiny"}, "tracking": ON})
    with tracked(config, tmp_path) as tracking:
        tracking.step({"event": "step", "step": 1, "nll": 1.0})
        with tracking:
            pass
        tracking.step({"event": "step", "step": 2, "nll": 1.0})
    assert sorted(curves(tmp_path)["nll"]) == [1, 2]
    assert not dist.is_initialized()
    assert torch.get_num_threads() == before
    assert threading.active_count() == running
    assert ranks.items() <= os.environ.items()


# Comparisons


def compared(place: Path, tmp_path: Path, **changes: Any) -> CompareConfig:
    write_tasks(tmp_path / "unseen", tiny_tasks(5, n_test=6)[3:])
    values = {
        "model": {"shape": "tiny"},
        "adapter": {"rank": 3, "alpha": 6.0},
        "method": {"inner_steps": 1},
        "tasks": {
            "train": {"source": str(place / "train")},
            "unseen": {"source": str(tmp_path / "unseen")},
            "leak_check": "off",
        },
        "training": {"iterations": 2},
        "adaptation": {"steps": 1, "samples": 2, "draws": 2, "examples": 4},
        "systems": {"abmll": {}, "lora": {"method": {"name": "lora"}}},
        "reference": "lora",
        "seeds": [0, 1],
        "curve": 1,
    }
    return CompareConfig.model_validate({**values, **changes})


def test_each_system_and_seed_of_a_comparison_is_a_run_of_its_own_with_its_scores(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_comparison(compared(place, tmp_path, tracking=ON), out, tiny_base)
    runs = sorted(p.parent.relative_to(out).as_posix() for p in out.rglob("tensorboard"))
    assert runs == ["abmll/seed-0", "abmll/seed-1", "lora/seed-0", "lora/seed-1"]
    for run in runs:
        found = curves(out / run)
        assert sorted(found["nll"]) == [1, 2]
        assert (out / run / "adapter" / "README.md").read_text().count("\n| tiny") == 3 + 2  # trained on, scored
        system = run.partition("/")[0]
        files = sorted((out / run / "predictions").glob("examples-*/*/*.jsonl"))
        assert len(files) == 4
        scores = [score(read_predictions(file)) for file in files]
        for name in ("accuracy", "nll", "ece", "brier"):
            mean = sum(getattr(s, name) for s in scores) / len(scores)
            assert found[f"unseen/{system}/{name}"] == {2: [pytest.approx(mean, rel=1e-6)]}
    assert "unseen/abmll_mean/nll" in curves(out / "abmll" / "seed-0")
