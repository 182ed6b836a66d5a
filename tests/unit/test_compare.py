"""A comparison as build targets: what it leaves, what it does again, what it refuses."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from abmll.config import CompareConfig, load_config
from abmll.errors import AbmllError, NonFiniteError
from abmll.metrics.predictions import Prediction, read_predictions
from abmll.metrics.scores import mean_nll, mean_nll_scaled
from abmll.models import LanguageModel
from abmll.report import write_report
from abmll.runs.compare import begin_comparison, run_comparison
from abmll.scoring.posterior import mean_nll_posterior
from tests.runs import never
from tests.systems import tiny_base
from tests.tiny import tiny_tasks, write_tasks

SHORT = {"inner_steps": 1, "batch_size": 2}
SYSTEMS: dict[str, dict[str, Any]] = {
    "structured": {"method": {"name": "structured", **SHORT}},
    "abmll": {"method": {"name": "abmll", **SHORT}},
}
ROWS = ("structured", "abmll", "abmll_mean")
UNSEEN = ("tiny4", "tiny5")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `train` (tiny0 .. tiny3), `unseen` (tiny4, tiny5) and `both` (all of them)."""
    folder, made = tmp_path_factory.mktemp("tasks"), tiny_tasks(6, n_rows=20, n_test=6)
    write_tasks(folder / "train", made[:4])
    write_tasks(folder / "unseen", made[4:])
    write_tasks(folder / "both", made)
    return folder


@pytest.fixture(scope="module")
def configure(tasks: Path) -> Callable[..., CompareConfig]:
    """The comparison's configuration, with changes."""

    def make(**changes: Any) -> CompareConfig:
        values: dict[str, Any] = {
            "name": "tiny-comparison",
            "model": {"shape": "tiny"},
            "adapter": {"rank": 3, "alpha": 6.0},
            "tasks": {
                "train": {"source": str(tasks / "train")},
                "unseen": {"source": str(tasks / "unseen")},
                "leak_check": "off",  # tiny tasks are of one pattern, and some rows repeat
            },
            "training": {"iterations": 2},
            "adaptation": {"steps": 2, "samples": 2, "test_questions": 4},
            "systems": SYSTEMS,
            "seeds": [0, 1],
            "reference": "structured",
            "curve": 2,
        }
        return CompareConfig.model_validate({**values, **changes})

    return make


