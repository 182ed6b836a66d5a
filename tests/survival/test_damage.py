"""Whatever of a run directory is cut short or has a flipped bit is refused or told, never used as it is."""

import hashlib
import json
import logging
import random
import shutil
from pathlib import Path

import pytest

from abmll.classifier import Classifier
from abmll.config import CompareConfig, RunConfig, load_config
from abmll.errors import AbmllError
from abmll.everyday.adapt import fresh_answers, saved_answers
from abmll.everyday.labelled import Labelled
from abmll.everyday.saved import read_posterior
from abmll.everyday.session import open_run
from abmll.files import SEAL, read_sealed_json, write_json, write_sealed_json
from abmll.metrics.predictions import read_predictions
from abmll.models.gguf import find_damage
from abmll.runs.compare import run_comparison
from abmll.tables.layouts import Layout
from abmll.training.checkpoints import FORMAT, Checkpoint, RunDirectory
from tests.survival.children import command, in_child
from tests.survival.damage import campaign, damaged, delete, swapped
from tests.survival.places import place_comparison, rows, trainer
from tests.survival.trusted import KINDS, _never, build_place, inside, unknown

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoint-format-1"


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with every kind of file that is read again."""
    return build_place(tmp_path_factory.mktemp("trusted"))


@pytest.fixture
def place(trusted: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(trusted, tmp_path / "place"))


@pytest.fixture
def run(place: Path) -> Path:
    """One run directory of it."""
    return place / "out" / "abmll" / "seed-0"


def test_trust_09_no_file_is_trusted_that_this_campaign_and_the_documentation_do_not_know(place: Path) -> None:
    assert unknown(place) == []
    for kind in KINDS:
        assert kind.found(place), f"the place has no file of kind {kind.name}"
    text = (ROOT / "docs" / "survival.md").read_text(encoding="utf-8")
    table = text.split("## What is trusted is sealed")[1].split("## ")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[1:] == [kind.name for kind in KINDS]


def test_trust_09_what_is_not_as_it_was_written_is_never_used_without_a_word(place: Path) -> None:
    tally = campaign(place, times=1, files=1)
    assert tally.keys() == {kind.name for kind in KINDS if kind.read is not None}
    for outcomes in tally.values():
        assert {"flip", "truncate", "edit", "delete"} <= {what.split(":")[0] for what in outcomes}


SEED = "out/abmll/seed-0"
CELL = f"{SEED}/predictions/{{}}/draw-0/tiny3.jsonl"
EXCHANGED = {  # two whole files, each in the place of the other
    "cost of two seeds": (f"{SEED}/cost.json", "out/abmll/seed-1/cost.json"),
    "environment of two systems": (f"{SEED}/environment.json", "out/lora/seed-0/environment.json"),
    "predictions before and after adapting": (CELL.format("before-adaptation"), CELL.format("examples-00000008")),
    "configurations of two seeds": (f"{SEED}/config.yaml", "out/abmll/seed-1/config.yaml"),
    "checkpoints of two steps": tuple(f"{SEED}/checkpoints/step-00000{n}/shared.safetensors" for n in (1, 2)),
    "states of two steps": tuple(f"{SEED}/checkpoints/step-00000{n}/state.json" for n in (1, 2)),
    "means of two tasks": tuple(f"{SEED}/tasks/{name}/adapter_model.safetensors" for name in "ab"),
    "details of two tasks": tuple(f"{SEED}/tasks/{name}/task.json" for name in "ab"),
    "probes of two runs": (f"{SEED}/probe.json", "out/abmll/seed-1/probe.json"),
    "labels of two estimators": ("saved-0/classifier.json", "saved-1/classifier.json"),
}


@pytest.mark.parametrize("what", EXCHANGED)
def test_trust_09_a_whole_file_in_the_place_of_another_is_noticed(what: str, place: Path) -> None:
    one, other = map(Path, EXCHANGED[what])
    kind = next(kind for kind in KINDS if one in kind.found(place))
    assert swapped(kind, place, one, other) == "refused"


def test_trust_09_a_whole_cached_model_in_the_place_of_another_is_built_again(place: Path) -> None:
    one, other = (place / "cache" / name for name in ("one-0123", "two-4567"))
    assert [find_damage(folder) for folder in (one, other)] == ["", ""]
    one.rename(place / "aside")
    other.rename(one)
    assert "belongs elsewhere" in find_damage(one)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{SEED}/origin.json", "told"),
        (f"{SEED}/journal.jsonl", "told"),
        (f"{SEED}/environment.json", "made again"),
        (f"{SEED}/cost.json", "made again"),
        (CELL.format("before-adaptation"), "made again"),
        (f"{SEED}/predictions/before-adaptation/draw-0/tiny4.not-finite.json", "made again"),
        (f"{SEED}/checkpoints/step-000002/COMPLETE", "refused"),
        (f"{SEED}/tasks/a/task.json", "refused"),
        ("out/comparison.json", "refused"),
    ],
)
def test_trust_09_a_file_that_is_missing_is_missed(path: str, expected: str, place: Path) -> None:
    kind = next(kind for kind in KINDS if Path(path) in kind.found(place))
    assert damaged(kind, place, Path(path), delete, random.Random(0))[1] == expected


@pytest.mark.parametrize("what", ["promise", "layout", "another task's", "another adapter's", "renamed", "no seal"])
def test_trust_09_a_saved_task_is_what_was_saved_with_this_adapter_or_promises_nothing(
    what: str, place: Path, run: Path
) -> None:
    """Wrong answers made right were once believed: a threshold was promised that the rows held back had refused."""
    file, other = (run / "tasks" / name / "task.json" for name in "ab")
    text = file.read_text()
    if what == "promise":
        edited = json.loads(text)
        held_back = edited["details"]["held_back"]
        held_back["answers"] = [1 - answer for answer in held_back["answers"]]
        file.write_text(json.dumps(edited))
    elif what == "layout":
        file.write_text(text.replace('"bad"', '"sad"', 1))
    elif what == "another task's":
        file.write_text(other.read_text())
    elif what == "another adapter's":
        for name in ("abmll.safetensors", "adapter_model.safetensors"):
            shutil.copy(other.with_name(name), file.with_name(name))
    elif what == "renamed":
        other.parent.rename(run / "tasks" / "c")
        file.parent.rename(run / "tasks" / "b")
        (run / "tasks" / "c").rename(run / "tasks" / "a")
    else:
        values = json.loads(text)
        values.pop(SEAL)
        file.write_text(json.dumps(values))
    if what != "no seal":
        with pytest.raises(AbmllError, match=r"task\.json: damaged or edited .* adapt again with `abmll adapt"):
            read_posterior(run, "a")
        return
    with inside(place):
        saved = read_posterior(Path("out/abmll/seed-0"), "a")
        session = open_run(Path("out/abmll/seed-0"), saved=saved)
    assert saved is not None
    assert not saved.sealed
    for promise in (saved_answers, lambda session, task: fresh_answers(session, task, Labelled(Layout(), ()))):
        with pytest.raises(AbmllError, match=r"no SHA-256 .* so nothing can be promised by it; adapt again"):
            promise(session, saved)


def test_trust_06_a_saved_task_of_version_0_1_0_loads_and_says_that_it_promises_nothing(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As it wrote them: no seal, and keys in this order."""
    file = run / "tasks" / "a" / "task.json"
    before = read_posterior(run, "a")
    write_json(file, {"name": "a", "details": before.details})
    with caplog.at_level(logging.WARNING):
        after = read_posterior(run, "a")
    assert (after.details, after.sealed, before.sealed) == (before.details, False, True)
    assert "it is taken as it is, but promises nothing" in caplog.text


