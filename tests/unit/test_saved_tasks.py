"""Task-adapted posteriors by name: saved whole, listed, loaded into phi, and never outside their run directory."""

import shutil
from pathlib import Path

import pytest
from peft import PeftModel

from abmll.config import RunConfig
from abmll.errors import AbmllError, NonFiniteError
from abmll.everyday import saved as saved_tasks
from abmll.everyday.saved import list_posteriors, load_posterior, read_posterior, save_posterior, write_details
from abmll.methods.noise import POSTERIOR
from abmll.systems.plans import PredictionPlan, adaptation_plan
from abmll.systems.predict import adapt, predict
from abmll.systems.system import System
from tests.runs import UNSEEN, config_in, place_tiny, system_in
from tests.systems import same, scramble, values

PLAN = PredictionPlan("weight", 3)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return config_in(place_tiny(tmp_path_factory.mktemp("place")))


@pytest.fixture(scope="module")
def adapted(config: RunConfig) -> System:
    """A system whose phi is adapted to an unseen task; tests may read it."""
    system = system_in(config)
    scramble(system)
    adapt(system.method, system.batcher, UNSEEN, adaptation_plan(config), 0)
    return system


def predictions(system: System) -> list[tuple[float, ...]]:
    rows = predict(system.method, system.likelihood, system.batcher, UNSEEN.test[:4], PLAN, POSTERIOR)
    return [row.probabilities for row in rows]


def test_a_saved_task_predicts_as_when_it_was_saved(config: RunConfig, adapted: System, tmp_path: Path) -> None:
    before = predictions(adapted)
    place = save_posterior(tmp_path, "my-task", config, adapted, {"examples": 6})
    assert place == tmp_path / "tasks" / "my-task"
    fresh = system_in(config)
    theta = values(fresh, "shared")
    assert predictions(fresh) != before
    saved = load_posterior(tmp_path, "my-task", fresh)
    assert (saved.name, saved.details, saved.adapter.facts.slot) == ("my-task", {"examples": 6}, "task")
    assert predictions(fresh) == before
    assert same(values(fresh, "shared"), theta)
    assert same(values(fresh, "task"), values(adapted, "task"))


def test_the_temperature_comes_with_it(config: RunConfig, adapted: System, tmp_path: Path) -> None:
    other = config_in(Path(config.model.source or "").parent, likelihood={"temperature": 2.5})
    save_posterior(tmp_path, "warm", other, system_in(other))
    fresh = system_in(config)
    load_posterior(tmp_path, "warm", fresh)
    assert float(fresh.likelihood.log_temperature.exp()) == pytest.approx(2.5)


