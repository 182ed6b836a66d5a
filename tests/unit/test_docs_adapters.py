"""docs/adapters-and-exports.md: its Python runs as it stands, then its commands, in order, on a tiny model."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from abmll.adapters.folder import read_adapter
from abmll.cli import main
from abmll.everyday.saved import list_posteriors
from abmll.files import write_text
from tests.everyday import asked, write_asked
from tests.fake_hub import FakeRunHub
from tests.runs import UNSEEN, config_in, place_tiny, train_run
from tests.tiny import tiny_model, write_tasks

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "adapters-and-exports.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (abmll [^#\n]+)", TEXT, re.MULTILINE)
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SMALL = ["training.iterations=1", "model.source=model", "model.device=cpu", "tasks.train.source=train"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page speaks of: a model, a run, a task of one's own, recipes, a LoRA by stock PEFT."""
    folder = place_tiny(tmp_path_factory.mktemp("page"))
    config = config_in(folder)
    write_text(folder / "runs" / "mine" / "config.yaml", config.to_yaml())
    train_run(config, folder / "runs" / "mine")
    write_tasks(folder, (type(UNSEEN)("my", UNSEEN.train, UNSEEN.test),))
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model(), lora).save_pretrained(folder / "some-lora")
    return folder


def test_the_page_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(BLOCKS) == 3
    assert {command.split()[1] for command in COMMANDS} == {"export", "train", "push", "predict"}
    monkeypatch.chdir(place)
    hub = FakeRunHub(place / "cache").install(monkeypatch)
    write_asked(place / "rows.jsonl", [{k: v for k, v in row.items() if k != "answer"} for row in asked(3)])
    for block in BLOCKS:
        exec(compile(block, "adapters-and-exports.md", "exec"), {})
    assert [task.name for task in list_posteriors(place / "runs" / "mine")] == ["mine"]
    for command in COMMANDS:
        commit = next((commit for _, commit in hub.commits), "")
        arguments = shlex.split(command.replace("COMMIT", commit)) + (
            SMALL if command.startswith("abmll train") else []
        )
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, command
    for name in ("lora", "merged", "draw-0", "served", "wide", "mine-served"):
        assert (place / name / "export.json").exists()
    assert len((place / "out.csv").read_text().splitlines()) == 4
    assert read_adapter(place / "runs" / "started" / "adapter").facts.rank == 4
