"""What only a CUDA device can show: `make gpu-tests`. Without one they skip, and say so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from abmll.config import RunConfig
from abmll.errors import NonFiniteError
from abmll.kernels.check import check_kernels, is_bad
from abmll.models import LanguageModel
from abmll.question import Question, Task
from abmll.systems.build import build_system
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from abmll.systems.system import System
from tests.systems import TASKS, largest_difference, run_config, tiny_base, train, values
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda")
MEAN = PredictionPlan("mean", 1, 4096)


def on_cuda(base: LanguageModel, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A base model moved there; its tokens stay on the host."""
    return replace(base, model=base.model.to(CUDA, dtype), dtype=dtype, device=CUDA)


def config_of(method: str, capture: bool = True, **settings: Any) -> RunConfig:
    values = run_config(method, training={"iterations": 6}, **settings).model_dump(mode="json")
    return RunConfig.model_validate({**values, "engine": {**values["engine"], "capture": capture}})


def system_with_far_scores(capture: bool) -> System:
    """A Qwen2 of random weights in bfloat16 whose attention scores are all some hundreds below 0."""
    tokenizer = tiny_tokenizer()
    shape = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(shape).eval().requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.q_proj.bias.data.fill_(6.0)
        layer.self_attn.k_proj.bias.data.fill_(-6.0)
    base = replace(tiny_base(), model=model, tokenizer=tokenizer, name="far", fingerprint="far")
    return build_system(config_of("structured", capture, likelihood={"kind": "cloze"}), on_cuda(base, torch.bfloat16))


@pytest.mark.parametrize("capture", [True, False])
def test_cloze_has_gradients_where_cudnn_s_attention_has_none(capture: bool) -> None:
    """PyTorch issue 196678: cuDNN's backward is NaN with a mask at widths of 64 more than a multiple of 128."""
    system = system_with_far_scores(capture)
    system.batcher = replace(system.batcher, buckets=True)
    text, choices = " ".join(["the moon is over horse"] * 6), ("over the moon", "under the horse")
    rows = tuple(Question(str(i), f"where is horse {i}", choices, i % 2, text) for i in range(8))
    (batch,) = system.batcher(rows[:4])
    assert (batch.signature.columns % 128, batch.signature.causal) == (64, False), "of these widths, with a mask"
    system.adapt(Task("far", rows), AdaptationPlan(8, 4))


@pytest.mark.parametrize("rank", [None, *range(1, 13), 15, 16, 17, 20, 24, 32, 33, 48, 64])
def test_kernels_agree_with_float64(rank: int | None) -> None:
    """At the ranks that `abmll doctor` compares, and at more of them: some 20 s of compiling each."""
    verdicts = check_kernels(CUDA, rank)
    assert verdicts, "Triton's kernels are there"
    assert not {name: verdict for name, verdict in verdicts.items() if is_bad(verdict)}


@pytest.mark.parametrize("method", ["lora", "structured", "reptile", "fomaml", "abmll"])
def test_captured_training_is_eager_training(method: str, tmp_path: Path) -> None:
    """In float32, to what another order of sums gives."""
    found = []
    for capture in (True, False):
        config = config_of(method, capture)
        system, _ = train(config, tmp_path / str(capture), system=build_system(config, on_cuda(tiny_base())))
        found.append({name: tensor.cpu() for name, tensor in values(system, "shared").items()})
    assert largest_difference(*found) < 1e-4


@pytest.mark.parametrize("method", ["structured", "abmll"])
def test_the_device_answers_as_the_processor_does(method: str) -> None:
    """After the same steps, by the mean weights, in float32; draws have noise of the same keys."""
    answers = []
    for base in (tiny_base(), on_cuda(tiny_base())):
        system = build_system(config_of(method), base)
        system.adapt(TASKS[1], AdaptationPlan(8, 4))
        for plan in (MEAN, PredictionPlan("weight", 3, 4096)):
            answers.append(np.array([p.probabilities for p in system.predict(TASKS[1].test, plan)]))
    for here, there in zip(answers[:2], answers[2:], strict=True):
        np.testing.assert_allclose(here, there, atol=1e-3)


@pytest.mark.parametrize("capture", [True, False])
def test_what_is_not_finite_is_refused_and_the_device_goes_on(capture: bool) -> None:
    base = on_cuda(tiny_base())
    base.model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(NonFiniteError):
        build_system(config_of("structured", capture), base).adapt(TASKS[0], AdaptationPlan(8, 6))
    after = build_system(config_of("structured", capture), on_cuda(tiny_base()))
    after.adapt(TASKS[0], AdaptationPlan(8, 2))
    assert np.isfinite([p.probabilities for p in after.predict(TASKS[0].test, MEAN)]).all()


def test_a_rate_that_is_too_high_is_refused_or_its_answers_are_numbers() -> None:
    """At 1e30 a processor's gradients are not finite; an H200's were, as a norm divides by what has overflowed."""
    system = build_system(config_of("structured", inner_lr=1e30), on_cuda(tiny_base()))
    try:
        system.adapt(TASKS[0], AdaptationPlan(8, 6))
        answers = [p.probabilities for p in system.predict(TASKS[0].test, MEAN)]
    except NonFiniteError:
        return
    assert np.isfinite(answers).all()
