"""The paper's Table 1 and Figure 2 by one command, and fine-tuning on one whole set: from a recipe to its report."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from abmll.config import merge
from abmll.config.recipes import FOLDER
from abmll.metrics.predictions import read_predictions
from tests.commands import Command, command
from tests.tiny import save_tiny, tiny_tasks, write_tasks

LOCAL = "model.source=model model.dtype=float32 tasks.leak_check=off tasks.unseen.source=unseen"
"""A tiny model and tiny tasks; of one pattern, so that some rows repeat."""
SMALL = "training.iterations=2 adaptation.steps=2 adaptation.samples=2 adaptation.test_questions=4"


def systems_of(name: str) -> dict[str, dict[str, Any]]:
    recipe = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(recipe["systems"], dict)
    return recipe["systems"]


@pytest.fixture
def abmll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model")
    tasks = tiny_tasks(3, n_rows=16, n_test=4)
    write_tasks(tmp_path / "train", tasks[:2])
    write_tasks(tmp_path / "unseen", tasks[2:])
    return command(monkeypatch, capsys)


def answers(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("draw-0/*.jsonl")}


def test_table_1_has_the_papers_systems_and_every_rival() -> None:
    table, rivals = systems_of("table-1"), systems_of("rivals")
    prompts = {"metaicl", "metaicl-steps", "metaicl-channel", "in-context", "maml-en-llm", "maml-en-llm-as-published"}
    assert set(table) == set(systems_of("llama3-8b")) | set(rivals)
    for name, system in table.items():
        same = dict(rivals.get(name) or systems_of("llama3-8b")[name])
        assert system == (merge(same, {"likelihood": {"max_tokens": 1024}}) if name in prompts else same)


def test_table_1_and_figure_2_by_one_command_which_goes_on(abmll: Command, tmp_path: Path) -> None:
    """Two of the systems; `contracts/test_recipes.py` runs all of them."""
    given = f"{LOCAL} {SMALL} tasks.train.source=train tasks.train.names=null adaptation.examples=6 adaptation.folds=2"
    line = f"compare table-1 {given} curve=2 -o out"
    some = " ".join(f"--only {name}" for name in ("abmll", "laplace"))
    code, _, err = abmll(f"{line} {some}")
    assert code == 0, err
    made = answers(tmp_path / "out")
    lost = next(path for path in made if "laplace" in path.parts)
    lost.unlink()  # its mean weights answer with it
    code, _, err = abmll(f"{line} {some}")
    assert code == 0, err
    again = answers(tmp_path / "out")
    kept = {path for path, (time, _) in made.items() if again[path][0] == time}
    assert {path.relative_to(tmp_path / "out").parts[0] for path in made.keys() - kept} == {"laplace", "laplace_mean"}
    assert {path: said for path, (_, said) in again.items()} == {path: said for path, (_, said) in made.items()}

    code, _, err = abmll("report out")
    assert code == 0, err
    table = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    header, _, *rows = [line for line in table.splitlines() if line.startswith("|")][:6]
    for title in ("Accuracy %", "NLL posterior", " NLL |", "ECE |", "ECE letter"):
        assert title in header
    assert [row.split()[1] for row in rows] == ["abmll", "abmll_mean", "laplace", "laplace_mean"]
    assert "maml" in table.split("## Missing")[1], "what was not made is named"
    summary = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    points = {name: [point["examples_consumed"] for point in points] for name, points in summary["curve"].items()}
    assert points["abmll"] == [0, 24]
    assert points["laplace"] == [0], "nothing is meta-trained"
    assert (tmp_path / "out/figures/learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_one_whole_set_is_fine_tuned_on(abmll: Command, tmp_path: Path) -> None:
    line = f"compare one-set {LOCAL} {SMALL} --only mle --only blob -o out"
    code, _, err = abmll(line)
    assert code == 0, err
    for name in ("mle", "blob", "blob_mean"):
        (file,) = (tmp_path / "out" / name).rglob("examples-*/draw-0/*.jsonl")
        found = read_predictions(file)
        assert len(found.adaptation_rows) == 16, "all train rows"
        assert found.examples_consumed == 0, "no meta-training"


def test_winogrande_has_a_recipe_of_its_own_with_the_same_systems() -> None:
    one, other = (yaml.safe_load((FOLDER / f"{n}.yaml").read_text("utf-8")) for n in ("one-set", "one-set-winogrande"))
    assert one["systems"] == other["systems"]
    assert {**one["adaptation"], "examples": 640} == other["adaptation"]
    assert other["tasks"]["unseen"]["source"] == "hub:winogrande" != one["tasks"]["unseen"]["source"]
