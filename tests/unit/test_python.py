"""The ten lines from Python of docs/overview.md, as they stand there, and what they say of themselves."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import abmll
from abmll.process.world import World
from abmll.systems.folds import Fold
from abmll.systems.plans import resolve
from abmll.training.checkpoints import RunDirectory
from tests.tiny import save_tiny, tiny_tasks

PAGE = (Path(__file__).parents[2] / "docs/overview.md").read_text(encoding="utf-8")
MODEL = "smollm2-135m-instruct"


def ten_lines(model: Path) -> str:
    """The block of the page's section, on another model."""
    section = PAGE.split("## From Python, in ten lines")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None
    assert MODEL in block[1]
    return block[1].replace(MODEL, model.as_posix())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


@pytest.fixture
def base(model: Path) -> abmll.LanguageModel:
    return abmll.load_model(str(model), device="cpu")


def test_readme_s_ten_lines_run_and_what_they_save_loads(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    code = ten_lines(model)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert set(re.findall(r"abmll\.(\w+)", re.sub(r"#.*|\"runs.*?\"", "", code))) <= set(abmll.__all__)
    names: dict = {}
    exec(code, names)
    system, answers, new = names["system"], names["answers"], names["new"]
    assert len(answers) == len(new.test)
    assert all(len(answer.probabilities) == 2 and answer.spread > 0 for answer in answers)
    run = model.parent / "runs/python"
    assert (run / "adapter/adapter_model.safetensors").exists()
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 21))
    assert {event["task"] for event in events if event["event"] == "step"} == {"even", "a multiple of three"}
    again = abmll.load_system(model.parent / "runs/multiples")
    assert again.answer(new.test) == answers
    assert system.method.adapters.state_dict("task").keys() == again.method.adapters.state_dict("task").keys()


def test_options_are_those_of_a_recipe(base: abmll.LanguageModel) -> None:
    system = abmll.build_system({"method": {"name": "lora", "inner_lr": 1e-2}, "adapter": {"rank": 3}}, base)
    assert system.config.model.source == base.name
    assert (system.method.settings.inner_lr, system.config.adapter.rank) == (1e-2, 3)
    system.close()
    with pytest.raises(abmll.AbmllError, match="rnk") as caught:
        abmll.build_system({"adapter": {"rnk": 3}}, base)
    assert "rank" in str(caught.value)
    with pytest.raises(abmll.AbmllError, match="loaded already"):
        abmll.build_system({"model": {"source": "x"}}, base)
    with pytest.raises(abmll.AbmllError, match="abmll"):
        abmll.build_system("abml", base)


def test_a_model_takes_one_system_at_a_time(base: abmll.LanguageModel) -> None:
    abmll.build_system("reptile", base)
    with pytest.raises(abmll.AbmllError, match="adapters on this model already"):
        abmll.build_system("reptile", base)


def test_training_begins_anew_and_goes_on_in_its_folder(base: abmll.LanguageModel, tmp_path: Path) -> None:
    tasks, constant = tiny_tasks(3), {"outer_schedule": "constant", "inner_schedule": "constant"}
    system = abmll.build_system({"method": {"name": "reptile", **constant}}, base)
    assert abmll.train(system, tasks, tmp_path / "one", iterations=2) == 2
    once = _theta(system)
    assert abmll.train(system, tasks, tmp_path / "two", iterations=2) == 2
    assert all(torch.equal(one, two) for one, two in zip(once, _theta(system), strict=True))
    abmll.train(system, tasks, tmp_path / "one", iterations=4)
    longer = _theta(system)
    abmll.train(system, tasks, tmp_path / "three", iterations=4)
    assert all(torch.equal(one, two) for one, two in zip(longer, _theta(system), strict=True))
    with pytest.raises(abmll.AbmllError, match="another configuration"):
        abmll.train(system, tiny_tasks(3, seed=1), tmp_path / "one", iterations=4)


def _theta(system: abmll.System) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in system.method.adapters.state_dict("shared").values()]


def test_validation_tasks_choose_the_step(base: abmll.LanguageModel, tmp_path: Path) -> None:
    *tasks, held = tiny_tasks(4)
    system = abmll.build_system({"method": {"name": "abmll"}, "tasks": {"leak_check": "off"}}, base)
    final = abmll.train(system, tasks, tmp_path / "run", validation=[held], iterations=3)
    events = [json.loads(line) for line in (tmp_path / "run/journal.jsonl").read_text().splitlines()]
    nll = {event["step"]: event["validation_nll"] for event in events if event["event"] == "step"}
    assert len(nll) == 3
    assert final == min(nll, key=nll.__getitem__)


def test_what_one_training_is_given_is_no_default_of_the_next(base: abmll.LanguageModel, tmp_path: Path) -> None:
    *tasks, held = tiny_tasks(4)
    sections = {"tasks": {"leak_check": "off"}, "training": {"iterations": 2}}
    system = abmll.build_system({"method": {"name": "reptile"}, **sections}, base)
    own = system.config
    abmll.train(system, tasks, tmp_path / "one", validation=[held], iterations=1)
    assert system.config == own
    assert abmll.train(system, tasks, tmp_path / "two") == 2
    config = abmll.load_config(abmll.RunConfig, tmp_path / "two" / "config.yaml")
    assert (config.training.iterations, config.training.validate_every, config.tasks.validation) == (2, None, None)
    with pytest.raises(abmll.AbmllError, match="another configuration"):
        abmll.train(system, tasks, tmp_path / "one")
    assert system.config == own


