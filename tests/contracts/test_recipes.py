"""Every recipe's values are valid, and each runs two steps with a tiny model and tiny tasks in place of its own."""

from pathlib import Path

import pytest
import yaml

import abmll
from abmll.config import CompareConfig, RunConfig, load_config
from abmll.methods import resolve_settings
from abmll.runs.compare import run_comparison
from abmll.runs.prepare import tasks_of
from abmll.runs.train_run import train_run
from abmll.systems.build import build_system, load_base
from abmll.systems.plans import method_settings
from abmll.tasks.catalogue.entries import catalogue_entry
from tests.runs import run_in
from tests.tiny import save_tiny, tiny_tasks, write_tasks

RECIPES = sorted((Path(abmll.__file__).parent / "recipes").glob("*.yaml"))
WITHIN = {"rivals": "table-1", "one-set": "table-1", "one-set-winogrande": "table-1"}
"""Recipes all of whose methods and posteriors another one has: that one is run for both."""
SMALL = ("training.iterations=2", "adaptation.steps=2", "adaptation.test_questions=3", "adaptation.samples=2")


def _kind(path: Path) -> type[RunConfig]:
    return CompareConfig if "systems" in yaml.safe_load(path.read_text(encoding="utf-8")) else RunConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and tiny tasks for each role."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder / "model")
    write_tasks(folder / "train", tiny_tasks(3))
    write_tasks(folder / "validation", tuple(_renamed(tiny_tasks(1, seed=5), "validation")))
    write_tasks(folder / "unseen", tuple(_renamed(tiny_tasks(1, seed=9), "unseen")))
    return folder


def _small(path: Path, folder: Path) -> list[str]:
    """Overrides that put the tiny model and tiny tasks into a recipe."""
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    roles = [role for role in ("train", "unseen", "validation") if role in ("train", "unseen", *given["tasks"])]
    found = [*SMALL, f"model.source={folder / 'model'}", *(f"tasks.{role}.source={folder / role}" for role in roles)]
    found += [f"tasks.{role}.names=null" for role in roles]
    found += ["tasks.leak_check=off"]  # tiny tasks are of one pattern, and some rows repeat
    found += ["seeds=[0]"] if "systems" in given else []
    found += ["adaptation.draws=1"]  # more of them are more of the same
    found += ["curve=1"] if "systems" in given else []
    if "validation" in roles:
        found += ["training.validate_every=1", "adaptation.folds=2"]
    elif (
        path.stem == "table-1"
    ):  # so many systems that they take their time; tests/unit/test_paper_recipes.py has folds
        found += ["adaptation.folds=0", "adaptation.examples=6"]
    return found


def _renamed(tasks, name: str):
    return (type(task)(f"{name}{i}", task.train, task.test) for i, task in enumerate(tasks))


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"quickstart", "paper", "paper-variance", "six-systems", "builtin"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_real_values_are_valid(path: Path) -> None:
    config = load_config(_kind(path), path)
    runs = [config.run(name, 0) for name in config.systems] if isinstance(config, CompareConfig) else [config]
    for run in runs:
        settings = resolve_settings(run.method.name, run.method.preset, run.method.settings())
        assert method_settings(run) == settings
    for source in (config.tasks.train, config.tasks.unseen):
        if source is not None and source.source.startswith("builtin"):
            assert all(len(task.train) >= 12 for task in tasks_of(source))


def _made_of(path: Path) -> set[tuple[str, str, str]]:
    """Method, posterior and its preset of every system."""
    config = load_config(CompareConfig, path)
    runs = [config.run(name, 0) for name in config.systems]
    return {(run.method.name, run.posterior.name, run.posterior.preset) for run in runs}


@pytest.mark.parametrize("name", WITHIN)
def test_a_recipe_that_is_not_run_has_nothing_that_the_other_has_not(name: str) -> None:
    paths = {path.stem: path for path in RECIPES}
    assert _made_of(paths[name]) <= _made_of(paths[WITHIN[name]])


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem not in WITHIN], ids=lambda path: path.stem)
def test_it_runs_two_steps(path: Path, folder: Path, tmp_path: Path) -> None:
    config = load_config(_kind(path), path, _small(path, folder))
    if isinstance(config, CompareConfig):
        run_comparison(config, tmp_path, lambda: load_base(config.model))
        assert len(list(tmp_path.glob("*/seed-0/cost.json"))) == len(config.systems)
        return
    assert train_run(run_in(tmp_path, config), lambda: build_system(config, load_base(config.model))) == 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_sets_of_the_hub_that_are_named_are_there_to_be_had(path: Path) -> None:
    """In the catalogue, on the hub, with the rows of their role; and so many as the comment says."""
    tasks = load_config(_kind(path), path).tasks
    for role in ("train", "validation", "unseen"):
        source = getattr(tasks, role)
        if source is None or not source.source.startswith("hub"):
            continue
        names = source.names or (source.source.removeprefix("hub:"),)
        assert {"train"} | ({"test"} if role != "train" else set()) <= set.intersection(
            *(set(catalogue_entry(name).splits) for name in names)
        )
        assert all(catalogue_entry(name).hub for name in names)
        assert (len(set(names)) == len(names) == 34) == (role == "train")
    assert path.stem not in ("llama3-8b", "paper", "paper-variance") or tasks.unseen.source == "hub:winogrande"
