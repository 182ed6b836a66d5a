"""The command line as a user meets it: the README's commands, --dry-run, and mistakes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from abmll import cli
from abmll.cli import main
from abmll.everyday import bases
from abmll.process.stopping import Stopped
from tests.everyday import texts, write_csv, write_texts
from tests.tiny import save_tiny, tiny_tasks, write_tasks

ROOT = Path(__file__).parents[2]
PAGES = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/overview.md"))
COMMANDS = re.findall(r"^    (abmll [^#\n]+)", PAGES, re.MULTILINE)
"""Of the README, then of the page that goes on from it."""
BASE = "qwen2.5-coder-1.5b"
"""The base that the README speaks of; a tiny one here."""
SMALL = [
    "training.iterations=2",
    "adaptation.steps=2",
    "adaptation.test_questions=3",
    "adaptation.samples=2",
    "model.source=model",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's commands name, and a tiny model."""
    folder = tmp_path_factory.mktemp("readme")
    save_tiny(folder / "model")
    tasks = tiny_tasks(5)
    write_tasks(folder / "train", tasks[:3])
    write_tasks(folder / "unseen", tasks[3:])
    write_texts(folder / "my.csv", 8)
    write_csv(folder / "rows.csv", ["text"], [[text] for text, _ in texts(4, seed=1)])
    return folder


def abmll(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "abmll", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=240, env=environment, check=False)


def test_the_commands_of_the_readme_run_in_order(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    small = [replace(base, source="model") if base.name == BASE else base for base in bases.known_bases()]
    monkeypatch.setattr(bases, "known_bases", lambda: tuple(small))
    verbs = {"bases", "compare", "train", "adapt", "predict", "score", "report", "doctor", "export"}
    assert {command.split()[1] for command in COMMANDS} == verbs
    for command in COMMANDS:
        arguments = shlex.split(command)[1:]
        if arguments[0] in ("train", "compare"):
            arguments += SMALL + (["seeds=[0]"] if arguments[0] == "compare" else [])
        monkeypatch.setattr(sys, "argv", ["abmll", *arguments])
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr().err
        assert not done.value.code, f"{command}\n{said}"
        assert "Traceback" not in said
    for name in ("table.md", "results.json", "report.html"):
        assert (place / "runs" / "six" / name).stat().st_size > 200
    summary = json.loads((place / "runs" / "six" / "results.json").read_text())
    assert {"pretrained", "lora", "structured", "reptile", "fomaml", "abmll", "uniform"} <= summary["systems"].keys()


MISTAKES = {
    "no such recipe": (["train", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    "unknown setting": (["train", "builtin", "training.iteration=3"], "Did you mean iterations"),
    "unknown method": (["train", "builtin", "method.name=reptil"], "Did you mean 'reptile'"),
    "setting of another method": (
        ["train", "builtin", "method.name=lora", "method.task_kl_weight=1"],
        "task_kl_weight",
    ),
    "not an override": (["train", "builtin", "hello"], "section.key=value"),
    "a comparison to train": (["train", "quickstart"], "systems"),
    "no such tasks": (["train", "builtin", "tasks.train.source=nowhere"], "nowhere"),
    "no such run": (["adapt", "nowhere"], "nowhere"),
    "nothing to score": (["score", "model"], "no predictions"),
    "somebody else's file to score": (["score", "rows.csv"], "rows.csv:1: not a predictions file"),
    "a file to write into": (["train", "builtin", "-o", "rows.csv"], "rows.csv: a file is there"),
    "nothing to report": (["report", "model"], "model"),
    "no such target": (["compare", "quickstart", "--only", "lora.seed-7"], "'lora.seed-7' is no target"),
    "what jobs ask for, without jobs": (
        ["compare", "quickstart", "--slurm", "time=5"],
        "--launcher slurm is not given",
    ),
    "no such layer": (["train", "builtin", "model.source=model", "adapter.targets=[query]"], "q_proj"),
}


def test_a_dry_run_lists_the_targets(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    call = ["abmll", "compare", "quickstart", *SMALL, "seeds=[0,3]", "-o", "dry", "--dry-run"]
    for only, expected in (([], 10), (["--only", "lora", "--only", "abmll.seed-3"], 3)):
        monkeypatch.setattr(sys, "argv", [*call, *only])
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code
        listed = capsys.readouterr().out.split("targets in dry: ")[1].splitlines()
        assert listed[0] == f"{expected}, of which 0 are there"
        assert len(listed) == expected + 1
        assert {"lora.seed-0", "lora.seed-3", "abmll.seed-3"} <= set(listed)
    assert not (place / "dry").exists()


@pytest.mark.parametrize("kind", ["no such recipe", "no such layer"])
def test_a_mistake_is_one_message_and_exit_code_2_of_the_process(place: Path, kind: str) -> None:
    arguments, message = MISTAKES[kind]
    done = abmll(place, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (place / "runs" / "builtin-abmll" / "checkpoints").exists()


@pytest.mark.parametrize("kind", MISTAKES)
def test_every_mistake_names_what_to_do(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = MISTAKES[kind]
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["abmll", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_dry_run_shows_configuration_steps_and_memory_and_makes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["abmll", "train", "builtin", "model.source=model", "-o", "dry", "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "name: builtin-abmll" in shown
    assert "1,800 on 3,600 examples" in shown
    assert "inner_lr=0.0003, inner_steps=5" in shown, "settings that nobody gave are part of what is resolved"
    assert "GiB" in shown
    assert not (place / "dry").exists()


@pytest.mark.parametrize(
    ("command", "wrong", "said"),
    [
        ("compare six-systems", "tasks.unseen.source=train", "both trained on and held out"),
        ("compare six-systems", "adaptation.examples=1000", "adaptation wants 1000"),
        ("train builtin", "method.batch_size=500", "rows"),
        ("train builtin", "tracking.tracker=mlflow", "pip install mlflow"),
    ],
)
def test_dry_run_refuses_what_the_run_would_refuse(
    command: str,
    wrong: str,
    said: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    sources = ["tasks.train.source=train", "tasks.unseen.source=unseen", "model.source=model"]
    for flags in (["--dry-run"], []):
        monkeypatch.setattr(sys, "argv", ["abmll", *command.split(), *sources, wrong, *flags])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(("saved", "said"), [("", "does what is missing"), ("step 3 is saved", "goes on from there")])
def test_a_stop_promises_no_more_than_was_saved(
    saved: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`abmll predict` keeps nothing: it begins again."""

    def stopped(**options: object) -> None:
        raise Stopped(signal.SIGTERM, saved)

    monkeypatch.setattr(cli, "app", stopped)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 143
    assert f"the same command {said}" in capsys.readouterr().err
