"""A base spread over two ranks gives, bit for bit, what a whole one gives, and no rank waits for one that is gone."""

import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as fsdp

from abmll.adapters.base_weights import sample_base
from abmll.config import CompareConfig, ModelConfig, check
from abmll.errors import AbmllError
from abmll.models import LanguageModel, random_model, shapes
from abmll.models.sharded import layers_of
from abmll.process.passes import Passes, pass_together, passes_of
from abmll.process.world import RankGroup, World, set_before_meeting
from abmll.runs.compare import run_comparison
from abmll.runs.estimate import describe, estimate
from abmll.runs.train_run import train_run
from abmll.systems.build import build_system, load_base, shards_of
from abmll.systems.plans import PredictionPlan, resolve
from abmll.systems.system import System
from abmll.training.checkpoints import RunDirectory
from abmll.training.resume import theta
from tests.runs import config_in, place_tiny, run_in
from tests.survival.children import UNCAUGHT
from tests.survival.ranks import start_ranks
from tests.systems import largest_difference, same, tiny_base
from tests.tiny import tiny_tasks, write_tasks

TASKS = tiny_tasks(6, n_rows=20, n_test=6)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as a folder, and tasks."""
    folder = place_tiny(tmp_path_factory.mktemp("shards"))
    for name, chosen in (("train", TASKS[:3]), ("unseen", TASKS[3:5])):
        write_tasks(folder / "compare" / name, chosen)
    return folder


def spread(folder: Path, shards: int = 2, **sections: Any) -> Any:
    """The configuration of a run on the tiny model in so many parts."""
    config = config_in(folder, **sections)
    return config.model_copy(update={"model": config.model.model_copy(update={"shards": shards})})


def comparison(folder: Path, shards: int) -> CompareConfig:
    """Two systems, two unseen tasks, and one task in a meta-batch: the second rank has none in training."""
    values = {
        "name": "tiny",
        "model": {"source": str(folder / "model"), "dtype": "float32", "shards": shards},
        "adapter": {"rank": 3, "alpha": 6.0},
        "tasks": {
            "train": {"source": str(folder / "compare" / "train")},
            "unseen": {"source": str(folder / "compare" / "unseen")},
            "leak_check": "off",
        },
        "training": {"iterations": 1, "meta_batch": 1},
        "adaptation": {"steps": 2, "samples": 2, "test_questions": 3, "examples": 4},
        "engine": {"packed": False},
        "systems": {
            "abmll": {"method": {"name": "abmll", "inner_steps": 2}},
            "laplace": {"method": {"name": "lora", "inner_steps": 1}, "posterior": {"name": "laplace"}},
        },
        "reference": "abmll",
        "curve": 1,
    }
    return check(CompareConfig, values, "test")


def work_of(world: World, system: System) -> dict[str, torch.Tensor]:
    """A task of this rank's own, longer on one rank than on the other, adapted to and answered by three draws."""
    task, steps = TASKS[world.rank], (10, 3)[world.rank]
    usual = resolve(system.config).adaptation
    system.adapt(task, type(usual)(**{**{n: getattr(usual, n) for n in usual.__slots__}, "steps": steps}))
    answers = system.predict(task.test[: 6 - 4 * world.rank], PredictionPlan("weight", 3, 64))
    found = {name: tensor.clone() for name, tensor in system.method.adapters.state_dict("task").items()}
    return {**found, "answers": torch.tensor([p for a in answers for p in a.probabilities], dtype=torch.float64)}


def on_each_rank(folder: Path, world: World) -> None:
    """What the tests below compare, in one start of two ranks."""
    out = folder / "out"
    for name, base in (
        ("whole", load_base(spread(folder, 1).model)),
        ("spread", load_base(spread(folder).model, world)),
    ):
        system = build_system(spread(folder, engine={"packed": False}), base)
        found = work_of(world, system)
        world.tell(0)
        found["sample"] = sample_base(system.method.adapters)
        save_file(found, out / f"{name}-{world.rank}.safetensors")
        told = {"fingerprint": base.fingerprint, "graphs": system.graphs.report()["fallbacks"]}
        if (passes := passes_of(base.model)) is not None:
            told |= {"computed": passes.computed, "followed": passes.followed}
        (out / f"{name}-{world.rank}.json").write_text(json.dumps(told))
        system.close()
    config = spread(folder, training={"iterations": 2, "meta_batch": 3, "checkpoint_every": 2})
    run = run_in(out / "run", config)
    kept: list[System] = []

    def build() -> System:
        kept.append(build_system(config, load_base(config.model, world)))
        return kept[0]

    train_run(run, build, world=world)
    save_file(theta(kept[0].method), out / f"theta-{world.rank}.safetensors")
    compared = comparison(folder, 2)
    run_comparison(compared, out / "compared", partial(load_base, compared.model, world), world=world)
    shapes.DRAWN_WHOLE = 0  # as what is too large to be drawn whole
    drawn = load_base(ModelConfig(shape="tiny-llama", shards=2), world)
    (out / f"drawn-{world.rank}.txt").write_text(drawn.fingerprint)


