"""What other programs get: the mean, merged models, posterior draws, a calibrated mean; each as the library has it."""

import errno
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from abmll.adapters.attach import attach
from abmll.adapters.folder import read_adapter
from abmll.cli import main
from abmll.config import RunConfig
from abmll.errors import AbmllError
from abmll.everyday.saved import load_posterior, save_posterior
from abmll.exporting import calibrated as calibrating
from abmll.exporting import check_size, export_calibrated, export_mean, export_merged, merged, merged_bytes
from abmll.exporting.calibrated import nearest_temperature, spread_questions
from abmll.exporting.merge import MOST_LOSS, merge
from abmll.files import whole, write_text
from abmll.methods.noise import POSTERIOR, draw_key
from abmll.systems.adapters import use_adapter
from abmll.systems.plans import PredictionPlan, adaptation_plan
from abmll.systems.predict import adapt, predict
from abmll.systems.system import System
from tests.adapters import move
from tests.runs import UNSEEN, config_in, place_tiny, plain_probabilities, system_in, train_run
from tests.tiny import tiny_gpt2, tiny_model, tiny_tasks, write_tasks

ROWS = UNSEEN.test[:6]
DRAWS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, tasks, and a trained run with a saved task in `run/`; not to be changed."""
    folder = place_tiny(tmp_path_factory.mktemp("place"))
    config = config_in(folder)
    write_text(folder / "run" / "config.yaml", config.to_yaml())
    system = train_run(config, folder / "run")
    adapt(system.method, system.batcher, UNSEEN, adaptation_plan(config), 0)
    save_posterior(folder / "run", "mine", config, system)
    write_tasks(folder / "unseen", (UNSEEN,))
    return folder


@pytest.fixture(scope="module")
def config(place: Path) -> RunConfig:
    return config_in(place)


def loaded(place: Path, config: RunConfig, task: str | None = None) -> System:
    """The run's system, phi being theta or the saved task's posterior."""
    system = system_in(config)
    if task is not None:
        load_posterior(place / "run", task, system)
    else:
        use_adapter(read_adapter(place / "run" / "adapter"), system, "adapter")
    return system


def probabilities(system: System, plan: PredictionPlan) -> np.ndarray:
    """In-library probabilities of the rows, as one flat array."""
    found = predict(system.method, system.likelihood, system.batcher, ROWS, plan, POSTERIOR)
    return np.concatenate([row.probabilities for row in found])


def of_a_bare_model(folder: Path) -> np.ndarray:
    """Probabilities of the rows by transformers alone, from a folder that was exported."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return torch.cat(plain_probabilities(model, AutoTokenizer.from_pretrained(folder), ROWS)).numpy()


