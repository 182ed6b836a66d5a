"""The prior of the temperature: learned from answers to rows of training tasks, stored, carried by predictions."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import norm

from abmll.adapters.folder import read_adapter
from abmll.calibrators import ChoiceRows, TaskRows
from abmll.calibrators.temperature import PosteriorTemperature
from abmll.config import CompareConfig, PosteriorConfig
from abmll.errors import AbmllError
from abmll.everyday.session import open_run
from abmll.everyday.ship import ship
from abmll.files import SEAL, read_sealed_json, write_sealed_json
from abmll.metrics.predictions import Prediction, read_predictions
from abmll.process.stopping import Stopped
from abmll.process.timer import Timer
from abmll.question import Question, Task
from abmll.runs.cells import Cells
from abmll.runs.compare import run_comparison
from abmll.runs.evaluate_run import _every_cell, evaluate_once
from abmll.runs.prepare import Run
from abmll.runs.train_run import train, train_run
from abmll.systems.adapters import use_adapter
from abmll.systems.meta_rows import held_back_episode, rows_trained_on
from abmll.systems.plans import PredictionPlan
from abmll.systems.scale import SCALE_FILE, calibrator_of, read_scale
from abmll.systems.system import System
from tests.poison import mark, poison, poisoned_base
from tests.runs import UNSEEN, config_in, never, place_tiny, run_in, silent, system_in
from tests.systems import tiny_base
from tests.tiny import tiny_tasks, write_tasks

META: dict[str, Any] = {"meta_rows": 5}
TASKS = tiny_tasks(3, n_rows=16)


def trained(place: Path, run: Path, config: Any = None, tasks: tuple[Task, ...] = TASKS) -> Run:
    """A run that was trained."""
    config = config_in(place, adaptation=META) if config is None else config
    prepared = run_in(run, config, tasks)
    train_run(prepared, lambda: system_in(config))
    return prepared


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, and `run`, trained with `meta_rows`."""
    folder = place_tiny(tmp_path_factory.mktemp("scale"))
    trained(folder, folder / "run")
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


def by_hand(place: Path, run: Path) -> dict[str, dict[str, tuple[Prediction, ...]]]:
    """Row of the system -> task -> answers, by adapting and predicting with the stored adapter."""
    config = config_in(place, adaptation=META)
    prepared, system = run_in(run, config, TASKS), system_in(config)
    use_adapter(read_adapter(run / "adapter"), system, run)
    drawn = rows_trained_on(prepared.episodes, 3, 1)
    answers: dict[str, dict[str, tuple[Prediction, ...]]] = {"own": {}, "mean": {}}
    for task in TASKS:
        episode = held_back_episode(task, prepared.adaptation, 5, drawn)
        assert episode is not None
        learned = system.adapt(Task(task.name, episode.train), prepared.adaptation)
        assert not set(learned) & set(episode.test)
        for row, plan in (("own", PredictionPlan("weight", 4)), ("mean", PredictionPlan("mean", 1))):
            answers[row][task.name] = system.predict(episode.test, plan, (0, 0, task.name))
    system.close()
    return answers


def test_the_prior_is_that_of_adapting_and_answering_by_hand(place: Path) -> None:
    answers, stored = by_hand(place, place / "run"), read_scale(place / "run")
    assert stored is not None
    nothing = ChoiceRows.from_scores(np.zeros((0, 2)))
    priors = {}
    for row, of_row in answers.items():
        rows = [TaskRows(name, ChoiceRows.from_predictions(held), nothing) for name, held in of_row.items()]
        priors[row] = stored.scale.calibrator(row)
        assert priors[row] == PosteriorTemperature().meta_fit(rows)
    assert priors["own"] != priors["mean"]
    assert (stored.scale.fitted_tasks, stored.scale.left_out, stored.step) == (3, {}, 3)
    assert {name: task.rows for name, task in stored.scale.tasks.items()} == dict.fromkeys(
        ("tiny0", "tiny1", "tiny2"), 5
    )