@pytest.mark.parametrize("other", [{"normalisation": "sum"}, {"template": "{{ question }}"}, {"kind": "letter"}])
def test_reading_choices_otherwise_than_a_task_was_adapted_is_told(
    config: RunConfig, adapted: System, tmp_path: Path, other: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    save_posterior(tmp_path, "t", config, adapted)
    caplog.clear()
    load_posterior(tmp_path, "t", system_in(config))
    assert not caplog.records
    load_posterior(tmp_path, "t", system_in(config_in(Path(config.model.source or "").parent, likelihood=other)))
    ((name, value),) = other.items()
    (told,) = caplog.messages
    assert f"likelihood.{name}=" in told
    assert f"here it is {value}" in told


def test_trust_30_stock_peft_loads_a_saved_task(config: RunConfig, adapted: System, tmp_path: Path) -> None:
    place = save_posterior(tmp_path, "t", config, adapted)
    bare = system_in(config)
    bare.close()
    model = PeftModel.from_pretrained(bare.language_model.model, place)
    assert len([name for name, _ in model.named_parameters() if "lora_A" in name]) == 4


def test_tasks_are_listed_by_name_and_damaged_ones_passed_over(
    config: RunConfig, adapted: System, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert list_posteriors(tmp_path) == ()
    for name in ("b", "a", "c"):
        save_posterior(tmp_path, name, config, adapted, {"name": name})
    (tmp_path / "tasks" / ".hidden").mkdir()
    (tmp_path / "tasks" / "file.txt").write_text("not a folder")
    (tmp_path / "tasks" / "b" / "task.json").unlink()
    assert [(task.name, task.details) for task in list_posteriors(tmp_path)] == [
        ("a", {"name": "a"}),
        ("c", {"name": "c"}),
    ]
    assert "task.json" in caplog.text


def test_an_unknown_name_is_told_the_known_ones(config: RunConfig, adapted: System, tmp_path: Path) -> None:
    save_posterior(tmp_path, "reviews", config, adapted)
    with pytest.raises(AbmllError, match="Did you mean 'reviews'"):
        load_posterior(tmp_path, "review", adapted)
    with pytest.raises(AbmllError, match=r"Known: $"):
        read_posterior(tmp_path / "nowhere", "x")


def test_a_name_is_taken_once_unless_it_is_to_be_replaced(config: RunConfig, adapted: System, tmp_path: Path) -> None:
    save_posterior(tmp_path, "t", config, adapted, {"version": 1})
    for name in ("t", "T"):
        with pytest.raises(AbmllError, match="already"):
            save_posterior(tmp_path, name, config, adapted)
    with pytest.raises(AbmllError, match="already"):
        save_posterior(tmp_path, "T", config, adapted, replace=True)
    save_posterior(tmp_path, "t", config, adapted, {"version": 2}, replace=True)
    assert read_posterior(tmp_path, "t").details == {"version": 2}
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["t"]


def test_trust_07_a_save_that_fails_leaves_the_old_one(
    config: RunConfig, adapted: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_posterior(tmp_path, "t", config, adapted, {"version": 1})

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_tasks, "write_sealed_json", full)
    with pytest.raises(OSError, match="No space"):
        save_posterior(tmp_path, "t", config, adapted, {"version": 2}, replace=True)
    assert read_posterior(tmp_path, "t").details == {"version": 1}
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["t"]


def test_trust_07_a_task_whose_replacement_was_killed_is_found_again(
    config: RunConfig, adapted: System, tmp_path: Path
) -> None:
    save_posterior(tmp_path, "t", config, adapted, {"version": 1})
    (tmp_path / "tasks" / "t").rename(tmp_path / "tasks" / ".t.abmll-old")  # where a kill between the renames leaves it
    assert [task.details for task in list_posteriors(tmp_path)] == [{"version": 1}]


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", "", "con", "a\\b", ".old", "x" * 200, "a\0b"])
def test_trust_43_no_name_leaves_the_folder(name: str, config: RunConfig, adapted: System, tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    for action in (lambda: save_posterior(run, name, config, adapted), lambda: read_posterior(run, name)):
        with pytest.raises(AbmllError, match="task name"):
            action()
    assert not run.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", ["task", "tasks"])
def test_trust_43_no_link_leaves_the_folder(link: str, config: RunConfig, adapted: System, tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    save_posterior(outside, "t", config, adapted)
    (run / "tasks").mkdir(parents=True)
    if link == "task":
        (run / "tasks" / "t").symlink_to(outside / "tasks" / "t")
    else:
        shutil.rmtree(run / "tasks")
        (run / "tasks").symlink_to(outside / "tasks")
    before = {path.name: path.read_bytes() for path in (outside / "tasks" / "t").iterdir()}
    with pytest.raises(AbmllError, match="link"):
        read_posterior(run, "t")
    with pytest.raises(AbmllError, match="link"):
        save_posterior(run, "t", config, adapted, replace=True)
    assert {path.name: path.read_bytes() for path in (outside / "tasks" / "t").iterdir()} == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"details": 3}', '{"name": "t"}', '{"details": {}, "details": {}}'])
def test_details_that_are_damaged_are_an_error_that_names_the_file(
    text: str, config: RunConfig, adapted: System, tmp_path: Path
) -> None:
    save_posterior(tmp_path, "t", config, adapted)
    (tmp_path / "tasks" / "t" / "task.json").write_text(text)
    with pytest.raises(AbmllError, match=r"task\.json"):
        read_posterior(tmp_path, "t")


def test_the_shared_weights_of_a_run_are_no_task(config: RunConfig, adapted: System, tmp_path: Path) -> None:
    from abmll.adapters.folder import write_adapter

    write_adapter(adapted.stored("shared"), tmp_path / "tasks" / "t")
    with pytest.raises(AbmllError, match="not a task's"):
        read_posterior(tmp_path, "t")


def test_details_must_be_json(config: RunConfig, adapted: System, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"details\.score is nan"):
        save_posterior(tmp_path, "t", config, adapted, {"score": float("nan")})
    assert not (tmp_path / "tasks" / "t").exists()
    save_posterior(tmp_path, "t", config, adapted, {"text": "naïve 漢"})
    assert read_posterior(tmp_path, "t").details == {"text": "naïve 漢"}


def test_details_found_later_go_to_the_task_they_were_found_for(
    config: RunConfig, adapted: System, tmp_path: Path
) -> None:
    """A check takes minutes: another process may put another task in the place of this one."""
    first, second = {"examples": 6, "steps": (1, 2)}, {"examples": 7}
    save_posterior(tmp_path, "t", config, adapted, first)
    write_details(tmp_path, "t", {**first, "check": 1}, before=first)
    assert read_posterior(tmp_path, "t").details["check"] == 1
    save_posterior(tmp_path, "t", config, adapted, second, replace=True)
    with pytest.raises(AbmllError, match="replaced it meanwhile"):
        write_details(tmp_path, "t", {**first, "check": 2}, before=first)
    assert read_posterior(tmp_path, "t").details == second