@pytest.fixture(scope="module")
def left(place: Path) -> Path:
    """What two ranks left."""
    (place / "out").mkdir()
    ranks = start_ranks(partial(on_each_rank, place), place)
    codes = [rank.wait(120) for rank in ranks]
    assert codes == [0, 0], "\n".join(rank.text() for rank in ranks)
    return place / "out"


def told(left: Path, name: str) -> list[Any]:
    """What both ranks said."""
    return [json.loads((left / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


def test_trust_26_tasks_of_unequal_length_on_each_rank_equal_those_on_a_whole_base(left: Path) -> None:
    for rank in (0, 1):
        whole, parts = (load_file(left / f"{name}-{rank}.safetensors") for name in ("whole", "spread"))
        assert same(whole, parts), f"rank {rank}"
    spread_told = told(left, "spread")
    assert spread_told[0]["computed"] > spread_told[1]["computed"] > 0
    passes = [each["computed"] + each["followed"] for each in spread_told]
    assert passes[0] <= passes[1], "the longer task is followed to its end"
    assert spread_told[1]["followed"] > 0


def test_the_base_is_known_by_its_parts(left: Path) -> None:
    whole, parts = told(left, "whole"), told(left, "spread")
    assert len({each["fingerprint"] for each in (*whole, *parts)}) == 1
    assert [(left / f"drawn-{rank}.txt").read_text() for rank in (0, 1)] == [drawn_by_layer().fingerprint] * 2
    for rank in (0, 1):
        sample = load_file(left / f"spread-{rank}.safetensors")["sample"]
        assert sample.any(1).all(), "a row of zeros"


def drawn_by_layer() -> LanguageModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "DRAWN_WHOLE", 0)
        return random_model("tiny-llama", device="cpu")


def test_why_no_step_is_captured_is_told(left: Path) -> None:
    assert "model.shards" in told(left, "spread")[0]["graphs"]["every step"]


def test_ranks_end_with_one_theta_which_one_process_goes_on_from(left: Path, place: Path, tmp_path: Path) -> None:
    ranks = [load_file(left / f"theta-{rank}.safetensors") for rank in (0, 1)]
    assert same(*ranks)
    end = json.loads((left / "run" / "journal.jsonl").read_text().splitlines()[-1])
    assert [row["rank"] for row in end["ranks"]] == [0, 1]
    assert all(row["peak_memory_bytes"] > 0 for row in end["ranks"])
    training = {"iterations": 3, "meta_batch": 3, "checkpoint_every": 2}
    config = spread(place, 1, training=training)
    system = build_system(config, load_base(config.model))
    train_run(run_in(left / "run", config), lambda: system)  # the world is smaller now
    alone = build_system(config, load_base(config.model))
    train_run(run_in(tmp_path / "alone", config), lambda: alone)
    assert largest_difference(theta(system.method), theta(alone.method)) < 1e-5
    start = RunDirectory(tmp_path / "alone").load(0).shared
    assert largest_difference(theta(alone.method), start) > 1e-4


def test_a_comparison_on_two_ranks_leaves_the_predictions_of_one_process(
    left: Path, place: Path, tmp_path: Path
) -> None:
    config = comparison(place, 1)
    run_comparison(config, tmp_path, lambda: load_base(config.model))
    files = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.glob("*/seed-*/predictions/**/*.jsonl")}
    rows, tasks, points = ("abmll", "abmll_mean", "laplace", "laplace_mean"), 2, 2  # adapted, and before that
    assert len(files) == len(rows) * tasks * points
    for name, text in files.items():
        assert (left / "compared" / name).read_bytes() == text, name
    cost = json.loads((left / "compared" / "abmll" / "seed-0" / "cost.json").read_text())
    assert [row["rank"] for row in cost["ranks"]] == [0, 1]


def in_gather(number: int, act: Callable[[], None]) -> None:
    """Have something happen right before the `number`th gather of this process."""
    gather, count = fsdp.foreach_all_gather, iter(range(10**9))

    def acting(*arguments: Any, **options: Any) -> Any:
        if next(count) == number:
            act()
        return gather(*arguments, **options)

    fsdp.foreach_all_gather = acting


def train_spread(folder: Path, run: str, world: World, iterations: int) -> None:
    """Training whose meta-batch leaves the second rank without a task every time."""
    config = spread(folder, training={"iterations": iterations, "checkpoint_every": 1000})
    train_run(run_in(folder / run, config), lambda: build_system(config, load_base(config.model, world)), world=world)


@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_inside_a_gather_stops_both_with_a_checkpoint_to_go_on_from(which: int, place: Path) -> None:
    """To the rank that computes, or to the one that follows it."""
    name = f"stopped-{which}"

    def work(world: World) -> None:
        if world.rank == which:
            in_gather(60, partial(signal.raise_signal, signal.SIGTERM))
        train_spread(place, name, world, 10**6)

    ranks = start_ranks(work, place / name)
    assert [rank.wait(60) for rank in ranks] == [143, 143], "\n".join(rank.text() for rank in ranks)
    step = RunDirectory(place / name).steps()[-1]
    assert step > 0
    assert f"step {step} of 1000000 is saved" in ranks[0].text()
    config, steps = spread(place, 1, training={"iterations": 10**6, "checkpoint_every": 1000}), []

    def stop(event: dict[str, Any]) -> None:
        steps.append(event["step"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(run_in(place / name, config), lambda: build_system(config, load_base(config.model)), stop)
    assert steps == [step + 1]


def test_a_pass_that_breaks_off_on_one_rank_ends_both_with_the_cause(place: Path) -> None:
    def broken() -> None:
        raise RuntimeError("out of memory, say")

    def work(world: World) -> None:
        if world.rank == 0:
            in_gather(60, broken)
        train_spread(place, "broken", world, 100)

    began = time.monotonic()
    ranks = start_ranks(work, place / "broken-ranks")
    assert [rank.wait(60) for rank in ranks] == [UNCAUGHT, UNCAUGHT]
    assert time.monotonic() - began < 40
    assert "RuntimeError: out of memory, say" in ranks[0].text()
    assert "another rank died, or did not answer in time" in ranks[1].text()


def test_what_cannot_be_spread_is_refused_by_name(place: Path) -> None:
    for values, named in (
        ({"shards": 2, "quantisation": "4bit"}, "shards=2 with quantisation=4bit"),
        ({"shards": 2, "device": "cuda:1"}, "device=cuda:1"),
        ({"shards": 0}, "shards"),
    ):
        with pytest.raises(ValueError, match=named):
            ModelConfig.model_validate({"shape": "tiny-llama", **values})
    with pytest.raises(AbmllError, match=r"model.shards=2: 1 process cannot .* `torchrun --nproc-per-node 2"):
        load_base(ModelConfig(shape="tiny-llama", shards=2), World())
    with pytest.raises(AbmllError, match=r"model.shards=2: 3 processes"):
        shards_of(ModelConfig(shape="tiny-llama", shards=2), World(0, 3))


def test_settings_that_a_base_in_parts_cannot_have_are_refused_by_name() -> None:
    base = tiny_base()
    pass_together(base.model, Passes(layers_of(base.model), RankGroup()))
    try:
        with pytest.raises(AbmllError, match=r"method.name=maml .* gradients of gradients"):
            build_system({"method": {"name": "maml"}}, base)
        with pytest.raises(AbmllError, match=r"engine.packed=true with model.shards"):
            build_system({"method": {"name": "lora"}, "engine": {"packed": True}}, base)
    finally:
        set_before_meeting(None, None)


def test_a_base_that_fits_is_held_whole_by_each_process() -> None:
    alone = load_base(ModelConfig(shape="tiny-llama", device="cpu", shards=2))  # as `abmll adapt` on such a run
    assert passes_of(alone.model) is None
    assert shards_of(ModelConfig(shape="tiny-llama", device="cpu", shards="auto"), World()) == 1
    assert shards_of(ModelConfig(shape="tiny-llama", device="cpu", shards="auto"), World(0, 2)) == 1


def test_the_plan_tells_the_memory_of_each_process(place: Path) -> None:
    config = config_in(place)
    large = {"source": None, "shape": "llama-3-70b", "dtype": "bfloat16", "device": "cpu"}
    plans = []
    for shards in (1, 2, 8):
        values = {**config.model_dump(mode="json"), "model": {**large, "shards": shards}}
        plans.append(estimate(resolve(check(type(config), values, "test"))))
    weights = [plan.weight_bytes / 2**30 for plan in plans]
    assert weights[0] == pytest.approx(70_553_706_496 * 2 / 2**30)
    assert weights[0] / 2 < weights[1] < weights[0] / 2 + 8
    assert weights[2] < weights[0] / 4
    assert "base in parts       8: what follows is of each process" in describe(plans[2])
    assert "in parts" not in describe(plans[0])
