"""docs/everyday.md and docs/notebook.ipynb: every command and every cell runs, in order, on a tiny model."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from abmll.cli import main
from abmll.everyday import bases, shipped
from abmll.everyday import saved as saved_tasks
from abmll.everyday.ship import ship
from abmll.metrics.abstention import rows_needed
from tests.everyday import asked, place_run, texts, write_asked, write_csv, write_texts

BASE = "qwen2.5-coder-1.5b"
"""The base that the page speaks of; a tiny one here."""
DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "everyday.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (abmll [^#\n]+)", TEXT, re.MULTILINE)
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
CELLS = [
    c for c in json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page speaks of, with a tiny run as the one that comes along."""
    folder = place_run(tmp_path_factory.mktemp("page"), adaptation={"samples": 2})
    ship(folder / "runs" / "mine", "smollm2", folder / "here")
    write_texts(folder / "reviews.csv", 94)
    write_csv(folder / "new.csv", ["nr", "text"], [[n, text] for n, (text, _) in enumerate(texts(9, seed=4))])
    teams = ("billing", "login", "other")
    tickets = [{"body": text, "team": teams[n % 3]} for n, (text, _) in enumerate(texts(24))]
    write_asked(folder / "tickets.jsonl", tickets)
    write_asked(folder / "more.jsonl", [{"body": row["body"], "from": "me"} for row in tickets[:5]])
    rows = asked(12)
    write_asked(folder / "quiz.jsonl", rows)
    write_asked(folder / "quiz-new.jsonl", [{k: v for k, v in row.items() if k != "answer"} for row in rows[:4]])
    shutil.copytree(folder / "model", folder / "SmolLM2-135M-Instruct")
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "HERE", place / "here")
    small = [replace(base, source="model") if base.name == BASE else base for base in bases.known_bases()]
    monkeypatch.setattr(bases, "known_bases", lambda: tuple(small))
    monkeypatch.chdir(place)


def _hold_well(place: Path) -> None:
    """A tiny model keeps no promise: as if the rows held back had been answered rightly."""
    file = place / "runs" / "model" / "tasks" / "safe" / "task.json"
    values = json.loads(file.read_text())
    details = values["details"]
    details["held_back"]["answers"] = [p.index(max(p)) for p in details["held_back"]["probabilities"]]
    saved_tasks.write_details(file.parents[2], "safe", details)


def test_the_commands_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [command.split()[1] for command in COMMANDS].count("predict") == 6
    for command in COMMANDS:
        arguments = shlex.split(command)
        if arguments[1] == "adapt" and "--in-prompt" not in arguments:
            arguments += ["adaptation.steps=2"] if "reviews" in arguments else ["adaptation.steps=2", "--no-check"]
        if "--abstain-below-risk" in arguments:
            _hold_well(place)
        if arguments[1] == "watch":  # what a user does by hand
            table = pd.read_csv(place / "sure.csv")
            table.assign(label=table["prediction"]).to_csv(place / "sure.csv", index=False)
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, command
    assert list(pd.read_csv(place / "labelled.csv").columns)[:3] == ["nr", "text", "prediction"]
    assert len(pd.read_csv(place / "sure.csv")) == 9
    assert pd.read_json(place / "routed.jsonl", lines=True)["prediction"].isin(["billing", "login", "other"]).all()
    assert len(pd.read_json(place / "quiz-answers.jsonl", lines=True)) == 4


def test_the_python_runs(place: Path) -> None:
    (block,) = BLOCKS
    write_texts(place / "reviews.csv", 16)
    exec(compile(block, "everyday.md", "exec"), {})
    assert (place / "my-classifier" / "classifier.json").exists()


def test_the_notebook_runs(place: Path) -> None:
    names: dict[str, object] = {}
    assert len(CELLS) >= 5
    for number, cell in enumerate(CELLS):
        exec(compile("".join(cell["source"]), f"notebook.ipynb, cell {number}", "exec"), names)
    assert isinstance(names["table"], pd.DataFrame)


def test_the_numbers_of_rows_are_right() -> None:
    table = dict(re.findall(r"^\| (\d+) % \| (\d+) \|$", TEXT, re.MULTILINE))
    assert len(table) == 4
    assert {risk: str(rows_needed(int(risk) / 100)) for risk in table} == table
