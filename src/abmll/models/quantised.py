"""Base models in 4 or 8 bits through bitsandbytes: how they are loaded, and one of its shortcuts taken back."""

import importlib.util

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from abmll.errors import AbmllError, unknown_name

QUANTISATIONS = ("4bit", "8bit")


def quantisation_config(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """What transformers loads a model in 4 (NF4, as in QLoRA) or 8 bits (LLM.int8) by.

    Raises:
        AbmllError: there is no such kind, or bitsandbytes is not installed.
    """
    if kind not in QUANTISATIONS:
        raise unknown_name("model.quantisation", kind, QUANTISATIONS)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise AbmllError(f"model.quantisation={kind} needs a package: `pip install bitsandbytes`")
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def keep_differentiable(model: nn.Module) -> None:
    """Keep gradients flowing through 4-bit layers on CPUs.

    On CPUs with AVX-512 BF16, bitsandbytes repacks a layer for good at the first forward pass whose input needs no
    gradient in eval mode, and the kernel for that packing gives none: adapters in earlier layers then never learn,
    without an error. A model that is adapted after it has predicted is just that case.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