def abmll(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["abmll", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


# -------------------- the mean


def test_the_run_s_adapter_is_the_trained_one(place: Path, config: RunConfig) -> None:
    stored = read_adapter(place / "run" / "adapter")
    theta = load_file(place / "run" / "checkpoints" / "step-000003" / "shared.safetensors")
    assert all(torch.equal(stored.tensors[name], tensor) for name, tensor in theta.items())
    assert not stored.moves_nothing
    assert stored.facts.settings["inner_steps"] == 2
    assert stored.facts.base.name == config.model.source


def test_trust_30_the_exported_mean_by_stock_peft_gives_our_mean_mode(
    place: Path, config: RunConfig, tmp_path: Path
) -> None:
    export_mean(read_adapter(place / "run" / "tasks" / "mine"), tmp_path / "lora")
    base = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    plain = torch.cat(plain_probabilities(base, tokenizer, ROWS)).numpy()
    model = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    theirs = torch.cat(plain_probabilities(model, tokenizer, ROWS)).numpy()
    ours = probabilities(loaded(place, config, "mine"), PredictionPlan("mean", 1))
    assert np.abs(theirs - ours).max() < 1e-5
    assert np.abs(theirs - plain).max() > 1e-2
    assert json.loads((tmp_path / "lora" / "export.json").read_text())["kind"] == "mean"
    assert read_adapter(tmp_path / "lora").equals(read_adapter(place / "run" / "tasks" / "mine"))


def test_a_mean_of_zeros_is_exported_with_a_warning(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:

    export_mean(system_in(config).stored("shared"), tmp_path / "zeros")
    assert "every mean is zero" in caplog.text


# -------------------- merged


@pytest.mark.parametrize("task", [None, "mine"])
def test_trust_32_a_merged_model_gives_the_mean_s_probabilities(
    task: str | None, place: Path, config: RunConfig, tmp_path: Path
) -> None:
    system = loaded(place, config, task)
    ours = probabilities(system, PredictionPlan("mean", 1))
    report = export_merged(system, tmp_path / "model")
    assert np.abs(of_a_bare_model(tmp_path / "model") - ours).max() < 1e-5
    assert report.rounding.relative_error < 1e-4
    assert report.rounding.changed > 0.99
    assert report.top_token_agreement == 1.0
    assert report.largest_logit_change < 1e-4 * report.logit_scale
    kept = json.loads((tmp_path / "model" / "export.json").read_text())
    assert kept["kind"] == "merged mean"
    assert kept["largest_logit_change"] == report.largest_logit_change


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trust_32_drift_of_a_merge_over_256_prompts(dtype: str) -> None:
    model = tiny_model()
    model.to(getattr(torch, dtype))
    adapters = attach(model, "all-linear", rank=3, alpha=6.0)
    move(adapters, "task", size=0.2)
    ids = torch.randint(512, (256, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(input_ids=ids).logits.float()
        rounding = merge(adapters)
        for layer in adapters.layers.values():
            layer.task.mean_b.zero_()
        theirs = model(input_ids=ids).logits.float()
    drift = float((theirs - ours).abs().max() / ours.abs().max())
    same = float((theirs.argmax(-1) == ours.argmax(-1)).float().mean())
    assert rounding.relative_error < (1e-6 if dtype == "float32" else 0.02)
    assert drift < (1e-4 if dtype == "float32" else 0.3)
    assert same > (0.999 if dtype == "float32" else 0.9)  # of 3,072, of which two may be as good as equal


@pytest.mark.parametrize("make", [tiny_model, tiny_gpt2, lambda: tiny_model(tie=True, heads=8)])
def test_trust_23_merging_gives_the_weights_that_peft_s_own_merge_gives(make: Any, tmp_path: Path) -> None:
    from abmll.adapters.peft import write_peft

    model = make()
    adapters = attach(model, "all-linear", rank=3, alpha=7.0)
    move(adapters, "shared")
    adapters.begin_task()
    write_peft(adapters, tmp_path, "tiny", 7.0)
    merge(adapters)
    theirs = PeftModel.from_pretrained(make(), tmp_path).merge_and_unload()
    for path, layer in adapters.layers.items():
        torch.testing.assert_close(layer.base.weight, theirs.get_submodule(path).weight, rtol=1e-5, atol=1e-6)


SMALL = 2e-5
"""Entries of an update that bfloat16, whose weights near 0.2 lie 1e-3 apart, cannot hold."""


def swallowed_system(config: RunConfig, dtype: str, size: float = SMALL) -> System:
    """A system in a dtype whose mean update is tiny."""
    system = system_in(config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})}))
    with torch.no_grad():
        for layer in system.method.adapters.layers.values():
            layer.task.mean_b.fill_(1.0)
            layer.task.mean_a.fill_(size / 6)  # scale 2, rank 3
    return system


def test_trust_32_an_update_that_bfloat16_swallows_is_refused_and_measured(config: RunConfig, tmp_path: Path) -> None:
    system = swallowed_system(config, "bfloat16")
    with pytest.raises(AbmllError, match=r"bfloat16 would swallow the update.*relative error.*float32.*--force"):
        export_merged(system, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    report = export_merged(swallowed_system(config, "bfloat16"), tmp_path / "model", force=True)
    assert report.rounding.swallowed
    assert report.rounding.changed < 0.1
    base = load_file(Path(config.model.source or "") / "model.safetensors")
    found = load_file(tmp_path / "model" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    lost = found[name].float() - base[name].bfloat16().float() - SMALL
    assert float(lost.norm() / (SMALL * 32)) == pytest.approx(report.rounding.relative_error, rel=0.5)
    assert not export_merged(swallowed_system(config, "float32"), tmp_path / "wide").rounding.swallowed


def test_what_is_left_of_an_update_is_measured_as_by_hand(config: RunConfig) -> None:
    for size in (1e-4, 1e-3, 1e-2):
        system = swallowed_system(config, "bfloat16", size)
        layers = system.method.adapters.layers
        before = {path: layer.base.weight.float().clone() for path, layer in layers.items()}
        rounding = merge(system.method.adapters)
        update = {path: layer.task.dense_mean().detach() for path, layer in layers.items()}
        kept = {path: layer.base.weight.float() - before[path] for path, layer in layers.items()}
        lost = sum(float((kept[p] - update[p]).double().square().sum()) for p in kept) ** 0.5
        whole = sum(float(update[p].double().square().sum()) for p in kept) ** 0.5
        assert rounding.relative_error == pytest.approx(lost / whole)
        share = sum(int((kept[p] != 0).sum()) for p in kept) / sum(kept[p].numel() for p in kept)
        assert rounding.changed == pytest.approx(share)
        assert rounding.worst_error >= rounding.relative_error
        assert rounding.swallowed == (lost / whole > MOST_LOSS)


def test_a_draw_whose_noise_is_lost_is_refused_though_its_mean_survives(config: RunConfig, tmp_path: Path) -> None:
    narrow = config_in(Path(config.model.source or "").parent, method={"std_init": 4.5e-5})

    def system() -> System:
        found = system_in(narrow.model_copy(update={"model": narrow.model.model_copy(update={"dtype": "bfloat16"})}))
        move(found.method.adapters, "task")
        for parameter in found.method.adapters.parameters("task", "std"):
            parameter.data.zero_()
        return found

    assert not export_merged(system(), tmp_path / "mean").rounding.swallowed
    with pytest.raises(AbmllError, match="would swallow the noise"):
        export_merged(system(), tmp_path / "draw", draw=0)


def test_without_stds_there_is_nothing_to_draw_or_to_calibrate(place: Path, tmp_path: Path) -> None:

    lora = config_in(place, "lora")
    with pytest.raises(AbmllError, match="no stds"):
        export_merged(system_in(lora), tmp_path / "draw", draw=0)
    system = system_in(lora)
    with pytest.raises(AbmllError, match="no stds"):
        export_calibrated(system.stored("shared"), system, ROWS, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


# -------------------- draws


def test_a_draw_s_number_is_a_sample_of_predict() -> None:
    """The keys under which `predict` draws at POSTERIOR are those that an export merges."""
    from abmll.kernels.noise import noise_key

    assert [draw_key(n) for n in range(3)] == [noise_key("predict", *POSTERIOR, n) for n in range(3)]
    with pytest.raises(AbmllError, match="draw -1"):
        draw_key(-1)


def test_trust_33_merged_draws_average_to_the_weight_sampler(place: Path, config: RunConfig, tmp_path: Path) -> None:
    ours = probabilities(loaded(place, config, "mine"), PredictionPlan("weight", DRAWS))
    mean = probabilities(loaded(place, config, "mine"), PredictionPlan("mean", 1))
    theirs = []
    for draw in range(DRAWS):
        report = export_merged(loaded(place, config, "mine"), tmp_path / f"draw-{draw}", draw=draw)
        assert (report.kind, report.draw, report.rounding.part) == ("merged draw", draw, "noise")
        assert report.largest_logit_change < 1e-4 * report.logit_scale
        theirs.append(of_a_bare_model(tmp_path / f"draw-{draw}"))
    assert np.abs(np.mean(theirs, axis=0) - ours).max() < 1e-5
    assert np.abs(ours - mean).max() > 1e-3, "the draws are no means"
    assert np.abs(theirs[0] - theirs[1]).max() > 1e-2, "nor are they one and the same"


def test_trust_33_a_draw_is_full_rank(place: Path, config: RunConfig, tmp_path: Path) -> None:
    export_merged(loaded(place, config), tmp_path / "draw", draw=5)
    name = "model.layers.1.self_attn.q_proj.weight"
    base, found = (load_file(folder / "model.safetensors")[name] for folder in (place / "model", tmp_path / "draw"))
    assert torch.linalg.matrix_rank((found - base).double()) == 32
    untouched = "model.layers.1.mlp.up_proj.weight"
    base, found = (load_file(f / "model.safetensors")[untouched] for f in (place / "model", tmp_path / "draw"))
    assert torch.equal(base, found)


# -------------------- verification


def test_a_merged_model_that_reads_back_otherwise_is_not_kept(
    place: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = merged.read_pretrained

    def damaged(*arguments: Any, **options: Any) -> Any:
        model, tokenizer = real(*arguments, **options)
        with torch.no_grad():
            next(model.parameters()).view(-1)[7] += 1e-3
        return model, tokenizer

    monkeypatch.setattr(merged, "read_pretrained", damaged)
    with pytest.raises(AbmllError, match="not what was written"):
        export_merged(loaded(place, config), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    place: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merged, "write_sealed_json", full)
    with pytest.raises(OSError, match="No space"):
        export_merged(loaded(place, config), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# -------------------- size


def test_sizes_are_known_before_anything_is_loaded(place: Path) -> None:
    model = str(place / "model")
    written = (place / "model" / "model.safetensors").stat().st_size
    assert merged_bytes(model, None, None, "float32", "cpu") == pytest.approx(written, rel=0.05)
    assert merged_bytes(None, "llama-3-8b", None, "bfloat16", "cpu") == 2 * 8030261248


def test_more_than_a_gigabyte_must_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=10**12))
    check_size(10**9, tmp_path / "x", confirmed=False)
    with pytest.raises(AbmllError, match=r"16\.1 GB are more than 1 GB; add --yes"):
        check_size(16_060_522_496, tmp_path / "x", confirmed=False)
    check_size(16_060_522_496, tmp_path / "x", confirmed=True)
    with pytest.raises(AbmllError, match=r"do not fit, 1000\.0 GB are free"):
        check_size(10**12, tmp_path / "x" / "y", confirmed=True)


def test_a_folder_in_use_is_refused(place: Path, config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    for action in (
        lambda: export_mean(read_adapter(place / "run" / "adapter"), tmp_path / "used"),
        lambda: export_merged(loaded(place, config), tmp_path / "used"),
    ):
        with pytest.raises(AbmllError, match="is there already"):
            action()
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    export_mean(read_adapter(place / "run" / "adapter"), tmp_path / "empty")


# -------------------- calibrated


def brute_force(mean: np.ndarray, averaged: np.ndarray) -> float:
    """The best temperature of a fine grid."""
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 20001))
    losses = []
    for t in grid:
        powered = mean ** (1 / t)
        p = powered / powered.sum(1, keepdims=True)
        losses.append(-(averaged * np.log(p)).sum(1).mean())
    return float(grid[int(np.argmin(losses))])


@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_temperature_is_that_of_a_fine_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean, averaged = rng.dirichlet(np.ones(4) * 0.7, 30), rng.dirichlet(np.ones(4) * 2, 30)
    blend = 0.5 * mean + 0.5 * averaged
    assert nearest_temperature(mean, blend) == pytest.approx(brute_force(mean, blend), rel=1e-3)


def test_the_temperature_that_made_the_target_is_found_though_choices_are_missing() -> None:
    rng = np.random.default_rng(0)
    mean = rng.dirichlet(np.ones(4), 20)
    mean[::2, 3] = 0
    mean /= mean.sum(1, keepdims=True)
    powered = np.where(mean > 0, mean, 0) ** (1 / 1.8) * (mean > 0)
    assert nearest_temperature(mean, powered / powered.sum(1, keepdims=True)) == pytest.approx(1.8, rel=1e-4)
    assert nearest_temperature(mean, mean) == 1.0


@pytest.mark.parametrize("kind", ["cloze", "letter"])
@pytest.mark.parametrize("own", [1.0, 2.0])
def test_the_calibrated_mean_is_nearer_and_the_rest_is_written_beside_it(
    kind: str, own: float, place: Path, tmp_path: Path
) -> None:

    config = config_in(place, likelihood={"kind": kind, "temperature": own})
    system = system_in(config)
    move(system.method.adapters, "shared", size=0.15)
    system.method.adapters.begin_task()
    stored = system.stored("shared")
    found = export_calibrated(stored, system, UNSEEN.train[:12], tmp_path / "c", plan=PredictionPlan("weight", 4))
    assert found.after.mean_kl < found.before.mean_kl
    assert found.temperature == pytest.approx(found.relative_temperature * own)
    kept = json.loads((tmp_path / "c" / "calibration.json").read_text())
    assert kept["after"]["mean_kl"] == found.after.mean_kl
    assert (kept["questions"], kept["draws"], kept["likelihood"]["kind"]) == (12, 4, kind)
    assert "temperature" in kept["use"]
    assert read_adapter(tmp_path / "c").equals(stored)


def test_the_temperature_as_a_server_applies_it(place: Path, tmp_path: Path) -> None:
    """`use` taken by its word, on logits of stock PEFT and transformers: log-probabilities over T, renormalised."""

    config = config_in(place, likelihood={"kind": "letter", "temperature": 1.5})
    system = system_in(config)
    move(system.method.adapters, "shared", size=0.15)
    system.method.adapters.begin_task()
    with pytest.warns(DeprecationWarning, match=r"draws=\) is now export_calibrated\(plan=PredictionPlan\(samples="):
        found = export_calibrated(system.stored("shared"), system, ROWS, tmp_path / "c", draws=8)
    with pytest.raises(TypeError, match="unexpected keyword argument 'drawn'"):
        export_calibrated(system.stored("shared"), system, ROWS, tmp_path / "c", drawn=8)
    averaged = predict(system.method, system.likelihood, system.batcher, ROWS, PredictionPlan("weight", 8), POSTERIOR)
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "model"), tmp_path / "c").eval()
    total, largest = 0.0, 0.0
    for row, wanted in zip(ROWS, averaged, strict=True):
        listed = "".join(f"{'ABCD'[k]}) {choice}\n" for k, choice in enumerate(row.choices))
        context = f"{row.context}\n\n" if row.context else ""
        prompt = f"{context}Question: {row.question}\n{listed}Answer:"
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].log_softmax(-1)
        letters = [tokenizer(" " + "ABCD"[k])["input_ids"][0] for k in range(len(row.choices))]
        served = (logs[letters].double() / found.temperature).softmax(0).numpy()
        target = np.array(wanted.probabilities)
        total += float((target * np.log(target / served)).sum()) / len(ROWS)
        largest = max(largest, float(np.abs(served - target).max()))
    assert total == pytest.approx(found.after.mean_kl, abs=1e-6)
    assert largest == pytest.approx(found.after.largest, abs=1e-5)