def test_the_temperature_of_a_task_is_its_most_probable_one(place: Path) -> None:
    """By scipy's own minimiser on the stated probabilities."""
    answers, stored = by_hand(place, place / "run"), read_scale(place / "run")
    assert stored is not None
    for row, of_row in answers.items():
        prior = stored.scale.calibrator(row)
        for name, held in of_row.items():
            logs, right = np.log([p.probabilities for p in held]), [p.answer for p in held]

            def loss(x: float, logs: Any = logs, right: Any = right, prior: Any = prior) -> float:
                told = log_softmax(logs / np.exp(x), axis=1)[np.arange(len(right)), right].sum()
                return float(-told - norm.logpdf(x, prior.mu, prior.sd))

            mode = minimize_scalar(loss, bounds=(-8, 8), method="bounded", options={"xatol": 1e-8}).x
            assert stored.scale.tasks[name].temperatures[row] == pytest.approx(np.exp(mode), rel=1e-3)


def counted(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[str]:
    """Names of the tasks that are adapted to; `stop_after` so many the process is asked to stop."""
    names: list[str] = []
    adapt = System.adapt

    def noted(self: System, task: Task, *args: Any) -> tuple[Question, ...]:
        if stop_after is not None and len(names) >= stop_after:
            raise Stopped(15)
        names.append(task.name)
        return adapt(self, task, *args)

    monkeypatch.setattr(System, "adapt", noted)
    return names


def trained_steps(folder: Path) -> list[str]:
    """The lines of the journal that are of a step, with its seconds."""
    return [line for line in (folder / "journal.jsonl").read_text().splitlines() if '"event": "step"' in line]


def test_without_meta_rows_nothing_is_written_and_nothing_is_asked(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = counted(monkeypatch)
    predicted: list[int] = []
    monkeypatch.setattr(System, "predict", lambda *args: predicted.append(1))
    prepared = trained(place, tmp_path / "run", config_in(place))
    assert (adapted, predicted) == ([], [])
    assert not (tmp_path / "run" / SCALE_FILE).exists()
    assert prepared.meta_units() == 0
    assert read_scale(tmp_path / "run") is None
    mine, other = (
        (folder / "adapter" / "abmll.safetensors").read_bytes() for folder in (tmp_path / "run", place / "run")
    )
    assert mine == other, "learning the prior changes no weight"


def test_a_stop_while_it_is_learned_costs_that_alone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        names = counted(patch, stop_after=2)
        with pytest.raises(Stopped):
            trained(place, folder)
        assert len(names) == 2
    assert (folder / "adapter").is_dir()
    assert not (folder / SCALE_FILE).exists()
    steps = trained_steps(folder)
    names = counted(monkeypatch)
    trained(place, folder)
    assert names == ["tiny0", "tiny1", "tiny2"]
    assert trained_steps(folder) == steps, "no step of training is done again"
    assert (folder / SCALE_FILE).read_bytes() == (place / "run" / SCALE_FILE).read_bytes()
    trained(place, folder)
    assert len(names) == 3, "what is there is not learned again"


def test_a_run_without_it_gets_it_when_asked_again_and_other_settings_learn_it_again(
    place: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    trained(place, folder, config_in(place))
    trained(place, folder)
    assert (folder / SCALE_FILE).read_bytes() == (place / "run" / SCALE_FILE).read_bytes()
    trained(place, folder, config_in(place, adaptation={**META, "steps": 1}))
    stored = read_scale(folder)
    assert stored is not None
    assert stored.answering["adaptation"]["steps"] == 1
    assert stored.scale != (read_scale(place / "run") or stored).scale
    trained(place, folder, config_in(place, adaptation={"meta_rows": 3}))
    assert {task.rows for task in (read_scale(folder) or stored).scale.tasks.values()} == {3}


def test_more_training_makes_it_stale(place: Path, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (run / SCALE_FILE).read_bytes()
    other = Path(shutil.copytree(run, run.with_name("other")))
    trained(place, run, config_in(place, adaptation=META, training={"iterations": 4}))
    stored = read_scale(run)
    assert stored is not None
    assert stored.step == 4
    assert "removed" not in caplog.text
    trained(place, other, config_in(place, training={"iterations": 4}))
    assert not (other / SCALE_FILE).exists()
    assert "calibrator.json: removed, as the weights" in caplog.text
    (other / SCALE_FILE).write_bytes(before)
    with pytest.raises(AbmllError, match=r"calibrator\.json: was learned with other weights than those in .*delete it"):
        read_scale(other)


@pytest.mark.parametrize("damage", ["cut", "edited", "none of ours", "other calibrator", "no number"])
def test_a_damaged_file_is_refused_and_learned_again(
    place: Path, run: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = run / SCALE_FILE
    before = file.read_bytes()
    value = read_sealed_json(file)
    settings = value["scale"]["calibrators"]["own"]
    if damage == "cut":
        file.write_bytes(before[:-40])
    elif damage == "edited":
        file.write_text(json.dumps({**json.loads(before), "step": 2}))
    elif damage == "none of ours":
        write_sealed_json(file, {"a": 1})
    elif damage == "other calibrator":
        settings |= {"calibrator": "none", "settings": {}}
        write_sealed_json(file, value)
    else:
        settings["settings"]["sd"] = -1.0
        write_sealed_json(file, value)
    with pytest.raises(AbmllError, match=rf"{SCALE_FILE}: .*delete it: `abmll train` and `abmll compare` learn it"):
        read_scale(run)
    trained(place, run)
    assert file.read_bytes() == before
    assert SCALE_FILE in caplog.text
    assert SEAL in json.loads(before)


def test_a_task_that_is_not_finite_is_left_out_and_named(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Poison in the rows that are answered alone: training goes through."""
    tasks = (TASKS[0], mark(TASKS[1], test=tuple(range(8))), TASKS[2])
    config = config_in(place, adaptation=META)
    prepared = run_in(tmp_path / "run", config, tasks)

    def build() -> System:
        system = system_in(config)
        poison(system.language_model)
        return system

    train_run(prepared, build)
    stored = read_scale(tmp_path / "run")
    assert stored is not None
    assert list(stored.scale.tasks) == ["tiny0", "tiny2"]
    assert "NaN or infinite" in stored.scale.left_out["tiny1"]
    assert str(tmp_path) not in (tmp_path / "run" / SCALE_FILE).read_text()
    assert "task tiny1 is not among those that it was learned from" in caplog.text


@pytest.mark.parametrize(("tasks", "count", "told"), [(1, 1, "nearly the weak one"), (0, 0, "the weak one")])
def test_few_tasks_stay_at_the_weak_prior(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, tasks: int, count: int, told: str
) -> None:
    """The others have six rows to adapt to, and none to answer."""
    small = tuple(replace(task, train=task.train[:6], test=()) for task in TASKS[tasks:])
    prepared = trained(place, tmp_path / "run", tasks=(*TASKS[:tasks], *small))
    stored, weak = read_scale(prepared.folder), PosteriorTemperature()
    assert stored is not None
    assert stored.scale.fitted_tasks == count
    assert sorted(stored.scale.left_out) == [f"tiny{n}" for n in range(tasks, 3)]
    assert f"learned from {count} tasks, so the temperature's prior is {told}" in caplog.text
    prior = stored.scale.calibrator()
    assert (prior == weak) == (count == 0)
    assert prior.sd > 0.75 * weak.sd


def scored(place: Path, run: Path, **adaptation: Any) -> tuple[float, float] | None:
    """The prior in the header of a file of `abmll adapt`."""
    config = config_in(place, adaptation={**META, **adaptation})
    prepared = run_in(run, config, TASKS, (UNSEEN,))
    system = system_in(config)
    use_adapter(read_adapter(run / "adapter"), system, run)
    files = evaluate_once(prepared, system, 3, silent, Timer())
    system.close()
    assert len(files) == 2
    return read_predictions(files[0]).scale_prior


def test_predictions_carry_it_where_they_are_made_alike(place: Path, run: Path) -> None:
    stored = read_scale(run)
    assert stored is not None
    prior = stored.scale.calibrator()
    assert scored(place, run) == (prior.mu, prior.sd)
    assert scored(place, run, steps=1) is None, "adapted in another way, answers are of another scale"
    (run / SCALE_FILE).unlink()
    assert scored(place, run) is None


def test_a_cell_of_another_step_or_without_adaptation_has_none(place: Path, run: Path) -> None:
    config = config_in(place, adaptation=META)
    prepared, system = run_in(run, config, TASKS, (UNSEEN,), curve=2), system_in(config)
    use_adapter(read_adapter(run / "adapter"), system, run)
    cells = Cells(prepared)
    found = {}
    for cell in _every_cell(prepared, 3):
        cells.make(system, cell, Timer())
        found[cell.step, cell.where] = read_predictions(cells.file("run", cell.where, 0, UNSEEN)).scale_prior
    system.close()
    assert [place for place, prior in found.items() if prior is not None] == [(3, "examples-00000018")]
    assert len(found) == 3


def test_it_goes_with_a_shipped_adapter_and_a_session_reads_it(place: Path, run: Path, tmp_path: Path) -> None:
    shipped = ship(run, "mine", tmp_path / "here")
    assert (shipped / SCALE_FILE).read_bytes() == (run / SCALE_FILE).read_bytes()
    stored = read_scale(shipped)
    assert stored is not None
    session = open_run(shipped)
    by_mean, drawn = stored.scale.calibrator("mean"), stored.scale.calibrator("own")
    assert by_mean != drawn
    assert session.calibrator == by_mean, (
        "a user's rows are answered by the mean weights, long ones without their middle"
    )
    assert session.tuned({"adaptation": {"steps": 1}}).calibrator == by_mean
    assert session.tuned({"adaptation": {"samples": 4, "sampler": "weight"}}).calibrator == drawn
    assert session.tuned({"likelihood": {"normalisation": "sum"}}).calibrator == PosteriorTemperature()
    by_weights, by_draws = (
        session.config.model_copy(
            update={"adaptation": session.config.adaptation.model_copy(update={"sampler": sampler})}
            | {"posterior": PosteriorConfig(name="tfb")}
        )
        for sampler in ("mean", "weight")
    )
    assert calibrator_of(shipped, by_weights) == by_mean, "by the mean weights no posterior draws"
    assert calibrator_of(shipped, by_draws) == PosteriorTemperature()
    session.system.close()
    (shipped / SCALE_FILE).unlink()
    assert session.calibrator == PosteriorTemperature()


def test_from_python(place: Path, tmp_path: Path) -> None:
    system = system_in(config_in(place, adaptation=META))
    train(system, TASKS, tmp_path / "run", iterations=3)
    system.close()
    mine, other = read_scale(tmp_path / "run"), read_scale(place / "run")
    assert mine is not None
    assert other is not None
    assert mine.scale == other.scale


# -------------------- comparisons


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CompareConfig]:
    folder, made = tmp_path_factory.mktemp("tasks"), tiny_tasks(5, n_rows=16, n_test=6)
    write_tasks(folder / "train", made[:3])
    write_tasks(folder / "unseen", made[3:])
    short = {"inner_steps": 1, "batch_size": 2}

    write_tasks(folder / "poisoned", tuple(mark(task, train=tuple(range(16))) for task in made[:3]))

    def make(meta_rows: int, train: str = "train") -> CompareConfig:
        roles = {role: {"source": str(folder / name)} for role, name in (("train", train), ("unseen", "unseen"))}
        return CompareConfig.model_validate(
            {
                "model": {"shape": "tiny"},
                "adapter": {"rank": 3, "alpha": 6.0},
                "tasks": {**roles, "leak_check": "off"},
                "training": {"iterations": 2},
                "adaptation": {"steps": 2, "samples": 2, "examples": 6, "folds": 2, "meta_rows": meta_rows},
                "systems": {name: {"method": {"name": name, **short}} for name in ("lora", "abmll")},
                "seeds": [0, 1],
                "reference": "lora",
                "curve": 1,
            }
        )

    return make


@pytest.fixture(scope="module")
def compared(configure: Callable[..., CompareConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "out"
    run_comparison(configure(4), out, tiny_base)
    return out


def results(out: Path) -> dict[str, bytes]:
    """Predictions and priors, by their place."""
    files = [*out.glob("*/seed-*/predictions/**/*.jsonl"), *out.glob(f"*/seed-*/{SCALE_FILE}")]
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def test_every_system_and_seed_has_its_own(compared: Path) -> None:
    priors = {}
    for row, place, kind in (("lora", "lora", "own"), ("abmll", "abmll", "own"), ("abmll_mean", "abmll", "mean")):
        for seed in (0, 1):
            stored = read_scale(compared / place / f"seed-{seed}")
            assert stored is not None
            prior = stored.scale.calibrator(kind)
            priors[row, seed] = (prior.mu, prior.sd)
            files = sorted((compared / row / f"seed-{seed}" / "predictions" / "examples-00000008").glob("*/*.jsonl"))
            assert [read_predictions(file).scale_prior for file in files] == [priors[row, seed]] * 2
            before = sorted((compared / row / f"seed-{seed}" / "predictions").glob("before*/*/*.jsonl"))
            assert [read_predictions(file).scale_prior for file in before] == [None] * 2
    assert len(set(priors.values())) == len(priors)
    assert json.loads((compared / "lora/seed-0/cost.json").read_text())["scale_seconds"] > 0


def test_twice_is_the_same_to_the_byte(configure: Callable[..., CompareConfig], compared: Path, tmp_path: Path) -> None:
    run_comparison(configure(4), tmp_path / "out", tiny_base)
    assert results(tmp_path / "out") == results(compared)


def test_a_comparison_without_it_gets_it_and_answers_nothing_again(
    configure: Callable[..., CompareConfig], compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_comparison(configure(0), out, tiny_base)
    assert not list(out.glob(f"*/*/{SCALE_FILE}"))
    assert "scale_seconds" not in json.loads((out / "lora/seed-0/cost.json").read_text())
    names = counted(monkeypatch)
    run_comparison(configure(4), out, tiny_base)
    assert set(names) == {"tiny0", "tiny1", "tiny2"}
    assert len(names) == 12, "each training task once for two systems and two seeds"
    assert results(out) == results(compared)
    run_comparison(configure(4), out, never)
    run_comparison(configure(0), out, never)
    assert results(out) == results(compared), "what was learned stays"


def test_a_stop_between_the_prior_and_the_headers_is_made_good(
    configure: Callable[..., CompareConfig], compared: Path, tmp_path: Path
) -> None:
    """`cost.json` is of the first call, and says that all is there."""
    out = tmp_path / "out"
    run_comparison(configure(0), out, tiny_base)
    for file in compared.glob(f"*/*/{SCALE_FILE}"):
        shutil.copy(file, out / file.relative_to(compared))
    run_comparison(configure(4), out, tiny_base)
    assert results(out) == results(compared)


def test_a_prior_that_is_damaged_is_learned_again(
    configure: Callable[..., CompareConfig], compared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = Path(shutil.copytree(compared, tmp_path / "out"))
    file = out / "abmll" / "seed-1" / SCALE_FILE
    file.write_bytes(file.read_bytes().replace(b'"step": 2', b'"step": 1'))
    with caplog.at_level(logging.WARNING):
        run_comparison(configure(4), out, tiny_base)
    assert "damaged or edited" in caplog.text
    assert results(out) == results(compared)


def test_a_training_that_is_not_finite_is_not_tried_again_for_its_sake(
    configure: Callable[..., CompareConfig], tmp_path: Path
) -> None:
    run_comparison(configure(4, "poisoned"), tmp_path / "out", poisoned_base)
    assert not list(tmp_path.rglob(SCALE_FILE))
    run_comparison(configure(4, "poisoned"), tmp_path / "out", never)
