"""p(D | phi) against a slow scorer: one choice at a time, from the text, by a plain forward pass."""

import copy
import functools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    GraniteConfig,
    MistralConfig,
    MptConfig,
    Qwen2Config,
    masking_utils,
)

from abmll.adapters.attach import StdOptions, attach
from abmll.adapters.layer import AdapterSet
from abmll.errors import AbmllError
from abmll.kernels.noise import key_tensor
from abmll.likelihood import ChoiceLikelihood, ChoiceScores
from abmll.prompts.batches import ChoiceBatch
from abmll.prompts.collate import collate
from abmll.prompts.encode import LETTERS, Encoder
from abmll.question import Question
from tests.tiny import NOUNS, tiny_gpt2, tiny_model, tiny_tasks, tiny_tokenizer

TOKENIZERS = {kind: tiny_tokenizer(kind) for kind in ("bpe", "sentencepiece")}
READINGS = [("cloze", "sum"), ("cloze", "token"), ("cloze", "byte"), ("letter", "token")]
CLOSE = 3e-4
"""How near log-probabilities, which reach -60, and gradients, which reach 3, must come: float32 gives about 1e-5."""
QUESTIONS = (  # two to seven choices, contexts or none, choices that begin alike or with a space, one token to many
    Question("a", "is the sun over the river?", ("yes", "no"), 1),
    Question("b", "which  one?", ("the river", "the garden", "the", " two", "Zürich 🦆", "x", "A"), 4, "A moon.\n"),
    tiny_tasks()[2].train[0],
    Question("d", "?", ("true", "false", "right or left or up or down"), 2, "The horse walked past the window."),
)


def many_questions(count: int) -> list[Question]:
    """Questions of all lengths, two to six choices."""
    rng = random.Random(count)
    out = []
    for i in range(count):
        words = rng.choices(NOUNS, k=rng.randint(1, 12))
        choices = tuple(
            f"{noun} {'seven ' * rng.randint(0, 2)}".strip() for noun in rng.sample(NOUNS, rng.randint(2, 6))
        )
        out.append(Question(f"m{i}", " ".join(words), choices, rng.randrange(len(choices)), rng.choice(["", "rain"])))
    return out


# The slow scorer: shares no code with the package, nor its way of batching


def slow_logits(model: nn.Module, ids: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0]


