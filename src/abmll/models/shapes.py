"""Known shapes with random weights: for benchmarks and tests, where speed and memory matter and words do not."""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from abmll.errors import unknown_name

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": False,
    },
    "llama-3-70b": {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
    },
    "tiny-llama": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
    },
}
SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>")  # ids 0, 1 and 2


DRAWN_WHOLE = 20_000_000_000
"""Parameters of the largest shape that is drawn whole; layers of larger ones are drawn one by one, so that each can be
spread over processes before the next is there."""


def shape_config(shape: str) -> LlamaConfig:
    """The configuration of a known shape.

    Raises:
        AbmllError: no such shape.
    """
    if shape not in SHAPES:
        raise unknown_name("model shape", shape, SHAPES)
    return LlamaConfig(
        **SHAPES[shape], rms_norm_eps=1e-5, initializer_range=0.02, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )


def build_shape(
    shape: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: str,
    seed: int,
    spread: Callable[[nn.Module], None] = lambda layer: None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model of a known shape with normal weights of std 0.02, and a stand-in tokenizer.

    The weights are drawn on `device` in `dtype`: an 8B model in bfloat16 takes 16 GB there and nothing elsewhere.
    One seed gives one model per kind of device; the global generators are left as they were. Scores of such a
    model mean nothing: it has learned nothing, and its tokenizer is the one of `byte_tokenizer`.

    Args:
        shape: its name.
        dtype, device, attention: of the model.
        seed: of the weights.
        spread: is called with each layer of a shape that is drawn layer by layer, when it is drawn.

    Raises:
        AbmllError: no such shape.
    """
    config = shape_config(shape)
    accelerators = [] if device.type == "cpu" else [torch.empty(0, device=device).get_device()]
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    with torch.random.fork_rng(accelerators, device_type=_generator_of(device)), device:
        torch.manual_seed(seed)
        if skeleton.num_parameters() > DRAWN_WHOLE:
            model = _drawn_by_layer(skeleton, device, spread)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model, byte_tokenizer(config.vocab_size)


@torch.no_grad()
def _drawn_by_layer(
    model: PreTrainedModel, device: torch.device, spread: Callable[[nn.Module], None]
) -> PreTrainedModel:
    """The weights of a model on the meta device, drawn on another one layer after the other, each spread at once."""
    layers = {id(layer) for layer in model.get_decoder().layers}

    def draw(module: nn.Module) -> None:
        for child in module.children():
            draw(child)
        module.to_empty(device=device, recurse=False)
        model._initialize_weights(module)
        if id(module) in layers:
            module.requires_grad_(False)
            spread(module)

    draw(model)
    model.tie_weights()
    return model


def byte_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A stand-in tokenizer: one token per byte, and " A" to " Z" as one token each.

    It reads every text without loss, into about four times as many tokens as a real one. The ids above the bytes and
    letters are names that no text contains, so that its length is `vocab_size` as the model's is.

    >>> byte_tokenizer(512)("Answer: A").input_ids[-1] == byte_tokenizer(512)(" A").input_ids[0]
    True
    """
    letters = [chr(ord("A") + i) for i in range(26)]
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"Ġ{letter}" for letter in letters)]
    tokens += [f"<|unused-{i}|>" for i in range(vocab_size - len(tokens))]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", letter) for letter in letters]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )


def _generator_of(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type  # with no devices listed, only the CPU's is kept
