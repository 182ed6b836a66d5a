"""examples/one_file_abmll.py: its losses and its predictions are those of the library's defaults, run beside it."""

import ast
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import abmll
from abmll.config import RunConfig
from abmll.methods.noise import ADAPTATION
from abmll.systems.build import build_system
from abmll.systems.plans import adaptation_plan, prediction_plan
from abmll.systems.system import System
from abmll.tasks.episodes import adaptation_batches
from tests.systems import TASKS, tiny_base, train
from tests.tiny import tiny_tasks

FILE = Path(__file__).parents[2] / "examples" / "one_file_abmll.py"
TEXT = FILE.read_text(encoding="utf-8")
ITERATIONS = 6
"""36 steps: from about 50 on, Adam has made single weights differ whose gradient is rounding in float32."""
CONFIG = RunConfig.model_validate({"model": {"shape": "tiny"}, "training": {"iterations": ITERATIONS}})
CLOSE = 1e-4
"""Relative, of losses: the library is in float32, the file in float64. One processor's rounding made 2e-6 of it."""


@pytest.fixture(scope="module")
def one_file() -> Any:
    """The file's ABMLL on the tiny model, trained, with its losses in `curve`."""
    method = runpy.run_path(str(FILE))["ABMLL"](tiny_base())
    method.curve = list(method.meta_train(TASKS, ITERATIONS))
    return method


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[System, list[dict[str, float]]]:
    """The library's default system on the same model, trained, and the losses in its journal."""
    folder = tmp_path_factory.mktemp("run")
    system, _ = train(CONFIG, folder, system=build_system(CONFIG, tiny_base()))
    rows = map(json.loads, (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    return system, [row for row in rows if row["event"] == "step"]


def test_its_losses_are_those_of_the_library_s_defaults(one_file: Any, library: Any) -> None:
    assert len(one_file.curve) == len(library[1]) == ITERATIONS
    for mine, theirs in zip(one_file.curve, library[1], strict=True):
        assert mine == pytest.approx({name: theirs[name] for name in mine}, rel=CLOSE)


def test_its_shared_weights_are_the_library_s(one_file: Any, library: Any) -> None:
    layers = library[0].method.adapters.layers.values()
    for mine, theirs in zip(one_file.layers, layers, strict=True):
        expected = dict(theirs.shared.named_parameters())
        for name, value in mine.theta.named_parameters():
            assert value.detach().numpy() == pytest.approx(expected[name].detach().numpy(), abs=1e-5), name


def test_its_predictions_on_a_new_task_are_the_library_s(one_file: Any, library: Any) -> None:
    task, plan = tiny_tasks(1, seed=5)[0], adaptation_plan(CONFIG)
    _, batches = adaptation_batches(
        task, examples=plan.examples, steps=plan.steps, batch_size=plan.batch_size, seed=plan.seed, draw=0
    )
    one_file.learn(batches, plan.seed, ADAPTATION, 0)
    library[0].adapt(task, plan, 0)
    for predicted in library[0].predict(task.test, prediction_plan(CONFIG), ("posterior",)):
        question = next(q for q in task.test if q.id == predicted.id)
        mine = one_file.predict(question, "posterior").numpy()
        assert mine == pytest.approx(np.array(predicted.probabilities), abs=5e-5)
        assert predicted.spread is not None
        assert max(predicted.spread) > 5e-4, "the draws agree so closely that this shows nothing of them"


def test_it_takes_nothing_but_model_and_tasks_and_is_short() -> None:
    names = [n for n in ast.walk(ast.parse(TEXT)) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    used = {node.attr for node in names if node.value.id == "abmll"}
    assert used == {"random_model", "load_tasks", "LanguageModel", "Question", "Task"}
    assert used <= set(abmll.__all__)
    assert "from abmll" not in TEXT
    assert len(TEXT.splitlines()) <= 150


def test_it_runs_as_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(FILE), run_name="__main__")
    *losses, last = capsys.readouterr().out.splitlines()
    assert len(losses) == 5
    assert "probabilities" in last
