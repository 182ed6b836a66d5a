"""LanguageModel: a frozen base model with its tokenizer, and the hashes that tell whether it is the same one."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from abmll.errors import AbmllError

MOST_TOKENS = 100_000_000  # numbers of tokens; the largest vocabularies have less than a million
SAMPLES = 256  # weights of each parameter that enter the fingerprint
VOLATILE = {  # what the same model may differ in between two ways or places of loading it
    "_name_or_path",
    "architectures",
    "dtype",
    "quantization_config",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A base model as everything else uses it: in eval mode, no parameter asking for a gradient.

    Attributes:
        model: the causal language model, on `device`.
        tokenizer: its tokenizer; it always has a pad token (the eos token where none was declared).
        name: the source or shape as the user gave it.
        revision: the hub commit, or the version of the package that holds the weights; None for folders, files
            and random weights.
        dtype: of the floating-point weights.
        device: where the weights are.
        fingerprint: SHA-256 over the configuration and a sample of the weights, see `model_fingerprint`.
        tokenizer_hash: SHA-256 over all that decides what text becomes which tokens, see `hash_tokenizer`.
        architecture: SHA-256 over what two quantisations of one model share, see `hash_architecture`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None
    dtype: torch.dtype
    device: torch.device
    fingerprint: str
    tokenizer_hash: str
    architecture: str = ""


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of weights; tied ones count once.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def weight_bytes(model: nn.Module) -> int:
    """Bytes that the parameters and buffers take; tied ones count once, and activations are not in it.

    >>> weight_bytes(nn.Linear(3, 2))
    32
    """
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def fingerprinted_entries(weight: Tensor) -> Tensor:
    """Places of the entries of a parameter, flattened, that `model_fingerprint` goes by."""
    return torch.arange(0, weight.numel(), max(1, weight.numel() // SAMPLES))[:SAMPLES]


def model_fingerprint(model: PreTrainedModel, spread: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256, in hex, that two loads of one model in one dtype share, whatever the device.

    It covers the configuration (less paths, versions and the like) and, of each parameter: name, shape, and 256
    values evenly spaced, as float32. So it is cheap for any size, and it tells models, checkpoints, quantisations
    and dtypes apart; it does not notice a change of a few single weights.

    Args:
        model: its parameters are read, but for those that it has in part.
        spread: of those, the values at `fingerprinted_entries`.
    """
    spread = spread or {}
    digest = hashlib.sha256()
    config = {key: value for key, value in model.config.to_dict().items() if key not in VOLATILE}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"\n{name} {tuple(weight.shape)} ".encode())
        if (sample := spread.get(name)) is None:
            flat = weight.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]
        digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def hash_architecture(model: PreTrainedModel) -> str:
    """SHA-256, in hex, over the layers of a model: the same for any weights, dtype and packing of them.

    It covers the model type, path and size of every linear and embedding layer, and the number of attention heads.
    """
    heads = [getattr(model.config, name, None) for name in ("model_type", "num_attention_heads", "num_key_value_heads")]
    lines = [f"{heads}"]
    for path, module in model.named_modules():
        sizes = [getattr(module, name, None) for name in ("in_features", "out_features")]
        if type(module).__name__ == "Conv1D":  # GPT-2's, which bitsandbytes turns into linear layers
            sizes = list(module.weight.shape)
        if isinstance(module, nn.Embedding):
            sizes = [module.num_embeddings, module.embedding_dim]
        if None not in sizes:
            lines.append(f"{path} {sizes[0]} {sizes[1]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256, in hex, over vocabulary, merges, normalisation, special tokens and chat template.

    Raises:
        AbmllError: a token's number is far too large: the file is damaged, and writing it out would take minutes.
    """
    token, largest = max(tokenizer.get_vocab().items(), key=itemgetter(1), default=("", 0))
    if largest > MOST_TOKENS:
        raise AbmllError(f"tokenizer: the number of {token!r} is {largest:,}; its files are damaged, get them again")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = dict(tokenizer.get_vocab()) if backend is None else json.loads(backend.to_str())
    for setting in ("truncation", "padding"):  # left over from the last call, no property of the tokenizer
        rules.pop(setting, None)
    parts = [rules, {k: str(v) for k, v in tokenizer.special_tokens_map.items()}, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
