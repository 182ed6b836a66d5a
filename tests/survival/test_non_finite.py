"""A loss or gradient that is not finite stops before the update, is named, kept, and found again by replaying it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from abmll.config import RunConfig
from abmll.diagnosis.batch import replay_batch
from abmll.errors import AbmllError, NonFiniteError
from abmll.metrics.not_finite import END
from abmll.process.timer import Timer
from abmll.runs.evaluate_run import evaluate_once
from abmll.runs.prepare import tasks_of
from abmll.runs.train_run import train_run
from abmll.systems.build import build_system, load_base
from abmll.systems.system import System
from abmll.training.checkpoints import RunDirectory
from abmll.training.failed_batch import read_batch
from tests.runs import config_in, place_tiny, run_in, silent, system_in
from tests.survival.children import command, in_child
from tests.survival.places import rows
from tests.systems import run_config, same, system_of, train, values

LAYER = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a folder, and tasks."""
    return place_tiny(tmp_path_factory.mktemp("non-finite"))


def poison(system: System, what: str) -> None:
    """Put a number into theta that makes one thing not finite, at the real place."""
    layer = system.method.adapters.layers[LAYER]
    with torch.no_grad():
        if what == "weights":
            layer.shared.mean_b[0, 0] = float("nan")
        if what == "activations":
            layer.shared.mean_b.fill_(1e20)
            layer.shared.mean_a.fill_(1e20)
        if what in ("sigma", "kl"):
            layer.shared.std_b.fill_(1e30)
            layer.shared.std_a.fill_(1e30)


def trained(config: RunConfig, run: Path, what: str) -> str:
    """Train from a poisoned start until it stops; what the error says."""
    system = build_system(config, load_base(config.model))
    poison(system, what)
    with pytest.raises(NonFiniteError) as caught:
        train_run(run_in(run, config), lambda: system)
    return str(caught.value)


CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {  # what is poisoned, settings, first term, factor
    "weights": ("weights", {}, "weights", "shared.mean_b"),
    "activations": ("activations", {}, "activations", ""),
    "sigma": ("sigma", {"std_start": "copy"}, "activations", ""),
    "sigma, means in training": ("kl", {"training_sampler": "mean"}, "task_kl", "shared.std_b"),
}


@pytest.mark.parametrize("case", CASES)
def test_trust_19_what_is_not_finite_is_found_by_replaying_the_batch(case: str, place: Path, tmp_path: Path) -> None:
    what, settings, term, factor = CASES[case]
    config = config_in(place, method=settings)
    message = trained(config, tmp_path / "run", what)
    assert "meta-iteration 1, task tiny" in message
    assert "inner step 0" in message
    assert "nothing was updated" in message
    file = tmp_path / "run" / "non-finite" / "step-000000-position-0" / "batch.json"
    assert f"abmll doctor --batch {file}" in message
    kept = json.loads(file.read_text())
    assert all(question["id"] in message for question in kept["questions"])
    assert len(kept["tokens"]) == len(kept["questions"]) == 2
    found = replay_batch(file)
    assert (found.term, found.layer, found.factor) == (term, LAYER, factor)
    assert found.step == "inner"


def test_trust_19_a_gradient_at_the_outer_step_is_found(place: Path, tmp_path: Path) -> None:
    """Prior of theta's precisions at stds that are tiny: its gradient overflows, the loss terms do not."""
    config = config_in(place, method={"precision_prior_weight": 1e30, "precision_prior_rate": 1e10})
    system = build_system(config, load_base(config.model))
    with torch.no_grad():
        for layer in system.method.adapters.layers.values():
            layer.shared.std_b.fill_(1e-3)
    with pytest.raises(NonFiniteError, match="outer step 0, task tiny"):
        train_run(run_in(tmp_path / "run", config), lambda: system)
    found = replay_batch(tmp_path / "run" / "non-finite" / "step-000000-position-0")
    assert found.step == "outer"
    assert found.term in ("prior", "gradient")
    assert found.layer == "model.layers.0.self_attn.q_proj"
    assert found.factor.startswith("shared.std")


def test_trust_19_doctor_on_the_command_line(place: Path, tmp_path: Path) -> None:
    trained(config_in(place), tmp_path / "run", "activations")
    file = tmp_path / "run" / "non-finite" / "step-000000-position-0" / "batch.json"
    child = in_child(command(tmp_path, "doctor", "--batch", str(file)), tmp_path / "said.txt")
    assert child.wait() == 0, child.text()
    assert f"first not finite: activations, layer {LAYER}" in child.text()
    file.write_text(file.read_text().replace("tiny", "tony", 1))
    child = in_child(command(tmp_path, "doctor", "--batch", str(file)), tmp_path / "said.txt")
    assert child.wait() == 2
    assert "damaged or edited" in child.text()


def test_a_finite_batch_is_said_to_be_finite(place: Path, tmp_path: Path) -> None:
    config = config_in(place)
    trained(config, tmp_path / "run", "activations")
    folder = tmp_path / "run" / "non-finite" / "step-000000-position-0"
    from abmll.diagnosis import batch as replay

    stored = replay.read_batch(folder)
    system = build_system(config, load_base(config.model))
    system.method.begin_task(first=True)
    found = replay._find(stored, system)
    assert found.term == ""
    assert "everything is finite here" in str(found)