@pytest.mark.parametrize("method", ["structured", {"name": "abmll", "preset": "paper"}])
def test_what_is_saved_names_every_setting_of_the_method(
    method: str | dict[str, str], base: abmll.LanguageModel, tmp_path: Path
) -> None:
    """A later version may have other defaults."""
    system = abmll.build_system({"method": {"name": method} if isinstance(method, str) else method}, base)
    system.adapt(tiny_tasks(1)[0], abmll.AdaptationPlan(examples=4, steps=1))
    system.save(tmp_path / "saved")
    system.close()
    named = abmll.load_config(abmll.RunConfig, tmp_path / "saved" / "config.yaml").method.settings()
    assert named == system.method.settings.model_dump(mode="json")
    assert abmll.load_system(tmp_path / "saved", base).method.settings == system.method.settings


def test_adapting_takes_every_row_and_predictions_are_what_scores_take(base: abmll.LanguageModel) -> None:
    task = tiny_tasks(1, n_rows=25)[0]
    system = abmll.build_system("abmll", base)
    assert set(system.adapt(task)) == set(task.train)
    rows = system.predict(task.test)
    expected = np.array([answer.probabilities for answer in system.answer(task.test)])
    np.testing.assert_array_equal(np.array([row.probabilities for row in rows]), expected)
    assert len(system.adapt(task, abmll.AdaptationPlan(examples=4, steps=1))) == 4
    assert system.predict(task.test, abmll.PredictionPlan("mean"))[0].spread is None


def test_answers_by_folds_are_those_of_the_system_adapted_to_the_other_folds(base: abmll.LanguageModel) -> None:
    rows = tiny_tasks(1, n_rows=7)[0].train
    system, plan = abmll.build_system("abmll", base), abmll.AdaptationPlan(examples=5, steps=2)
    folds = (Fold((0, 2, 3, 4, 6), (5, 1)), Fold((), (0, 2, 3, 4, 6)))
    seen: list[float] = []
    found = system.answer_by_folds(rows, folds, None, lambda count: replace(plan, examples=count), seen.append)
    assert seen == [1 / 3, 2 / 3, 1, 2]
    system.adapt(abmll.Task("fold 0", tuple(rows[i] for i in folds[0].fitted)), plan)
    assert [found[5], found[1]] == list(system.answer([rows[5], rows[1]]))
    system.method.begin_task(first=True)  # theta, which the second fold is answered by
    assert [found[i] for i in folds[1].answered] == list(system.answer([rows[i] for i in folds[1].answered]))


def test_rows_that_cannot_be_learned_from_are_named(base: abmll.LanguageModel, tmp_path: Path) -> None:
    system = abmll.build_system("reptile", base)
    good = abmll.Question("good", "Was it?", ("no", "yes"), 1)
    for bad, message in (
        (abmll.Question("asked", "Is it?", ("no", "yes"), None), "answer is None"),
        (abmll.Question("asked", "Is it?", ("no", "yes"), 2), "answer is 2"),
        (abmll.Question("asked", "Is it?", ("no", "no"), 0), "different"),
    ):
        task = abmll.Task("mine", (good, bad))
        with pytest.raises(abmll.AbmllError, match=f"task mine, question 'asked': .*{message}"):
            system.adapt(task)
        with pytest.raises(abmll.AbmllError, match="question 'asked'"):
            abmll.train(system, [task], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["adapt", "predict", "meta_train"])
def test_earlier_names_say_what_takes_their_place(name: str) -> None:
    assert name not in abmll.__all__
    now = rf"abmll\.{name} is now abmll\.(System\.)?(adapt|predict|train); the old name works for one minor version"
    with pytest.warns(DeprecationWarning, match=now):
        assert callable(getattr(abmll, name))


@pytest.mark.filterwarnings("ignore:.*the old name works for one minor version:DeprecationWarning")
def test_earlier_names_take_what_they_took(base: abmll.LanguageModel, tmp_path: Path) -> None:
    """Each is called as it was before it was renamed: in its order, and by its earlier keywords."""
    *tasks, new = tiny_tasks(4)
    system = abmll.build_system({"method": {"name": "abmll", "inner_steps": 1}}, base)
    method, likelihood, batcher, plan = system.method, system.likelihood, system.batcher, abmll.AdaptationPlan(4, 1)
    resolved, events = resolve(system.config), []
    episodes, training = resolved.episodes_of(tuple(tasks)), replace(resolved.training, iterations=1)
    earlier = (World(), lambda: 1.0, events.append, system.graphs, system.training)
    arguments = (method, episodes, batcher, training)
    assert abmll.meta_train(*arguments, RunDirectory(tmp_path / "one"), *earlier) == 1
    assert [event["step"] for event in events] == [1]
    assert abmll.meta_train(*arguments, run=RunDirectory(tmp_path / "two"), world=World(), optimizers=None) == 1
    with pytest.raises(TypeError, match="once each"):
        abmll.meta_train(*arguments, RunDirectory(tmp_path / "three"), World(), world=World())
    examples = abmll.adapt(method, batcher, new, plan, 0)
    assert examples == system.adapt(new, plan, 0)
    asked, drawn = new.test[:2], abmll.PredictionPlan(samples=2)
    predicted = abmll.predict(method, likelihood, batcher, asked, drawn, place=(0,))
    assert (
        predicted
        == abmll.predict(method, likelihood, batcher, asked, drawn, (0,))
        == system.predict(asked, drawn, (0,))
    )
    assert list(abmll.list_tasks(tmp_path / "one")) == []


def test_settings_that_cannot_answer_together_are_refused_from_python_too(base: abmll.LanguageModel) -> None:
    sections = {"likelihood": {"share_prefix": False}, "adaptation": {"sampler": "activation"}}
    with pytest.raises(abmll.AbmllError, match=r"adaptation\.sampler=activation with likelihood\.share_prefix=false"):
        abmll.build_system({"method": {"name": "abmll", "training_sampler": "weight"}, **sections}, base)
    abmll.build_system("abmll", base)  # nothing was put on the model
