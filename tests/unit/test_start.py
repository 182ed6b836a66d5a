"""`adapter.start` in a run: training begins at an ordinary LoRA's weights, once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from abmll.adapters.peft import peft_name
from abmll.config import AdapterConfig, RunConfig
from abmll.errors import AbmllError
from tests.runs import config_in, place_tiny, train_run
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, tasks, and a LoRA by stock PEFT in `lora/`."""
    folder = place_tiny(tmp_path_factory.mktemp("place"))
    options = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder / "lora")
    return folder


def started(place: Path, lora: Path, system: str = "abmll", **training: Any) -> RunConfig:
    adapter = {"rank": 3, "alpha": 6.0, "start": str(lora)}
    return config_in(place, system, adapter=adapter, training={"iterations": 2, **training})


@pytest.mark.parametrize("system", ["abmll", "lora", "reptile"])
def test_training_begins_at_the_lora(system: str, place: Path, tmp_path: Path) -> None:
    train_run(started(place, place / "lora", system), tmp_path / "run")
    lora = load_file(place / "lora" / "adapter_model.safetensors")
    first = load_file(tmp_path / "run" / "checkpoints" / "step-000000" / "shared.safetensors")
    means = {name: tensor for name, tensor in first.items() if ".mean_" in name}
    assert {peft_name(name) for name in means} == lora.keys()
    assert all(torch.equal(tensor, lora[peft_name(name)]) for name, tensor in means.items())
    last = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert any(not torch.equal(last[name], lora[name]) for name in lora), "and goes on from there"


def test_a_run_that_goes_on_does_not_start_again(place: Path, tmp_path: Path) -> None:
    whole = train_run(started(place, place / "lora", checkpoint_every=1), tmp_path / "whole")
    shutil.copytree(place / "lora", tmp_path / "lora")
    config = started(place, tmp_path / "lora", checkpoint_every=1)
    train_run(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000002")
    shutil.rmtree(tmp_path / "lora")  # no longer needed
    again = train_run(config, tmp_path / "run")
    one, other = (s.method.adapters.state_dict("shared") for s in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_start_that_does_not_fit_stops_the_run_before_it_begins(place: Path, tmp_path: Path) -> None:
    config = started(place, place / "lora")
    wider = config.model_copy(update={"adapter": config.adapter.model_copy(update={"rank": 4})})
    with pytest.raises(AbmllError, match=r"adapter\.start: .*its rank is 3, adapter\.rank is 4"):
        train_run(wider, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(AbmllError, match="nowhere: no such folder"):
        train_run(started(place, tmp_path / "nowhere"), tmp_path / "run2")


def test_no_start_is_the_default() -> None:
    assert AdapterConfig().start is None
