"""Tokens, and where somebody lives, are in nothing that a run or an export leaves behind."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from abmll.cli import app
from abmll.config import RunConfig
from abmll.errors import AbmllError
from abmll.runs.train_run import train_run
from abmll.systems.build import build_system
from abmll.tasks.sources import load_tasks
from tests.poison import mark, poisoned_base
from tests.runs import run_in
from tests.systems import run_config
from tests.tiny import save_tiny, tiny_tasks, write_tasks

PLANTED = {
    name: f"planted-{name.lower()}-0123456789" for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN")
}


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a comparison, a run, adapting and every export leave, of a model and tasks in somebody's home."""
    folder = tmp_path_factory.mktemp("secrets")
    home = folder / "home" / "ann"
    save_tiny(home / "models" / "base")
    tasks = tiny_tasks(4)
    write_tasks(home / "tasks" / "train", tasks[:2])
    write_tasks(home / "tasks" / "unseen", tasks[2:])
    recipe = {
        "model": {"source": str(home / "models" / "base"), "device": "cpu"},
        "method": {"inner_steps": 1},
        "tasks": {role: {"source": str(home / "tasks" / role)} for role in ("train", "unseen")},
        "training": {"iterations": 1},
        "tracking": {"tracker": "tensorboard"},
        "adaptation": {"examples": 4, "steps": 1, "samples": 2, "test_questions": 2},
        "systems": {"abmll": {}, "lora": {"method": {"name": "lora"}}},
        "reference": "lora",
    }
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    alone = {key: value for key, value in recipe.items() if key not in ("systems", "reference")}
    (home / "alone.yaml").write_text(yaml.safe_dump(alone))
    out, run = home / "out", str(home / "out" / "mine")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**PLANTED, "HOME": str(home)}.items():
            patch.setenv(name, value)
        for arguments in (
            ["compare", str(home / "recipe.yaml"), "-o", str(out / "compared")],
            ["train", str(home / "alone.yaml"), "-o", run],
            ["adapt", run, str(home / "tasks" / "unseen")],
            ["export", run, "-o", str(out / "lora")],
            ["export", run, "-o", str(out / "merged"), "--merge", "--force"],
            ["export", run, "-o", str(out / "calibrated"), "--calibrated"],
        ):
            found = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert found.exit_code == 0, found.output
    return out


def test_trust_47_no_planted_token_is_in_any_file(left: Path) -> None:
    files = [path for path in left.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert len([path for path in files if path.name.startswith("events.out.tfevents")]) >= 3
    assert len([path for path in files if path.name == "README.md"]) == 6
    for path in files:
        for name, value in PLANTED.items():
            assert value.encode() not in path.read_bytes(), f"{path}: {name}"


def test_trust_47_no_home_path_is_in_any_file(left: Path) -> None:
    home = str(left.parent).encode()
    found = {
        path.relative_to(left).as_posix() for path in left.rglob("*") if path.is_file() and home in path.read_bytes()
    }
    assert not found


@pytest.mark.parametrize(
    ("role", "split", "named"),
    [
        ("train", "train", "runs/mine/non-finite/step-000000-position-0/"),
        ("validation", "train", "runs/mine/non-finite/adapting-draw-0/"),
        ("validation", "test", "tiny1.test.jsonl:1, "),
    ],
)
def test_trust_47_no_journal_says_where_rows_or_runs_lie(role: str, split: str, named: str, tmp_path: Path) -> None:
    """A step that is skipped, and a validation that is not finite, say which batch or rows it was."""
    home = tmp_path / "home" / "ann"
    one, other = tiny_tasks(2)
    write_tasks(home / "clean", (one,))
    write_tasks(home / "spoilt", (mark(other, **{split: tuple(range(len(getattr(other, split))))}),))
    clean, spoilt = load_tasks(str(home / "clean")), load_tasks(str(home / "spoilt"))
    assert str(home) in getattr(spoilt[0], split)[0].location
    training = {"iterations": 1, "on_non_finite": "skip", "validate_every": 1}
    config = run_config("abmll", inner_steps=1, training=training, adaptation={"steps": 1})
    train, validation = (spoilt, clean) if role == "train" else (clean, spoilt)
    run = run_in(home / "runs" / "mine", config, train, (), validation)
    train_run(run, lambda: build_system(config, poisoned_base()))
    journal = (run.folder / "journal.jsonl").read_text()
    assert named in json.loads(journal.splitlines()[0])["why" if role == "train" else "validation_not_finite"]
    assert str(tmp_path) not in journal


def test_paths_below_home_are_kept_so_that_their_owner_can_use_them(
    left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = left.parent
    text = (left / "mine" / "config.yaml").read_text()
    assert re.search(r"source: ~/models/base$", text, re.MULTILINE)
    monkeypatch.setenv("HOME", str(home))
    config = RunConfig.model_validate({"model": {"source": str(home / "models" / "base")}})
    assert config.model.source == "~/models/base"
    assert [task.name for task in load_tasks("~/tasks/train")] == ["tiny0", "tiny1"]
    with pytest.raises(AbmllError, match="no such folder"):
        load_tasks("~nobody-of-that-name/tasks")
