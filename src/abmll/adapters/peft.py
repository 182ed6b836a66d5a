"""The mean of the shared weights as a stock PEFT LoRA: adapter_config.json and adapter_model.safetensors."""

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save
from torch import Tensor

from abmll.adapters.layer import AdapterSet
from abmll.files import write_bytes, write_text


def write_peft(adapters: AdapterSet, folder: Path, base_model: str, alpha: float) -> None:
    """Write the means as PEFT's files, and the stds beside them in `abmll.safetensors`.

    Stock `PeftModel.from_pretrained` reads the first two and knows nothing of the third.

    Args:
        adapters: the shared slot is written.
        folder: made if needed.
        base_model: what `base_model_name_or_path` says.
        alpha: LoRA's alpha; the scale is alpha / rank.
    """
    write_text(folder / "adapter_config.json", json.dumps(peft_config(adapters, base_model, alpha), indent=1) + "\n")
    shared = adapters.state_dict("shared")
    write_bytes(folder / "adapter_model.safetensors", save(_peft_tensors(shared), metadata={"format": "pt"}))
    stds = {name: _portable(t) for name, t in shared.items() if name.rpartition(".")[2].startswith("std")}
    if stds:
        write_bytes(folder / "abmll.safetensors", save(stds))


def peft_config(adapters: AdapterSet, base_model: str, alpha: float) -> dict[str, Any]:
    """adapter_config.json of the adapted layers, each named by its whole path."""
    first = next(iter(adapters.layers.values())).shared
    config = LoraConfig(
        r=first.rank,
        lora_alpha=alpha,
        target_modules=sorted(adapters.layers),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=any(type(layer.base).__name__ == "Conv1D" for layer in adapters.layers.values()),  # GPT-2
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    values = config.to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}


def _peft_tensors(shared: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"mean_a": "lora_A", "mean_b": "lora_B"}
    found = {}
    for name, tensor in shared.items():
        path, _, factor = name.rpartition(".")
        if factor in names:
            found[f"base_model.model.{path}.{names[factor]}.weight"] = _portable(tensor)
    return found


def _portable(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