def slow_text(question: Question, kind: str) -> str:
    head = f"{question.context}\n\n" if question.context else ""
    listed = [f"{letter}) {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return f"{head}Question: {question.question}\n{''.join(listed) if kind == 'letter' else ''}Answer:"


def slow_scores(
    model: nn.Module, tokenizer: Any, question: Question, kind: str, normalisation: str, temperature: Any = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities over the choices, and the table that training descends on: the same, or over the vocabulary."""
    prompt = slow_text(question, kind)
    start = len(tokenizer(prompt)["input_ids"])
    if kind == "letter":
        logits = slow_logits(model, tokenizer(prompt)["input_ids"])[-1] / temperature
        tokens = [tokenizer(f"{prompt} {letter}")["input_ids"][start] for letter in LETTERS[: len(question.choices)]]
        return logits[tokens].log_softmax(-1), logits.log_softmax(-1)[tokens]
    scores = []
    for choice in question.choices:
        ids = tokenizer(f"{prompt} {choice}")["input_ids"]
        table = slow_logits(model, ids).log_softmax(-1)
        total = sum(table[i - 1, ids[i]] for i in range(start, len(ids)))
        lengths = {"sum": 1, "token": len(ids) - start, "byte": len(choice.encode())}
        scores.append(total / lengths[normalisation] / temperature)
    log_probabilities = torch.stack(scores).log_softmax(-1)
    return log_probabilities, log_probabilities


def slow_nll(model: nn.Module, tokenizer: Any, kind: str, normalisation: str, temperature: Any = 1.0) -> Tensor:
    tables = [slow_scores(model, tokenizer, q, kind, normalisation, temperature)[1] for q in QUESTIONS]
    return -sum(table[q.answer] for table, q in zip(tables, QUESTIONS, strict=True)) / len(QUESTIONS)


# Ways of calling the fast one


def batch_of(
    questions: Sequence[Question] = QUESTIONS,
    kind: str = "cloze",
    normalisation: str = "token",
    tokenizer: str = "bpe",
    share_prefix: bool = True,
    **options: Any,
) -> ChoiceBatch:
    encoder = Encoder(TOKENIZERS[tokenizer], kind, normalisation)
    return collate([encoder(q) for q in questions], share_prefix=share_prefix, **options)


def llama(attention: str = "sdpa") -> nn.Module:
    model = tiny_model()
    model.set_attn_implementation(attention)
    return model


def with_adapters(model: nn.Module, **options: Any) -> AdapterSet:
    """Adapters whose means are away from zero, so that all their gradients are too."""
    adapters = attach(model, rank=3, alpha=6.0, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters("task", "mean"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapters


def assert_scores_equal(got: ChoiceScores, row: int, expected: tuple[Tensor, Tensor], tolerance: float = CLOSE) -> None:
    """Equal but for the rounding of float32."""
    count = len(expected[0])
    torch.testing.assert_close(got.log_probabilities[row, :count], expected[0], atol=tolerance, rtol=0)
    assert torch.isneginf(got.log_probabilities[row, count:]).all()
    if got.vocabulary is not None:
        torch.testing.assert_close(got.vocabulary[row, :count], expected[1], atol=tolerance, rtol=0)
        assert torch.isneginf(got.vocabulary[row, count:]).all()


@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize(("kind", "normalisation"), READINGS)
@torch.no_grad()
def test_trust_16_scores_equal_those_of_a_slow_scorer(kind, normalisation, tokenizer, attention, share_prefix) -> None:
    model = llama(attention)
    assert model.config._attn_implementation == attention
    batch = batch_of(QUESTIONS, kind, normalisation, tokenizer, share_prefix)
    got = ChoiceLikelihood(model, kind).scores(batch)
    assert (got.vocabulary is None) == (kind == "cloze")
    for row, question in enumerate(QUESTIONS):
        assert_scores_equal(got, row, slow_scores(model, TOKENIZERS[tokenizer], question, kind, normalisation))


@functools.cache
@torch.no_grad()
def scored_alone(kind: str, share_prefix: bool) -> list[tuple[Tensor, Tensor]]:
    likelihood = ChoiceLikelihood(tiny_model(), kind)
    scores = [likelihood.scores(batch_of([q], kind, share_prefix=share_prefix)) for q in many_questions(32)]
    return [(table[0], (table if vocabulary is None else vocabulary)[0]) for table, vocabulary in scores]


@pytest.mark.parametrize("size", [2, 7, 32])
@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize("kind", ["cloze", "letter"])
@torch.no_grad()
def test_trust_22_a_score_does_not_depend_on_its_batch(kind: str, share_prefix: bool, size: int) -> None:
    likelihood, questions = ChoiceLikelihood(tiny_model(), kind), many_questions(32)
    for start in range(0, len(questions), size):
        together = likelihood.scores(batch_of(questions[start : start + size], kind, share_prefix=share_prefix))
        for row, alone in enumerate(scored_alone(kind, share_prefix)[start : start + size]):
            assert_scores_equal(together, row, alone)


@pytest.mark.parametrize("sampler", ["weight", "activation"])
@torch.no_grad()
def test_trust_22_nor_does_it_under_posterior_noise(sampler: Any) -> None:
    model, questions = tiny_model(), many_questions(9)
    adapters = with_adapters(model, std=StdOptions(init=0.1))
    likelihood = ChoiceLikelihood(model)

    def draw(part: Sequence[Question]) -> ChoiceScores:
        batch = batch_of(part)
        with adapters.drawing(sampler, key_tensor(7), batch.row_keys, batch.token_index):
            return likelihood.scores(batch)

    together, without = draw(questions), likelihood.scores(batch_of(questions))
    assert not torch.allclose(together.log_probabilities[:, :2], without.log_probabilities[:, :2], atol=1e-2)
    for row, question in enumerate(questions):
        alone = draw([question]).log_probabilities[0]
        assert_scores_equal(together, row, (alone, alone))


@pytest.mark.parametrize("buckets", [True, False], ids=["bucket", "tight"])
@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize("kind", ["cloze", "letter"])
@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(kind: str, share_prefix: bool, buckets: bool) -> None:
    likelihood = ChoiceLikelihood(tiny_model(), kind)
    batch = batch_of(QUESTIONS, kind, share_prefix=share_prefix, buckets=buckets)
    padding = batch.reach == 0
    assert padding.any()
    before = likelihood.scores(batch).log_probabilities
    batch.input_ids[padding] = torch.randint(3, 400, (int(padding.sum()),), generator=torch.Generator().manual_seed(0))
    assert torch.equal(likelihood.scores(batch).log_probabilities, before)


# Buckets, repetition, capture


@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize(("kind", "normalisation"), READINGS)
def test_buckets_change_neither_scores_nor_gradients(kind: str, normalisation: str, share_prefix: bool) -> None:
    model = tiny_model()
    factors = with_adapters(model, std=None).parameters("task")
    likelihood, found = ChoiceLikelihood(model, kind), []
    for buckets in (False, True):
        batch = batch_of(QUESTIONS, kind, normalisation, share_prefix=share_prefix, buckets=buckets)
        gradients = torch.autograd.grad(likelihood.nll(batch), factors)
        found.append((likelihood.scores(batch).log_probabilities, gradients))
    (tight, tight_gradients), (wide, wide_gradients) = found
    most = tight.shape[1]
    torch.testing.assert_close(wide[:, :most], tight, atol=CLOSE, rtol=0)
    assert torch.isneginf(wide[:, most:]).all()
    for got, expected in zip(wide_gradients, tight_gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("buckets", [True, False], ids=["bucket", "tight"])
@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize("kind", ["cloze", "letter"])
@torch.no_grad()
def test_a_repeated_batch_scores_each_group_as_if_alone(kind: str, share_prefix: bool, buckets: bool) -> None:
    likelihood = ChoiceLikelihood(tiny_model(), kind)
    batch = batch_of(QUESTIONS, kind, share_prefix=share_prefix, buckets=buckets)
    once, thrice = likelihood.scores(batch), likelihood.scores(batch.repeat(3))
    torch.testing.assert_close(thrice.log_probabilities, once.log_probabilities.repeat(3, 1), atol=CLOSE, rtol=0)
    if once.vocabulary is not None and thrice.vocabulary is not None:
        torch.testing.assert_close(thrice.vocabulary, once.vocabulary.repeat(3, 1), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("targets", ["(q|v)_proj", "lm_head|.*q_proj"], ids=["within", "head too"])
@pytest.mark.parametrize("sampler", ["weight", "activation"])
@torch.no_grad()
def test_draws_side_by_side_are_the_draws_one_by_one(sampler: Any, targets: str) -> None:
    model, batch = tiny_model(), batch_of(QUESTIONS, buckets=True)
    adapters = with_adapters(model, targets=f".*({targets})", std=StdOptions(init=0.1))
    likelihood, keys = ChoiceLikelihood(model), (7, 2**63 + 5, 11)

    def draw(given: ChoiceBatch, *keys: int) -> Tensor:
        with adapters.drawing(sampler, key_tensor(*keys), given.row_keys, given.token_index):
            return likelihood.scores(given).log_probabilities

    alone = torch.cat([draw(batch, key) for key in keys])
    assert not torch.allclose(alone[: len(QUESTIONS), 0], alone[len(QUESTIONS) : 2 * len(QUESTIONS), 0], atol=1e-2)
    torch.testing.assert_close(draw(batch.repeat(3), *keys), alone, atol=CLOSE, rtol=0)


class NoWaiting(TorchDispatchMode):
    """Fails at whatever would make the host wait for a device, or make shapes depend on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "item", "unique", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{func} waits for the device"
        if name.startswith("index"):
            indices = [x for x in pytree.tree_leaves(args[1:]) if isinstance(x, Tensor)]
            assert all(x.dtype != torch.bool for x in indices), f"{func}: a mask as an index waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize("kind", ["cloze", "letter"])
@pytest.mark.parametrize("family", ["llama", "soft caps, window", "logits multiplied, window", "window in all layers"])
def test_a_step_never_waits_for_the_device(family: str, kind: str, share_prefix: bool) -> None:
    model = built(FAMILIES[family]) if family in FAMILIES else tiny_model()
    factors = with_adapters(model, std=None).parameters("task")
    likelihood = ChoiceLikelihood(model, kind, learn_temperature=True)
    batch = batch_of(QUESTIONS, kind, share_prefix=share_prefix, buckets=True)
    with NoWaiting():
        torch.autograd.grad(likelihood.nll(batch), factors)
        likelihood.scores(batch.repeat(2))


def test_the_watch_for_waiting_watches() -> None:
    with NoWaiting():
        with pytest.raises(AssertionError, match="waits"):
            bool(torch.ones(2).sum() > 0)
        with pytest.raises(AssertionError, match="waits"):
            torch.ones(2)[torch.tensor([True, False])]


@pytest.mark.parametrize("capturing", [False, True])
@pytest.mark.parametrize(("kind", "share_prefix"), [("letter", True), ("cloze", False), ("cloze", True)])
@torch.no_grad()
def test_rows_of_one_sequence_take_the_causal_kernels_in_and_out_of_a_capture(
    kind: str, share_prefix: bool, capturing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[bool, bool]] = []
    attention = nn.functional.scaled_dot_product_attention

    def watch(*args: Any, **options: Any) -> Tensor:
        calls.append((options["attn_mask"] is None, options["is_causal"]))
        return attention(*args, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watch)
    monkeypatch.setattr(masking_utils, "is_tracing", lambda tensor=None: capturing)
    names = ("is_tracing", "find_packed_sequence_indices")
    before = [getattr(masking_utils, name) for name in names]
    batch = batch_of(QUESTIONS, kind, share_prefix=share_prefix)
    ChoiceLikelihood(tiny_model(), kind).scores(batch)
    assert batch.causal == (kind == "letter" or not share_prefix)
    assert calls == [(batch.causal, batch.causal)] * 2
    assert [getattr(masking_utils, name) for name in names] == before


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("kind", ["letter", "cloze"])
def test_rows_with_a_mask_are_kept_from_cudnn_whose_gradients_may_be_nan(
    kind: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[bool, bool]] = []
    attention = nn.functional.scaled_dot_product_attention

    def watch(*args: Any, **options: Any) -> Tensor:
        calls.append((options["attn_mask"] is not None, torch.backends.cuda.cudnn_sdp_enabled()))
        return attention(*args, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watch)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(allowed)
        ChoiceLikelihood(tiny_model(), kind).nll(batch_of(QUESTIONS, kind))
        assert torch.backends.cuda.cudnn_sdp_enabled() == allowed, "as it was before"
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert calls == [(kind == "cloze", allowed and kind == "letter")] * 2


# Training


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize(("kind", "normalisation"), READINGS)
@torch.no_grad()
def test_nll_is_that_of_the_right_choice_or_of_the_right_letter_in_the_vocabulary(
    kind: str, normalisation: str, tokenizer: str
) -> None:
    model = tiny_model()
    got = ChoiceLikelihood(model, kind).nll(batch_of(QUESTIONS, kind, normalisation, tokenizer))
    torch.testing.assert_close(got, slow_nll(model, TOKENIZERS[tokenizer], kind, normalisation), atol=CLOSE, rtol=0)


@torch.no_grad()
def test_letter_nll_is_the_cross_entropy_of_the_next_token() -> None:
    model, bpe = tiny_model(), TOKENIZERS["bpe"]
    prompts = [bpe(slow_text(q, "letter"))["input_ids"] for q in QUESTIONS]
    logits = torch.stack([slow_logits(model, ids)[-1] for ids in prompts])
    letters = torch.tensor([bpe(" " + LETTERS[q.answer])["input_ids"][0] for q in QUESTIONS])
    got = ChoiceLikelihood(model, "letter").nll(batch_of(QUESTIONS, "letter"))
    torch.testing.assert_close(got, nn.functional.cross_entropy(logits, letters), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize(("kind", "normalisation"), READINGS)
def test_trust_24_the_gradient_of_the_adapters_is_that_of_the_slow_scorer(
    kind: str, normalisation: str, share_prefix: bool, attention: str
) -> None:
    model = llama(attention)
    adapters = with_adapters(model, std=None)
    factors = adapters.parameters("task")
    fast = ChoiceLikelihood(model, kind, 0.7).nll(batch_of(QUESTIONS, kind, normalisation, share_prefix=share_prefix))
    slow = slow_nll(model, TOKENIZERS["bpe"], kind, normalisation, 0.7)
    torch.testing.assert_close(fast, slow, atol=CLOSE, rtol=0)
    pairs = zip(torch.autograd.grad(fast, factors), torch.autograd.grad(slow, factors), strict=True)
    for got, expected in pairs:
        assert expected.abs().max() > 1e-3, "nothing to compare"
        torch.testing.assert_close(got, expected, atol=CLOSE, rtol=0)


# Temperature


@pytest.mark.parametrize("temperature", [0.25, 3.0])
@pytest.mark.parametrize(("kind", "normalisation"), READINGS)
@torch.no_grad()
def test_the_temperature_divides_scores_or_all_logits(kind: str, normalisation: str, temperature: float) -> None:
    model = tiny_model()
    likelihood = ChoiceLikelihood(model, kind, temperature)
    assert not likelihood.log_temperature.requires_grad
    got = likelihood.scores(batch_of(QUESTIONS, kind, normalisation))
    for row, question in enumerate(QUESTIONS):
        expected = slow_scores(model, TOKENIZERS["bpe"], question, kind, normalisation, temperature)
        assert_scores_equal(got, row, expected, tolerance=CLOSE / min(1.0, temperature))  # errors are scaled as well


@pytest.mark.parametrize(("kind", "normalisation"), READINGS)
def test_a_learned_temperature_gets_the_gradient_of_finite_differences(kind: str, normalisation: str) -> None:
    model, start, step = tiny_model(), 1.7, 1e-4
    likelihood = ChoiceLikelihood(model, kind, start, learn_temperature=True)
    likelihood.nll(batch_of(QUESTIONS, kind, normalisation)).backward()
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        sides = [
            slow_nll(exact, TOKENIZERS["bpe"], kind, normalisation, start * factor)
            for factor in (torch.tensor(step).double().exp(), torch.tensor(-step).double().exp())
        ]
    difference = float(sides[0] - sides[1]) / (2 * step)
    assert abs(difference) > 1e-3
    assert likelihood.log_temperature.grad.item() == pytest.approx(difference, rel=1e-3)


def test_the_state_of_a_likelihood_is_its_temperature_alone() -> None:
    likelihood = ChoiceLikelihood(tiny_model(), temperature=2.0, learn_temperature=True)
    assert {name: value.item() for name, value in likelihood.state_dict().items()} == {
        "log_temperature": pytest.approx(0.6931472)
    }
    assert [name for name, _ in likelihood.named_parameters()] == ["log_temperature"]


@torch.no_grad()
def test_vocabulary_confidences_are_the_softmax_over_all_tokens() -> None:
    model, bpe = tiny_model(), TOKENIZERS["bpe"]
    scores = ChoiceLikelihood(model, "letter").scores(batch_of(QUESTIONS, "letter"))
    for row, question in enumerate(QUESTIONS):
        everything = slow_logits(model, bpe(slow_text(question, "letter"))["input_ids"])[-1].softmax(-1)
        expected = [everything[bpe(f" {letter}")["input_ids"][0]] for letter in LETTERS[: len(question.choices)]]
        got = scores.vocabulary[row].exp()
        torch.testing.assert_close(got[: len(expected)], torch.stack(expected), atol=0, rtol=CLOSE)
        assert got.sum() < 0.9, "the options are not all of the vocabulary"
        assert scores.log_probabilities[row].exp().sum().item() == pytest.approx(1.0, abs=CLOSE)


# Other models


class NoHeadToSee(nn.Module):
    """A model that does not show its output embedding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        """All the logits."""
        return self.model(**inputs)


@pytest.mark.parametrize("shown", [True, False], ids=["head shown", "head hidden"])
@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize("kind", ["cloze", "letter"])
@torch.no_grad()
def test_logits_are_made_where_answer_tokens_are_read_and_nowhere_else(
    kind: str, share_prefix: bool, shown: bool
) -> None:
    model, batch = tiny_model(), batch_of(QUESTIONS, kind, share_prefix=share_prefix)
    expected = ChoiceLikelihood(model, kind).scores(batch).log_probabilities
    shapes: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    got = ChoiceLikelihood(model if shown else NoHeadToSee(model), kind).scores(batch).log_probabilities
    torch.testing.assert_close(got, expected, atol=CLOSE, rtol=0)
    assert shapes == [(1, len(batch.read_row), 512) if shown else (*batch.input_ids.shape, 512)]
    assert kind == "cloze" or len(batch.read_row) == len(QUESTIONS), "letters need one position of each question"
    assert not model.lm_head._forward_pre_hooks, "the model is left as it was"


SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
BOTH_KINDS = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, Any] = {
    "soft caps, window": Gemma2Config(**SMALL, head_dim=8, sliding_window=16, final_logit_softcapping=5.0),
    "logits divided": GraniteConfig(**SMALL, logits_scaling=3.0, residual_multiplier=0.5),
    "logits multiplied, window": Cohere2Config(**SMALL, logit_scale=4.0, sliding_window=16, layer_types=BOTH_KINDS),
    "window in all layers": MistralConfig(**SMALL, sliding_window=16),
    "window switched off": Qwen2Config(**SMALL, sliding_window=16, use_sliding_window=False),
}
ALIBI: dict[str, Any] = {
    "bloom": BloomConfig(vocab_size=512, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
    "mpt": MptConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=4, initializer_range=0.2),
    "falcon": FalconConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, initializer_range=0.2
    ),
}


def built(config: Any) -> nn.Module:
    """A random model of a configuration, in eval mode and frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize("kind", ["cloze", "letter"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_trust_16_models_that_scale_their_logits_or_look_through_a_window(family, kind, share_prefix) -> None:
    model = built(FAMILIES[family])
    batch = batch_of(QUESTIONS, kind, share_prefix=share_prefix)
    assert batch.input_ids.shape[1] > 16, "the window takes no part"
    got = ChoiceLikelihood(model, kind).scores(batch)
    for row, question in enumerate(QUESTIONS):
        assert_scores_equal(got, row, slow_scores(model, TOKENIZERS["bpe"], question, kind, "token"))


@pytest.mark.parametrize("kind", ["cloze", "letter"])
@pytest.mark.parametrize("family", ALIBI)
@torch.no_grad()
def test_trust_16_models_that_count_positions_by_columns_score_one_choice_per_row(family: str, kind: str) -> None:
    likelihood = ChoiceLikelihood(built(ALIBI[family]), kind)
    got = likelihood.scores(batch_of(QUESTIONS, kind, share_prefix=False))
    for row, question in enumerate(QUESTIONS):
        assert_scores_equal(got, row, slow_scores(likelihood._model[0], TOKENIZERS["bpe"], question, kind, "token"))
    if kind == "cloze":
        with pytest.raises(AbmllError, match=r"cannot share a row; set likelihood\.share_prefix=false"):
            likelihood.scores(batch_of(QUESTIONS))


def test_an_attention_without_masks_is_refused_where_choices_share_a_row() -> None:
    model = tiny_model()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(AbmllError, match="attention without masks"):
        ChoiceLikelihood(model).scores(batch_of(QUESTIONS))


@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize(("kind", "normalisation"), READINGS)
@torch.no_grad()
def test_trust_16_a_model_with_learned_absolute_positions_scores_the_same(kind, normalisation, share_prefix) -> None:
    model, questions = tiny_gpt2(), [QUESTIONS[0], QUESTIONS[2]]
    got = ChoiceLikelihood(model, kind).scores(batch_of(questions, kind, normalisation, share_prefix=share_prefix))
    for row, question in enumerate(questions):
        assert_scores_equal(got, row, slow_scores(model, TOKENIZERS["bpe"], question, kind, normalisation))


@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize("kind", ["cloze", "letter"])
@torch.no_grad()
def test_a_bfloat16_model_gives_float32_scores_near_those_of_float32(kind: str, share_prefix: bool) -> None:
    batch = batch_of(QUESTIONS, kind, share_prefix=share_prefix)
    exact = ChoiceLikelihood(tiny_model(), kind).scores(batch).log_probabilities
    got = ChoiceLikelihood(tiny_model().bfloat16(), kind).scores(batch).log_probabilities
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, exact, atol=0.1, rtol=0)
    assert torch.equal(got.argmax(-1), exact.argmax(-1))


def test_what_keeps_choices_from_sharing_a_row_is_said() -> None:
    flash = tiny_model()
    flash.config._attn_implementation_internal = "flash_attention_2"
    column = "takes a token's column for its position"
    for model, reason in (
        (built(ALIBI["bloom"]), f"BloomForCausalLM {column}"),
        (built(ALIBI["falcon"]), f"FalconForCausalLM {column}"),
        (flash, "LlamaForCausalLM has an attention without masks"),
    ):
        with pytest.raises(AbmllError) as caught:
            ChoiceLikelihood(model).scores(batch_of(QUESTIONS))
        assert str(caught.value) == (
            f"{reason}, so the choices of a question cannot share a row; set likelihood.share_prefix=false"
        )


@torch.no_grad()
def test_a_likelihood_reads_choices_at_temperature_1_unless_told_otherwise() -> None:
    plain = ChoiceLikelihood(tiny_model())
    assert plain.kind == "cloze"
    assert plain.log_temperature.tolist() == 0.0
    assert plain.log_temperature.dtype == torch.float32
    assert not plain.log_temperature.requires_grad
    got, said = (x.scores(batch_of(QUESTIONS)) for x in (plain, ChoiceLikelihood(tiny_model(), "cloze", 1.0, False)))
    assert torch.equal(got.log_probabilities, said.log_probabilities)
    assert got.vocabulary is None


@pytest.mark.parametrize(
    ("config", "window", "mixed"),
    [
        (FAMILIES["soft caps, window"], 16, True),
        (FAMILIES["logits multiplied, window"], 16, True),
        (FAMILIES["window in all layers"], 16, False),
        (FAMILIES["window switched off"], None, False),
        (FAMILIES["logits divided"], None, False),
    ],
)
def test_windows_are_those_that_the_configuration_says_layers_have(
    config: Any, window: int | None, mixed: bool
) -> None:
    likelihood = ChoiceLikelihood(built(config))
    assert likelihood._window == window
    if window is not None:
        assert likelihood._mixed == mixed


@torch.no_grad()
def test_a_window_as_long_as_the_rows_masks_nothing_more() -> None:
    """One position less does: the masks are built at the length of the batch, which is the edge."""
    batch = batch_of(QUESTIONS)
    length = batch.input_ids.shape[1]
    expected = ChoiceLikelihood(built(MistralConfig(**SMALL, sliding_window=None))).scores(batch).log_probabilities
    found = {
        window: ChoiceLikelihood(built(MistralConfig(**SMALL, sliding_window=window))).scores(batch).log_probabilities
        for window in (length, length + 5, 4)
    }
    for window in (length, length + 5):
        torch.testing.assert_close(found[window], expected, atol=1e-6, rtol=1e-6)
    assert float((found[4] - expected).nan_to_num().abs().max()) > 1e-3


def test_a_model_of_texts_and_pictures_has_the_windows_of_its_text_part() -> None:
    text = {"sliding_window": 16, "layer_types": BOTH_KINDS, "num_hidden_layers": 2}
    model = nn.Linear(2, 2)
    model.config = Gemma3Config(text_config=text)
    likelihood = ChoiceLikelihood(model)
    assert (likelihood._window, likelihood._mixed) == (16, True)


@torch.no_grad()
def test_a_pass_keeps_no_cache_and_masks_in_the_models_own_dtype() -> None:
    model, caches = tiny_model().bfloat16(), []
    model.register_forward_hook(lambda module, inputs, output: caches.append(output.past_key_values))
    likelihood = ChoiceLikelihood(model)
    likelihood.scores(batch_of(QUESTIONS))
    assert caches == [None]
    mask = likelihood._mask(batch_of(QUESTIONS))
    assert isinstance(mask, Tensor)
    assert mask.dtype == torch.bfloat16
    assert mask.unique().tolist() == [torch.finfo(torch.bfloat16).min, 0.0]