@pytest.fixture(scope="module")
def finished(configure: Callable[..., CompareConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that has run to its end; copy it before changing anything."""
    out = tmp_path_factory.mktemp("comparison")
    run_comparison(configure(), out, tiny_base)
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished comparison."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def predictions(out: Path) -> dict[str, bytes]:
    """Every predictions file, by its place."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.glob("*/seed-*/predictions/**/*.jsonl")}


def test_layout_on_disk(finished: Path) -> None:
    settings = json.loads((finished / "comparison.json").read_text())
    assert settings["systems"] == list(ROWS)
    assert (settings["seeds"], settings["draws"], settings["tasks"]) == ([0, 1], 1, list(UNSEEN))
    assert (finished / "config.yaml").exists()
    places = ("examples-00000000/draw-0", "examples-00000008/draw-0", "before-adaptation/draw-0")
    for row in ROWS:
        for seed in (0, 1):
            folder = finished / row / f"seed-{seed}"
            found = {str(p.relative_to(folder / "predictions")) for p in folder.glob("predictions/**/*.jsonl")}
            assert found == {f"{place}/{task}.jsonl" for place in places for task in UNSEEN}
            if row == "abmll_mean":
                assert {p.name for p in folder.iterdir()} == {"predictions"}
                continue
            names = {"config.yaml", "origin.json", "journal.jsonl", "checkpoints", "adapter", "predictions", ".lock"}
            assert {p.name for p in folder.iterdir()} == names | {"environment.json", "cost.json", "trained.json"}
            assert json.loads((folder / "cost.json").read_text())["final_step"] == 2


def test_predictions_say_whose_they_are(finished: Path) -> None:
    for path, examples in (("examples-00000008", 8), ("examples-00000000", 0), ("before-adaptation", 8)):
        for row in ROWS:
            found = read_predictions(finished / row / "seed-1" / "predictions" / path / "draw-0" / "tiny4.jsonl")
            assert (found.system, found.task, found.seed, found.draw) == (row, "tiny4", 1, 0)
            assert found.examples_consumed == examples
            assert [q.id for q in found.rows] == [f"tiny4-{i}" for i in range(20, 24)]  # the first 4 test questions
            assert len(found.adaptation_rows) == 20
            assert sum(found.label_counts or ()) == 20
            assert (found.rows[0].spread is None) == (row != "abmll")


def test_curve_points_and_seeds_differ(finished: Path) -> None:
    found = predictions(finished)
    for row in ROWS:
        trained = found[f"{row}/seed-0/predictions/examples-00000008/draw-0/tiny4.jsonl"]
        untrained = found[f"{row}/seed-0/predictions/examples-00000000/draw-0/tiny4.jsonl"]
        other = found[f"{row}/seed-1/predictions/examples-00000008/draw-0/tiny4.jsonl"]
        assert len({trained.split(b"\n", 1)[1], untrained.split(b"\n", 1)[1], other.split(b"\n", 1)[1]}) == 3


def test_second_call_does_nothing(copy: Path, configure: Callable[..., CompareConfig]) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    events: list[dict[str, Any]] = []
    run_comparison(configure(), copy, never, events.append)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before
    assert not [e for e in events if e["event"] in ("loading", "target", "step", "evaluated")]


@pytest.mark.parametrize("row", ["structured", "abmll_mean"])
def test_a_deleted_file_is_made_again_and_nothing_else(
    row: str, copy: Path, configure: Callable[..., CompareConfig]
) -> None:
    before = predictions(copy)
    written = {name: (copy / name).stat().st_mtime_ns for name in before}
    cost = json.loads((copy / "structured" / "seed-0" / "cost.json").read_text())
    (copy / row / "seed-0" / "predictions" / "examples-00000008" / "draw-0" / "tiny5.jsonl").unlink()
    events: list[dict[str, Any]] = []
    run_comparison(configure(), copy, tiny_base, events.append)
    assert predictions(copy) == before
    again = {name for name in before if (copy / name).stat().st_mtime_ns != written[name]}
    rows = [row] if row == "structured" else ["abmll", "abmll_mean"]  # one adaptation makes both rows of a system
    assert again == {f"{name}/seed-0/predictions/examples-00000008/draw-0/tiny5.jsonl" for name in rows}
    assert not [e for e in events if e["event"] == "step"], "trained again"
    system = row.removesuffix("_mean")
    assert [(e["system"], e["seed"]) for e in events if e["event"] == "target"] == [(system, 0)]
    spent = json.loads((copy / "structured" / "seed-0" / "cost.json").read_text())
    assert spent["train_seconds"] >= cost["train_seconds"], "what the first call spent is forgotten"


def test_a_comparison_that_was_stopped_goes_on(
    finished: Path, tmp_path: Path, configure: Callable[..., CompareConfig]
) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "evaluated" and event["system"] == "abmll" and event["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_comparison(configure(seeds=[0]), tmp_path, tiny_base, stop)
    run_comparison(configure(seeds=[0]), tmp_path, tiny_base)
    assert predictions(tmp_path) == {k: v for k, v in predictions(finished).items() if "/seed-0/" in k}


def test_systems_do_not_influence_each_other(
    finished: Path, tmp_path: Path, configure: Callable[..., CompareConfig]
) -> None:
    """One base model serves them all, one after the other: nothing may stay on it."""
    run_comparison(configure(systems={"abmll": SYSTEMS["abmll"]}, reference="abmll", seeds=[1]), tmp_path, tiny_base)
    alone = predictions(tmp_path)
    together = predictions(finished)
    assert len(alone) == 12
    assert all(alone[name] == together[name] for name in alone)


def test_trust_03_another_configuration_in_the_folder_is_refused(
    copy: Path, configure: Callable[..., CompareConfig]
) -> None:
    before = (copy / "config.yaml").read_bytes()
    with pytest.raises(AbmllError, match=str(copy / "structured" / "seed-0")):
        run_comparison(configure(adapter={"rank": 2}), copy, never)
    assert (copy / "config.yaml").read_bytes() == before


def test_trust_03_a_comparison_with_fresh_moments_of_structured_goes_on_with_them_or_is_refused(
    tmp_path: Path, configure: Callable[..., CompareConfig]
) -> None:
    fresh = {"method": {"name": "structured", "inner_optimizer_state": "fresh", **SHORT}}
    begun = {"systems": {"structured": fresh}, "seeds": [0]}
    run_comparison(configure(**begun), tmp_path, tiny_base)
    advised = r"fresh, is persistent\. Go back to it \(systems\.structured\.method\.inner_optimizer_state=fresh\)"
    with pytest.raises(AbmllError, match=advised):
        run_comparison(configure(systems={"structured": SYSTEMS["structured"]}, seeds=[0]), tmp_path, never)
    run_comparison(configure(**begun), tmp_path, never)


def test_trust_03_the_way_back_is_one_that_a_comparison_takes(
    copy: Path, configure: Callable[..., CompareConfig], tmp_path: Path
) -> None:
    """A field that all systems share is set for all, another one for the system: done literally, both go on."""
    before = configure()
    other = {**before.adaptation.model_dump(mode="json"), "seed": 1, "steps": before.adaptation.steps + 1}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(configure(adaptation=other).to_yaml())
    with pytest.raises(AbmllError, match=r"Go back to it \(") as caught:
        run_comparison(load_config(CompareConfig, recipe), copy, never)
    advised = re.search(r"Go back to it \((.*?)\)", str(caught.value))
    assert advised is not None
    assert set(advised[1].split()) == {
        f"adaptation.seed={before.adaptation.seed}",
        f"systems.{next(iter(SYSTEMS))}.adaptation.steps={before.adaptation.steps}",
    }
    others = [f"systems.{name}.adaptation.steps={before.adaptation.steps}" for name in SYSTEMS]
    run_comparison(load_config(CompareConfig, recipe, [*advised[1].split(), *others[1:]]), copy, never)


def test_a_system_can_be_added_later(copy: Path, configure: Callable[..., CompareConfig]) -> None:
    systems = {**SYSTEMS, "pretrained": {"method": {"name": "pretrained", **SHORT}}}
    events: list[dict[str, Any]] = []
    before = predictions(copy)
    run_comparison(configure(systems=systems), copy, tiny_base, events.append)
    assert {e["system"] for e in events if e["event"] == "target"} == {"pretrained"}
    assert {k: v for k, v in predictions(copy).items() if not k.startswith("pretrained")} == before


def test_trust_17_tasks_that_leak_are_refused(
    tasks: Path, tmp_path: Path, configure: Callable[..., CompareConfig]
) -> None:
    places = {name: {"source": str(tasks / name)} for name in ("train", "unseen", "both")}
    roles = [  # train, unseen, validation
        ("both", "unseen", None, "tiny4 is both trained on and held out"),
        ("train", "unseen", "train", "tiny0 is both trained on and held out"),
        ("train", "unseen", "unseen", "tiny4 is both a validation and an unseen task"),
    ]
    for train, unseen, validation, message in roles:
        sources = {"train": places[train], "unseen": places[unseen]}
        config = configure(tasks=sources | ({"validation": places[validation]} if validation else {}))
        with pytest.raises(AbmllError, match=message):
            run_comparison(config, tmp_path, never)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": {"x": {"method": {"name": "reptil"}}}, "reference": "x"}, "reptile"),
        ({"systems": {"x": {"method": {"name": "lora", "inner_step": 1}}}, "reference": "x"}, "inner_steps"),
        ({"adaptation": {"examples": 21}}, "tiny4 has 20 train rows, adaptation wants 21"),
        ({"systems": {"x": {"method": {"name": "reptile", "inner_steps": 50}}}, "reference": "x"}, "too small"),
        ({"training": {"iterations": 2, "validate_every": 1}}, "tasks.validation names no tasks"),
        ({"systems": {**SYSTEMS, "abmll_mean": SYSTEMS["structured"]}}, "abmll_mean"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    changes: dict[str, Any], message: str, tmp_path: Path, configure: Callable[..., CompareConfig]
) -> None:
    with pytest.raises(AbmllError, match=message):
        run_comparison(configure(**changes), tmp_path, never)
    assert not list(tmp_path.iterdir())


def quantised_base() -> LanguageModel:
    """The tiny model with weights of whole numbers, as packing leaves them."""
    base = tiny_base()
    for path, module in base.model.named_modules():
        if path.endswith("q_proj"):
            module.weight = torch.nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    return base


def test_every_system_is_built_before_the_first_is_trained(
    tmp_path: Path, configure: Callable[..., CompareConfig]
) -> None:
    systems = {**SYSTEMS, "relative": {"method": {"name": "abmll", **SHORT, "std_relative": 0.1}}}
    with pytest.raises(AbmllError, match=r"systems\.relative: method\.std_relative needs floating-point weights"):
        run_comparison(configure(systems=systems), tmp_path, quantised_base)
    assert [path.name for path in tmp_path.rglob("seed-*/*")] == [".lock"]


def test_trust_03_other_rows_of_the_same_tasks_are_refused(
    copy: Path, tasks: Path, configure: Callable[..., CompareConfig]
) -> None:
    """A system that is added after a test file was corrected would be compared on other questions."""
    file = tasks / "unseen" / "tiny4.test.jsonl"
    text, before = file.read_text(), predictions(copy)
    file.write_text(text.replace("river", "lake"))
    try:
        with pytest.raises(AbmllError, match="other rows in tiny4"):
            run_comparison(configure(), copy, never)
    finally:
        file.write_text(text)
    assert predictions(copy) == before
    run_comparison(configure(), copy, never)


def test_trust_03_a_configuration_that_changes_before_the_first_target_is_begun_is_not_mixed(
    tmp_path: Path, configure: Callable[..., CompareConfig]
) -> None:
    """Another process begins as this one has written its own and locked nothing yet; it is the one that goes on."""
    other = configure(adaptation={"steps": 1})

    def change(event: dict[str, Any]) -> None:
        if event["event"] == "plan":
            begin_comparison(other, tmp_path)

    with pytest.raises(AbmllError, match="another process has changed its configuration"):
        run_comparison(configure(), tmp_path, never, change)
    assert load_config(CompareConfig, tmp_path / "config.yaml") == other
    assert not list(tmp_path.glob("*/seed-*/config.yaml"))


def test_only_what_is_named_is_made(tmp_path: Path, configure: Callable[..., CompareConfig], finished: Path) -> None:
    for name in ("lora", "structured.seed-2", "abmll_mean"):
        with pytest.raises(AbmllError, match=f"'{name}' is no target .* structured, abmll, structured.seed-0"):
            run_comparison(configure(), tmp_path, never, only=[name])
    assert not list(tmp_path.iterdir())
    run_comparison(configure(), tmp_path, tiny_base, only=["abmll.seed-1", "structured.seed-0"])
    made = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/seed-*/cost.json")}
    assert made == {"abmll/seed-1", "structured/seed-0"}
    run_comparison(configure(), tmp_path, never, only=["abmll.seed-1"])
    run_comparison(configure(), tmp_path, tiny_base, only=["abmll"])
    run_comparison(configure(), tmp_path, tiny_base)
    assert predictions(tmp_path) == predictions(finished)


def test_what_was_half_written_of_the_mean_row_is_removed(copy: Path, configure: Callable[..., CompareConfig]) -> None:
    """It lies outside the folder that is locked; nothing of another target is touched."""
    mine, other = (copy / "abmll_mean" / f"seed-{n}" / "predictions" / ".a.xyz.abmll-part" for n in (0, 1))
    for part in (mine, other):
        part.write_text("half")
    (copy / "abmll" / "seed-0" / "cost.json").unlink()
    run_comparison(configure(), copy, tiny_base)
    assert (mine.exists(), other.exists()) == (False, True)


def test_a_configuration_that_is_read_again_is_the_same_to_the_letter(
    finished: Path, configure: Callable[..., CompareConfig]
) -> None:
    """So that a process that begins with the folder's own `config.yaml` changes nothing."""
    again = load_config(CompareConfig, finished / "config.yaml")
    assert again.to_sealed_yaml() == configure().to_sealed_yaml() == (finished / "config.yaml").read_text()


def test_no_unseen_tasks_is_refused(tasks: Path, tmp_path: Path, configure: Callable[..., CompareConfig]) -> None:
    with pytest.raises(AbmllError, match=r"tasks\.unseen"):
        run_comparison(configure(tasks={"train": {"source": str(tasks / "train")}}), tmp_path, never)


def test_validation_stops_training_early(tasks: Path, tmp_path: Path, configure: Callable[..., CompareConfig]) -> None:
    places = {"train": {"source": str(tasks / "train"), "names": ["tiny0", "tiny1"]}}
    places |= {"validation": {"source": str(tasks / "train"), "names": ["tiny2"]}}
    places |= {"unseen": {"source": str(tasks / "unseen"), "names": ["tiny4"]}}
    harmful = {**SHORT, "outer_step": "identity", "outer_lr": 1.0}  # a rate that only does harm
    systems = {"abmll": {"method": {"name": "abmll", **harmful}}}
    training = {"iterations": 9, "validate_every": 1, "patience": 2}
    sources = {**places, "leak_check": "off"}
    config = configure(systems=systems, reference="abmll", seeds=[0], tasks=sources, training=training)
    run_comparison(config, tmp_path, tiny_base)
    run = tmp_path / "abmll" / "seed-0"
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    scores = [e["validation_nll"] for e in events if e["event"] == "step"]
    assert len(scores) < 9
    best = scores.index(min(scores)) + 1
    assert events[-1].items() >= {"event": "end", "step": len(scores), "final_step": best}.items()
    assert json.loads((run / "cost.json").read_text())["final_step"] == best
    assert (run / "predictions" / f"examples-{4 * best:08d}" / "draw-0" / "tiny4.jsonl").exists()
    run_comparison(config, tmp_path, never)


def test_validation_by_a_scaled_nll_does_not_fall_for_a_guess(
    tasks: Path, tmp_path: Path, configure: Callable[..., CompareConfig]
) -> None:
    """The same weights, judged each way; scaled is the lowest NLL of log p / T that scipy finds."""
    places = {"train": {"source": str(tasks / "train"), "names": ["tiny0", "tiny1"]}}
    places |= {"validation": {"source": str(tasks / "train"), "names": ["tiny2"]}}
    places |= {"unseen": {"source": str(tasks / "unseen"), "names": ["tiny4"]}}
    found = {}
    for by in ("nll", "nll_scaled", "nll_posterior"):
        training = {"iterations": 2, "validate_every": 1, "validate_by": by}
        config = configure(
            systems={"structured": {"method": {"name": "structured"}}},
            seeds=[0],
            tasks={**places, "leak_check": "off"},
            training=training,
        )
        run_comparison(config, tmp_path / by, tiny_base)
        lines = (tmp_path / by / "structured" / "seed-0" / "journal.jsonl").read_text().splitlines()
        found[by] = [event["validation_nll"] for event in map(json.loads, lines) if event["event"] == "step"]
    assert all(scaled < plain for scaled, plain in zip(found["nll_scaled"], found["nll"], strict=True))
    pairs = zip(found["nll_scaled"], found["nll_posterior"], strict=True)
    assert all(scaled < posterior for scaled, posterior in pairs)  # a temperature of the very rows flatters
    rng = np.random.default_rng(0)
    guess = [Prediction(str(i), int(rng.random() < 0.5), (0.5, 0.5)) for i in range(300)]
    sure = [Prediction(str(i), int(rng.random() < 0.3), (0.9999, 0.0001)) for i in range(300)]  # right in 70 %
    assert mean_nll(guess) < mean_nll(sure)
    assert mean_nll_scaled(sure) < mean_nll_scaled(guess)
    assert mean_nll_posterior(sure) < mean_nll_posterior(guess) == pytest.approx(np.log(2))
    answers = np.array([row.answer for row in sure])
    logits = np.log(np.array([row.probabilities for row in sure]))

    def at(temperature: float) -> float:
        return -float(log_softmax(logits / temperature, axis=1)[np.arange(300), answers].mean())

    best = minimize_scalar(at, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9})
    assert mean_nll_scaled(sure) == pytest.approx(best.fun, abs=1e-7)
    with pytest.raises(NonFiniteError, match="'broken'"):  # so neither NLL ever sees one
        Prediction("broken", 0, (float("nan"), float("nan")))


def test_report_has_every_system(copy: Path) -> None:
    summary = write_report(copy)
    assert set(summary["systems"]) >= {*ROWS, "uniform"}
    assert summary["missing"] == [], "a comparison that ran to its end has nothing missing"
    for row in ROWS:
        entry = summary["systems"][row]
        assert (entry["n_seeds"], entry["n_tasks"], entry["examples_consumed"]) == (2, 2, 8)
        assert entry["before_adaptation"] is not None
        assert [point["examples_consumed"] for point in summary["curve"][row]] == [0, 8]
        assert (entry["cost"] is None) == (row == "abmll_mean")
    for file in ("results.json", "table.md", "report.html"):
        assert "abmll_mean" in (copy / file).read_text(encoding="utf-8")


def test_another_curve_is_refused_by_name(copy: Path, configure: Callable[..., CompareConfig]) -> None:
    with pytest.raises(AbmllError, match="curve=2, now it is 3"):
        run_comparison(configure(curve=3), copy, tiny_base)
