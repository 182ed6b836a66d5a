"""The exported adapter, read back by stock PEFT."""

import json
import logging
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from abmll.adapters.attach import attach
from abmll.adapters.layer import AdapterSet
from abmll.adapters.peft import write_peft
from tests.tiny import tiny_gpt2, tiny_model

IDS = torch.tensor([[1, 17, 305, 44, 9, 260], [1, 5, 77, 301, 2, 8]])


CASES = {  # how the base is made, targets
    "q and v": (tiny_model, ("q_proj", "v_proj")),
    "all-linear": (tiny_model, "all-linear"),
    "tied embeddings": (lambda: tiny_model(tie=True), "all-linear"),
    "grouped queries": (lambda: tiny_model(heads=8, kv_heads=2), ("k_proj", "v_proj")),
    "one layer of several": (lambda: tiny_model(layers=12), r"model\.layers\.1\.self_attn\.q_proj"),
    "more paths than PEFT lists": (lambda: tiny_model(layers=12), ("q_proj", "v_proj")),
    "GPT-2": (tiny_gpt2, "all-linear"),
}


def trained(model: nn.Module, targets, **options) -> AdapterSet:
    """Adapters whose shared means have left 0, with phi equal to theta, so that the model's own logits are theta's."""
    adapters = attach(model, targets, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters("shared"):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapters.begin_task()
    return adapters


def read_by_peft(base: nn.Module, folder: Path, caplog: pytest.LogCaptureFixture) -> PeftModel:
    """Stock PEFT's model; any warning, through `warnings` or a logger, is an error."""
    caplog.clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # not of PEFT
        loaded = PeftModel.from_pretrained(base, folder)
    assert not caplog.records
    return loaded.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("rank", "alpha"), [(8, 16.0), (3, 7.0)])
def test_trust_30_stock_peft_reads_the_adapter_without_a_warning_and_gives_our_logits(
    case, rank, alpha, tmp_path, caplog
):
    make, targets = CASES[case]
    model = make()
    plain = logits(model)
    adapters = trained(model, targets, rank=rank, alpha=alpha)
    ours = logits(model)
    write_peft(adapters, tmp_path, "tiny", alpha)
    theirs = logits(read_by_peft(make(), tmp_path, caplog))
    scale = float(ours.abs().max())
    assert float((ours - plain).abs().max()) > 1e-3 * scale
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("case", CASES)
def test_trust_30_key_set_is_exactly_lora_a_and_b_of_the_targets(case, tmp_path):
    make, targets = CASES[case]
    adapters = trained(make(), targets)
    write_peft(adapters, tmp_path, "tiny", 16.0)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    names = [(path, factor) for path in adapters.layers for factor in ("lora_A", "lora_B")]
    assert tensors.keys() == {f"base_model.model.{path}.{factor}.weight" for path, factor in names}
    for path, layer in adapters.layers.items():
        assert torch.equal(tensors[f"base_model.model.{path}.lora_A.weight"], layer.shared.mean_a)
        assert torch.equal(tensors[f"base_model.model.{path}.lora_B.weight"], layer.shared.mean_b)


def test_the_shared_slot_is_written_and_not_the_task_s(tmp_path):
    adapters = trained(tiny_model(), ("q_proj",))
    with torch.no_grad():
        for parameter in adapters.parameters("task"):
            parameter.zero_()
    write_peft(adapters, tmp_path, "tiny", 16.0)
    assert all(tensor.any() for tensor in load_file(tmp_path / "adapter_model.safetensors").values())


def test_stds_lie_beside_the_adapter(tmp_path):
    adapters = trained(tiny_model(), ("q_proj", "v_proj"))
    write_peft(adapters, tmp_path, "tiny", 16.0)
    stds = load_file(tmp_path / "abmll.safetensors")
    assert stds.keys() == {f"{path}.{factor}" for path in adapters.layers for factor in ("std_b", "std_a")}
    for path, layer in adapters.layers.items():
        assert torch.equal(stds[f"{path}.std_b"], layer.shared.std_b)
        assert torch.equal(stds[f"{path}.std_a"], layer.shared.std_a)


def test_without_stds_there_is_no_file_of_stds(tmp_path, caplog):
    adapters = trained(tiny_model(), ("q_proj",), with_std=False)
    write_peft(adapters, tmp_path, "tiny", 16.0)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    read_by_peft(tiny_model(), tmp_path, caplog)


def test_config_names_the_base_and_every_layer_by_its_whole_path(tmp_path):
    adapters = trained(tiny_model(), ("q_proj",), rank=3, alpha=7.0)
    write_peft(adapters, tmp_path, "somebody/some-model", 7.0)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == sorted(adapters.layers)
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 7.0, "somebody/some-model")
    assert (config["peft_type"], config["task_type"], config["bias"]) == ("LORA", "CAUSAL_LM", "none")


def test_writing_twice_gives_the_same_bytes(tmp_path):
    adapters = trained(tiny_model(), "all-linear")
    for folder in ("one", "two"):
        write_peft(adapters, tmp_path / folder, "tiny", 16.0)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("damage", ["missing key", "wrong rank"])
def test_the_no_warning_check_can_fail(damage, tmp_path, caplog):
    """What PEFT says about a file that does not fit is raised here. (Of an unexpected key it says nothing.)"""
    write_peft(trained(tiny_model(), ("q_proj",)), tmp_path, "tiny", 16.0)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    first = next(iter(tensors))
    if damage == "missing key":
        del tensors[first]
    else:
        tensors[first] = tensors[first][:4].clone()
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises((UserWarning, RuntimeError), match=r"missing adapter keys|size mismatch"):
        read_by_peft(tiny_model(), tmp_path, caplog)