def test_trust_09_an_estimator_does_not_take_the_labels_of_another(place: Path) -> None:
    one, other = (place / f"saved-{number}" / "classifier.json" for number in (0, 1))
    text = one.read_text()
    one.write_text(other.read_text())
    with pytest.raises(AbmllError, match=r"classifier\.json: damaged .*belongs elsewhere; fit and save again"):
        Classifier.load(one.parent)
    one.write_text(text.replace('"good"', '"bad"').replace('"bad"', '"good"', 1))
    with pytest.raises(AbmllError, match="damaged or edited"):
        Classifier.load(one.parent)
    values = json.loads(text)
    values.pop(SEAL)
    one.write_text(json.dumps(values))
    with pytest.raises(AbmllError, match=r"classifier\.json: has no SHA-256 of its own"):
        Classifier.load(one.parent)
    one.write_text(json.dumps({**values, "abmll_classifier": 1}))  # as version 0.1.0 wrote it
    with inside(place):
        assert Classifier.load(Path("saved-0")).classes_.tolist() == ["bad", "good"]


def test_trust_09_a_seal_under_another_name_is_no_file_without_a_seal(tmp_path: Path) -> None:
    """One flipped bit in the name of the entry must not make an old file of a new one."""
    file = tmp_path / "a.json"
    for of in (None, "the first"):
        write_sealed_json(file, {"x": 1, "y": "z" * 64}, of)
        file.write_text(file.read_text().replace('"sha256"', '"sha257"'))
        with pytest.raises(AbmllError, match="its SHA-256 has another name"):
            read_sealed_json(file, of)
    write_json(file, {"x": 1, "y": "z" * 64})
    assert read_sealed_json(file, "anything") == {"x": 1, "y": "z" * 64}


def test_trust_06_seals_of_the_content_alone_are_taken(tmp_path: Path) -> None:
    """Version 0.1.0 sealed no more than that; its files stay what they are."""
    value = {"b": 1, "a": [0.5, None, "ü"]}
    text = json.dumps(value, sort_keys=True)
    write_json(tmp_path / "a.json", {**value, SEAL: hashlib.sha256(text.encode()).hexdigest()})
    assert read_sealed_json(tmp_path / "a.json", "anything") == value
    write_sealed_json(tmp_path / "a.json", value, "the first")
    with pytest.raises(AbmllError, match="belongs elsewhere"):
        read_sealed_json(tmp_path / "a.json", "the second")
    with pytest.raises(AbmllError, match="belongs elsewhere"):
        read_sealed_json(tmp_path / "a.json")


def test_trust_03_results_whose_description_is_lost_are_not_gone_on_with(place: Path) -> None:
    for name in ("comparison.json", "config.yaml"):
        (place / "out" / name).rename(place / name)
        with inside(place), pytest.raises(AbmllError, match=rf"{name}: is missing, though .*; put it back"):
            run_comparison(load_config(CompareConfig, Path("recipe.yaml")), Path("out"), _never)
        (place / name).rename(place / "out" / name)


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
