"""The outer loop: going on where a run stopped, early stopping, the meta-batch, and what the journal says."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from abmll.config import RunConfig
from abmll.systems.plans import resolve
from abmll.systems.system import System
from abmll.training.checkpoints import Checkpoint, RunDirectory
from abmll.training.inner import inner_steps
from abmll.training.optimizers import GroupOptimizer
from tests.systems import (
    TASKS,
    gradients,
    key_of,
    largest_difference,
    run_config,
    same,
    scramble,
    system_of,
    train,
    values,
)

LEARNED = {"likelihood": {"learn_temperature": True}}
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lora": ("lora", "default", {}),
    "lora-meta-batch": ("lora", "default", {"training": {"meta_batch": 2}}),
    "structured": ("structured", "default", {"training": {"meta_batch": 2}}),
    "reptile": ("reptile", "default", {"warmup": 2, "inner_schedule": "cosine"}),
    "fomaml-temperature": ("fomaml", "default", LEARNED),
    "abmll": (
        "abmll",
        "default",
        {"outer_step": "identity", "std_start": "copy", "mean_prior_weight": 1e-9, "precision_prior_weight": 1e-9},
    ),
    "abmll-weight-sampler": ("abmll", "default", {"training_sampler": "weight", "kl_entries": 0.5}),
    "abmll-paper": ("abmll", "paper", {}),
    "abmll-persistent": ("abmll", "default", {"phi": "persistent", "std_state": "float64"}),
    "abmll-persistent-moments": ("abmll", "paper", {"phi": "persistent", "inner_optimizer_state": "persistent"}),
    "abmll-temperature": ("abmll", "default", {"outer_step": "displacement", **LEARNED}),
}
every_run = pytest.mark.parametrize("name", RUNS)


COSTS = ("seconds", "tasks_per_second", "peak_memory_bytes", "graphs")


class Stopped(Exception):
    """Stands for a kill."""


def configuration(name: str, **training: Any) -> RunConfig:
    """Six short meta-iterations with a checkpoint after every third."""
    method, preset, settings = RUNS[name]
    training = {"iterations": 6, "checkpoint_every": 3, **settings.get("training", {}), **training}
    return run_config(method, preset, **{"inner_steps": 2, **settings, "training": training})


def stop_in(step: int, system: System, where: str) -> Callable[[dict[str, Any]], None]:
    """Raise within meta-iteration `step` (from 1): in its inner loop, or after its journal row was written."""
    inner_loss = system.method.inner_loss
    second_steps = {int(key_of(0, step - 1, position, 1)) for position in (0, 1)}

    def loss(batch: Any, key: Any) -> Any:
        if where == "inner loop" and int(key) in second_steps:
            raise Stopped
        return inner_loss(batch, key)

    def listen(event: dict[str, Any]) -> None:
        if where == "after the row" and event["step"] == step:
            raise Stopped

    system.method.inner_loss = loss  # type: ignore[method-assign]
    return listen


def stopped_run(config: RunConfig, folder: Path, step: int, where: str) -> None:
    """Train until the stop; the objects are thrown away."""
    system = system_of(config.method.name, config.method.preset, **_options(config))
    with pytest.raises(Stopped):
        train(config, folder, system=system, listener=stop_in(step, system, where))


def _options(config: RunConfig) -> dict[str, Any]:
    return {**config.method.settings(), "likelihood": config.likelihood.model_dump()}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The journal without what a call cost."""
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in COSTS} for line in lines]


