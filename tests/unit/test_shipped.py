"""The adapter that comes along: found by name, copied where tasks are kept, refused or warned of on other models."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from abmll.adapters.folder import read_adapter
from abmll.cli.work import export as cli_export
from abmll.cli.work.export import ExportOptions, export_adapter
from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.everyday import shipped
from abmll.everyday.probe import measure_probe, read_probe
from abmll.everyday.saved import load_posterior, read_posterior, save_posterior
from abmll.everyday.session import open_run
from abmll.everyday.ship import ship
from abmll.everyday.shipped import HERE, find_run, shipped_names
from abmll.runs.provenance import differences
from abmll.systems.plans import method_settings, resolve
from abmll.systems.system import System
from tests.everyday import asked, place_run, write_asked
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

NO_EXPORT: dict[str, Any] = {
    "merge": False,
    "draw": None,
    "calibrated": False,
    "questions": None,
    "count": 4,
    "force": True,
    "confirmed": True,
}
EXPORTS: dict[str, dict[str, Any]] = {"mean": {}, "merged": {"merge": True}, "calibrated": {"calibrated": True}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, and what `ship` made of it in `here/tiny`."""
    folder = place_run(tmp_path_factory.mktemp("home"))
    assert ship(folder / "runs" / "mine", "tiny", folder / "here") == folder / "here" / "tiny"
    return folder


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In an empty folder, with the tiny run as the one that comes along."""
    monkeypatch.setattr(shipped, "HERE", home / "here")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_becomes_a_run_directory_once(here: Path, home: Path) -> None:
    assert shipped_names() == ("tiny",)
    assert find_run("tiny", copy=False) == home / "here" / "tiny"
    assert list(here.iterdir()) == []
    assert find_run("tiny") == Path("runs/tiny")
    (here / "runs" / "tiny" / "mine.txt").write_text("kept")
    assert find_run("tiny") == Path("runs/tiny")
    assert (here / "runs" / "tiny" / "mine.txt").exists()
    assert find_run(home / "runs" / "mine") == home / "runs" / "mine"
    with pytest.raises(AbmllError, match="names that come with abmll: tiny"):
        find_run("tine")


def test_another_quantisation_is_taken_with_the_measured_difference(
    here: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = find_run("tiny")
    open_run(run)
    assert "built-in questions" not in caplog.text
    with caplog.at_level(logging.WARNING):
        session = open_run(run, {"model": {"dtype": "bfloat16"}})
    assert "another quantisation or dtype" in caplog.text
    probe = read_probe(run)
    assert probe is not None
    found = measure_probe(session.system)
    assert f"NLL is {found.nll:.3f} nats over 60 built-in questions, {probe.nll:.3f} on the one" in caplog.text
    assert found.nll != probe.nll
    assert found.tokens == probe.tokens


def test_another_base_model_is_refused(here: Path) -> None:
    run = find_run("tiny")
    tiny_model(layers=3).save_pretrained(here / "deeper")
    tiny_tokenizer().save_pretrained(here / "deeper")
    for folder, what in (
        (here / "deeper", "architecture"),
        (save_tiny(here / "words", "sentencepiece"), "tokenizer"),
        (save_tiny(here / "weights", seed=5), "its weights differ"),
    ):
        with pytest.raises(AbmllError, match=what):
            open_run(run, {"model": {"source": str(folder)}})


def test_a_tokenizer_that_differs_where_no_question_goes_is_the_same(here: Path, home: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    AutoModelForCausalLM.from_pretrained(home / "model").save_pretrained(here / "other")
    tokenizer.save_pretrained(here / "other")
    run, other = find_run("tiny"), {"model": {"source": str(here / "other")}}
    there = open_run(run)
    save_posterior(run, "mine", there.config, there.system, {})
    saved = read_posterior(run, "mine")
    for session in (open_run(run, other), open_run(run, other, saved)):
        assert session.base.tokenizer_hash != saved.adapter.facts.base.tokenizer_hash
    load_posterior(run, "mine", session.system)
    file = write_asked(here / "asked.jsonl", asked(4))
    for what, flags in EXPORTS.items():
        for task, name in ((None, "run"), ("mine", "task")):
            questions = file if task and what == "calibrated" else None
            options = ExportOptions(**{**NO_EXPORT, **flags, "questions": questions})
            export_adapter(str(run), here / f"{what}-{name}", task, other, options)


def test_a_saved_task_of_another_base_model_leaves_none_of_its_own_on_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task of another run was copied here: it is refused, and the system is closed."""
    run = find_run("tiny")
    there = open_run(run)
    save_posterior(run, "mine", there.config, there.system, {})
    closed: list[System] = []
    monkeypatch.setattr(System, "close", lambda system: closed.append(system))
    saved = read_posterior(run, "mine")
    base = saved.adapter.facts.base.model_copy(update={"architecture": "another"})
    facts = saved.adapter.facts.model_copy(update={"base": base})
    foreign = replace(saved, adapter=replace(saved.adapter, facts=facts))
    with pytest.raises(AbmllError, match=r"architecture .* differs"):
        open_run(run, saved=foreign)
    assert len(closed) == 1
    monkeypatch.setattr(cli_export, "read_posterior", lambda folder, name: foreign)
    with pytest.raises(AbmllError, match=r"architecture .* differs"):
        export_adapter(str(run), here / "out", "mine", {}, ExportOptions(**{**NO_EXPORT, **EXPORTS["merged"]}))
    assert len(closed) == 2


def test_a_probe_of_another_form_is_no_probe_and_a_damaged_one_is_refused(here: Path) -> None:
    run = find_run("tiny")
    text = (run / "probe.json").read_text()
    (run / "probe.json").write_text('{"nll": "x"}')
    assert read_probe(run) is None
    open_run(run)
    for damaged in ("", "[]", text.replace('"questions": ', '"questions": 1')):
        (run / "probe.json").write_text(damaged)
        with pytest.raises(AbmllError, match=r"probe\.json: .*delete it: it only tells copies of a base model apart"):
            open_run(run)
    (run / "probe.json").unlink()
    open_run(run)


def test_a_run_that_was_not_trained_to_its_end_says_so(here: Path) -> None:
    run = find_run("tiny")
    (run / "adapter").rename(run / "gone")
    with pytest.raises(AbmllError, match="not trained to its end"):
        open_run(run)


def test_what_comes_with_the_package_is_whole() -> None:
    """Read without its base model: files, sizes, what it says of itself, and that it is of the committed recipe."""
    folder = HERE / "smollm2"
    stored = read_adapter(folder / "adapter")
    assert stored.facts.rank == 8
    assert stored.facts.has_std
    assert all(getattr(stored.facts.base, name) for name in ("fingerprint", "architecture", "tokenizer_hash"))
    assert {path.rpartition(".")[2] for path in stored.facts.layers} == {"q_proj", "v_proj"}
    assert not stored.moves_nothing
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert 3.6e6 < sum(path.stat().st_size for path in files) < 3.8e6
    kept, recipe = (load_config(RunConfig, f) for f in (folder / "config.yaml", Path("shipped")))
    assert differences(resolve(kept), resolve(recipe)) == {}
    assert kept.method.settings().keys() == method_settings(kept).model_dump().keys(), "no later default may change it"
    probe = read_probe(folder)
    assert probe is not None
    assert (probe.questions, 0 < probe.nll < 3) == (60, True)
    assert not any(str(Path.home()) in path.read_text() for path in files if path.suffix in (".json", ".yaml"))
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert all(bool(torch.isfinite(t).all()) for t in stored.tensors.values())
