"""What servers take by name: our LoRA under the rules of llama.cpp's converter and of vLLM, kept here as small tables.

Read in 2026-11 in ggml-org/llama.cpp `convert_lora_to_gguf.py` (commit 0b03adaa) and vllm-project/vllm
`vllm/lora/lora_model.py`, `utils.py` and `peft_helper.py` (commits 0306474e, 02143692); the names of llama.cpp's
tensors come from its own package `gguf`.
"""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

from abmll.adapters.attach import attach
from abmll.adapters.facts import BaseFacts
from abmll.adapters.folder import write_adapter
from abmll.adapters.stored import take_adapter
from abmll.exporting import export_mean
from tests.adapters import move
from tests.tiny import tiny_gpt2, tiny_model

LLAMA_CPP = {
    "factor": r"\.lora_(A|B)\.weight",  # every tensor must contain it, else the converter exits
    "removed": ("base_model.model.",),  # what is taken off to get the base tensor's name
    "needs": ("lora_alpha",),  # of adapter_config.json
}
VLLM = {
    "name": r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>A|B)\.weight",
    # the last part of a module's path, for Llama's architecture
    "modules": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "needs": ("r", "lora_alpha", "target_modules"),
    "without": ("modules_to_save", "use_dora"),
    "bias": ("none",),
    "ranks": (1, 512),  # the largest --max-lora-rank that it takes
}


def llama_cpp_refuses(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], layers: int, arch: int = gguf.MODEL_ARCH.LLAMA
) -> list[str]:
    """What the converter would stop at."""
    names = gguf.get_tensor_name_map(arch, layers)
    faults = [f"no {name}" for name in LLAMA_CPP["needs"] if name not in config]
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        found = re.search(LLAMA_CPP["factor"], name)
        if not found:
            faults.append(f"unexpected name {name}")
            continue
        base = re.sub(LLAMA_CPP["factor"], ".weight", name)
        for part in LLAMA_CPP["removed"]:
            base = base.replace(part, "")
        pairs.setdefault(base, {})[found[1]] = tensor
    for base, pair in pairs.items():
        if names.get_name(base, try_suffixes=(".weight",)) is None:
            faults.append(f"{base} is no tensor of the model")
        elif pair.keys() != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            faults.append(f"{base} has no pair of factors")
    return faults


def vllm_refuses(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> list[str]:
    """What vLLM would stop at."""
    faults = [f"no {name}" for name in VLLM["needs"] if name not in config]
    faults += [f"{name} is set" for name in VLLM["without"] if config.get(name)]
    if config["bias"] not in VLLM["bias"]:
        faults.append("bias")
    if not VLLM["ranks"][0] <= config["r"] <= VLLM["ranks"][1]:
        faults.append("rank")
    for name in tensors:
        found = re.fullmatch(VLLM["name"], name)
        if not found:
            faults.append(f"unsupported name {name}")
        elif found["module"].rpartition(".")[2] not in VLLM["modules"]:
            faults.append(f"unexpected module {found['module']}")
    return faults


def exported(folder: Path, model: Any, targets: Any, **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and configuration of an exported mean."""
    adapters = attach(model, targets, **{"rank": 3, "alpha": 6.0, **options})
    move(adapters, "shared")
    export_mean(take_adapter(adapters, "shared", alpha=6.0, base=BaseFacts(name="tiny")), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    return load_file(folder / "adapter_model.safetensors"), config


CASES: dict[str, tuple[Any, Any]] = {
    "q and v": (tiny_model, ("q_proj", "v_proj")),
    "all-linear": (tiny_model, "all-linear"),
    "tied embeddings": (lambda: tiny_model(tie=True), "all-linear"),
    "grouped queries": (lambda: tiny_model(heads=8, kv_heads=2), "all-linear"),
    "twelve layers": (lambda: tiny_model(layers=12), ("q_proj", "v_proj")),
    "one layer": (lambda: tiny_model(layers=12), r"model\.layers\.11\.mlp\.down_proj"),
}


@pytest.mark.parametrize("case", CASES)
def test_trust_34_llama_cpp_and_vllm_take_our_names(case: str, tmp_path: Path) -> None:
    make, targets = CASES[case]
    model = make()
    layers = model.config.num_hidden_layers
    tensors, config = exported(tmp_path / "lora", model, targets)
    assert llama_cpp_refuses(tensors, config, layers) == []
    assert vllm_refuses(tensors, config) == []


def test_trust_34_llama_cpp_knows_gpt2_s_names_too(tmp_path: Path) -> None:
    tensors, config = exported(tmp_path / "lora", tiny_gpt2(), "all-linear")
    assert llama_cpp_refuses(tensors, config, 2, gguf.MODEL_ARCH.GPT2) == []


def test_the_run_s_own_adapter_has_the_same_names_as_the_export(tmp_path: Path) -> None:
    model = tiny_model()
    tensors, _ = exported(tmp_path / "lora", model, ("q_proj",))
    adapters = attach(tiny_model(), ("q_proj",), rank=3, alpha=6.0)
    write_adapter(take_adapter(adapters, "shared", alpha=6.0, base=BaseFacts(name="tiny")), tmp_path / "adapter")
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys() == tensors.keys()


WRONG = {
    "no prefix": ("model.layers.0.self_attn.q_proj.lora_A.weight", (False, True)),
    "adapter's name": ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", (True, True)),
    "base layer": ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", (True, True)),
    "DoRA": ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", (True, True)),
    "a layer too many": ("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", (True, False)),
    "another module": ("base_model.model.model.layers.0.self_attn.query.lora_A.weight", (True, True)),
    "stds": ("model.layers.0.self_attn.q_proj.std_a", (True, True)),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_tables_refuse_what_the_servers_refuse(case: str, tmp_path: Path) -> None:
    name, (by_llama_cpp, by_vllm) = WRONG[case]
    tensors, config = exported(tmp_path / "lora", tiny_model(), ("q_proj",))
    changed = {name: tensors.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"), **tensors}
    assert bool(llama_cpp_refuses(changed, config, 2)) == by_llama_cpp
    assert bool(vllm_refuses(changed, config)) == by_vllm


@pytest.mark.parametrize("values", [{"use_dora": True}, {"modules_to_save": ["x"]}, {"bias": "all"}, {"r": 1024}])
def test_the_table_refuses_configurations(values: dict[str, Any], tmp_path: Path) -> None:
    tensors, config = exported(tmp_path / "lora", tiny_model(), ("q_proj",))
    assert vllm_refuses(tensors, {**config, **values})