def assert_same_checkpoint(one: Checkpoint, other: Checkpoint) -> None:
    """Every tensor, moment and number equal, bit for bit."""
    assert one.step == other.step
    assert one.state == other.state
    assert same(one.shared, other.shared)
    assert same(one.optimizer, other.optimizer)
    assert {t.dtype for t in one.optimizer.values()} == {t.dtype for t in other.optimizer.values()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of an uninterrupted run; each is made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            train(configuration(name), made[name])
        return made[name]

    return folder


# -------------------- going on where a run stopped


@every_run
@pytest.mark.parametrize(("step", "where"), [(5, "after the row"), (4, "inner loop")])
def test_trust_01_a_stopped_run_goes_on_bit_for_bit(
    name: str, step: int, where: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    config = configuration(name)
    stopped_run(config, tmp_path, step, where)
    assert RunDirectory(tmp_path).steps()[-1] == 3
    resumed, final = train(config, tmp_path)
    assert final == 6
    assert_same_checkpoint(RunDirectory(tmp_path).load(6), RunDirectory(whole(name)).load(6))
    assert rows(tmp_path) == rows(whole(name))
    assert same(
        values(resumed, "shared"),
        {k: t for k, t in RunDirectory(whole(name)).load(6).shared.items() if "likelihood" not in k},
    )


@pytest.mark.parametrize("step", [1, 2, 6])
def test_trust_01_first_and_last_step(step: int, whole: Callable[[str], Path], tmp_path: Path) -> None:
    config = configuration("abmll-persistent-moments")
    stopped_run(config, tmp_path, step, "inner loop")
    train(config, tmp_path)
    assert_same_checkpoint(RunDirectory(tmp_path).load(6), RunDirectory(whole("abmll-persistent-moments")).load(6))
    assert rows(tmp_path) == rows(whole("abmll-persistent-moments"))


def test_trust_04_resuming_twice_from_one_checkpoint_is_the_same(tmp_path: Path) -> None:
    config = configuration("abmll-paper")
    stopped_run(config, tmp_path / "stopped", 5, "after the row")
    ends = []
    for copy in ("one", "two"):
        shutil.copytree(tmp_path / "stopped", tmp_path / copy)
        before = _bytes(tmp_path / copy / "checkpoints" / "step-000003")
        train(config, tmp_path / copy)
        assert _bytes(tmp_path / copy / "checkpoints" / "step-000003") == before
        ends.append(RunDirectory(tmp_path / copy).load(6))
    assert_same_checkpoint(*ends)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_trust_05_resuming_keeps_the_adapters_and_the_losses(whole: Callable[[str], Path], tmp_path: Path) -> None:
    config = configuration("reptile")
    stopped_run(config, tmp_path, 4, "inner loop")
    system = system_of("reptile", **_options(config))
    before = [id(p) for p in system.method.adapters.parameters("shared")]
    seen: list[dict[str, Any]] = []
    train(config, tmp_path, system=system, listener=lambda event: seen.append(dict(event)))
    assert [id(p) for p in system.method.adapters.parameters("shared")] == before
    assert [event["step"] for event in seen] == [4, 5, 6]
    assert seen[0]["nll_first"] == rows(whole("reptile"))[3]["nll_first"]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = configuration("lora")
    trained, _ = train(config, tmp_path)
    journal = rows(tmp_path)
    events: list[Any] = []
    again, final = train(config, tmp_path, listener=events.append)
    assert final == 6
    assert not events
    assert rows(tmp_path) == journal
    assert same(values(again, "shared"), values(trained, "shared"))


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    settings = {"inner_steps": 1}
    train(run_config("lora", **settings, training={"iterations": 2}), tmp_path / "grown")
    train(run_config("lora", **settings, training={"iterations": 4}), tmp_path / "grown")
    train(run_config("lora", **settings, training={"iterations": 4}), tmp_path / "whole")
    assert_same_checkpoint(RunDirectory(tmp_path / "grown").load(4), RunDirectory(tmp_path / "whole").load(4))
    assert rows(tmp_path / "grown") == rows(tmp_path / "whole")


@pytest.mark.parametrize("name", ["lora", "reptile", "abmll", "abmll-weight-sampler", "abmll-temperature"])
def test_trust_21_same_seed_twice_is_bit_equal(name: str, whole: Callable[[str], Path], tmp_path: Path) -> None:
    torch.manual_seed(1234)  # no result may hang on the global generator
    torch.use_deterministic_algorithms(True)
    try:
        train(configuration(name), tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_checkpoint(RunDirectory(tmp_path).load(6), RunDirectory(whole(name)).load(6))
    assert rows(tmp_path) == rows(whole(name))


@pytest.mark.parametrize("name", ["reptile", "abmll"])
def test_another_seed_is_another_run(name: str, whole: Callable[[str], Path], tmp_path: Path) -> None:
    train(configuration(name, seed=1), tmp_path)
    assert not same(RunDirectory(tmp_path).load(6).shared, RunDirectory(whole(name)).load(6).shared)


# -------------------- checkpoints that are kept


def test_snapshots_are_kept_and_others_pruned(tmp_path: Path) -> None:
    config = run_config("reptile", inner_steps=0, training={"iterations": 7, "checkpoint_every": 1})
    train(config, tmp_path, snapshots=(0, 2, 4, 7))
    assert RunDirectory(tmp_path).steps() == [0, 2, 4, 6, 7]


def test_damaged_later_checkpoints_do_not_push_out_a_new_one(tmp_path: Path) -> None:
    config = run_config("reptile", inner_steps=0, training={"iterations": 6, "checkpoint_every": 1})
    train(config, tmp_path)
    for step in (5, 6):
        (RunDirectory(tmp_path).checkpoint_path(step) / "shared.safetensors").write_bytes(b"")
    seen: list[list[int]] = []

    def look(event: dict[str, Any]) -> None:
        seen.append(RunDirectory(tmp_path).steps())
        if event["step"] == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(config, tmp_path, listener=look)
    assert [s for s in seen[-1] if s < 5][-1] == 2  # saved after meta-iteration 2, and still there


def test_trust_09_training_falls_back_behind_a_damaged_checkpoint(
    whole: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configuration("abmll")
    shutil.copytree(whole("abmll"), tmp_path / "run")
    file = RunDirectory(tmp_path / "run").checkpoint_path(6) / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    events: list[Any] = []
    train(config, tmp_path / "run", listener=lambda event: events.append(event["step"]))
    assert events == [4, 5, 6]
    assert "optimizer.safetensors" in caplog.text
    assert_same_checkpoint(RunDirectory(tmp_path / "run").load(6), RunDirectory(whole("abmll")).load(6))
    assert rows(tmp_path / "run") == rows(whole("abmll"))


# -------------------- validation


def scripted(numbers: list[float]) -> Callable[[], float]:
    """A validation that says these numbers."""
    left = iter(numbers)
    return lambda: next(left)


def test_early_stopping_returns_the_best_steps_weights(tmp_path: Path) -> None:
    training = {"iterations": 20, "validate_every": 1, "patience": 3, "checkpoint_every": 100}
    config = run_config("structured", inner_steps=0, training=training)
    system = system_of("structured", inner_steps=0)
    thetas: list[dict[str, Tensor]] = []
    _, final = train(
        config,
        tmp_path,
        system=system,
        validate=scripted([3.0, 1.0, 2.0, 1.5, 1.0]),  # 1.0 again is no new best
        listener=lambda event: thetas.append(values(system, "shared")),
    )
    assert len(thetas) == 5
    assert final == 2
    assert same(values(system, "shared"), thetas[1])
    assert not same(thetas[1], thetas[4])
    assert [row.get("validation_nll") for row in rows(tmp_path)[:5]] == [3.0, 1.0, 2.0, 1.5, 1.0]
    again, final = train(config, tmp_path, validate=scripted([]))
    assert final == 2
    assert same(values(again, "shared"), thetas[1])


def test_early_stopping_goes_on_after_a_stop(tmp_path: Path) -> None:
    training = {"iterations": 20, "validate_every": 2, "patience": 2, "checkpoint_every": 3}
    config = run_config("structured", inner_steps=0, training=training)
    numbers = [3.0, 1.0, 2.0, 1.5, 0.0]  # after 2, 4, 6, 8: stops at 8
    _, final = train(config, tmp_path / "whole", validate=scripted(numbers))
    system = system_of("structured", inner_steps=0)
    listener = stop_in(7, system, "after the row")
    with pytest.raises(Stopped):
        train(config, tmp_path / "cut", system=system, validate=scripted(numbers), listener=listener)
    _, resumed = train(config, tmp_path / "cut", validate=scripted(numbers[3:]))
    assert final == resumed == 4
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_validation_leaves_no_trace_in_training(tmp_path: Path) -> None:
    """Validating adapts phi to other tasks; a phi that is never reset must not go on from there."""
    for name in ("abmll-persistent", "lora"):
        ends = []
        for every in (None, 1):
            system = system_of(RUNS[name][0], RUNS[name][1], **{"inner_steps": 2, **RUNS[name][2]})

            def use_up_phi(system: System = system) -> float:
                system.method.begin_task(first=True)
                with torch.no_grad():
                    for parameter in system.method.adapters.parameters("task"):
                        parameter.add_(1.0)
                return 1.0

            config = configuration(name, validate_every=every, patience=99)
            folder = tmp_path / f"{name}-{every}"
            train(config, folder, system=system, validate=use_up_phi)
            ends.append(RunDirectory(folder).load(6))
        assert same(ends[0].shared, ends[1].shared)
        assert same(ends[0].optimizer, ends[1].optimizer)


# -------------------- the meta-batch


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fomaml", {}),
        ("reptile", {}),
        ("abmll", {"mean_prior_weight": 1e-4, "std_init": 0.01}),
        ("abmll", {"outer_step": "displacement", "std_start": "init", "precision_prior_weight": 1e-3}),
    ],
)
def test_a_meta_batch_takes_the_mean_of_single_gradients(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {"inner_steps": 2, "outer_optimizer": "sgd", "outer_lr": 0.1, "train_stds": False, **settings}
    settings = settings if name == "abmll" else {k: v for k, v in settings.items() if k != "train_stds"}
    config = run_config(name, **settings, training={"iterations": 1, "meta_batch": 2})
    by_hand = []
    for position in (0, 1):
        system = system_of(name, **settings)
        scramble(system, size=0.02)
        start = values(system, "shared")
        by_hand.append(_single_gradient(system, config, position))
    assert not torch.equal(*(g[next(iter(g))] for g in by_hand)), "both tasks gave the same gradient"
    system = system_of(name, **settings)
    scramble(system, size=0.02)
    train(config, tmp_path, system=system)
    expected = {n: start[n] - 0.1 * (by_hand[0][n] + by_hand[1][n]) / 2 for n in by_hand[0]}
    moved = {n: t for n, t in values(system, "shared").items() if n in expected}
    assert largest_difference(moved, expected) < 1e-7


def _single_gradient(system: System, config: RunConfig, position: int) -> dict[str, Tensor]:
    batches = resolve(config).episodes_of(TASKS).draw(0, position).batches
    method, support = system.method, batches[:-1] if system.method.uses_query else batches
    method.begin_task(first=True)
    optimizer = GroupOptimizer(method.task())
    inner_steps(method, optimizer, system.batcher, support, (0, 0, position))
    query = system.batcher(batches[-1]) if method.uses_query else []
    method.outer_gradient(query, key_of(0, 0, position, len(support)))
    return {n: g for n, g in gradients(system, "shared").items() if g is not None}


def test_sequential_systems_take_one_outer_step_per_task(tmp_path: Path) -> None:
    """lora: two iterations of one task each, or one iteration of two, are as many steps of the same optimizer."""
    _, final = train(run_config("lora", training={"iterations": 1, "meta_batch": 2}), tmp_path)
    counters = {t.item() for n, t in RunDirectory(tmp_path).load(final).optimizer.items() if n.endswith(".step")}
    assert counters == {12.0}


# -------------------- the journal


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("lora", {"nll_first", "nll"}),
        ("reptile", {"nll_first", "nll"}),
        ("fomaml-temperature", {"nll_first", "nll", "query_nll"}),
        ("abmll", {"nll_first", "nll", "task_kl", "query_nll", "query_task_kl"}),
        ("abmll-temperature", {"nll_first", "nll", "task_kl", "query_task_kl"}),
    ],
)
def test_journal_rows(name: str, losses: set[str], whole: Callable[[str], Path]) -> None:
    steps, end = rows(whole(name))[:-1], rows(whole(name))[-1]
    assert end == {"event": "end", "step": 6, "final_step": 6}
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert [row["examples_consumed"] for row in steps] == [6 * i for i in range(1, 7)]  # 3 batches of 2
    for row in steps:
        assert row["event"] == "step"
        assert row["task"] == "mixed" if name == "lora" else row["task"] in {t.name for t in TASKS}
        found = {k for k in row if k.endswith(("nll", "kl", "first"))}
        assert found == losses
        assert all(isinstance(row[k], float) and row[k] >= 0 for k in found)
    times = [json.loads(line)["seconds"] for line in (whole(name) / "journal.jsonl").read_text().splitlines()[:-1]]
    assert all(seconds > 0 for seconds in times)


def test_the_end_of_a_journal_says_what_this_call_cost(whole: Callable[[str], Path], tmp_path: Path) -> None:
    config = configuration("abmll")
    stopped_run(config, tmp_path, 5, "after the row")
    began = time.perf_counter()
    train(config, tmp_path)
    seconds = time.perf_counter() - began
    ends = []
    for folder in (whole("abmll"), tmp_path):
        ends.append(json.loads((folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()[-1]))
        assert ends[-1]["peak_memory_bytes"] > 1 << 20
        runs = ends[-1]["graphs"]
        assert {k: v for k, v in runs.items() if k != "eager_runs"} == {
            "captured": 0,
            "replays": 0,
            "capture_seconds": 0.0,
            "reserved_bytes": 0,
            "fallbacks": {},
        }
    # two inner steps, the outer gradient and the distance in each of six iterations, and in the three after the stop
    assert [end["graphs"]["eager_runs"] for end in ends] == [24, 12]
    assert ends[1]["tasks_per_second"] > 3 / seconds


def test_journal_counts_every_task_of_a_meta_batch(whole: Callable[[str], Path]) -> None:
    assert [row["examples_consumed"] for row in rows(whole("lora-meta-batch"))[:-1]] == [12 * i for i in range(1, 7)]


def test_journal_says_what_the_stds_do(tmp_path: Path) -> None:
    training = {"iterations": 5, "log_stds_every": 2}
    settings = {"outer_step": "displacement", "outer_optimizer": "sgd", "outer_lr": 1.0, "inner_steps": 2}
    system = system_of("abmll", **settings)
    distances: list[float] = []
    outer_gradient = system.method.outer_gradient

    def watch(query: Any, key: Any) -> Any:
        layers = system.method.adapters.layers.values()
        squares = [(x.task.dense_mean() - x.shared.dense_mean()).detach().square() for x in layers]
        distances.append(float(torch.cat([s.flatten() for s in squares]).mean()))
        return outer_gradient(query, key)

    system.method.outer_gradient = watch  # type: ignore[method-assign]
    train(run_config("abmll", **settings, training=training), tmp_path, system=system)
    logged = {row["step"]: row for row in rows(tmp_path) if "stds" in row}
    assert list(logged) == [1, 2, 4]
    for step, row in logged.items():
        assert set(row["stds"]) == {"shared", "task"}
        for numbers in row["stds"].values():
            assert set(numbers) == {"min", "median", "max", "share_at_floor", "mean_variance"}
            assert 0 < numbers["min"] <= numbers["median"] <= numbers["max"]
        # a rate of 1 puts theta on phi: the distance is the one before that step, averaged over the steps so far
        assert row["mean_squared_distance"] == pytest.approx(sum(distances[:step]) / step, rel=1e-4)
        assert row["mean_squared_distance"] > 0
    assert all("mean_squared_distance" not in row for row in rows(tmp_path) if row["step"] not in logged)
