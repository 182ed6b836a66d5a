"""Whatever of a run directory is cut short or has a flipped bit is refused or told, never used as it is."""

import logging
import shutil
from pathlib import Path

import pytest

from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.metrics.predictions import read_predictions
from abmll.running.rundir import FORMAT, Checkpoint, RunDirectory
from tests.survival.children import command, in_child
from tests.survival.damage import campaign
from tests.survival.places import place_comparison, rows, trainer

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoint-format-1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run directory of a finished comparison."""
    place = place_comparison(tmp_path_factory.mktemp("damage"))
    child = in_child(command(place, "compare", "compare.yaml", "-o", "out"), place / "said.txt")
    assert child.wait() == 0, child.text()
    return place / "out" / "abmll" / "seed-0"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_trust_09_damage_to_any_file_of_a_run_is_never_used(run: Path) -> None:
    tally = campaign(run, times=1)
    kinds = {"config.yaml", "origin.json", "journal.jsonl", "cost.json", "adapter/*", "predictions/*"}
    assert kinds | {f"checkpoints/{n}" for n in ("COMPLETE", "shared.safetensors", "state.json")} <= tally.keys()


def test_trust_09_a_digit_that_changed_in_a_prediction_or_a_configuration_is_noticed(run: Path) -> None:
    file = next(run.glob("predictions/**/*.jsonl"))
    text = file.read_text()
    probability = text.split('"probabilities": [')[1].split(",")[0]
    file.write_text(text.replace(probability, probability[:-1] + str((int(probability[-1]) + 1) % 10), 1))
    with pytest.raises(AbmllError, match="damaged or edited"):
        read_predictions(file)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("rank: 3", "rank: 2"))
    with pytest.raises(AbmllError, match="damaged or edited since the run wrote it"):
        load_config(RunConfig, config)


def test_trust_09_strict_refuses_to_go_back(tmp_path: Path) -> None:
    trainer("lora", tmp_path, 3)()
    (tmp_path / "checkpoints" / "step-000003" / "state.json").write_bytes(b"{}")
    with pytest.raises(AbmllError, match=r"state\.json: damaged .*--strict goes back to no earlier one"):
        RunDirectory(tmp_path, strict=True).latest()
    found = RunDirectory(tmp_path).latest()
    assert found is not None
    assert found.step == 2


def test_trust_09_strict_on_the_command_line(tmp_path: Path) -> None:
    place = place_comparison(tmp_path)
    assert in_child(command(place, "train", "train.yaml", "-o", "run"), place / "said.txt").wait() == 0
    newest = place / "run" / "checkpoints" / "step-000004" / "shared.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    child = in_child(command(place, "train", "train.yaml", "-o", "run", "--strict"), place / "said.txt")
    assert child.wait() == 2
    assert "--strict" in child.text()
    assert "Traceback" not in child.text()
    child = in_child(command(place, "train", "train.yaml", "-o", "run"), place / "said.txt")
    assert child.wait() == 0, child.text()
    assert "going back to an earlier one" in child.text()


def test_trust_09_a_run_without_any_good_checkpoint_is_not_begun_again(tmp_path: Path) -> None:
    trainer("lora", tmp_path, 2)()
    before = rows(tmp_path)
    for step in RunDirectory(tmp_path).steps():
        (RunDirectory(tmp_path).checkpoint_path(step) / "shared.safetensors").unlink()
    with pytest.raises(AbmllError, match="none is whole"):
        trainer("lora", tmp_path, 2)()
    assert rows(tmp_path) == before


def test_a_renamed_checkpoint_is_noticed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.save(Checkpoint(2, {}, {}, {}))
    run.checkpoint_path(2).rename(run.checkpoint_path(7))
    with pytest.raises(AbmllError, match="holds the checkpoint of step 2"):
        run.load(7)


def test_a_damaged_journal_is_told_and_its_good_lines_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer("lora", tmp_path, 3)()
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], lines[1].replace('"nll"', '"nl'), *lines[2:]]) + "\n")
    with caplog.at_level(logging.WARNING):
        trainer("lora", tmp_path, 4)()
    assert "damaged before step 3" in caplog.text
    assert "lines [2] cannot be read" in caplog.text
    assert [row["step"] for row in rows(tmp_path)] == [1, 3, 4, 4]


def test_trust_06_checkpoints_of_this_format_load_and_of_another_are_named(tmp_path: Path) -> None:
    """The golden one was written by the first version that has this format."""
    assert (FORMAT, sum(p.stat().st_size for p in GOLDEN.rglob("*") if p.is_file()) < 1 << 20) == (1, True)
    run = RunDirectory(Path(shutil.copytree(GOLDEN, tmp_path / "run")))
    found = run.latest()
    assert found is not None
    assert (found.step, found.state["skipped"]) == (3, 0)
    trainer("carries everything", run.path, 4)()
    assert [row["step"] for row in rows(run.path)] == [1, 2, 3, 4, 4]
    newer = RunDirectory(tmp_path / "newer")
    newer.save(Checkpoint(1, {}, {}, {"format": FORMAT + 1}))
    with pytest.raises(AbmllError, match="a checkpoint of format 2, this version reads format 1"):
        newer.latest()