def test_trust_19_adapting_to_an_unseen_task_keeps_its_batch_too(place: Path, tmp_path: Path) -> None:
    config = config_in(place)
    system = build_system(config, load_base(config.model))
    unseen = tasks_of(config.tasks.train)[:1]
    run = run_in(tmp_path / "run", config, unseen, unseen)
    before = {path: path.read_bytes() for path in evaluate_once(run, system, 0, silent, Timer())}
    poison(system, "weights")
    with pytest.raises(NonFiniteError, match="adapting to task tiny0: inner step 0"):
        evaluate_once(run, system, 0, silent, Timer())
    assert replay_batch(tmp_path / "run" / "non-finite" / "adapting-draw-0").term == "weights"
    kept = read_batch(tmp_path / "run" / "non-finite" / "adapting-draw-0").config
    assert yaml.safe_load(kept)["method"]["std_floor"] == 1e-6, "a setting that nobody gave, whose default may change"
    assert {path: path.read_bytes() for path in before} == before, "predictions are lost before there are new ones"


def test_evaluating_again_replaces_what_is_there(place: Path, tmp_path: Path) -> None:
    """Also where it was said not to be finite; a task that was marked is finite after a change of the weights."""
    config = config_in(place)
    system, unseen = system_in(config), tasks_of(config.tasks.train)[:1]
    run = run_in(tmp_path / "run", config, unseen, unseen, record_non_finite=True)
    files = evaluate_once(run, system, 0, silent, Timer())
    before = [file.read_bytes() for file in files]
    start = values(system, "shared")
    poison(system, "weights")
    evaluate_once(run, system, 0, silent, Timer())
    markers = [file.with_name(f"tiny0{END}") for file in files]
    assert [file.exists() for file in (*files, *markers)] == [False] * len(files) + [True] * len(files)
    system.method.adapters.load_state_dict("shared", start)
    evaluate_once(run, system, 0, silent, Timer())
    assert [file.read_bytes() for file in files] == before
    assert not any(marker.exists() for marker in markers)


# -------------------- skipping


def poisoned_at(system: System, *calls: int) -> None:
    """Make the loss infinite at some calls, counted from 1."""
    nll, done = system.method.nll, []

    def loss(batch: Any) -> Tensor:
        done.append(1)
        return nll(batch) + (float("inf") if len(done) in calls else 0.0)

    system.method.nll = loss


@pytest.mark.parametrize(
    ("name", "preset", "settings"),
    [
        ("fomaml", "default", {}),
        ("lora", "default", {"training": {"meta_batch": 2}}),
        ("abmll", "paper", {"phi": "persistent", "inner_optimizer_state": "persistent"}),
    ],
)
def test_trust_19_skip_leaves_no_trace_of_the_meta_iteration(
    name: str, preset: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Skipped at meta-iteration 2 of 3: the state after it is the one before it, bit for bit."""
    training = {"iterations": 3, "checkpoint_every": 1, "on_non_finite": "skip", **settings.get("training", {})}
    options = {"inner_steps": 2, **settings, "training": training}
    system = system_of(name, preset, **options)
    steps = 3 * training.get("meta_batch", 1)
    poisoned_at(system, steps + 2)
    train(run_config(name, preset, **options), tmp_path, system=system, snapshots=(0, 1, 2, 3))
    before, after, end = (RunDirectory(tmp_path).load(step) for step in (1, 2, 3))
    assert same(before.shared, after.shared)
    assert same(before.optimizer, after.optimizer)
    assert after.state["skipped"] == end.state["skipped"] == 1
    assert not same(after.shared, end.shared), "nothing was learned afterwards"
    assert [row["event"] for row in rows(tmp_path)] == ["step", "skipped", "step", "end"]
    assert "not finite" in rows(tmp_path)[1]["why"]


def test_trust_19_skipping_gives_up_after_so_many(tmp_path: Path) -> None:
    training = {"iterations": 9, "on_non_finite": "skip", "most_skipped": 2}
    system = system_of("fomaml", inner_steps=0, training=training)
    poisoned_at(system, 2, 4, 6)
    with pytest.raises(AbmllError, match=r"More than training\.most_skipped=2"):
        train(run_config("fomaml", inner_steps=0, training=training), tmp_path, system=system)
    assert [row["event"] for row in rows(tmp_path)] == ["step", "skipped", "step", "skipped", "step"]


def test_trust_19_no_checkpoint_holds_a_weight_that_is_not_finite(tmp_path: Path) -> None:
    """A rate so high that a finite gradient makes an infinite weight: the loss has not seen it yet."""
    settings: dict[str, Any] = {"inner_steps": 0, "outer_optimizer": "sgd", "outer_lr": 3e37}
    config = run_config("fomaml", **settings, training={"iterations": 5, "checkpoint_every": 1})
    with pytest.raises(NonFiniteError, match=r"after outer step 0 .*mean_b is not finite; nothing was saved"):
        train(config, tmp_path, system=_steep(settings))
    assert RunDirectory(tmp_path).steps() == [0]


def _steep(settings: dict[str, Any]) -> System:
    """A system with a loss a million times as steep."""
    system = system_of("fomaml", **settings)
    nll = system.method.nll
    system.method.nll = lambda batch: 1e6 * nll(batch)
    start = values(system, "shared")
    assert all(bool(tensor.isfinite().all()) for tensor in start.values())
    return system
