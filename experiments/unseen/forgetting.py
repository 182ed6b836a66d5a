"""What an adapter costs on text that is no question: next-token NLL of Python's own documentation, against the base."""

import pydoc_data.topics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn

from abmll.metrics.statistics import bootstrap_interval
from abmll.models import LanguageModel

CHUNKS, TOKENS = 64, 256


def general_text() -> str:
    """English that every Python has: the topics of its help system, some 700,000 characters."""
    return "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))


def chunks_of(
    base: LanguageModel, text: str, chunks: int = CHUNKS, tokens: int = TOKENS
) -> Int[Tensor, "chunks tokens"]:
    """Pieces of the text of as many tokens each, evenly spaced over it."""
    ids = base.tokenizer(text, return_tensors="pt").input_ids[0]
    starts = np.linspace(0, len(ids) - tokens, chunks).astype(int)
    return torch.stack([ids[start : start + tokens] for start in starts.tolist()])


@torch.no_grad()
def next_token_nll(
    model: nn.Module, chunks: Int[Tensor, "chunks tokens"], size: int = 4
) -> Float[np.ndarray, "chunks"]:
    """Mean NLL in nats of each chunk's tokens but its first."""
    device, found = next(model.parameters()).device, []
    for part in chunks.split(size):
        ids = part.to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        nll = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        found.append(nll.mean(1).cpu().numpy())
    return np.concatenate(found)


def forgetting(
    base: LanguageModel, adapters: Mapping[str, Path], chunks: Int[Tensor, "chunks tokens"]
) -> dict[str, Any]:
    """NLL of the base and of each adapter, read by stock PEFT, with the interval of the difference over chunks."""
    before = next_token_nll(base.model, chunks)
    told: dict[str, Any] = {
        "chunks": chunks.shape[0],
        "tokens": chunks.shape[1],
        "base": float(before.mean()),
        "adapters": {},
    }
    for name, folder in adapters.items():
        model = PeftModel.from_pretrained(base.model, folder)
        more = next_token_nll(model, chunks) - before
        model.unload()
        told["adapters"][name] = {"more": float(more.mean()), "interval": list(bootstrap_interval(more))}
    return told
