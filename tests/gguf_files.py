"""GGUF files of the tiny model, as llama.cpp's converter, its quantiser and its split would write them."""

import json
from pathlib import Path

import gguf
import numpy as np

from tests.tiny import tiny_model, tiny_tokenizer


def write_gguf(
    path: Path,
    architecture: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
    tensors: int = 0,
) -> Path:
    """The tiny model as llama.cpp's converter would write it, the matrices of the MLP quantised.

    Args:
        path: of the file.
        architecture: as it calls itself.
        kind: of the quantised matrices.
        tensors: most of them in a part, `NAME-00001-of-0000N.gguf`; 0: one file.
    """
    model, tokenizer = tiny_model(), tiny_tokenizer()
    config, rules = model.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    tokens += [f"<|unused-{i}|>" for i in range(config.vocab_size - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(merge) for merge in rules["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        _add_tensor(writer, name, weight.numpy(), config.num_attention_heads, config.num_key_value_heads, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tensor(
    writer: gguf.GGUFWriter,
    name: str,
    weight: np.ndarray,
    heads: int,
    kv_heads: int,
    kind: gguf.GGMLQuantizationType,
) -> None:
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    target = mapping.get_name(name, try_suffixes=(".weight",))
    for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
        if part in name:  # llama.cpp keeps the two halves of a rotary pair side by side
            weight = weight.reshape(count, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    if ".mlp." in name:
        writer.add_tensor(target, gguf.quantize(weight, kind), raw_dtype=kind)
    else:
        writer.add_tensor(target, weight)


def split_bytes(path: Path, folder: Path, count: int) -> list[Path]:
    """A file cut into plain pieces, `part1.bin` and so on, the last one the shortest."""
    data = path.read_bytes()
    size = -(-len(data) // count)
    paths = [folder / f"part{number + 1}.bin" for number in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    for number, piece in enumerate(paths):
        piece.write_bytes(data[number * size : (number + 1) * size])
    return paths
