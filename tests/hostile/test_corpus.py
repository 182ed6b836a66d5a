"""Spoilt files of every kind that is read from elsewhere: each ends in a clear error, or was harmless."""

import json
import os
import sys
from pathlib import Path

import pytest

from abmll.adapters.peft import MODEL_FILE, read_peft
from abmll.cli import main
from abmll.errors import AbmllError
from abmll.training.checkpoints import MARKER, RunDirectory
from tests.hostile.corpus import bad, spoilt, tally
from tests.hostile.targets import TARGETS

NUMBERS = {
    "rows": "14",
    "configurations": "43",
    "saved tasks": "42",
    "PEFT adapters": "42",
    "checkpoints": "09",
    "records": "42",
    "comparisons": "46",
    "pins": "43",
    "models": "41",
    "GGUF headers": "42",
}
SHORT = 32  # of each kind; 320 in all


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("kind", NUMBERS)
def test_trust_14_41_42_43_a_spoilt_file_ends_in_a_clear_error_or_does_no_harm(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    outcomes = list(spoilt(kind, SHORT, folder))
    assert not bad(outcomes), "\n".join(f"{o.case}: {o.done}: {o.became}: {o.said[:200]}" for o in bad(outcomes)[:5])
    assert tally(outcomes)["refused"] > SHORT // 3  # else it spoils nothing


def test_every_kind_is_in_the_short_form_but_drawing() -> None:
    assert TARGETS.keys() - NUMBERS.keys() == {"reports"}
    assert SHORT * len(NUMBERS) >= 200


def test_the_same_seed_is_the_same_corpus(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (list(spoilt("pins", 6, tmp_path / name)) for name in ("one", "two"))
    assert [(o.case, o.done) for o in one] == [(o.case, o.done) for o in two]


def test_trust_42_a_sparse_lora_of_a_terabyte_is_refused_by_its_header(tmp_path: Path) -> None:
    TARGETS["PEFT adapters"].build(tmp_path)
    file = tmp_path / MODEL_FILE
    shape = [1 << 19, 1 << 19]
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 1 << 40]}}).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        try:
            out.truncate(8 + len(text) + (1 << 40))
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
    with pytest.raises(AbmllError, match=r"announces 274,877,906,944 numbers"):
        read_peft(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_trust_43_a_pipe_or_a_device_in_the_place_of_a_file_is_never_waited_for(tmp_path: Path) -> None:
    TARGETS["PEFT adapters"].build(tmp_path)
    (tmp_path / MODEL_FILE).unlink()
    os.mkfifo(tmp_path / MODEL_FILE)
    with pytest.raises(AbmllError, match=f"{MODEL_FILE}: no file"):
        read_peft(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "name", ["../../../../../../../../../../dev/zero", "/dev/zero", "../step-000001/state.json", "."]
)
def test_trust_43_a_checkpoint_names_files_of_its_own_folder_alone(name: str, tmp_path: Path) -> None:
    TARGETS["checkpoints"].build(tmp_path)
    run = RunDirectory(tmp_path / "run")
    marker = run.checkpoint_path(1) / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), name: "0" * 64}))
    with pytest.raises(AbmllError, match="which is no file in this folder"):
        run.load(1)


HOSTILE_TEXT = "\x1b]0;owned\x07\x1b[31m[/red][bold]\\[/]\u202e\ud800"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "{0}/recipe.yaml"],
        ["train", "{0}/\x1b]0;owned\x07\u202e.yaml"],
        ["compare", "{0}/recipe.yaml", "--dry-run"],
        ["report", "{0}"],
        ["score", "{0}"],
        ["adapt", "{0}", "builtin"],
        ["tasks", "show", "{0}"],
        ["tasks", "check", "{0}/rows.csv"],
        ["export", "{0}", "-o", "{0}/out"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_trust_14_the_command_line_ends_with_a_code_and_a_message_that_no_terminal_obeys(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(HOSTILE_TEXT)
    (tmp_path / "recipe.yaml").write_text(f"{text}: {text}\n")
    (tmp_path / "config.yaml").write_text(f"name: {text}\nmodel: {{source: {text}}}\n")
    (tmp_path / "comparison.json").write_text(json.dumps({"name": HOSTILE_TEXT}))
    (tmp_path / "x.jsonl").write_text(json.dumps({HOSTILE_TEXT: HOSTILE_TEXT}))
    (tmp_path / "rows.csv").write_text("question,\x1b[31m[/red]\\[/]\n\x1b[31m[/red]\\[/],1\n")
    monkeypatch.setattr(sys, "argv", ["abmll", *(argument.format(tmp_path) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert ended.value.code == 2
    assert "Traceback" not in err
    assert "error:" in err
    assert not {"\x1b]", "\x07", "\u202e"} & set(out + err)
    assert "\x1b[31m" not in out + err


def test_an_error_is_printed_as_it_is_whatever_markup_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "a\\[/]b[red]"
    monkeypatch.setattr(sys, "argv", ["abmll", "train", str(tmp_path / name)])
    with pytest.raises(SystemExit):
        main()
    assert name in capfd.readouterr().err
