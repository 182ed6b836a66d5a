"""The tiny model and all of the library in float64, where rounding has not grown to anything after a whole run."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from abmll.models import LanguageModel
from tests.systems import tiny_base
from tests.tiny import tiny_model


@contextmanager
def float64() -> Iterator[None]:
    """Inside, what the library makes or asks for as float32 is float64: adapters, optimizer state, noise, logits."""
    plain = torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = plain  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)


def exact_base() -> LanguageModel:
    """The tiny model as a loaded base model in float64, for use within `float64`.

    Its weights are float32 numbers that were drawn in float64: float32 draws have other last places elsewhere. The
    norms and rotary frequencies of transformers are float32 in a model of any dtype, so others take their place.
    """
    model = tiny_model().double()
    for path in [path for path, module in model.named_modules() if path.endswith("norm")]:
        parent, _, name = path.rpartition(".")
        norm = nn.RMSNorm(model.config.hidden_size, model.config.rms_norm_eps, dtype=torch.float64)
        setattr(model.get_submodule(parent), name, norm.requires_grad_(False))
    head = model.config.hidden_size // model.config.num_attention_heads
    theta = model.config.rope_parameters["rope_theta"]
    model.model.rotary_emb.inv_freq = theta ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    return dataclasses.replace(tiny_base(), model=model, dtype=torch.float64)