def test_training_questions_are_taken_from_the_tasks_in_turn() -> None:
    tasks = tiny_tasks(3, n_rows=5)
    found = spread_questions(tasks, 7)
    assert [question.id.split("-")[0] for question in found] == ["tiny0", "tiny1", "tiny2"] * 2 + ["tiny0"]
    assert len(spread_questions(tasks, 99)) == 15
    short = replace(tasks[0], train=tasks[0].train[:1])
    assert len(spread_questions((short, tasks[1]), 99)) == 6


def test_no_questions_are_an_error(place: Path, config: RunConfig) -> None:
    with pytest.raises(AbmllError, match="no questions"):
        calibrating.calibrate(loaded(place, config), ())


# -------------------- the command


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], "the mean as a PEFT LoRA"),
        (["--task", "mine"], "the mean as a PEFT LoRA"),
        (["--merge"], "a whole model with the mean merged in"),
        (["--merge", "--draw", "2"], "of the noise, float32 keeps 100 %"),
        (["--calibrated", "--count", "9"], "Temperature"),
    ],
)
def test_the_command(
    arguments: list[str],
    shown: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert abmll(monkeypatch, "export", place / "run", "-o", tmp_path / "out", *arguments) == 0
    text = capsys.readouterr().out
    assert shown in text
    assert text.index("B to ") < text.index("read again and compared"), "the size comes first"
    expected = "config.json" if "--merge" in arguments else "adapter_config.json"
    assert (tmp_path / "out" / expected).exists()
    assert (tmp_path / "out" / "export.json").exists()


def test_the_command_takes_a_dtype_and_questions(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [place / "run", "-o", tmp_path / "half", "--merge", "--force", "model.dtype=bfloat16"]
    assert abmll(monkeypatch, "export", *where) == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    rows = place / "unseen" / f"{UNSEEN.name}.test.jsonl"
    where = [place / "run", "-o", tmp_path / "c", "--calibrated", "--task", "mine", "--questions", rows]
    assert abmll(monkeypatch, "export", *where) == 0
    assert json.loads((tmp_path / "c" / "calibration.json").read_text())["questions"] == len(UNSEEN.test)
    assert f"from {len(UNSEEN.test)} questions and 4 posterior draws" in capsys.readouterr().out


def test_the_adapter_that_comes_along_is_exported_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert abmll(monkeypatch, "export", "smollm2", "-o", "lora") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
    assert (tmp_path / "lora" / "adapter_config.json").exists()


MISTAKES = {
    "no run": (["nowhere"], "nowhere"),
    "no task": (["RUN", "--task", "mne"], "Did you mean 'mine'"),
    "task out of the folder": (["RUN", "--task", "../mine"], "task name"),
    "a draw of a LoRA": (["RUN", "--draw", "0"], "never a LoRA"),
    "two exports": (["RUN", "--merge", "--calibrated"], "choose one"),
    "questions for nothing": (["RUN", "--questions", "x.jsonl"], "--calibrated"),
    "no questions for a task": (["RUN", "--task", "mine", "--calibrated"], "--questions"),
    "no such questions": (["RUN", "--calibrated", "--questions", "x.jsonl"], "x.jsonl"),
    "another rank": (["RUN", "--merge", "adapter.rank=2"], "rank"),
    "another model": (["RUN", "--merge", "model.source=null", "model.shape=tiny-llama"], "tokenizer and architecture"),
    "a gigabyte": (["RUN", "--merge", "model.source=null", "model.shape=llama-3-8b"], "add --yes"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_leaves_nothing(
    mistake: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, message = MISTAKES[mistake]
    given = [str(place / "run") if a == "RUN" else a for a in arguments]
    monkeypatch.chdir(tmp_path)
    assert abmll(monkeypatch, "export", *given, "-o", "out") == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["--merge"], ["--calibrated", "--count", "3"]])
def test_trust_08_a_full_disk_is_one_message_and_leaves_nothing(
    arguments: list[str],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(whole, "_sync_tree", full)
    assert abmll(monkeypatch, "export", place / "run", "-o", tmp_path / "out", *arguments) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_lora_of_more_than_a_gigabyte_must_be_meant_too(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = read_adapter(place / "run" / "adapter")
    monkeypatch.setattr("abmll.exporting.size.LARGE", stored.bytes - 1)
    with pytest.raises(AbmllError, match="--yes"):
        export_mean(stored, tmp_path / "lora")
    export_mean(stored, tmp_path / "lora", confirmed=True)


def test_a_run_whose_training_has_not_ended_says_so(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    assert abmll(monkeypatch, "export", tmp_path / "run", "-o", tmp_path / "out") == 2
    assert "was not trained to its end" in capsys.readouterr().err
