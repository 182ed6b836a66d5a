"""A tiny Llama, two tokenizers and learnable tasks, all built in code: no download, no files."""

import functools
import json
import random
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from abmll.question import Question, Task

Kind = Literal["bpe", "sentencepiece"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKERS = (
    "sun",
    "moon",
    "rain",
    "snow",
)  # a question's marker says which choice is right: the first, second, ...
NOUNS = ("river", "garden", "window", "stone", "horse", "letter", "mountain", "bread")
LABELS = (("yes", "no"), ("true", "false"), ("good", "fair", "poor"), ("left", "right"))
SENTENCES = (
    "Question: the sun is over the river. Answer: A",
    "Context: a moon above the garden and the stone house.",
    "A) yes B) no C) maybe D) never",
    "Which of the following statements is true? Answer with one letter.",
    "The horse walked past the window, and the letter was on the bread.",
    "Rain or snow on the mountain: is it good, fair or poor?",
    "true false left right up down one two three four five six seven eight",
    "Choices: A, B, C, D, E, F. The right answer is B.",
)


def tiny_model(
    vocab_size: int = 512,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    tie: bool = False,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A random Llama in float32, in eval mode and frozen; the global generator is left as it was.

    Weights have std 0.2, ten times the usual: at this width the usual 0.02 gives logits so flat that an
    adapter on q and v changes nothing that a test could see.
    """
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=tie,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.float32)
    return model.eval().requires_grad_(False)


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """A random GPT-2, whose linear layers are `Conv1D` (weights I x O), in eval mode and frozen."""
    config = GPT2Config(
        vocab_size=512,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    return model.eval().requires_grad_(False)


def tiny_tokenizer(kind: Kind = "bpe") -> PreTrainedTokenizerFast:
    """A tokenizer of at most 512 tokens with pad 0, bos 1 and eos 2, trained in code on a few sentences.

    `bpe` is GPT-2-like: byte-level, " A" is one token and another one than "A", nothing is added in front; it
    has a chat template. `sentencepiece` is Llama-2-like: spaces are "▁", every text gets a "▁" in front (also
    the second half of a text that was split), unknown characters fall back to bytes, and bos is added.
    """
    tokenizer = Tokenizer.from_str(_trained(kind))
    names = ("<unk>", "<s>", "</s>") if kind == "sentencepiece" else ("<|pad|>", "<|bos|>", "<|eos|>")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=names[0],
        bos_token=names[1],
        eos_token=names[2],
        **({"unk_token": names[0]} if kind == "sentencepiece" else {}),
    )
    fast.chat_template = CHAT_TEMPLATE if kind == "bpe" else None
    return fast


def save_tiny(folder: Path, kind: Kind = "bpe", seed: int = 0) -> Path:
    """Write a model and its tokenizer as a Hugging Face folder (safetensors) and return the folder."""
    tiny_model(seed=seed).save_pretrained(folder)
    tiny_tokenizer(kind).save_pretrained(folder)
    return folder


def tiny_tasks(n_tasks: int = 4, n_rows: int = 24, n_test: int = 8, seed: int = 0) -> tuple[Task, ...]:
    """Tasks that share one rule: the word sun, moon, rain or snow in a question names the right choice.

    Tasks with an odd number reverse the rule, so that adapting to a task pays as well. Every third task has
    choices that differ from row to row, and a context; the others have fixed labels.
    """
    rng = random.Random(seed)
    tasks = []
    for number in range(n_tasks):
        rows = tuple(_row(rng, number, i) for i in range(n_rows + n_test))
        tasks.append(Task(f"tiny{number}", rows[:n_rows], rows[n_rows:], source="built in code", licence="CC0-1.0"))
    return tuple(tasks)


def write_tasks(folder: Path, tasks: tuple[Task, ...]) -> Path:
    """Write each task as NAME.train.jsonl and NAME.test.jsonl and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        for split, rows in (("train", task.train), ("test", task.test)):
            lines = [json.dumps(_as_dict(row), ensure_ascii=False) + "\n" for row in rows]
            (folder / f"{task.name}.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def _as_dict(row: Question) -> dict[str, object]:
    return {
        "id": row.id,
        "question": row.question,
        "context": row.context,
        "choices": list(row.choices),
        "answer": row.answer,
    }


def _row(rng: random.Random, task: int, number: int) -> Question:
    varied = task % 3 == 2
    choices = tuple(rng.sample(NOUNS, 4)) if varied else LABELS[task % len(LABELS)]
    answer = rng.randrange(len(choices))
    marker = MARKERS[len(choices) - 1 - answer if task % 2 else answer]
    noun = rng.choice(NOUNS)
    context = f"A {noun} and a {rng.choice(NOUNS)}." if varied else ""
    return Question(f"tiny{task}-{number}", f"the {marker} is over {noun} {number}", choices, answer, context)


@functools.cache
def _trained(kind: Kind) -> str:
    # Letters one by one and often, so that " A" .. " Z" become tokens of their own as in real vocabularies.
    letters = " ".join(chr(ord("A") + i) for i in range(26))
    texts = [letters] * 40 + [" " + " ".join(MARKERS + NOUNS)] * 20 + list(SENTENCES) * 4
    return _train_bpe(texts) if kind == "bpe" else _train_sentencepiece(texts)


def _train_bpe(texts: list[str]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|pad|>", "<|bos|>", "<|eos|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def _train_sentencepiece(texts: list[str]) -> str:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=240, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # As in Llama 2's own file: no pre-tokenizer, the dummy prefix is put there by the normalizer.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str()
